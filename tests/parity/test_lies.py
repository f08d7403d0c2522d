"""Engines that lie: none gets by in silence, none brings a check down with an error of Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from helpers.gallery import ReferenceEngine
from helpers.parity_range import Range, range_of
from seqproc.engines import Completion, Request, StoppingRule
from seqproc.errors import ConfigError, SequenceError
from seqproc.parity import Check, canary
from seqproc.policy import SamplingPolicy, log_q

Change = Callable[[Completion], Any]


class Changing(ReferenceEngine):
    """Right, but for what it makes of its completions; of all, or of draws sampled alone."""

    def __init__(self, *args: Any, change: Change, alone: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self._change, self._alone = change, alone

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        requests = list(requests)
        is_changed = not self._alone or len(requests) == 1
        for completion in super().generate(requests, policy, stopping):
            yield self._change(completion) if is_changed else completion


def checked(small: Range, change: Change, num_draws: int = 160, **options: Any) -> Check:
    engine = Changing(small.model, small.tokenizer, change=change, **options)
    return small.check(engine, num_draws=num_draws)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: 3, "yielded a int"),
        (lambda one: replace(one, logqs=(None,) * len(one.token_ids)), "log q of None"),
        (lambda one: replace(one, index=7_000), "nobody asked for"),
    ],
)
def test_a_verdict_stands_where_an_engine_fails_on_a_draw_alone(
    small: Range, change: Change, words: str
) -> None:
    """Log q that are wrong, so draws are sampled again; then the engine breaks its contract."""
    found = checked(
        small, change, alone=True, reports=lambda logits, policy: log_q(logits, policy) + 0.01
    )
    assert found.verdict.failed == ("reported log q",)
    (cause,) = found.causes
    assert "sampled again, the engine fails" in cause.detail
    assert words in cause.detail


def test_log_q_of_a_coarse_engine_are_held_where_no_cut_is_sure(
    tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """In bfloat16 an error of 0.25 nats leaves no cut sure; 3 nats are too many all the same."""
    flat = range_of(tiny_llama(initializer_range=0.2), tiny_tokenizer)
    right = ReferenceEngine(copy.deepcopy(flat.model).bfloat16(), tiny_tokenizer, dtype="bfloat16")
    found = flat.check(right, num_draws=160)
    assert found.verdict.holds, (found.findings, found.causes)
    for off in (3.0, -3.0):

        def shifted(one: Completion, off: float = off) -> Completion:
            return replace(one, logqs=tuple(min(x + off, 0.0) for x in one.logqs or ()))

        lying = checked(flat, shifted, dtype="bfloat16")
        assert lying.verdict.failed == ("reported log q",)


def test_an_engine_without_log_q_is_told_to_have_none(small: Range) -> None:
    found = checked(small, lambda one: replace(one, logqs=None))
    assert found.verdict.holds
    (one,) = (finding for finding in found.findings if finding.name == "reported log q")
    assert (one.p_value, one.detail) == (None, "the engine reports no log q")


def test_greedy_draws_with_log_q_or_tokens_that_are_none(small: Range) -> None:
    greedy = SamplingPolicy(do_sample=False)
    for fault, change in (
        ("reported log q", lambda one: replace(one, logqs=(-5.0,) * len(one.token_ids))),
        ("support", lambda one: replace(one, token_ids=(7, *one.token_ids[1:]))),
    ):
        engine = Changing(small.model, small.tokenizer, change=change)
        assert fault in small.check(engine, num_draws=80, policy=greedy).verdict.failed


def test_one_draw_of_a_right_engine_holds(small: Range) -> None:
    assert checked(small, lambda one: one, num_draws=1).verdict.holds


@pytest.mark.parametrize("prompts", [[], [()], [(5, 300)], [(5, -1)]])
def test_a_canary_needs_prompts(small: Range, prompts: Any) -> None:
    engine = ReferenceEngine(small.model, small.tokenizer)
    with pytest.raises(SequenceError, match="a canary needs prompts"):
        canary(engine, small.scorer, prompts)


@pytest.mark.parametrize("error", ["x", float("nan"), -1.0, True])
def test_a_canary_needs_a_logit_error_that_is_one(small: Range, error: Any) -> None:
    engine = ReferenceEngine(small.model, small.tokenizer)
    with pytest.raises(ConfigError, match="logit_error must be a number"):
        canary(engine, small.scorer, [(5, 6)], logit_error=error)


def test_a_canary_says_what_it_assumed(small: Range) -> None:
    engine = ReferenceEngine(small.model, small.tokenizer, dtype="single precision")
    found = canary(engine, small.scorer, [(5, 6)])
    assert found.p_value == 1.0
    assert "'single precision' is unknown" in found.detail
