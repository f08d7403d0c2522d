"""Benchmark of parity: how many draws it takes to see a fault, beside the best test there is.

    python bench/power.py [--pool 2048] [--runs 64] [--faults "penalty"] [--policies 0,1,2]

For every broken engine of `tests/helpers/broken.py` under each policy, on a small random model.
One pool of draws is sampled and scored, and cut into runs of 8, 16, 24, 32, 48, … draws. The draws
for 95 % power are interpolated between these, for an engine that reports no log q and for one that
reports what it samples from. Beside them, at the same false-alarm rate of 0.001:

- Wald: log(1/α) / KL(r‖q), which no test that stops when it likes needs less of, on average;
- Neyman-Pearson: the draws of the test that knows r, which no test has more power than. By the
  normal approximation, so that figures below 10 are rough.

Both know the fault; parity does not. They need r, so that engines whose fault is not one of the
distribution of a token have neither. Where q cannot emit what r does, KL is infinite.

Prints a line per engine and policy as it is measured, with the causes that 256 draws are said to
have, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from _gallery import (
    FAULTS,
    PER_PROMPT,
    POLICIES,
    Fault,
    FaultyEngine,
    Range,
    Ratios,
    least_draws,
    own_ratios,
    right_ratios,
    small_range,
)
from _pool import REPORTED, Pool, pool_of

from seqproc.parity import FALSE_ALARMS, Answer, decide
from seqproc.policy import SamplingPolicy

POWER = 0.95
CAUSE_DRAWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One broken engine under one policy; None where there is no such number."""

    fault: str
    temperature: float
    top_p: float
    in_catalogue: bool
    nats: float | None  # KL(r‖q) of a draw; ∞ where q cannot emit what r does
    wald: float | None  # draws
    neyman_pearson: float | None  # draws for 95 % power
    silent: float | None  # ours, without log q; None: not even half of the pool
    reporting: float | None  # ours, with log q
    causes: dict[str, list[str]]  # of 256 draws, without and with log q; empty: it holds

    @property
    def ratio(self) -> float | None:
        """Our draws without log q, by those of the best test."""
        if self.silent is None or not self.neyman_pearson:
            return None
        return self.silent / max(self.neyman_pearson, 1.0)


def rows(
    small: Range,
    faults: Sequence[Fault],
    policies: Sequence[SamplingPolicy],
    num_draws: int,
    num_runs: int,
) -> Iterator[Row]:
    """One after the other."""
    for policy in policies:
        right = pool_of(
            FaultyEngine(small.model, small.tokenizer), small, policy, num_draws, seed=1
        )
        for fault in faults:
            if fault.is_fault(policy):
                yield _row(small, fault, policy, num_draws, num_runs, right.answers)


def _row(
    small: Range,
    fault: Fault,
    policy: SamplingPolicy,
    num_draws: int,
    num_runs: int,
    right: Sequence[Answer],
) -> Row:
    pool = pool_of(fault.build(small.model, small.tokenizer), small, policy, num_draws)
    ratios = None
    if fault.has_ratio:
        ratios = Ratios(
            under_r=own_ratios(pool.draws, pool.nominal),
            under_q=right_ratios(fault, small, right, policy),
        )
    silent, reporting = draws_needed(pool, num_runs)
    nats = None if ratios is None else ratios.divergence
    return Row(
        fault=fault.name,
        temperature=policy.temperature,
        top_p=policy.top_p,
        in_catalogue=fault.words is not None,
        nats=nats,
        wald=None if nats is None else _over(math.log(1 / FALSE_ALARMS), nats),
        neyman_pearson=None if ratios is None else least_draws(ratios, FALSE_ALARMS, POWER),
        silent=silent,
        reporting=reporting,
        causes={
            words: _causes(small, fault, policy, is_silent)
            for words, is_silent in (("silent", True), ("reporting", False))
        },
    )


def _over(evidence: float, nats: float) -> float:
    return math.inf if nats <= 0 else evidence / nats


def draws_needed(pool: Pool, num_runs: int) -> tuple[float | None, float | None]:
    """Draws for 95 % power, without the reported log q and with it."""
    powers: dict[bool, list[tuple[int, float]]] = {True: [], False: []}
    for num_draws in _sizes(len(pool.answers) // 2):
        runs = list(pool.runs(num_draws, num_runs))
        for is_silent, found in powers.items():
            told = [[f for f in run if not is_silent or f.name != REPORTED] for run in runs]
            found.append((num_draws, float(np.mean([not decide(run).holds for run in told]))))
        if powers[True][-1][1] >= POWER:
            break
    return _interpolated(powers[True]), _interpolated(powers[False])


def _sizes(most: int) -> list[int]:
    """Of runs of whole prompts: 8, 16, 24, 32, 48, 64, 96, …"""
    powers = [PER_PROMPT << n for n in range(most.bit_length())]
    halfway = [3 * power // 2 for power in powers[1:]]
    return sorted(size for size in [*powers, *halfway] if size <= most)


def _interpolated(powers: Sequence[tuple[int, float]]) -> float | None:
    """Where the power crosses 95 %, on the logarithm of the draws; the fewest tried at least."""
    reached = next((n for n, (_, power) in enumerate(powers) if power >= POWER), None)
    if reached is None:
        return None
    upper, power = powers[reached]
    if not reached:
        return float(upper)
    lower, before = powers[reached - 1]
    return float(lower * (upper / lower) ** ((POWER - before) / (power - before)))


def _causes(small: Range, fault: Fault, policy: SamplingPolicy, silent: bool) -> list[str]:
    engine = fault.build(small.model, small.tokenizer, silent=silent)
    found = small.check(engine, num_draws=CAUSE_DRAWS, policy=policy, seed=2)
    return [" or ".join([cause.description, *cause.contenders]) for cause in found.causes]


def line(row: Row) -> str:
    """A row for people."""
    causes = {words: "; ".join(found) or "holds" for words, found in row.causes.items()}
    return (
        f"{row.fault} | {row.temperature:g}, {row.top_p:g} | {_number(row.nats)} nats | "
        f"Wald {_number(row.wald)} | Neyman-Pearson {_number(row.neyman_pearson)} | "
        f"silent {_number(row.silent)} | reporting {_number(row.reporting)} | "
        f"ratio {_number(row.ratio)} | {causes['silent']} | {causes['reporting']}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _json(value: object) -> object:
    """JSON has no infinity."""
    return "infinite" if value == math.inf else value


def main() -> None:
    """Measure, with a line per row, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pool", type=int, default=2_048, help="draws of each engine")
    parser.add_argument("--runs", type=int, default=64, help="of each number of draws, at most")
    parser.add_argument("--faults", default="", help="those with this in their names")
    parser.add_argument("--policies", default="0,1,2", help="by number, comma-separated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, found = time.perf_counter(), []
    faults = [fault for fault in FAULTS if options.faults in fault.name]
    policies = [POLICIES[int(number)] for number in options.policies.split(",")]
    for row in rows(small_range(), faults, policies, options.pool, options.runs):
        print(f"{time.perf_counter() - start:.0f} s | {line(row)}", flush=True)
        found.append({name: _json(value) for name, value in asdict(row).items()})
    settings = {"pool": options.pool, "runs": options.runs, "false_alarms": FALSE_ALARMS}
    hardware = {"machine": platform.machine(), "torch": torch.__version__}
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"rows": found, **settings, **hardware, "seconds": seconds}))


if __name__ == "__main__":
    main()
