"""Benchmark of parity: engines with one or two faults put together at random, and what is missed.

    python bench/random_faults.py --seed 1 [--engines 200] [--draws 256]

Each has a random kind of fault, strength and place (all tokens, the first, those from some step on,
some draws, one prompt, the later half of the draws), under one of three policies, with or without
its log q. Kinds are among the catalogue's and others. Beside the verdict and the causes stands how
much evidence the draws of the run hold: Σ log r/q of the exact r, in nats. A test that knows r and
holds false alarms to α sees about log(1/α) = 6.9 of them. Faults of the randomness have no r.

Prints a line per engine, what was missed, and last one line of JSON. Use a seed of your own: those
that were looked at while the tests were made tell less.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from _gallery import (
    PER_PROMPT,
    POLICIES,
    STOPPING,
    FaultyEngine,
    Range,
    faults,
    own_ratios,
    requests_of,
    small_range,
)
from _pool import ERROR
from torch import Tensor

from seqproc.engines import Request
from seqproc.parity import sample, score_nominal
from seqproc.parity.causes.cause import Cause
from seqproc.policy import SamplingPolicy

EVIDENCE = (14.0, 25.0, 50.0)  # nats, above which a miss is counted
ONE = 0.6  # share of engines with one fault; the others have two
NOISE = 0.15  # share whose randomness is at fault

Generator = np.random.Generator
Distribution = faults.Distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One engine, and what 256 draws were said to be."""

    number: int
    fault: str
    temperature: float
    top_p: float
    silent: bool
    nats: float | None  # Σ log r/q of all draws; ∞: q cannot emit them; None: it has no r
    caught: bool
    failed: list[str]
    causes: list[str]  # in words, with contenders; "in part" where more is left to explain


# ---------------------------------------------------------------------- kinds


def _strength(random: Generator, low: float, high: float) -> float:
    return float(math.exp(random.uniform(math.log(low), math.log(high))))


def _sign(random: Generator) -> float:
    return float(random.choice([-1.0, 1.0]))


def _hotter(random: Generator) -> tuple[str, Distribution]:
    factor = math.exp(_sign(random) * _strength(random, 0.01, 0.5))
    return f"T × {factor:.3g}", faults.hotter(factor)


def _top_p(random: Generator) -> tuple[str, Distribution]:
    change = _sign(random) * _strength(random, 0.002, 0.1)
    return f"top_p {change:+.3g}", faults.top_p_by(change)


def _eos(random: Generator) -> tuple[str, Distribution]:
    bias = _sign(random) * _strength(random, 0.05, 3)
    return f"EOS {bias:+.3g}", faults.biased([0], bias)


def _tokens(random: Generator) -> tuple[str, Distribution]:
    ids = random.choice(range(1, 300), int(_strength(random, 1, 100)), replace=False).tolist()
    bias = _sign(random) * _strength(random, 0.05, 3)
    return f"{len(ids)} tokens {bias:+.3g}", faults.biased(ids, bias)


def _noisy(random: Generator) -> tuple[str, Distribution]:
    size = _strength(random, 0.01, 0.5)
    noise = torch.from_numpy(size * random.standard_normal(300))
    return f"logits ± {size:.3g}", faults.of_logits(lambda places: places.logits + noise)


def _repetition(random: Generator) -> tuple[str, Distribution]:
    penalty = math.exp(_sign(random) * _strength(random, 0.005, 0.3))
    return f"repetition penalty {penalty:.3g}", faults.repeating(penalty)


def _presence(random: Generator) -> tuple[str, Distribution]:
    penalty = _strength(random, 0.02, 1)
    return f"presence penalty {penalty:.3g}", faults.present(penalty)


def _frequency(random: Generator) -> tuple[str, Distribution]:
    penalty = _strength(random, 0.02, 1)
    return f"frequency penalty {penalty:.3g}", faults.frequent(penalty)


def _greedy(random: Generator) -> tuple[str, Distribution]:
    share = _strength(random, 0.005, 0.5)
    return f"{share:.2%} greedy", faults.mixed(share, faults.greedy)


def _flat(random: Generator) -> tuple[str, Distribution]:
    share = _strength(random, 0.001, 0.05)
    flat: Distribution = lambda places: torch.zeros_like(places.logits).log_softmax(-1)  # noqa: E731
    return f"{share:.2%} of any token", faults.mixed(share, flat)


def _top_k(random: Generator) -> tuple[str, Distribution]:
    k = int(_strength(random, 3, 200))
    return f"top_k = {k}", faults.first_k(k)


def _min_p(random: Generator) -> tuple[str, Distribution]:
    share = _strength(random, 0.002, 0.2)
    return f"min_p = {share:.3g}", faults.least_of(share)


def _typical(random: Generator) -> tuple[str, Distribution]:
    mass = 1 - _strength(random, 0.005, 0.3)
    return f"typical_p = {mass:.3g}", faults.typical(mass)


def _coarse(random: Generator) -> tuple[str, Distribution]:
    bits = int(random.integers(4, 14))
    return f"u of {bits} bits", faults.of_bits(bits)


def _rounded(random: Generator) -> tuple[str, Distribution]:
    name = str(random.choice(["bfloat16", "float16"]))
    return f"logits in {name}", faults.rounded(getattr(torch, name))


KINDS: tuple[Callable[[Generator], tuple[str, Distribution]], ...] = (
    *(_hotter, _top_p, _eos, _tokens, _noisy, _repetition, _presence, _frequency),
    *(_greedy, _flat, _top_k, _min_p, _typical, _coarse, _rounded),
)


# ---------------------------------------------------------------------- places and randomness


def _placed(
    random: Generator, distribution: Distribution, num_draws: int
) -> tuple[str, Distribution]:
    """A fault at a random place; at all tokens in a third of the engines."""
    step, share = int(_strength(random, 2, 32)), _strength(random, 0.05, 0.5)
    prompt, key = int(random.integers(num_draws // PER_PROMPT)), int(random.integers(2**31))
    some: dict[str, Callable[[Request], bool]] = {
        f"of {share:.0%} of the draws": lambda r: faults.of_key(key, r.index) < share,
        f"of prompt {prompt}": lambda r: r.index // PER_PROMPT == prompt,
        "of the later half": lambda r: r.index >= num_draws // 2,
    }
    found = {words: faults.of_draws(chosen, distribution) for words, chosen in some.items()}
    found["at the first token"] = faults.only_at(lambda s: s == 0, distribution)
    found[f"from step {step} on"] = faults.only_at(lambda s: s >= step, distribution)
    if random.random() < 1 / 3:
        return "", distribution
    words = str(random.choice(sorted(found)))
    return f" {words}", found[words]


def _both(first: Distribution, second: Distribution) -> Distribution:
    """r₁·r₂/q, normalised; what q cannot emit has the larger of the two."""

    def distribution(places: faults.Places) -> Tensor:
        q, one, other = faults.right(places), first(places), second(places)
        product = one + other - q.clamp(min=-1e6)
        joint = torch.where(q > -math.inf, product, torch.maximum(one, other))
        is_empty = (joint == -math.inf).all(-1, keepdim=True)
        return torch.where(is_empty, one, joint).log_softmax(-1)

    return distribution


def _shared(random: Generator) -> tuple[str, faults.Uniform]:
    """Some draws have the noise of an earlier one, from some step on."""
    lag, share = int(random.integers(1, 2 * PER_PROMPT)), _strength(random, 0.05, 1)
    step, key = int(random.choice([0, 0, 1, 4, 16])), int(random.integers(2**31))

    def uniform(request: Request, at: int) -> float:
        is_shared = at >= step and faults.of_key(key, request.index) < share
        return faults.of_key(key, request.index - lag * is_shared + 2**20, at)

    words = f"{share:.0%} of the draws have the noise of {lag} before"
    return words + (f" from step {step} on" if step else ""), uniform


def _engine(
    random: Generator, small: Range, num_draws: int
) -> tuple[str, bool, Callable[[bool], FaultyEngine]]:
    """What is wrong with it, whether it has an r, and how to make it, silent or not."""
    words: list[str] = []
    distribution: Distribution = faults.right
    uniform: faults.Uniform = faults.own
    has_noise = random.random() < NOISE
    if has_noise:
        name, uniform = _shared(random)
        words.append(name)
    else:
        for kind in random.choice(len(KINDS), 1 if random.random() < ONE else 2, replace=False):
            name, fault = KINDS[kind](random)
            place, fault = _placed(random, fault, num_draws)
            distribution = _both(distribution, fault) if words else fault
            words.append(name + place)

    def build(silent: bool) -> FaultyEngine:
        return FaultyEngine(
            small.model,
            small.tokenizer,
            distribution=distribution,
            uniform=uniform,
            silent=silent,
        )

    return " and ".join(words), not has_noise, build


def measured(small: Range, seed: int, number: int, num_draws: int) -> Row:
    """The engine of that number."""
    random = np.random.default_rng([seed, number])
    policy = POLICIES[int(random.integers(len(POLICIES)))]
    silent = bool(random.random() < 0.5)
    words, has_ratio, build = _engine(random, small, num_draws)
    found = small.check(build(silent), num_draws=num_draws, policy=policy, seed=number)
    return Row(
        number=number,
        fault=words,
        temperature=policy.temperature,
        top_p=policy.top_p,
        silent=silent,
        nats=_nats(small, build(False), policy, num_draws, number) if has_ratio else None,
        caught=not found.verdict.holds,
        failed=list(found.verdict.failed),
        causes=[_told(cause) for cause in found.causes],
    )


def _told(cause: Cause) -> str:
    words = " or ".join([cause.description, *cause.contenders])
    return words if cause.explains or cause.contenders else f"{words} (in part)"


def _nats(
    small: Range, engine: FaultyEngine, policy: SamplingPolicy, num_draws: int, seed: int
) -> float:
    """Σ log r/q of the same draws."""
    requests, owners = requests_of(num_draws, PER_PROMPT, seed)
    answers = sample(engine, requests, owners, policy, STOPPING)
    draws, nominal = score_nominal(answers, small.scorer, policy, ERROR, bets=False)
    return float(own_ratios(draws, nominal).sum())


def _line(row: Row) -> str:
    nats = "no r" if row.nats is None else f"{row.nats:.1f} nats"
    verdict = "caught" if row.caught else "MISSED"
    log_q = "silent" if row.silent else "own log q"
    said = f"{', '.join(row.failed)}: {'; '.join(row.causes)}" if row.caught else ""
    where = f"{row.temperature:g}, {row.top_p:g}, {log_q}"
    return f"{row.number} | {row.fault} | {where} | {nats} | {verdict} | {said}"


def _missed(rows: Sequence[Row]) -> dict[str, str]:
    """How many were missed of those that any test could see, by their evidence."""
    counts = {}
    for least in EVIDENCE:
        enough = [row for row in rows if row.nats is not None and row.nats > least]
        missed = sum(not row.caught for row in enough)
        counts[f"more than {least:g} nats"] = f"{missed} of {len(enough)}"
    noise = [row for row in rows if row.nats is None]
    counts["shared noise"] = f"{sum(not row.caught for row in noise)} of {len(noise)}"
    return counts


def main() -> None:
    """Measure, with a line per engine, and end with what was missed and one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, required=True, help="of the engines")
    parser.add_argument("--engines", type=int, default=200, help="how many")
    parser.add_argument("--draws", type=int, default=256, help="of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, small, rows = time.perf_counter(), small_range(), []
    for number in range(options.engines):
        rows.append(measured(small, options.seed, number, options.draws))
        print(f"{time.perf_counter() - start:.0f} s | {_line(rows[-1])}", flush=True)
    for row in sorted(rows, key=lambda row: -(row.nats or 0.0)):
        if not row.caught and (row.nats is None or row.nats > EVIDENCE[0]):
            print(f"missed: {_line(row)}")
    shown = [asdict(replace(row, nats=_finite(row.nats))) for row in rows]
    hardware = {"machine": platform.machine(), "torch": torch.__version__}
    seconds = round(time.perf_counter() - start, 1)
    settings = {"seed": options.seed, "draws": options.draws}
    print(
        json.dumps(
            {"missed": _missed(rows), "rows": shown, **settings, **hardware, "seconds": seconds}
        )
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: a large number."""
    return None if value is None else min(value, 1e9)


if __name__ == "__main__":
    main()
