"""Twins: against the chances of a small distribution, and in engines that use randomness twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.gallery import ReferenceEngine
from helpers.parity_range import Range
from helpers.synthetic import synthetic
from seqproc.engines import Completion, Engine, Request, ScriptedEngine
from seqproc.parity import Answer, Draws
from seqproc.parity.findings.twins import twins

NUM_RUNS = 4_000
P = np.array([0.5, 0.3, 0.1, 0.06, 0.04])  # of responses, each of one token


def responses(tokens: Any, prompts: Any) -> tuple[list[Answer], Draws]:
    """Draws of one token each, with the probabilities P."""
    answers = [
        Answer(
            request=Request(index=n, prompt_ids=(1,), seed=n),
            prompt=int(prompt),
            completion=Completion(
                index=n, token_ids=(int(token),), text="", finish_reason="length"
            ),
        )
        for n, (token, prompt) in enumerate(zip(tokens, prompts, strict=True))
    ]
    num = len(answers)
    draws = synthetic(0, num_prompts=num, per_prompt=1, limit=1)
    return answers, replace(draws, prompts=np.array(prompts), logqs=np.log(P[np.array(tokens)]))


def p_of(tokens: Any, prompts: Any) -> float:
    answers, draws = responses(tokens, prompts)
    found = twins(answers, draws, draws.logqs).p_value
    assert found is not None
    return found


def test_the_least_likely_twin_times_the_pairs() -> None:
    assert p_of([4, 4, 0], [7, 7, 7]) == pytest.approx(3 * 0.04)
    assert p_of([3, 3, 4, 4], [1, 1, 2, 2]) == pytest.approx(2 * 0.04)
    assert p_of([4, 0, 4, 0], [1, 1, 2, 2]) == 1.0  # the same, of two prompts
    assert p_of([0, 0, 0], [1, 1, 1]) == 1.0  # no wonder


def test_one_draw_of_each_prompt_decides_nothing() -> None:
    for num in (1, 3):
        answers, draws = responses([4] * num, range(num))
        assert twins(answers, draws, draws.logqs).p_value is None


def test_it_is_a_p_value() -> None:
    """P(p ≤ x) ≤ x for independent draws: exact, by every outcome of three draws."""
    outcomes = np.stack(np.meshgrid(*[np.arange(len(P))] * 3), -1).reshape(-1, 3)
    values = np.array([p_of(tokens, [0, 0, 0]) for tokens in outcomes])
    chances = P[outcomes].prod(-1)
    for x in np.unique(values):
        assert chances[values <= x].sum() <= x + 1e-12


def test_randomness_that_comes_back_after_other_draws_is_seen(small: Range) -> None:
    """Draws 0 and 2, 1 and 3, … of a prompt share their seeds: no neighbours do."""
    shared = {0: 0, 1: 1, 2: 0, 3: 1, 4: 5, 5: 6, 6: 5, 7: 6}
    engine = ReferenceEngine(
        small.model,
        small.tokenizer,
        seed_of=lambda request: 10 * (request.index // 8) + shared[request.index % 8],
    )
    found = small.check(engine)
    assert set(found.verdict.failed) == {"twins", "noise"}
    (cause,) = found.causes
    assert "randomness is used twice" in cause.description
    assert "do not depend on" not in cause.description
    assert cause.explains


def test_answers_that_seed_or_prompt_do_not_change_are_offered_as_a_cause(small: Range) -> None:
    canned: Engine = ScriptedEngine(lambda request: (60, 61, 62, 63, 0), small.tokenizer)
    seedless = ReferenceEngine(small.model, small.tokenizer, seed_of=lambda request: 7)
    (cause,) = small.check(canned, num_draws=160).causes
    assert cause.description == "the engine's answers do not depend on seed and prompt at all"
    assert "all 160 draws are the same" in cause.detail
    (cause,) = small.check(seedless, num_draws=160).causes
    assert "randomness is used twice, or the engine's answers do not depend" in cause.description
    assert "on the seed at all" in cause.description
    assert "160 of 160 draws are the same as another of their prompt" in cause.detail
