"""The best test that there is: closed forms, and draws of a real fault."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from helpers.broken import FAULTS, HOT, WHOLE
from helpers.faults import FaultyEngine
from helpers.gallery import requests_of
from helpers.likelihood import Ratios, least_draws, own_ratios, right_ratios
from helpers.parity_range import PER_PROMPT, STOPPING, Range
from seqproc.parity import sample, score_nominal
from seqproc.policy import SamplingPolicy


@pytest.mark.parametrize("shift", [0.02, 0.3])
def test_of_normals_it_is_the_closed_form(shift: float) -> None:
    """N(shift, 1) against N(0, 1): log r/q = shift·y − shift²/2."""
    y = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    ratios = Ratios(under_r=shift * (y + shift) - shift**2 / 2, under_q=shift * y - shift**2 / 2)
    assert ratios.divergence == pytest.approx(shift**2 / 2, rel=1e-3)
    expected = ((norm.isf(1e-3) + norm.isf(0.05)) / shift) ** 2
    assert least_draws(ratios, 1e-3, 0.95) == pytest.approx(expected, rel=0.02)


def test_few_draws_tell_a_small_divergence() -> None:
    """The mean of 2,000 sums alone is off by three quarters of it, typically."""
    random, shift = np.random.default_rng(0), 0.06
    found = []
    for _ in range(50):
        under_q, under_r = random.standard_normal(2_000), random.standard_normal(2_000) + shift
        sums = (shift * y - shift**2 / 2 for y in (under_r, under_q))
        found.append(Ratios(under_r=next(sums), under_q=next(sums)))
    plain = [float(one.under_r.mean()) for one in found]
    better = [one.divergence for one in found]
    assert np.std(plain) > 0.3 * shift**2
    assert np.std(better) < 0.1 * shift**2
    assert np.mean(better) == pytest.approx(shift**2 / 2, rel=0.05)


def test_one_impossible_draw_is_proof() -> None:
    """A tenth of the draws cannot be q's, the others tell nothing: 0.9^n ≤ 0.05."""
    ratios = Ratios(under_r=np.array([np.inf] + [0.0] * 9), under_q=np.zeros(10))
    assert least_draws(ratios, 1e-3, 0.95) == pytest.approx(
        math.log(0.05) / math.log(0.9), rel=0.01
    )


def test_draws_that_r_cannot_emit_speak_for_q() -> None:
    """A tenth of q is never drawn: n draws of the rest have the probability 0.9^n under q."""
    gain = -math.log(0.9)
    ratios = Ratios(under_r=np.full(10, gain), under_q=np.array([-np.inf] + [gain] * 9))
    found = least_draws(ratios, 1e-3, 0.95)
    assert found == pytest.approx(math.log(1e-3) / math.log(0.9), rel=0.02)


def test_where_nothing_differs_nothing_is_enough() -> None:
    assert least_draws(Ratios(under_r=np.zeros(9), under_q=np.zeros(9)), 1e-3, 0.95) == math.inf


@pytest.mark.parametrize("policy", [WHOLE, HOT], ids=str)
def test_ratios_of_a_temperature(small: Range, policy: SamplingPolicy) -> None:
    """At top_p = 1, E_r[q/r] = E_q[r/q] = 1; below, a hotter nucleus is wider than q's."""
    (fault,) = (fault for fault in FAULTS if fault.name == "T × 1.02")
    requests, owners = requests_of(800, PER_PROMPT, 0)
    right = sample(FaultyEngine(small.model, small.tokenizer), requests, owners, policy, STOPPING)
    others = [replace(request, seed=request.seed ^ 1) for request in requests]
    answers = sample(fault.build(small.model, small.tokenizer), others, owners, policy, STOPPING)
    draws, nominal = score_nominal(answers, small.scorer, policy, 5e-4, bets=False)
    under_r = own_ratios(draws, nominal)
    under_q = right_ratios(fault, small, right, policy)
    assert np.isfinite(under_r).all() == (policy == WHOLE)
    if policy == HOT:
        assert (under_r == np.inf).any()
        return
    assert under_r.mean() > 0 > under_q.mean()
    for weights in (np.exp(-under_r), np.exp(under_q)):
        error = weights.std() / math.sqrt(len(weights))
        assert error < 0.02
        assert abs(weights.mean() - 1) < 4 * error  # 6e-5 of right ones fail
