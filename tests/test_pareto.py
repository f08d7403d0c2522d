"""k̂ against arviz, and against tails whose shape is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seqproc._util.pareto import pareto_shape, tail_shape
from seqproc.errors import SequenceError
from seqproc.estimators import pareto_k


def exponential(seed: int, num: int, shape: float) -> np.ndarray:
    """log w of weights with a Pareto tail of that shape."""
    return np.random.default_rng(seed).exponential(shape, size=num)


@pytest.mark.parametrize(
    ("seed", "num", "shape", "expected"),
    [  # `arviz.psislw(log_weights)[1]` of arviz 0.23.4
        (0, 1000, 1 / 2.0, 0.6100484388323422),
        (1, 400, 1 / 1.2, 1.0521378283521727),
        (2, 5000, 1 / 8.0, 0.07120248857446612),
        (3, 60, 1 / 1.0, 0.5956517109682703),
    ],
)
def test_against_arviz(seed: int, num: int, shape: float, expected: float) -> None:
    assert pareto_k(exponential(seed, num, shape)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9, 1.5])
def test_finds_the_shape_of_a_tail(shape: float) -> None:
    # 400 runs of 3·√4000 = 190 exceedances: the mean of k̂ has an error of (1 + k)/√(400 · 190),
    # at most 0.009; the prior moves it by 10/200 of its distance from ½.
    found = np.mean([pareto_k(exponential(s, 4000, shape)) for s in range(400)])
    assert abs(found - (shape * 190 + 5) / 200) < 0.06
    assert abs(found - (shape + 0.4)) > 0.2  # of another shape it is told apart


def test_quantiles_of_a_generalised_pareto_have_its_shape() -> None:
    u = (np.arange(1, 5001) - 0.5) / 5000
    for k in (-0.3, 0.3, 0.8):
        exceedances = ((1 - u) ** -k - 1) / k  # the quantile function with σ = 1
        assert pareto_shape(exceedances) == pytest.approx(k, abs=0.02)


def test_a_common_shift_changes_nothing_and_small_differences_keep_their_digits() -> None:
    logs = exponential(4, 500, 0.5)
    assert pareto_k(logs + 600) == pytest.approx(pareto_k(logs), rel=1e-9)
    # Weights 1 + ε·x have the tail of x: here of a bounded one, and to first order in ε.
    x = np.random.default_rng(5).normal(size=2000)
    assert pareto_k(1e-9 * x) == pytest.approx(pareto_k(1e-4 * x), abs=1e-2)


def test_a_weight_of_0_is_one() -> None:
    logs = exponential(6, 500, 0.5)
    logs[:100] = -math.inf
    assert math.isfinite(pareto_k(logs))


@pytest.mark.parametrize("logs", [np.zeros(100), np.arange(4.0), np.zeros(1), -np.arange(19.0)])
def test_nothing_is_told_of_too_few(logs: np.ndarray) -> None:
    assert math.isnan(pareto_k(logs))


def test_extremes_are_numbers_or_nan() -> None:
    for logs in (np.linspace(0, 1e5, 1000), np.append(np.zeros(999), 700.0)):
        found = tail_shape(logs)
        assert found > 1 or math.isnan(found)


@pytest.mark.parametrize("logs", [[], [math.nan, 0.0], [math.inf, 0.0], [-math.inf] * 3])
def test_what_are_no_weights_is_refused(logs: list[float]) -> None:
    with pytest.raises(SequenceError):
        pareto_k(logs)
