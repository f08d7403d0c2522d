"""Benchmark of the parity tests: how often do right engines fail, and are their p-values right?

    python bench/parity.py [--runs 2048] [--models 4] [--vllm coupled [--runner V2]] [--seed 0]

Runs of 128 draws of right engines (Hugging Face's and a reference sampler), on several small
random models under several policies, in equal shares. Shows

- the p-values of every test, over all runs: their share below 5 %, and a Kolmogorov-Smirnov test
  that they are uniform (those of bets, and of `twins`, are larger);
- how many runs fail at false alarms of 0.05 and of 0.001, and the exact upper bound on the rate,
  at 95 % confidence (Clopper and Pearson, 1934);
- the same of runs of 512 draws that are looked at after 64 of them, and each time they are half as
  many again, and end at the first look that rejects the engine.

With `--vllm SAMPLER` the engine is vLLM's on the first of the models, in place of those two. Its
model runner V2 runs in Triton's interpreter where there is no GPU.

`bench/power.py` and `bench/random_faults.py` have broken engines. Prints a line per pool of runs as
it is done, a table each, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from _gallery import PER_PROMPT, Range, ReferenceEngine, install, small_range
from _pool import Pool, pool_of
from rich.console import Console
from rich.table import Table
from scipy import stats

from seqproc.engines import Engine, HFEngine, ModelSource, create_engine
from seqproc.parity import FALSE_ALARMS, Finding, decide
from seqproc.parity.sequential import batches
from seqproc.parity.verdict import decide_at
from seqproc.policy import SamplingPolicy

POLICIES = tuple(
    SamplingPolicy(temperature=temperature, top_p=top_p)
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.95), (1.3, 0.9), (0.7, 1.0))
)
RUN_DRAWS = 128
POOL_RUNS = 16  # that are sampled and scored together
STOPPED_DRAWS, FIRST_LOOK = 512, 64  # of a run that ends when it fails
RATES = (0.05, FALSE_ALARMS)
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """P-values of one test over runs of right engines."""

    engine: str
    test: str
    num_runs: int  # that it was decided in
    share_below_5_percent: float
    uniformity_p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarms:
    """How often a right engine fails."""

    engine: str
    stated_rate: float
    num_runs: int
    num_failed: int
    rate_at_most: float  # at 95 % confidence
    failed: dict[str, int]  # runs by test that failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What a right engine's runs came to."""

    engine: str
    findings: list[list[Finding]]  # of each run of a number of draws that is fixed before
    stopped: list[dict[float, tuple[str, ...]]]  # of each that ends when it fails: tests, by rate


def runs(
    num_runs: int, num_models: int, sampler: str | None, runner: str, seed: int
) -> Iterator[Runs]:
    """Pools of runs; models, policies and engines in turns."""
    start = time.perf_counter()
    number_of = num_models if sampler is None else 1
    changes = {} if sampler is None else {"head_dim": 32}  # vLLM's attention has none of 8
    models = [small_range(number_of * seed + n, **changes) for n in range(number_of)]
    with ExitStack() as stack:
        engines = [
            (small, engine)
            for small in models
            for engine in (_engines(small) if sampler is None else [_vllm(small, sampler, stack)])
        ]
        combinations = list(itertools.product(POLICIES, engines))
        for number in range(-(-num_runs // POOL_RUNS)):
            policy, (small, engine) = combinations[number % len(combinations)]
            name = engine.name if sampler is None else f"vllm {runner}, {sampler}"
            draws = RUN_DRAWS * POOL_RUNS
            pool = pool_of(engine, small, policy, draws, seed=1_000 * seed + number)
            found = Runs(
                engine=name,
                findings=[pool.findings(a, a + RUN_DRAWS) for a in range(0, draws, RUN_DRAWS)],
                stopped=[_stopped(pool, first) for first in range(0, draws, STOPPED_DRAWS)],
            )
            failed = {
                rate: sum(not decide(findings, rate).holds for findings in found.findings)
                for rate in RATES
            }
            ended = {rate: sum(bool(one[rate]) for one in found.stopped) for rate in RATES}
            print(
                f"{time.perf_counter() - start:.0f} s | {(number + 1) * POOL_RUNS} runs | "
                f"{name}, {policy} | failed {failed} | stopped {ended}",
                flush=True,
            )
            yield found


def _engines(small: Range) -> list[Engine]:
    kinds = (HFEngine, ReferenceEngine)
    return [kind(small.model, small.tokenizer, batch_size=512) for kind in kinds]


def _vllm(small: Range, sampler: str, stack: ExitStack) -> Engine:
    source = stack.enter_context(ModelSource.from_model(small.model, small.tokenizer))
    options = {"sampler": sampler, "max_num_seqs": 64}
    return stack.enter_context(create_engine("vllm", source, **options))


def choose_runner(name: str) -> None:
    """Which of its model runners vLLM will take; it reads that when it is imported."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(name == "V2"))
    if name == "V2" and not torch.cuda.is_available():
        install()


def _stopped(pool: Pool, first: int) -> dict[float, tuple[str, ...]]:
    """The tests that reject at the first look that does, by the rate of false alarms."""
    owners = [answer.prompt for answer in pool.answers[first : first + STOPPED_DRAWS]]
    failed: dict[float, tuple[str, ...]] = dict.fromkeys(RATES, ())
    for look, chosen in enumerate(batches(owners, FIRST_LOOK), 1):
        findings = pool.findings(first, first + chosen.stop)
        for rate in RATES:
            failed[rate] = failed[rate] or decide_at(look, findings, rate).failed
    return failed


def tests_of(found: Sequence[Runs]) -> list[Test]:
    """All tests of each engine."""
    p_values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for some in found:
        for finding in itertools.chain(*some.findings):
            if finding.p_value is not None and not finding.is_exact:
                p_values[some.engine, finding.name].append(finding.p_value)
    return [
        Test(
            engine=engine,
            test=test,
            num_runs=len(values),
            share_below_5_percent=float(np.mean(np.array(values) < 0.05)),
            uniformity_p=float(stats.kstest(values, "uniform").pvalue),
        )
        for (engine, test), values in p_values.items()
    ]


def alarms_of(found: Sequence[Runs]) -> list[Alarms]:
    """Of each engine, and of all, at each stated rate."""
    names = sorted({some.engine for some in found})
    groups = {name: [some for some in found if some.engine == name] for name in names}
    if len(names) > 1:
        groups["all"] = list(found)
    rows = []
    for name, some in groups.items():
        for rate in RATES:
            fixed = [decide(f, rate).failed for one in some for f in one.findings]
            stopped = [failed[rate] for one in some for failed in one.stopped]
            rows += [_alarms(name, rate, fixed), _alarms(f"{name}, stopped", rate, stopped)]
    return rows


def _alarms(engine: str, rate: float, failed: Sequence[tuple[str, ...]]) -> Alarms:
    number = sum(bool(names) for names in failed)
    interval = stats.binomtest(number, len(failed), alternative="less").proportion_ci(CONFIDENCE)
    return Alarms(
        engine=engine,
        stated_rate=rate,
        num_runs=len(failed),
        num_failed=number,
        rate_at_most=float(interval.high),
        failed=dict(Counter(itertools.chain(*failed))),
    )


def _table(title: str, rows: Sequence[Any]) -> Table:
    table = Table(*asdict(rows[0]), title=title, title_justify="left")
    for row in rows:
        cells = asdict(row).values()
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in cells))
    return table


def main() -> None:
    """Measure, show the tables, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=2_048, help="of all engines together")
    parser.add_argument("--models", type=int, default=4, help="random models, each of its own seed")
    parser.add_argument("--vllm", metavar="SAMPLER", help="native or coupled")
    parser.add_argument("--runner", choices=("V1", "V2"), default="V1", help="vLLM's")
    parser.add_argument("--seed", type=int, default=0, help="of the models and of the draws")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.vllm is not None:
        choose_runner(options.runner)
    start, console = time.perf_counter(), Console(width=150)
    found = list(runs(options.runs, options.models, options.vllm, options.runner, options.seed))
    parts: dict[str, Sequence[Any]] = {"tests": tests_of(found), "alarms": alarms_of(found)}
    for title, rows in parts.items():
        console.print(_table(title, rows))
    results = {title: [asdict(row) for row in rows] for title, rows in parts.items()}
    hardware = {"machine": platform.machine(), "torch": torch.__version__}
    settings = {"models": options.models, "draws": RUN_DRAWS, "per_prompt": PER_PROMPT}
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({**results, **settings, **hardware, "seconds": seconds}))


if __name__ == "__main__":
    main()
