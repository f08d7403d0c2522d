"""What an alternative leaves: penalties and greedy draws in full, and bets in a like context."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.broken import COLD, WHOLE
from helpers.faults import FaultyEngine, frequent, greedy, of_draws, present, repeating
from helpers.gallery import requests_of
from helpers.parity_range import PER_PROMPT, STOPPING, Range
from seqproc.parity import Answer, Draws, sample, score_nominal
from seqproc.parity.causes.histories import penalised, with_greedy_draws
from seqproc.parity.causes.repeats import same_contexts
from seqproc.parity.scoring import score_rows
from seqproc.policy import SamplingPolicy


def scored(
    small: Range, policy: SamplingPolicy, distribution: Any = None
) -> tuple[list[Answer], Draws, np.ndarray]:
    options = {} if distribution is None else {"distribution": distribution}
    engine = FaultyEngine(small.model, small.tokenizer, **options)
    answers = sample(engine, *requests_of(32, PER_PROMPT, 0), policy, STOPPING)
    draws, nominal = score_nominal(answers, small.scorer, policy, 5e-4)
    assert nominal.engine_logqs is not None
    return answers, draws, nominal.engine_logqs


@pytest.mark.parametrize("policy", [WHOLE, COLD], ids=str)
@pytest.mark.parametrize(
    ("family", "distribution"),
    [
        ("repetition penalty", repeating(1.3)),
        ("presence penalty", present(0.5)),
        ("frequency penalty", frequent(0.5)),
    ],
)
def test_a_penalty_is_that_of_an_engine_which_has_it(
    small: Range, policy: SamplingPolicy, family: str, distribution: Any
) -> None:
    """The engine's own log q are the oracle."""
    answers, draws, reported = scored(small, policy, distribution)
    value = 1.3 if family == "repetition penalty" else 0.5
    whole = penalised(family, value, answers, policy)
    found = score_rows(answers, small.scorer, {"r": whole})["r"].logqs
    assert np.abs(found - reported).max() < 1e-4
    assert not np.abs(draws.logqs - reported).max() < 1e-2


def test_greedy_draws_multiply_up_to_a_mixture_of_draws(small: Range) -> None:
    """Π r(y) = (1 − s)·Π q(y) + s·[every token the likeliest]."""
    some_greedy = of_draws(lambda request: request.index % 4 == 0, greedy)
    answers, draws, _ = scored(small, WHOLE, some_greedy)
    whole = with_greedy_draws(0.2, draws, WHOLE)
    found = score_rows(answers, small.scorer, {"r": whole})["r"]
    is_greedy = np.logical_and.reduceat(draws.ranks == 0, draws.starts)
    assert is_greedy.sum() >= 8
    expected = np.log(0.8 * np.exp(np.add.reduceat(draws.logqs, draws.starts)) + 0.2 * is_greedy)
    own = np.add.reduceat(found.logqs, draws.starts)
    assert own == pytest.approx(expected, abs=1e-6)


def test_bets_in_like_contexts_are_polyas_urn(small: Range) -> None:
    """Two draws of a prompt, the second beginning as the first does."""
    answers, draws, _ = scored(small, WHOLE)
    ids = answers[0].completion.token_ids[:3]
    pair = [
        replace(answer, completion=replace(answer.completion, token_ids=ids), prompt=0)
        for answer in answers[:2]
    ]
    two = replace(
        Draws.concatenate([draws.some(0, 1), draws.some(0, 1)]),
        lengths=np.array([3, 3]),
        logqs=np.array([-1.0, -2.0, -3.0] * 2),
    )
    found = same_contexts(pair, two)
    strengths = (10.0, 30.0, 100.0, 300.0)
    products = [
        math.prod((s + math.exp(-log_q)) / (s + 1) for log_q in (-1.0, -2.0, -3.0))
        for s in strengths
    ]
    assert found.statistic == pytest.approx(math.log(sum(products) / 4))
    apart = same_contexts([pair[0], replace(pair[1], prompt=1)], two)
    assert apart.statistic == pytest.approx(0.0)
    assert apart.p_value == 1.0
