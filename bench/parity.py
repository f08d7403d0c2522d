"""Benchmark of the parity tests: how often do right engines fail, and are their p-values right?

    python bench/parity.py [--runs 2000] [--models 4]

Runs of 128 draws of right engines (Hugging Face's and a reference sampler), on several small
random models under several policies, in equal shares. Shows

- the p-values of every test, over all runs: their share below 5 %, and a Kolmogorov-Smirnov test
  that they are uniform (those of bets, and of what is exact, are larger);
- how many runs fail at false alarms of 0.05 and of 0.001, and the exact upper bound on the rate,
  at 95 % confidence (Clopper and Pearson, 1934).

`bench/power.py` and `bench/random_faults.py` have broken engines. Prints a line per pool of runs as
it is done, a table each, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from _gallery import PER_PROMPT, ReferenceEngine, small_range
from _pool import pool_of
from rich.console import Console
from rich.table import Table
from scipy import stats

from seqproc.engines import Engine, HFEngine
from seqproc.parity import FALSE_ALARMS, Finding, decide
from seqproc.policy import SamplingPolicy

POLICIES = tuple(
    SamplingPolicy(temperature=temperature, top_p=top_p)
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.95), (1.3, 0.9), (0.7, 1.0))
)
RUN_DRAWS = 128
POOL_RUNS = 16  # that are sampled and scored together
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


def runs(num_runs: int, num_models: int) -> Iterator[tuple[str, list[Finding]]]:
    """An engine's name and the findings of a run; models, policies and engines in turns."""
    start = time.perf_counter()
    models = [small_range(seed) for seed in range(num_models)]
    combinations = list(itertools.product(models, POLICIES, (HFEngine, ReferenceEngine)))
    for number in range(-(-num_runs // POOL_RUNS)):
        small, policy, kind = combinations[number % len(combinations)]
        engine: Engine = kind(small.model, small.tokenizer, batch_size=512)
        draws = RUN_DRAWS * POOL_RUNS
        pool = pool_of(engine, small, policy, draws, seed=number)
        for first in range(0, draws, RUN_DRAWS):
            yield engine.name, pool.findings(first, first + RUN_DRAWS)
        seconds = time.perf_counter() - start
        done = (number + 1) * POOL_RUNS
        print(f"{seconds:.0f} s | {done} runs | {engine.name}, {policy}", flush=True)


def tests_of(found: Sequence[tuple[str, list[Finding]]]) -> list[Test]:
    """All tests of each engine."""
    p_values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for engine, findings in found:
        for finding in findings:
            if finding.p_value is not None:
                p_values[engine, finding.name].append(finding.p_value)
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


def alarms_of(found: Sequence[tuple[str, list[Finding]]]) -> list[Alarms]:
    """Of each engine, and of both, at each stated rate."""
    by_engine = {name: [f for n, f in found if n == name] for name in sorted({n for n, _ in found})}
    by_engine["both"] = [findings for _, findings in found]
    return [_alarms(name, findings, rate) for name, findings in by_engine.items() for rate in RATES]


def _alarms(engine: str, found: Sequence[list[Finding]], rate: float) -> Alarms:
    verdicts = [decide(findings, rate) for findings in found]
    failed = sum(not verdict.holds for verdict in verdicts)
    interval = stats.binomtest(failed, len(found), alternative="less").proportion_ci(CONFIDENCE)
    return Alarms(
        engine=engine,
        stated_rate=rate,
        num_runs=len(found),
        num_failed=failed,
        rate_at_most=float(interval.high),
        failed=dict(Counter(name for verdict in verdicts for name in verdict.failed)),
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
    parser.add_argument("--runs", type=int, default=2_048, help="of both engines together")
    parser.add_argument("--models", type=int, default=4, help="random models, each of its own seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, console = time.perf_counter(), Console(width=150)
    found = list(runs(options.runs, options.models))
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
