"""Benchmark of the parity tests: are their p-values right, and how soon do they catch a fault?

    python bench/parity.py [--parts null,power]

On a small random model, at T = 0.7 and top_p = 0.9 (and top_p = 1 for top-k). Parts:

- null: p-values of every test over many runs of right engines (Hugging Face's and a reference in
  plain numpy): their share below 5 %, a Kolmogorov-Smirnov test that they are uniform (those of
  bets are larger), and the rate at which the verdict fails.
- power: for every broken engine of the gallery, how many draws catch it in 95 % of runs, when it
  reports the log q of what it samples from, and when it reports none.

Prints a table per part, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from _gallery import (
    GALLERY,
    STALE_ADAPTER,
    Broken,
    ReferenceEngine,
    byte_tokenizer,
    random_model,
    requests_of,
)
from rich.console import Console
from rich.table import Table
from scipy import stats
from transformers import LlamaConfig

from seqproc.engines import Engine, HFEngine, StoppingRule
from seqproc.parity import (
    FALSE_ALARMS,
    Answer,
    decide,
    sample,
    sampler_findings,
    score_nominal,
)
from seqproc.parity.betting.evidence import evidence
from seqproc.parity.betting.findings import bet_findings
from seqproc.parity.metrics import LOGIT_ERRORS, tolerance
from seqproc.parity.subject import all_findings
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer

STOPPING = StoppingRule(max_new_tokens=24, eos_token_ids=(0,), stop=("q", "x"))
NUCLEUS, WHOLE = SamplingPolicy(temperature=0.7, top_p=0.9), SamplingPolicy(temperature=0.7)
PER_PROMPT = 4
NULL_DRAWS = 128  # of a run
POOL = 6_400  # draws that are sampled and scored together
POWER, POWER_RUNS = 0.95, 20
LEAST_DRAWS, MOST_DRAWS = 8, 2_048


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """One test over runs of one right engine."""

    engine: str
    test: str
    num_runs: int  # that it was decided in
    share_below_5_percent: float
    uniformity_p: float  # of its p-values


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """One broken engine, with or without the log q that it reports."""

    engine: str
    reports_log_q: bool
    num_draws: int | None  # that catch it; None: not even the most that were tried
    num_tokens: float | None  # on average in so many draws
    share: float  # of runs in which they did
    tests: list[str]  # that failed in at least half of the runs


class Range:
    """A model with its scorer, and requests."""

    def __init__(self) -> None:
        self.tokenizer = byte_tokenizer()
        fields = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "initializer_range": 0.5,
        }
        self.model = random_model(LlamaConfig, self.tokenizer, 0, fields)
        self.scorer = TeacherForcingScorer(self.model, STOPPING.eos_token_ids)

    def answers(
        self, engine: Engine, policy: SamplingPolicy, num_draws: int, seed: int
    ) -> list[Answer]:
        """Draws of prompts that differ in their tokens and lengths."""
        requests, owners = requests_of(num_draws, PER_PROMPT, seed)
        return sample(engine, requests, owners, policy, STOPPING)


def null(bench: Range, num_runs: int) -> list[Null]:
    """P-values of right engines, and last, under the name "verdict", the rate of false alarms."""
    engines = (
        HFEngine(bench.model, bench.tokenizer, batch_size=1_600),
        ReferenceEngine(bench.model, bench.tokenizer, batch_size=1_600),
    )
    return [row for engine in engines for row in _null_rows(bench, engine, num_runs)]


def _null_rows(bench: Range, engine: Engine, num_runs: int) -> Iterable[Null]:
    p_values: dict[str, list[float]] = defaultdict(list)
    alarms = dict.fromkeys((0.05, FALSE_ALARMS), 0)
    runs = _null_runs(bench, engine, num_runs)
    for number, findings in enumerate(runs, 1):
        for one in findings:
            if one.p_value is not None:
                p_values[one.name].append(one.p_value)
        for rate in alarms:
            alarms[rate] += not decide(findings, rate).holds
        if number == num_runs:
            break
    for name, found in p_values.items():
        yield Null(
            engine=engine.name,
            test=name,
            num_runs=len(found),
            share_below_5_percent=float(np.mean(np.array(found) < 0.05)),
            uniformity_p=float(stats.kstest(found, "uniform").pvalue),
        )
    for rate, count in alarms.items():
        yield Null(
            engine=engine.name,
            test=f"verdict at {rate:g}",
            num_runs=num_runs,
            share_below_5_percent=count / num_runs,
            uniformity_p=float(stats.binomtest(count, num_runs, rate, "greater").pvalue),
        )


def _null_runs(bench: Range, engine: Engine, num_runs: int) -> Iterable[Any]:
    for pool in range(-(-num_runs * NULL_DRAWS // POOL)):
        answers = bench.answers(engine, NUCLEUS, POOL, seed=pool)
        error = LOGIT_ERRORS["float32"]
        draws, nominal = score_nominal(answers, bench.scorer, NUCLEUS, error, seed=pool)
        assert nominal.gains is not None
        for first in range(0, POOL, NULL_DRAWS):
            some = first, first + NULL_DRAWS
            bets = bet_findings(evidence(nominal.gains.some(*some)), error)
            yield [*sampler_findings(draws.some(*some)), *bets]


def power(bench: Range, num_runs: int) -> list[Caught]:
    """Doubles the draws of a run until enough of the runs catch the fault."""
    return [
        _caught(bench, broken, num_runs, reports_log_q)
        for reports_log_q in (True, False)
        for broken in (*GALLERY, STALE_ADAPTER)
        if reports_log_q or broken.link != "log q"
    ]


def _caught(bench: Range, broken: Broken, num_runs: int, reports_log_q: bool) -> Caught:
    engine = broken.build(bench.model, bench.tokenizer)
    engine.batch_size = 1_600
    policy = WHOLE if "top_k" in broken.name else NUCLEUS
    num_draws = LEAST_DRAWS
    while True:
        answers = bench.answers(engine, policy, num_draws * num_runs, seed=num_draws)
        if not reports_log_q:
            answers = [_silent(answer) for answer in answers]
        runs = [answers[i : i + num_draws] for i in range(0, len(answers), num_draws)]
        failed = [_failed(bench, run, policy) for run in runs]
        share = float(np.mean([bool(names) for names in failed]))
        if share >= POWER or num_draws >= MOST_DRAWS:
            break
        num_draws *= 2
    names = [name for one in failed for name in one]
    tokens = sum(len(answer.completion.token_ids) for answer in answers) / num_runs
    enough = share >= POWER
    return Caught(
        engine=broken.name,
        reports_log_q=reports_log_q,
        num_draws=num_draws if enough else None,
        num_tokens=tokens if enough else None,
        share=share,
        tests=sorted(name for name in set(names) if names.count(name) >= num_runs / 2),
    )


def _silent(answer: Answer) -> Answer:
    return replace(answer, completion=replace(answer.completion, logqs=None))


def _failed(bench: Range, answers: Sequence[Answer], policy: SamplingPolicy) -> tuple[str, ...]:
    error = LOGIT_ERRORS["float32"]
    draws, nominal = score_nominal(answers, bench.scorer, policy, error)
    findings = all_findings(
        answers, draws, nominal, bench.tokenizer, STOPPING, policy, tolerance(error, policy)
    )
    return decide(findings).failed


def _table(title: str, rows: Sequence[Any]) -> Table:
    table = Table(*asdict(rows[0]), title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_shown(value) for value in asdict(row).values()))
    return table


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def main() -> None:
    """Measure, show a table per part, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default="null,power", help="comma-separated")
    parser.add_argument("--runs", type=int, default=2_000, help="of each right engine")
    parser.add_argument("--power-runs", type=int, default=POWER_RUNS, help="of each broken one")
    options = parser.parse_args()
    bench, console = Range(), Console(width=150)
    parts: dict[str, Callable[[], Sequence[Any]]] = {
        "null": lambda: null(bench, options.runs),
        "power": lambda: power(bench, options.power_runs),
    }
    results: dict[str, list[dict[str, Any]]] = {}
    start = time.perf_counter()
    for part in options.parts.split(","):
        rows = parts[part]()
        console.print(_table(part, rows))
        results[part] = [asdict(row) for row in rows]
    hardware = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({**results, **hardware, "torch": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main()
