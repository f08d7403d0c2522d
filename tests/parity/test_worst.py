"""The worst tokens of an engine that failed: the right ones, with what stands before them.

Deterministic (fixed seeds). The model itself, run on the prompt and the tokens before, is the
oracle of what is told of a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.gallery import ReferenceEngine
from helpers.parity_range import POLICY, Range
from seqproc.engines import Completion, Request, StoppingRule
from seqproc.parity import Check
from seqproc.parity.findings.worst import WorstToken
from seqproc.policy import SamplingPolicy, log_q

WHOLE = SamplingPolicy()  # T = 1 and no cut
HOT = 25  # number of a prompt


class Misreporting(ReferenceEngine):
    """Right, but for the log q of one token: that of draw 20 at step 2 is 0.7 nats too high."""

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        for one in super().generate(requests, policy, stopping):
            logqs = list(one.logqs or ())
            if one.index == 20:
                logqs[2] += 0.7
            yield replace(one, logqs=tuple(logqs))


class HotPrompt(ReferenceEngine):
    """Right, but for one prompt, which is sampled at 1.6 times the temperature."""

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        requests = list(requests)
        hot = [request for request in requests if request.index // 8 == HOT]
        others = [request for request in requests if request.index // 8 != HOT]
        yield from super().generate(others, policy, stopping)
        other = replace(policy, temperature=1.6 * policy.temperature)
        for one in super().generate(hot, other, stopping):
            yield replace(one, logqs=None)


def log_q_of(small: Range, check: Check, token: WorstToken) -> Any:
    """``[V]`` where the token was drawn, and the ids before it."""
    answer = next(a for a in check.answers if a.request.index == token.index)
    ids = [*answer.request.prompt_ids, *answer.completion.token_ids[: token.step]]
    assert answer.completion.token_ids[token.step] == token.token_id
    with torch.no_grad():
        logits = small.model(torch.tensor([ids])).logits[:, -1]
    return log_q(logits, check.policy)[0].double(), ids


def require_told(small: Range, check: Check) -> None:
    """All that is told of the worst tokens is what the model says."""
    assert 1 <= len(check.worst) <= 5
    for token in check.worst:
        q, ids = log_q_of(small, check, token)
        assert token.first_id == int(q.argmax())
        assert token.log_q == pytest.approx(float(q[token.token_id]), abs=1e-4)
        more_likely = q[q > q[token.token_id]].exp().sum()
        assert token.mass_before == pytest.approx(float(more_likely), abs=1e-5)
        assert small.tokenizer.decode(ids).endswith(token.context)
        assert token.context == small.tokenizer.decode(ids[-12:])
        assert token.text == small.tokenizer.decode([token.token_id])
        assert token.first_text == small.tokenizer.decode([token.first_id])
        assert token.prompt == token.index // 8


def test_a_right_engine_has_no_worst_token(small: Range) -> None:
    found = small.check(ReferenceEngine(small.model, small.tokenizer), num_draws=80)
    assert found.verdict.holds
    assert found.worst == ()


def test_tokens_outside_the_support_are_the_worst(small: Range) -> None:
    def uncut(logits: Any, policy: SamplingPolicy) -> Any:
        return log_q(logits, replace(policy, top_p=1.0))

    engine = ReferenceEngine(small.model, small.tokenizer, draws_from=uncut)
    found = small.check(engine, num_draws=80)
    require_told(small, found)
    assert {token.why for token in found.worst} == {"outside the support"}
    assert all(token.log_q == -np.inf and token.engine_log_q is not None for token in found.worst)


def test_the_one_wrong_log_q_is_the_worst(small: Range) -> None:
    found = small.check(Misreporting(small.model, small.tokenizer), num_draws=80)
    require_told(small, found)
    (token,) = found.worst
    assert (token.why, token.index, token.step) == ("reported log q", 20, 2)
    assert token.engine_log_q == pytest.approx(token.log_q + 0.7, abs=1e-4)


def test_the_least_likely_of_the_one_wrong_prompt_are_the_worst(small: Range) -> None:
    found = small.check(HotPrompt(small.model, small.tokenizer), policy=WHOLE)
    assert "by prompt" in found.verdict.failed, found.findings
    require_told(small, found)
    assert {token.prompt for token in found.worst} == {HOT}
    assert {token.why for token in found.worst} == {"unlikely, by prompt"}
    assert [token.engine_log_q for token in found.worst] == [None] * 5
    left = [1 - token.mass_before for token in found.worst]
    assert left == sorted(left)
    (cause,) = found.causes
    assert cause.description.startswith("temperature 1.")
    assert cause.description.endswith("of the draws")
    assert f"most on prompt {HOT}" in cause.detail


def test_greedy_tokens_that_are_not_the_first_are_the_worst(small: Range) -> None:
    """Under a greedy policy all but the first token lie outside the support."""
    engine = ReferenceEngine(
        small.model, small.tokenizer, draws_from=lambda logits, _: log_q(logits, POLICY)
    )
    found = small.check(engine, num_draws=40, policy=SamplingPolicy(do_sample=False))
    require_told(small, found)
    assert all(token.token_id != token.first_id for token in found.worst)


def test_a_response_that_ends_in_the_wrong_place_has_no_worst_token(small: Range) -> None:
    engine = ReferenceEngine(small.model, small.tokenizer, beyond=1)
    found = small.check(engine, num_draws=40)
    assert found.verdict.failed == ("endings",)
    assert found.worst == ()
