"""Replay: tokens that are due, near-ties, cuts of the nucleus, and what nothing explains."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.parity_range import POLICY, STOPPING, Range
from seqproc.engines import HFEngine, NotReplayable, Request
from seqproc.engines.noise import COUPLED, GREEDY
from seqproc.parity import Answer, Check, check_engine, sample
from seqproc.parity.findings.replay import ReplayedTokens, replay, replay_finding, replay_rows
from seqproc.policy import SamplingPolicy, log_q
from seqproc.prompts import draw_seed

NUM_DRAWS = 24
REQUESTS = [
    Request(index=3 * i, prompt_ids=(40 + i // 2, 41, *range(i % 5)), seed=draw_seed(0, i))
    for i in range(NUM_DRAWS)
]
OWNERS = [i // 2 for i in range(NUM_DRAWS)]
POLICIES = [
    SamplingPolicy(),
    SamplingPolicy(temperature=0.7, top_p=0.8),
    SamplingPolicy(temperature=1.5, top_p=0.3),
    SamplingPolicy(do_sample=False),
]


class Recorded:
    """An engine that gives its answers with some tokens exchanged."""

    def __init__(self, engine: Any, answers: list[Answer]) -> None:
        self._engine = engine
        self._answers = {answer.request.index: answer.completion for answer in answers}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, requests: Any, policy: Any, stopping: Any) -> Any:
        del policy, stopping
        yield from (self._answers[request.index] for request in requests)


def check(small: Range, engine: Any, policy: SamplingPolicy = POLICY, **options: Any) -> Check:
    return check_engine(
        engine, small.scorer, small.tokenizer, REQUESTS, OWNERS, policy, STOPPING, **options
    )


# ---------------------------------------------------------------- whole engines


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_right_engine_gives_every_token_that_is_due(small: Range, policy: SamplingPolicy) -> None:
    engine = HFEngine(small.model, small.tokenizer, batch_size=7)
    found = check(small, engine, policy)
    assert found.replay is not None
    assert found.noise == (COUPLED.name if policy.do_sample else GREEDY.name)
    assert found.replay.num_equal == found.replay.num_tokens == found.num_tokens
    assert (found.replay.num_near_ties, found.replay.wrong) == (0, ())
    (finding,) = (one for one in found.findings if one.name == "replay")
    assert finding.p_value == 1.0


def test_one_exchanged_token_fails_and_is_named(small: Range) -> None:
    engine = HFEngine(small.model, small.tokenizer, batch_size=24)
    answers = sample(engine, REQUESTS, OWNERS, POLICY, STOPPING)
    n = next(n for n, a in enumerate(answers) if len(a.completion.token_ids) > 4)
    with torch.no_grad():
        ids = answers[n].completion.token_ids
        prefix = torch.tensor([[*REQUESTS[n].prompt_ids, *ids[:2]]])
        logits = small.model(prefix).logits[0, -1].double()
    kept = log_q(logits, POLICY)
    other = next(int(t) for t in kept.argsort(descending=True) if int(t) != ids[2])
    wrong = replace(answers[n].completion, token_ids=(*ids[:2], other), logqs=None)
    answers[n] = replace(answers[n], completion=wrong)
    found = check(small, Recorded(engine, answers))
    assert found.replay is not None
    (token,) = found.replay.wrong
    assert (token.index, token.step) == (REQUESTS[n].index, 2)
    assert (token.sampled, token.due) == (other, ids[2])
    seed, prompt_length, step = (torch.tensor([x]) for x in (REQUESTS[n].seed, 3, 2))
    noise = COUPLED.values(seed, prompt_length, step, len(kept))[0]
    margin = float(kept[ids[2]] + noise[ids[2]] - kept[other] - noise[other])
    assert token.margin == pytest.approx(margin, abs=1e-4)
    assert "replay" in found.verdict.failed


def test_rounded_weights_part_at_near_ties_only_within_their_error(small: Range) -> None:
    """The replay sees what no test of few tokens does: weights that are slightly others."""
    rounded = copy.deepcopy(small.model).bfloat16().float()
    engine = HFEngine(rounded, small.tokenizer, batch_size=24)
    wide = check(small, engine, logit_error=0.5).replay
    assert wide is not None
    assert wide.num_wrong == 0
    assert 0 < wide.num_near_ties < wide.num_tokens / 4
    assert len(wide.near_ties) == wide.num_near_ties
    assert all(token.sampled != token.due for token in wide.near_ties)
    sharp = check(small, engine, logit_error=1e-6)
    assert sharp.replay is not None
    assert sharp.replay.num_wrong > 0
    assert "replay" in sharp.verdict.failed


def test_an_engine_that_says_nothing_of_its_noise_is_not_replayed(small: Range) -> None:
    engine = HFEngine(small.model, small.tokenizer, batch_size=24)
    silent = Recorded(engine, sample(engine, REQUESTS, OWNERS, POLICY, STOPPING))
    silent.noise = lambda _: NotReplayable("its noise is a secret")  # type: ignore[attr-defined]
    found = check(small, silent)
    assert (found.replay, found.noise) == (None, None)
    (finding,) = (one for one in found.findings if one.name == "replay")
    assert finding.p_value is None
    assert finding.detail == "not applicable: its noise is a secret"
    assert found.verdict.holds


def test_a_replay_alone_that_fails_has_a_cause_of_its_own(small: Range) -> None:
    """Right draws of other seeds: only the replay can tell."""
    other = [replace(r, seed=draw_seed(9, i)) for i, r in enumerate(REQUESTS)]
    engine = HFEngine(small.model, small.tokenizer, batch_size=24)
    answers = sample(engine, other, OWNERS, POLICY, STOPPING)
    unreported = [replace(a, completion=replace(a.completion, logqs=None)) for a in answers]
    found = check(small, Recorded(engine, unreported))
    assert found.verdict.failed == ("replay",)
    (cause,) = found.causes
    assert cause.explains is False
    assert "not those that the engine's noise" in cause.description


# ---------------------------------------------------------------- rows, against perturbed logits


def due_of(logits: Tensor, noise: Tensor, policy: SamplingPolicy) -> Tensor:
    return (log_q(logits, policy) + noise).argmax(-1)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_whatever_perturbed_logits_make_due_is_possible(policy: SamplingPolicy) -> None:
    """Logits moved within the error, at random and to its ends, never give an impossible token."""
    generator = torch.Generator().manual_seed(0)
    rows, error = 300, 0.05
    logits = torch.randn(rows, 12, generator=generator, dtype=torch.float64)
    uniforms = torch.rand(rows, 12, generator=generator, dtype=torch.float64)
    noise = -(-uniforms.log()).log() if policy.do_sample else torch.zeros_like(logits)
    seen = torch.zeros(rows, 12, dtype=torch.bool)
    for n in range(400):
        moves = 2 * torch.rand(rows, 12, generator=generator, dtype=torch.float64) - 1
        moves = moves.sign() if n % 2 else moves
        seen.scatter_(1, due_of(logits + error * moves, noise, policy).unsqueeze(1), True)
    possible = torch.stack(
        [
            replay_rows(logits, noise, torch.full((rows,), token), policy, error, 0.0).is_possible
            for token in range(12)
        ],
        dim=1,
    )
    assert (seen <= possible).all()
    # The converse cannot be exact, but few more are possible than were seen.
    assert possible.sum() < 1.15 * seen.sum()
    exact = due_of(logits, noise, policy)
    found = replay_rows(logits, noise, exact, policy, error, 0.0)
    assert torch.equal(found.due, exact)
    assert found.is_possible.all()
    assert found.margins.abs().max() == 0


def test_a_cut_that_the_error_moves_explains_a_large_margin() -> None:
    """The token that is due ends the nucleus, which tokens of slightly other logits lack."""
    policy = SamplingPolicy(top_p=0.8)
    p = torch.tensor([[0.5, 0.29999, 0.20001]], dtype=torch.float64)
    noise = torch.tensor([[0.0, 0.0, 5.0]], dtype=torch.float64)
    near = replay_rows(p.log(), noise, torch.tensor([0]), policy, 1e-3, 0.0)
    assert (int(near.due), bool(near.is_possible)) == (2, True)
    assert float(near.margins) > 4
    sharp = replay_rows(p.log(), noise, torch.tensor([0]), policy, 1e-6, 0.0)
    assert not bool(sharp.is_possible)
    beyond = replay_rows(p.log(), noise, torch.tensor([2]), SamplingPolicy(top_p=0.79), 1e-6, 0.0)
    assert not bool(beyond.is_possible)


# ---------------------------------------------------------------- what is made of them


def test_settled_rows_are_held_to_the_measured_error() -> None:
    """Within the stated error both are possible; the measured one allows only the smaller."""
    found = ReplayedTokens(
        due=np.array([1, 1, 1, 1]),
        margins=np.array([0.0, 1e-5, 4e-4, 4e-4]),
        is_possible=np.array([True, True, True, True]),
    )
    result = replay(
        "noise",
        found,
        sampled=np.array([1, 2, 2, 2]),
        indices=np.array([0, 0, 5, 5]),
        steps=np.array([0, 1, 0, 1]),
        is_settled=np.array([True, True, True, False]),
        allowed=1e-4,
    )
    assert (result.num_equal, result.num_near_ties, result.num_wrong) == (1, 2, 1)
    assert [(t.index, t.step) for t in result.wrong] == [(5, 0)]
    finding = replay_finding(result)
    assert finding.p_value == 0.0
    assert "the first in draw 5 at step 0, where 1 was due and 2 came" in finding.detail
