"""Parameters of causes: fitted between the values of the catalogue, with what else does as well."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.broken import COLD, HOT, WHOLE
from helpers.faults import (
    FaultyEngine,
    Places,
    biased,
    first_k,
    frequent,
    greedy,
    hotter,
    least_of,
    mixed,
    of_bits,
    of_draws,
    of_key,
    of_logits,
    present,
    repeating,
    top_p_by,
    typical,
)
from helpers.parity_range import Range
from seqproc.parity import Check
from seqproc.parity.causes.cause import Cause
from seqproc.parity.causes.members import Member, Parameter, span
from seqproc.policy import SamplingPolicy

DRAWS = 256
SLOW = pytest.mark.slow


def cause_of(small: Range, distribution: Any, policy: SamplingPolicy) -> Cause:
    engine = FaultyEngine(small.model, small.tokenizer, silent=True, distribution=distribution)
    check: Check = small.check(engine, num_draws=DRAWS, policy=policy)
    (cause,) = check.causes
    return cause


# ---------------------------------------------------------------------- fitted values


@pytest.mark.parametrize(
    ("distribution", "policy", "words", "value"),
    [
        (repeating(1.15), WHOLE, "repetition penalty", 1.15),
        (mixed(0.1, greedy), WHOLE, "tokens decoded greedily", 0.1),
        (hotter(1.25), COLD, "temperature", 0.875),
        (typical(0.8), WHOLE, "typical_p", 0.8),
        pytest.param(present(0.4), COLD, "presence penalty", 0.4, marks=SLOW),
        pytest.param(frequent(0.7), WHOLE, "frequency penalty", 0.7, marks=SLOW),
        pytest.param(biased([0], 3.0), WHOLE, "EOS with a logit", 3.0, marks=SLOW),
        pytest.param(first_k(30), COLD, "top_k = 30 left on, before top_p", 30, marks=SLOW),
    ],
    ids=[
        *("repetition penalty", "greedy tokens", "temperature", "typical_p", "presence penalty"),
        *("frequency penalty", "EOS", "top_k"),
    ],
)
def test_a_value_between_those_of_the_catalogue_is_fitted(
    small: Range, distribution: Any, policy: SamplingPolicy, words: str, value: float
) -> None:
    cause = cause_of(small, distribution, policy)
    assert cause.explains, cause
    assert words in cause.description
    assert cause.interval is not None
    low, high = cause.interval
    assert low <= value <= high
    assert high - low < 0.6 * value
    assert f"values from {low:.4g} to {high:.4g} are within a factor of 20" in cause.detail


@pytest.mark.parametrize(
    ("distribution", "policy", "words"),
    [
        (first_k(30), WHOLE, "top_k = 30 left on"),
        (typical(0.9), COLD, "typical_p = 0.9 left on"),
        (
            of_bits(10),
            WHOLE,
            "random numbers of 10 bits, from half a step on, tokens in order of id",
        ),
        pytest.param(least_of(0.03), COLD, "min_p = 0.03", marks=SLOW),
        pytest.param(top_p_by(-0.013), COLD, "top_p 0.936", marks=SLOW),
        pytest.param(repeating(1.2), WHOLE, "repetition penalty 1.2 left on", marks=SLOW),
    ],
    ids=["top_k", "typical_p", "bits of u", "min_p", "top_p", "repetition penalty"],
)
def test_a_cut_or_a_round_value_is_named(
    small: Range, distribution: Any, policy: SamplingPolicy, words: str
) -> None:
    cause = cause_of(small, distribution, policy)
    assert cause.explains, cause
    assert cause.description.startswith(words)


def test_how_many_draws_it_is_about_is_fitted_with_the_value(small: Range) -> None:
    """The values of the catalogue next to 0.97 fit a tenth of the draws better than a third."""
    some = of_draws(lambda request: of_key(3, request.index) < 0.4, typical(0.97))
    cause = cause_of(small, some, WHOLE)
    named = [cause.description, *cause.contenders]
    assert any(
        words.startswith("typical_p = 0.9") and words.endswith("in 30% of the draws")
        for words in named
    ), cause


def test_what_is_hardly_more_probable_than_the_policy_may_be_what_is_not_known(
    small: Range,
) -> None:
    """A token or two that q cannot emit fail an engine, and any other weights could bring them."""
    noise = torch.from_numpy(0.03 * np.random.default_rng(4).standard_normal(300))
    shaken = of_logits(lambda places: places.logits + noise)
    causes = [
        cause
        for seed in range(2)
        for cause in small.check(
            FaultyEngine(small.model, small.tokenizer, silent=True, distribution=shaken),
            num_draws=DRAWS,
            policy=HOT,
            seed=seed,
        ).causes
    ]
    assert causes
    assert not any(cause.explains for cause in causes), causes
    unknown = "another distribution, not a known one"
    assert all(unknown in (cause.description, *cause.contenders) for cause in causes)


# ---------------------------------------------------------------------- a second fault


def hotter_and(factor: float, second: Any) -> Any:
    def distribution(places: Places) -> Tensor:
        policy = SamplingPolicy(temperature=factor * places.policy.temperature)
        return second(
            Places(requests=places.requests, ids=places.ids, logits=places.logits, policy=policy)
        )

    return distribution


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (repeating(1.1), "repetition penalty 1.1 left on"),
        (biased([0], -math.inf), "EOS never sampled"),
        pytest.param(present(0.5), "presence penalty 0.", marks=SLOW),
    ],
    ids=["repetition penalty", "EOS never", "presence penalty"],
)
def test_a_second_fault_shows_beside_a_larger_one(small: Range, second: Any, words: str) -> None:
    """T × 1.3 has some ten times the evidence of either, and does not explain them."""
    cause = cause_of(small, hotter_and(1.3, second), WHOLE)
    assert not cause.explains
    assert cause.description == "another distribution, not a known one"
    assert "the nearest is: temperature 1.3" in cause.detail
    assert f"the nearest beside it: {words}" in cause.detail


# ---------------------------------------------------------------------- intervals


def test_an_interval_of_a_parabola_is_exact_where_it_was_tried_between() -> None:
    """log L = −(x − 2)² / (2·0.1²): within a factor of 20 up to 0.1·√(2 log 20) away."""
    values = np.arange(1.0, 3.01, 0.1)
    log_es = {float(x): -((float(x) - 2.0) ** 2) / (2 * 0.1**2) for x in values}
    found = span(log_es, 20.0, is_smooth=True)
    assert found is not None
    reach = 0.1 * math.sqrt(2 * math.log(20))
    assert found == pytest.approx((2 - reach, 2 + reach), rel=1e-9)


def test_an_interval_ends_with_what_was_tried() -> None:
    for is_smooth in (True, False):
        assert span({1.0: -0.1, 2.0: 0.0, 3.0: -0.2}, 20.0, is_smooth=is_smooth) == (1.0, 3.0)
        assert span({1.0: 0.0, 2.0: -9.0}, 20.0, is_smooth=is_smooth) is None
        assert span({}, 20.0, is_smooth=is_smooth) is None


def test_a_likelihood_that_falls_at_once_has_an_interval_of_values_that_were_tried() -> None:
    log_es = {1.0: -math.inf, 2.0: -9.2, 2.1: 0.0, 2.2: -1.0, 2.3: -40.0}
    assert span(log_es, 20.0, is_smooth=False) == (2.0, 2.3)


def test_values_are_tried_between_the_neighbours_of_the_likeliest() -> None:
    def member(value: float) -> Member:
        return Member(words=str(value), whole=lambda logits, _: logits, value=value)

    def around(log_es: dict[float, float], **options: Any) -> list[float | None]:
        bounds = {"least": 0.1, "most": 8.0, "policys": 0.0} | options
        return [one.value for one in Parameter(member=member, **bounds).around(log_es)]

    inside = around({0.5: 0.0, 1.0: 5.0, 2.0: 1.0})
    assert len(inside) == 7
    assert all(0.5 < value < 2.0 for value in inside if value is not None)
    beyond = around({0.5: 0.0, 1.0: 1.0, 2.0: 5.0})
    assert 2.0 < max(value or 0.0 for value in beyond) < 8.0
    assert around({-math.inf: 5.0, 1.0: 0.0}) == []
    counts = around({10.0: 0.0, 20.0: 5.0, 40.0: 0.0}, is_count=True, most=1e3)
    assert all(value == round(value or 0.0) for value in counts)
    line = around({-1.0: 0.0, 0.0: 5.0, 1.0: 0.0}, on_line=True, least=-5.0)
    assert line == pytest.approx([-0.75, -0.5, -0.25, 0.25, 0.5, 0.75])
