"""Faults that engines may have: each is caught, and named, or nothing could have caught it.

Deterministic (fixed seeds). 256 draws of a small random model, 8 of each prompt.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from helpers.faults import (
    Distribution,
    FaultyEngine,
    Uniform,
    at,
    biased,
    first_k,
    greedy,
    hotter,
    least_of,
    mixed,
    of_draws,
    of_key,
    only_at,
    own,
    repeating,
    right,
    rounded,
)
from helpers.parity_range import PER_PROMPT, Range
from seqproc.engines import Completion, Request
from seqproc.parity import Check
from seqproc.policy import SamplingPolicy

DRAWS = 256
WHOLE = SamplingPolicy()
COLD = SamplingPolicy(temperature=0.7, top_p=0.95)
HOT = SamplingPolicy(temperature=1.3, top_p=0.9)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and what a check should say of it."""

    name: str
    words: str  # part of the cause's description, or of a contender
    distribution: Distribution = right
    uniform: Uniform = own
    policies: tuple[SamplingPolicy, ...] = (WHOLE, COLD, HOT)


def _shared(of: Callable[[Request], int]) -> Uniform:
    return lambda request, step: of_key(of(request), step)


def _of_two_prompts(request: Request) -> int:
    prompt, number = divmod(request.index, PER_PROMPT)
    return (prompt if prompt % 4 < 2 else prompt - 2) * PER_PROMPT + number


def _antithetic(request: Request, step: int) -> float:
    u = of_key(request.index // 2, step)
    return 1 - u if request.index % 2 else u


def _late(request: Request, step: int) -> float:
    return of_key(request.index // 2 if step >= 24 else 1_000_000 + request.index, step)


def _steps_again(request: Request, step: int) -> float:
    return own(request, step - 2 if step % 4 >= 2 else step)


FAULTS = [
    Fault(
        name="draws i and i + 2 have one seed",
        words="randomness is used twice",
        uniform=_shared(lambda r: r.index - 2 if r.index % 4 >= 2 else r.index),
    ),
    Fault(
        name="prompts k and k + 2 have the same noise",
        words="randomness is used twice",
        uniform=_shared(_of_two_prompts),
    ),
    Fault(
        name="steps t and t + 2 have the same noise",
        words="randomness is used twice",
        uniform=_steps_again,
    ),
    Fault(name="antithetic pairs", words="randomness is used twice", uniform=_antithetic),
    Fault(
        name="pairs share their noise from step 24 on",
        words="randomness is used twice",
        uniform=_late,
        policies=(WHOLE,),
    ),
    Fault(
        name="first token is the argmax",
        words="at the first token",
        distribution=only_at(lambda step: step == 0, greedy),
    ),
    Fault(
        name="1 in 20 responses decoded greedily",
        words="of draws decoded greedily",
        distribution=of_draws(lambda request: request.index % 20 == 0, greedy),
    ),
    Fault(
        name="5 % of tokens decoded greedily",
        words="of tokens decoded greedily",
        distribution=mixed(0.05, greedy),
        policies=(WHOLE,),
    ),
    Fault(name="T × 1.1", words="temperature", distribution=hotter(1.1)),
    Fault(name="T × 0.9", words="temperature", distribution=hotter(0.9)),
    Fault(name="T × 1.02", words="temperature", distribution=hotter(1.02), policies=(COLD, HOT)),
    Fault(
        name="EOS never",
        words="EOS never sampled",
        distribution=biased([0], -math.inf),
        policies=(WHOLE, COLD),
    ),
    Fault(name="repetition penalty 1.1", words="repetition penalty", distribution=repeating(1.1)),
    Fault(
        name="logits rounded to bfloat16",
        words="rounded to bfloat16",
        distribution=lambda place: right(replace(place, logits=rounded(place))),
        policies=(COLD, HOT),
    ),
    Fault(name="top_k = 20", words="top_k = 20", distribution=first_k(20)),
    Fault(name="min_p = 0.05", words="min_p = 0.05", distribution=least_of(0.05)),
    Fault(
        name="top_p higher by 0.01",
        words="top_p",
        distribution=at(lambda policy: replace(policy, top_p=policy.top_p + 0.01)),
        policies=(COLD, HOT),
    ),
    Fault(
        name="top_p lower by 0.02",
        words="top_p",
        distribution=at(lambda policy: replace(policy, top_p=policy.top_p - 0.02)),
    ),
]


def cases() -> list[Any]:
    """Each fault under one of its policies, silent and with its own log q in turns.

    All of them, both ways, take a quarter of an hour: SEQPROC_ALL_FAULTS=1.
    """
    if os.environ.get("SEQPROC_ALL_FAULTS"):
        chosen = [(f, p, silent) for f in FAULTS for p in f.policies for silent in (True, False)]
    else:
        chosen = [(f, f.policies[n % len(f.policies)], n % 2 == 0) for n, f in enumerate(FAULTS)]
    return [
        pytest.param(
            *(fault, policy, silent),
            id=f"{fault.name}, T {policy.temperature:g}, top_p {policy.top_p:g}"
            + (", silent" if silent else ""),
        )
        for fault, policy, silent in chosen
    ]


def told(check: Check) -> list[Any]:
    return [
        (str(cause.link), cause.description, cause.explains, cause.contenders, cause.detail)
        for cause in check.causes
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "policy", "silent"), cases())
def test_a_fault_is_caught_and_named(
    small: Range, fault: Fault, policy: SamplingPolicy, silent: bool
) -> None:
    engine = FaultyEngine(
        small.model,
        small.tokenizer,
        distribution=fault.distribution,
        uniform=fault.uniform,
        silent=silent,
    )
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    assert not found.verdict.holds, [(f.name, f.p_value, f.detail) for f in found.findings]
    said = [" / ".join([cause.description, *cause.contenders]) for cause in found.causes]
    assert any(fault.words in words for words in said), (found.verdict.failed, told(found))


@pytest.mark.parametrize("policy", [WHOLE, COLD, HOT], ids=str)
@pytest.mark.parametrize("silent", [True, False], ids=["silent", "own log q"])
def test_the_same_engine_without_a_fault_passes(
    small: Range, policy: SamplingPolicy, silent: bool
) -> None:
    engine = FaultyEngine(small.model, small.tokenizer, silent=silent)
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    assert found.verdict.holds, (found.verdict.failed, told(found))


# ---------------------------------------------------------------------- reports alone


class Reporting(FaultyEngine):
    """Right tokens, other reports."""

    change: Callable[[Completion], Completion]

    def _completion(self, draw: Any, stopping: Any) -> Completion:
        return type(self).change(super()._completion(draw, stopping))


def reporting(change: Callable[[Completion], Completion]) -> type[Reporting]:
    return type("Changed", (Reporting,), {"change": staticmethod(change)})


def _shift(one: Completion) -> Completion:
    assert one.logqs is not None
    return replace(one, logqs=(*one.logqs[1:], one.logqs[0]))


def _worst(one: Completion) -> Completion:
    assert one.logqs is not None
    return replace(one, logqs=(*one.logqs[:-1], -1e6)) if one.index == 77 else one


def _three_nats(one: Completion) -> Completion:
    assert one.logqs is not None
    if one.index == 5:
        return replace(one, logqs=None)
    return replace(one, logqs=tuple(value - 3 for value in one.logqs))


@pytest.mark.parametrize(
    ("change", "words", "explains"),
    [
        (_shift, "for the token behind", True),
        (_worst, "1 of ", True),
        (_three_nats, "other logits", False),
        (
            lambda one: replace(one, logqs=tuple(v / math.log(2) for v in one.logqs)),
            "in bits",
            True,
        ),
    ],
    ids=["shifted", "one of many", "one draw without", "in bits"],
)
def test_wrong_reports_are_named(
    small: Range, change: Callable[[Completion], Completion], words: str, explains: bool
) -> None:
    found = small.check(reporting(change)(small.model, small.tokenizer), num_draws=DRAWS)
    assert found.verdict.failed == ("reported log q",)
    (cause,) = found.causes
    assert words in cause.description, told(found)
    assert cause.explains == explains
