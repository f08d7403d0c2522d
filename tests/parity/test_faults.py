"""Faults that engines may have: each is caught, and named, or nothing could have caught it.

Deterministic (fixed seeds). 256 draws of a small random model, 8 of each prompt.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)

from helpers.broken import COLD, FAULTS, HOT, WHOLE, Fault
from helpers.faults import (
    Distribution,
    FaultyEngine,
    Places,
    biased,
    first_k,
    frequent,
    hotter,
    least_of,
    of_bits,
    present,
    repeating,
    typical,
)
from helpers.gallery import requests_of
from helpers.parity_range import PER_PROMPT, STOPPING, Range
from seqproc.engines import Completion, Request
from seqproc.parity import Check, sample, score
from seqproc.policy import SamplingPolicy, log_q

DRAWS = 256
SEEN = [fault for fault in FAULTS if fault.policies]  # with so many draws


def cases() -> list[Any]:
    """Each fault under one of its policies, silent and with its own log q in turns.

    All of them, both ways, take a quarter of an hour: SEQPROC_ALL_FAULTS=1.
    """
    if os.environ.get("SEQPROC_ALL_FAULTS"):
        chosen = [(f, p, silent) for f in SEEN for p in f.policies for silent in (True, False)]
    else:
        chosen = [(f, f.policies[n % len(f.policies)], n % 2 == 0) for n, f in enumerate(SEEN)]
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
    engine = fault.build(small.model, small.tokenizer, silent=silent)
    found = small.check(engine, num_draws=DRAWS, policy=policy)
    assert not found.verdict.holds, [(f.name, f.p_value, f.detail) for f in found.findings]
    if fault.words is None:
        return
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


# ---------------------------------------------------------------------- the faults themselves


def places(policy: SamplingPolicy = WHOLE) -> Places:
    """Rows of random logits, the tokens before them among the likely and the unlikely."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).double() * 2
    requests = [Request(index=i, prompt_ids=(i, 7, 7), seed=i) for i in range(4)]
    ids = [[3, 9, 3], [int(logits[1].argmax()), 9, 3], [9, 9, 9], [1, 2, 3]]
    return Places(requests=requests, ids=ids, logits=logits, policy=policy)


@pytest.mark.parametrize(
    ("distribution", "processor"),
    [
        (first_k(7), TopKLogitsWarper(7)),
        (least_of(0.05), MinPLogitsWarper(0.05)),
        (typical(0.8), TypicalLogitsWarper(0.8)),
        (repeating(1.3), RepetitionPenaltyLogitsProcessor(1.3)),
    ],
    ids=["top_k", "min_p", "typical_p", "repetition penalty"],
)
def test_distributions_are_those_of_transformers(
    distribution: Distribution, processor: Callable[..., torch.Tensor]
) -> None:
    at = places()
    before = torch.tensor(
        [[*r.prompt_ids, *ids] for r, ids in zip(at.requests, at.ids, strict=True)]
    )
    expected = processor(before, at.logits.clone()).log_softmax(-1)
    assert not torch.equal(expected, at.logits.log_softmax(-1))
    torch.testing.assert_close(distribution(at), expected, rtol=0, atol=1e-12)


def test_penalties_count_the_tokens_of_the_response() -> None:
    at = places()
    for distribution, times in ((present(0.5), 1), (frequent(0.5), 2)):
        expected = at.logits[0].clone()
        expected[3] -= 0.5 * times
        expected[9] -= 0.5
        torch.testing.assert_close(distribution(at)[0], expected.log_softmax(-1))


def test_a_coarse_uniform_draws_with_the_frequencies_it_says() -> None:
    """All 16 values of u, each once, by the engine's own search."""
    at = places(COLD)
    log_r = of_bits(4)(at)
    masses = log_q(at.logits, COLD).exp().cumsum(-1)
    u = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    tokens = torch.searchsorted(masses, u.expand(4, -1).contiguous(), right=True)
    expected = torch.stack([torch.bincount(row, minlength=50) / 16 for row in tokens])
    torch.testing.assert_close(log_r.exp(), expected.double())


@pytest.mark.parametrize("name", ["T × 1.1", "weights of another checkpoint"])
def test_log_r_of_tokens_of_another_engine(small: Range, name: str) -> None:
    """Forced, an engine reports the log r of tokens that another one drew; the scorer agrees."""
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    requests, owners = requests_of(40, PER_PROMPT, 0)
    drawn = sample(FaultyEngine(small.model, small.tokenizer), requests, owners, HOT, STOPPING)
    tokens = {answer.request.index: answer.completion.token_ids for answer in drawn}
    engine = fault.build(small.model, small.tokenizer, forced=tokens)
    forced = sample(engine, requests, owners, HOT, STOPPING)
    assert [one.completion.token_ids for one in forced] == list(tokens.values())
    reported = [value for one in forced for value in one.completion.logqs or ()]
    of = {"r": lambda logits: log_q(logits, replace(HOT, temperature=1.1 * HOT.temperature))}
    if name == "weights of another checkpoint":
        of = {"r": lambda logits: log_q(logits, HOT)}
    weights = dict(fault.weights(small.model).named_parameters())
    expected = score(drawn, small.scorer, of, override=weights)["r"].logqs
    unlike = score(drawn, small.scorer, {"q": lambda logits: log_q(logits, HOT)})["q"].logqs
    finite = torch.tensor(expected).isfinite()
    assert finite.float().mean() > 0.9
    assert abs(torch.tensor(reported) - torch.tensor(expected))[finite].max() < 1e-4
    assert abs(torch.tensor(reported) - torch.tensor(unlike))[finite].max() > 0.1


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


@pytest.mark.parametrize(
    ("distribution", "words"),
    [
        (repeating(1.02), "log q reported with repetition penalty 1.02 left on"),
        (hotter(1.02), "log q reported with temperature 1.02 in place of 1"),
        (biased([0], -0.2), "log q reported with EOS with a logit -0.2 off"),
    ],
    ids=["repetition penalty", "temperature", "EOS"],
)
def test_reports_name_what_the_tokens_are_too_few_to_show(
    small: Range, distribution: Distribution, words: str
) -> None:
    engine = FaultyEngine(small.model, small.tokenizer, distribution=distribution)
    found = small.check(engine, num_draws=64, policy=WHOLE)
    assert found.verdict.failed == ("reported log q",)
    (cause,) = found.causes
    assert cause.description == words, told(found)
    assert cause.explains


@pytest.mark.parametrize(
    ("temperature", "factor"), [(1e-6, 1e6), (1e-3, 1e3), (1e6, 1e-6), (5.1e5, 1e-5)]
)
def test_faults_of_the_most_extreme_temperatures_are_told(
    small: Range, temperature: float, factor: float
) -> None:
    """Alternatives beyond what a policy can have are left out, also as causes are looked for."""
    policy = SamplingPolicy(temperature=temperature)
    right = FaultyEngine(small.model, small.tokenizer, silent=True)
    assert small.check(right, 32, policy).verdict.holds
    wrong = FaultyEngine(small.model, small.tokenizer, distribution=hotter(factor), silent=True)
    found = small.check(wrong, 32, policy)
    assert not found.verdict.holds
    assert found.causes
