"""Estimators against enumerated policies, complex-step derivatives, jackknifes and coverage.

Statistical tests have fixed seeds; the false-alarm rate beside each is over a choice of seed.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from seqproc.errors import ConfigError, SequenceError
from seqproc.estimators import (
    Estimate,
    change,
    change_of_ratio,
    effective_sample_size,
    mean,
    rao_blackwell_gain,
    ratio,
    sequence_log_weights,
)

INF, NAN = math.inf, math.nan
PAGE = Path(__file__).parents[1] / "docs" / "estimators.md"


# A policy small enough to enumerate: tokens 0, 1, 2; a 0 or the third token ends the sequence.


def step_probs(prompt, shift):
    """q of each prefix, at θ + shift · v."""
    rng = np.random.default_rng(prompt)
    prefixes = [p for n in range(3) for p in itertools.product((1, 2), repeat=n)]
    logits = {p: rng.normal(size=3) + shift * rng.normal(size=3) for p in prefixes}
    return {p: np.exp(x) / np.exp(x).sum() for p, x in logits.items()}


def sequences(table, prefix=()):
    """Every (tokens, step probabilities, step entropies)."""
    q = table[prefix]
    for token in range(3):
        here = (q[token],), (stats.entropy(q),)
        if token == 0 or len(prefix) == 2:
            yield (*prefix, token), *here
        else:
            for tokens, probs, entropies in sequences(table, (*prefix, token)):
                yield tokens, here[0] + probs, here[1] + entropies


def enumerate_world(prompts, shift=0.3):
    """All outcomes of drawing a prompt evenly and a response to it, at θ and θ + shift · v."""
    rows = []
    for prompt in prompts:
        ends = (sequences(step_probs(prompt, s)) for s in (0.0, shift))
        for (tokens, probs, entropies), (_, probs_to, entropies_to) in zip(*ends, strict=True):
            p, p_to = math.prod(probs), math.prod(probs_to)
            ends_of = (prompt, p, p_to, sum(entropies), sum(entropies_to), len(tokens))
            rows.append((*ends_of, np.log(probs), np.log(probs_to)))
    prompt, p, p_to, h, h_to, t, logqs, logqs_to = zip(*rows, strict=True)
    return SimpleNamespace(
        prompt=np.array(prompt),
        p=np.array(p) / len(prompts),
        p_to=np.array(p_to) / len(prompts),
        h=np.array(h),
        h_to=np.array(h_to),
        t=np.array(t, float),
        logqs=logqs,
        logqs_to=logqs_to,
        log_w=sequence_log_weights(logqs_to, logqs),
    )


PROMPTS = (2, 3)  # of very different entropies, so that clusters matter
WORLD = enumerate_world(PROMPTS)

# Each estimator as a function of the frequencies f of the outcomes: its definition, no errors.
FUNCTIONALS = {
    "mean": lambda f, w, o: f @ o.h / f.sum(),
    "weighted mean": lambda f, w, o: (f * w) @ o.h_to / (f @ w),
    "ratio": lambda f, w, o: f @ o.h / (f @ o.t),
    "weighted ratio": lambda f, w, o: (f * w) @ o.h_to / ((f * w) @ o.t),
    "change": lambda f, w, o: (f * w) @ o.h_to / (f @ w) - f @ o.h / f.sum(),
    "change of ratio": lambda f, w, o: (f * w) @ o.h_to / ((f * w) @ o.t) - f @ o.h / (f @ o.t),
}
ESTIMATORS = {
    "mean": lambda o, clusters=None: mean(o.h, clusters=clusters),
    "weighted mean": lambda o, clusters=None: mean(o.h_to, o.log_w, clusters),
    "ratio": lambda o, clusters=None: ratio(o.h, o.t, clusters=clusters),
    "weighted ratio": lambda o, clusters=None: ratio(o.h_to, o.t, o.log_w, clusters),
    "change": lambda o, clusters=None: change(o.h_to, o.h, o.log_w, clusters),
    "change of ratio": lambda o, clusters=None: change_of_ratio(
        o.h_to, o.h, o.t, o.log_w, clusters
    ),
}
EXACT = {
    "mean": WORLD.p @ WORLD.h,
    "weighted mean": WORLD.p_to @ WORLD.h_to,
    "ratio": WORLD.p @ WORLD.h / (WORLD.p @ WORLD.t),
    "weighted ratio": WORLD.p_to @ WORLD.h_to / (WORLD.p_to @ WORLD.t),
}
EXACT["change"] = EXACT["weighted mean"] - EXACT["mean"]
EXACT["change of ratio"] = EXACT["weighted ratio"] - EXACT["ratio"]
every_estimator = pytest.mark.parametrize("kind", ESTIMATORS)


def take(index, world=WORLD):
    """The columns of a sample given by its outcomes' indices."""
    return SimpleNamespace(
        **{k: getattr(world, k)[index] for k in ("h", "h_to", "t", "log_w", "prompt")}
    )


def sample(num_draws=400, seed=0):
    return take(np.random.default_rng(seed).choice(len(WORLD.p), num_draws, p=WORLD.p))


class TestLogWeights:
    def test_they_are_the_ratio_of_the_sequences_probabilities(self):
        assert WORLD.p.sum() == pytest.approx(1)
        assert WORLD.p_to.sum() == pytest.approx(1)
        assert np.exp(WORLD.log_w) == pytest.approx(WORLD.p_to / WORLD.p)
        assert set(WORLD.t) == {1, 2, 3}

    def test_what_the_target_cannot_emit_has_weight_zero(self):
        got = sequence_log_weights([[-1.0, -INF], [-1.0], []], [[-2.0, -1.0], [-3.0], []])
        assert got.tolist() == [-INF, 2.0, 0.0]

    def test_near_points_keep_every_digit(self):
        """Sums near −500 are multiples of 2⁻⁴⁴, and so is their difference: not 777 · 2⁻⁴⁵."""
        source = -np.random.default_rng(0).integers(2**50, size=777) * 2.0**-50
        to = source + 2.0**-45  # exact
        assert sequence_log_weights([to], [source]).tolist() == [777 * 2.0**-45]
        assert to.sum() - source.sum() != 777 * 2.0**-45

    def test_torch_tensors_and_narrow_floats_are_read(self):
        tensors = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5])]
        got = sequence_log_weights(tensors, [np.array([-1.5, -2.0], dtype=np.float32), [-1]])
        assert got.dtype == np.float64
        assert got.tolist() == [0.5, 0.5]

    @pytest.mark.parametrize(
        ("to", "source", "message"),
        [
            ([], [], "at least one; got 0 and 0"),
            ([[-1.0]], [[-1.0], [-2.0]], "same order and at least one; got 1 and 2"),
            ([[-1.0], [-1.0, -2.0]], [[-1.0], [-1.0]], r"logqs_from\[1\] must score the same tok"),
            ([[-1.0]], [[-INF]], r"logqs_from\[0\]\[0\] is -inf .* the proposal cannot emit"),
            ([[-1.0]], [[NAN]], r"logqs_from\[0\]\[0\] is nan .* a log-probability is ≤ 0"),
            ([[-1.0, NAN]], [[-1.0] * 2], r"logqs_to\[0\]\[1\] is nan"),
            ([[2.5, 1.0]], [[-1.0] * 2], r"logqs_to\[0\]\[0\] is 2.5 \(2 such\).*its negative"),
            (
                [[[-1.0]]],
                [[-1.0]],
                r"logqs_to\[0\] must have one dimension, got shape \[1, 1\].*b\]",
            ),
            ([-1.0], [-1.0], r"logqs_to\[0\] must have one dimension, got shape \[\]"),
            ([["x"]], [[-1.0]], r"logqs_to\[0\] must hold real numbers, got dtype <U1"),
            ([[None]], [[-1.0]], "must hold real numbers, got dtype object"),
            ([[-1j]], [[-1.0]], "must hold real numbers, got dtype complex128"),
            ([[[-1.0], [-1.0, -2.0]]], [[-1.0]], "cannot be read as an array .*inhomogeneous"),
            ([torch.zeros(1, requires_grad=True)], [[-1.0]], r"requires grad.*x\.detach\(\)"),
        ],
    )
    def test_errors_teach(self, to, source, message):
        with pytest.raises(SequenceError, match=message):
            sequence_log_weights(to, source)


class TestEffectiveSampleSize:
    def test_closed_forms(self):
        assert effective_sample_size([-3.0] * 7) == 7
        assert effective_sample_size([0.0] * 5 + [-INF] * 9) == 5
        weights = [Fraction(k) for k in (1, 2, 5, 11)]
        exact = sum(weights) ** 2 / sum(w * w for w in weights)
        assert effective_sample_size(np.log([1, 2, 5, 11])) == pytest.approx(float(exact))

    def test_in_the_limit_it_is_the_variance_of_the_weights(self):
        got = effective_sample_size(sample(200_000).log_w) / 200_000
        second = WORLD.p_to @ (WORLD.p_to / WORLD.p)  # E[w²], with E[w] = 1
        assert got == pytest.approx(1 / second, rel=0.02)

    def test_nothing_overflows_and_nothing_is_clamped(self):
        assert effective_sample_size([2000.0, -2000.0]) == 1
        assert effective_sample_size([2000.0, 2000.0 + math.log(3)]) == pytest.approx(1.6)
        assert effective_sample_size([-2000.0, -2000.0, -5000.0]) == 2

    @pytest.mark.parametrize(
        ("log_weights", "message"),
        [
            ([-INF, -INF], "no draw of 2 any weight.*temperature"),
            ([], "no draw of 0"),
            ([0.0, NAN], r"log_weights\[1\] is nan \(1 such\): a log weight is finite"),
            ([INF, 0.0], r"log_weights\[0\] is inf"),
            ([[0.0]], "one dimension"),
        ],
    )
    def test_errors_teach(self, log_weights, message):
        for call in (effective_sample_size, lambda x: mean([1.0, 2.0], x)):
            with pytest.raises(SequenceError, match=message):
                call(log_weights)


class TestValues:
    def test_an_enumeration_weighted_by_probability_is_the_exact_expectation(self):
        assert mean(WORLD.h_to, np.log(WORLD.p_to)).value == pytest.approx(EXACT["weighted mean"])
        got = ratio(WORLD.h_to, WORLD.t, np.log(WORLD.p_to)).value
        assert got == pytest.approx(EXACT["weighted ratio"])

    @every_estimator
    def test_they_reach_the_exact_expectation(self, kind):
        """Within 6 standard errors of 2·10⁵ draws: a false alarm in 2e-9 of seeds."""
        got = ESTIMATORS[kind](sample(200_000, seed=1))
        assert abs(got.value - EXACT[kind]) < 6 * got.standard_error < 0.05

    def test_the_two_ends_are_far_enough_apart_to_tell(self):
        for kind in ("change", "change of ratio"):
            error = ESTIMATORS[kind](sample(200_000, seed=1)).standard_error
            assert abs(EXACT[kind]) > 20 * error

    def test_enormous_log_weights(self):
        got = mean([1.0, 4.0, 1e300], [2000.0, 2000.0, -2000.0])
        assert got.value == 2.5
        assert got.effective_sample_size == 2

    def test_what_has_no_weight_is_not_read(self):
        log_w = [0.0, -INF, 0.0]
        assert mean([1.0, NAN, 3.0], log_w).value == 2
        assert change([1.0, INF, 3.0], [1.0, 7.0, 1.0], log_w).value == 2 - 3
        assert rao_blackwell_gain([1.0, 1.0, 2.0], [1.0, INF, 3.0], log_w).naive.value == 2
        got = change_of_ratio([1.0, INF, 3.0], [1.0, 7.0, 1.0], [1, 4, 1], log_w)
        assert got.value == pytest.approx(4 / 2 - 9 / 6)

    def test_what_was_passed_in_is_left_as_it_was(self):
        values, log_w = np.array([1.0, 2.0, 3.0]), np.array([0.0, -INF, 0.5])
        mean(values, log_w)
        assert values.tolist() == [1.0, 2.0, 3.0]
        assert log_w.tolist() == [0.0, -INF, 0.5]

    @pytest.mark.parametrize("eta", [1e-3, 1e-6, 1e-9])
    def test_a_change_has_its_slope_down_to_tiny_steps(self, eta):
        rng = np.random.default_rng(2)
        x, slope, score = rng.normal(size=(3, 500))
        got = change(x + eta * slope, x, eta * score)
        exact = slope.mean() + np.cov(x, score, bias=True)[0, 1]
        assert got.value / eta == pytest.approx(exact, rel=20 * eta + 1e-6)
        of_unit = slope - slope.mean() + (x - x.mean()) * (score - score.mean())
        error = stats.sem(of_unit)  # d/dη of the influences at η = 0
        assert got.standard_error / eta == pytest.approx(error, rel=20 * eta + 1e-5)

    def test_a_change_loses_no_digits_to_the_size_of_what_it_compares(self):
        rng = np.random.default_rng(3)
        x, score = 1e6 + rng.normal(size=300), 1e-8 * rng.normal(size=300)
        t = rng.integers(1, 9, 300).astype(float)
        with mpmath.workdps(60):
            w, h = [mpmath.exp(s) for s in score], [mpmath.mpf(y) for y in x * t]
            top, bottom = mpmath.fdot(w, h), mpmath.fdot(w, t)
            exact = top / bottom - mpmath.fsum(h) / mpmath.fsum(t)
            plain = mpmath.fdot(w, x) / mpmath.fsum(w) - mpmath.fsum(map(mpmath.mpf, x)) / 300
        assert change(x, x, score).value == pytest.approx(float(plain), rel=1e-6)
        assert change_of_ratio(x * t, x * t, t, score).value == pytest.approx(
            float(exact), rel=1e-5
        )
        direct = np.average(x, weights=np.exp(score)) - np.average(x)
        assert abs(direct - float(plain)) > 1e-3 * abs(float(plain))


class TestStandardErrors:
    def test_of_a_plain_mean_it_is_the_textbooks(self):
        x = sample().h
        assert mean(x).standard_error == pytest.approx(stats.sem(x))

    @every_estimator
    def test_it_is_the_exact_asymptotic_one(self, kind):
        """Multinomial frequencies f have covariance (diag f − ffᵀ)/N; gradients by complex step."""
        counts = np.maximum(np.rint(WORLD.p * 20_000), 1).astype(int)
        num = counts.sum()
        f, w = counts / num, np.exp(WORLD.log_w)
        steps = f + 1e-30j * np.eye(len(f))
        gradient = np.array([FUNCTIONALS[kind](row, w, WORLD).imag / 1e-30 for row in steps])
        variance = f @ gradient**2 - (f @ gradient) ** 2
        got = ESTIMATORS[kind](take(np.repeat(np.arange(len(f)), counts)))
        assert got.value == pytest.approx(FUNCTIONALS[kind](f, w, WORLD))
        assert got.standard_error == pytest.approx(math.sqrt(variance / (num - 1)), rel=1e-9)

    @every_estimator
    @pytest.mark.parametrize("size", [1, 5])
    def test_it_is_near_the_jackknifes(self, kind, size):
        """Leaving out one cluster of ``size`` draws at a time agrees to O(1/C)."""
        draws, clusters = sample(600), np.arange(600) // size
        num = 600 // size
        left = [
            FUNCTIONALS[kind]((clusters != c).astype(float), np.exp(draws.log_w), draws)
            for c in range(num)
        ]
        jackknife = math.sqrt((num - 1) ** 2 / num * np.var(left, ddof=1))
        got = ESTIMATORS[kind](draws, clusters).standard_error
        assert got == pytest.approx(jackknife, rel=0.03)

    @pytest.mark.parametrize("of_ratio", [False, True])
    def test_clusters_are_the_sandwich_of_a_weighted_regression(self, of_ratio):
        """Liang and Zeger's, in matrices and a double loop: h on t, weights w/t, no intercept."""
        draws = sample(80)
        clusters = np.random.default_rng(4).integers(0, 12, 80)
        t = draws.t if of_ratio else np.ones(80)
        design, weight = t[:, None], np.diag(np.exp(draws.log_w) / t)
        bread = np.linalg.inv(design.T @ weight @ design)
        slope = bread @ design.T @ weight @ draws.h_to
        scores = weight @ design * (draws.h_to - design @ slope)[:, None]
        meat = sum(
            scores[i] * scores[j]
            for i, j in itertools.product(range(80), repeat=2)
            if clusters[i] == clusters[j]
        )
        variance = (bread @ bread).item() * meat.item() * 12 / 11
        kind = "weighted ratio" if of_ratio else "weighted mean"
        got = ESTIMATORS[kind](draws, clusters)
        assert got.value == pytest.approx(slope.item())
        assert got.standard_error == pytest.approx(math.sqrt(variance))
        assert (got.num_draws, got.num_clusters) == (80, 12)

    @pytest.mark.parametrize(
        ("log_weights", "clusters"),
        [
            (None, [5, 5, 5]),
            ([0.0, -INF, -INF], None),
            ([2000.0, -2000.0, 0.0], None),
            ([0.0, 0.0, -INF], ["a", "a", "b"]),
        ],
    )
    def test_without_spread_to_see_it_is_nan(self, log_weights, clusters):
        got = mean([1.0, 2.0, 4.0], log_weights, clusters)
        assert math.isnan(got.standard_error)
        assert math.isfinite(got.value)

    def test_of_one_draw_it_is_nan(self):
        one = mean([3.0])
        assert (one.value, one.num_draws, one.effective_sample_size) == (3.0, 1, 1.0)
        assert math.isnan(one.standard_error)
        assert all(math.isnan(end) for end in one.interval())
        assert math.isnan(change([3.0], [2.0], [0.1]).standard_error)
        assert math.isnan(rao_blackwell_gain([3.0], [2.0]).z_score)


def coverage(kind, *, clustered, num_runs=1000, num_clusters=40, size=6):
    """How often a 95 % interval holds the exact value, where a cluster shares its prompt."""
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(num_clusters), size)
    of_prompt = {p: np.flatnonzero(WORLD.prompt == p) for p in PROMPTS}
    hits = 0
    for _ in range(num_runs):
        prompts = rng.choice(PROMPTS, num_clusters)
        index = np.empty((num_clusters, size), int)
        for p, outcomes in of_prompt.items():
            shape = ((prompts == p).sum(), size)
            index[prompts == p] = rng.choice(outcomes, shape, p=2 * WORLD.p[outcomes])
        low, high = ESTIMATORS[kind](
            take(index.ravel()), clusters if clustered else None
        ).interval()
        hits += low < EXACT[kind] < high
    return hits / num_runs


class TestCoverage:
    """1,000 runs of 40 clusters: with 39 degrees of freedom a normal 95 % interval covers 0.943.

    Its frequency has standard deviation 0.007, so (0.90, 0.985) is 5.8 of them either way: false
    alarms in about 1e-8 of seeds.
    """

    @every_estimator
    def test_clustered_errors_cover(self, kind):
        assert 0.90 < coverage(kind, clustered=True) < 0.985

    @every_estimator
    def test_independent_errors_on_clustered_draws_do_not(self, kind):
        assert coverage(kind, clustered=False) < 0.88

    def test_unpaired_errors_of_a_change_are_far_too_wide(self):
        draws = sample(2000)
        apart = mean(draws.h_to, draws.log_w).standard_error, mean(draws.h).standard_error
        assert change(draws.h_to, draws.h, draws.log_w).standard_error < 0.6 * math.hypot(*apart)


NAIVE_TO = np.array([-x.sum() for x in WORLD.logqs_to])


class TestRaoBlackwell:
    def test_both_expectations_and_the_gain_are_the_enumerated_ones(self):
        assert WORLD.p_to @ WORLD.h_to == pytest.approx(WORLD.p_to @ NAIVE_TO)
        counts = np.rint(WORLD.p * 1e6).astype(int)
        index = np.repeat(np.arange(len(counts)), counts)
        naive = np.array([-x.sum() for x in WORLD.logqs])
        got = rao_blackwell_gain(WORLD.h[index], naive[index])
        exact = np.cov(naive, aweights=WORLD.p) / np.cov(WORLD.h, aweights=WORLD.p)
        assert got.variance_ratio == pytest.approx(exact, rel=1e-3)
        assert got.naive.value == pytest.approx(got.rao_blackwell.value, rel=1e-4)
        assert got.difference.standard_error == pytest.approx(stats.sem((naive - WORLD.h)[index]))

    @pytest.mark.parametrize("weighted", [False, True])
    def test_z_tells_draws_of_the_policy_from_others(self, weighted):
        """|z| < 5: a false alarm in 6e-7 of seeds. The twin forgets what the draws were made by."""
        index = np.random.default_rng(6).choice(len(WORLD.p), 20_000, p=WORLD.p)
        log_w = WORLD.log_w[index] if weighted else None
        naive_from = np.array([-x.sum() for x in WORLD.logqs])
        ends = (WORLD.h_to, NAIVE_TO), (WORLD.h, naive_from)
        right, wrong = ends if weighted else ends[::-1]
        (rb, naive), (wrong_rb, wrong_naive) = ([x[index] for x in end] for end in (right, wrong))
        got = rao_blackwell_gain(rb, naive, log_w, np.arange(20_000) // 10)
        assert abs(got.z_score) < 5
        assert got.difference.num_clusters == 2000
        assert abs(rao_blackwell_gain(wrong_rb, wrong_naive, log_w).z_score) > 10

    def test_z_is_standard_normal_over_runs(self):
        """Σz² of 500 runs is χ²(500), of standard deviation 32: ±190 is 6 of them, 2e-9."""
        naive = np.array([-x.sum() for x in WORLD.logqs])
        rng = np.random.default_rng(7)
        total = 0.0
        for index in rng.choice(len(WORLD.p), (500, 400), p=WORLD.p):
            total += rao_blackwell_gain(WORLD.h[index], naive[index]).z_score ** 2
        assert total == pytest.approx(500, abs=190)

    def test_the_gain_can_be_a_loss(self):
        """Three sequences of probability 1/3: the surprisal is log 3 always, Σ H is not."""
        first = math.log(3) - 2 / 3 * math.log(2)  # H(2/3, 1/3), then a fair coin after the first
        rb = [first + math.log(2), first + math.log(2), first]
        got = rao_blackwell_gain(rb, [math.log(3)] * 3)
        assert got.difference.value == pytest.approx(0, abs=1e-15)
        assert got.variance_ratio < 1e-25

    def test_where_nothing_varies_nothing_is_told(self):
        got = rao_blackwell_gain([1.0, 1.0], [1.0, 1.0])
        assert math.isnan(got.variance_ratio)
        assert math.isnan(got.z_score)
        assert rao_blackwell_gain([1.0, 1.0], [1.5, 0.5]).variance_ratio == INF
        assert rao_blackwell_gain([1.0, 2.0], [2.0, 3.0]).z_score == INF
        assert rao_blackwell_gain([1.0, 2.0], [0.5, 1.5]).z_score == -INF


checked = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10_000)


def alike(got, want, *, rel=1e-9):
    assert got.value == pytest.approx(want.value, rel=rel, abs=1e-12)
    assert got.standard_error == pytest.approx(want.standard_error, rel=rel, abs=1e-12)
    assert got.effective_sample_size == pytest.approx(want.effective_sample_size, rel=rel)


@every_estimator
class TestProperties:
    @checked
    @given(seed=seeds, shift=st.floats(-2000, 2000))
    def test_a_common_shift_of_the_log_weights_changes_nothing(self, kind, seed, shift):
        draws = sample(30, seed)
        want = ESTIMATORS[kind](draws)
        draws.log_w = draws.log_w + shift
        alike(ESTIMATORS[kind](draws), want)

    @checked
    @given(seed=seeds)
    def test_neither_order_nor_names_of_clusters_matter(self, kind, seed):
        rng = np.random.default_rng(seed)
        index, clusters = rng.integers(0, len(WORLD.p), 30), rng.integers(0, 6, 30)
        want = ESTIMATORS[kind](take(index), clusters)
        order, names = rng.permutation(30), rng.permutation(100)
        alike(ESTIMATORS[kind](take(index[order]), clusters[order]), want)
        for renamed in (
            names[clusters],
            [("prompt", int(c)) for c in clusters],
            map(str, clusters),
        ):
            alike(ESTIMATORS[kind](take(index), list(renamed)), want, rel=1e-12)
        alike(ESTIMATORS[kind](take(index), torch.tensor(clusters)), want, rel=1e-12)
        alike(ESTIMATORS[kind](take(index), list(torch.tensor(clusters))), want, rel=1e-12)

    @checked
    @given(seed=seeds)
    def test_singletons_are_no_clusters(self, kind, seed):
        want = ESTIMATORS[kind](sample(20, seed))
        got = ESTIMATORS[kind](sample(20, seed), range(20))
        assert got == dataclasses.replace(want, num_clusters=20)

    @checked
    @given(seed=seeds, copies=st.integers(2, 5))
    def test_copies_in_one_cluster_add_nothing(self, kind, seed, copies):
        """As long as C is the number of originals; taken for independent, they would."""
        want = ESTIMATORS[kind](sample(20, seed))
        index = np.random.default_rng(seed).choice(len(WORLD.p), 20, p=WORLD.p)
        repeated = take(np.repeat(index, copies))
        got = ESTIMATORS[kind](repeated, np.repeat(np.arange(20), copies))
        assert got.value == pytest.approx(want.value, abs=1e-12)
        assert got.standard_error == pytest.approx(want.standard_error, rel=1e-9, abs=1e-12)

    @checked
    @given(seed=seeds, scale=st.floats(-5, 5))
    def test_it_scales_with_its_values(self, kind, seed, scale):
        draws = sample(20, seed)
        want = ESTIMATORS[kind](draws)
        draws.h, draws.h_to = scale * draws.h, scale * draws.h_to
        got = ESTIMATORS[kind](draws)
        assert got.value == pytest.approx(scale * want.value, abs=1e-12)
        assert got.standard_error == pytest.approx(abs(scale) * want.standard_error, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "values must hold some draws, got 0"),
        (lambda: mean([1.0, 2.0], [0.0]), "one number for each of 1 draws, got 2"),
        (lambda: mean([1.0, INF]), r"values\[1\] is inf \(1 such\): a draw that has weight needs"),
        (lambda: mean(2.0), r"values must have one dimension, got shape \[\]"),
        (lambda: mean([1.0, 2.0], clusters=[1]), "one id for each of 2 draws, got 1"),
        (lambda: mean([1.0, 2.0], clusters=[[1], [2]]), "one hashable id per draw.*unhashable"),
        (lambda: mean([1.0, 2.0], clusters=7), "one hashable id per draw.*not iterable"),
        (lambda: mean([1.0, 2.0], clusters=np.eye(2)), "one hashable id per draw.*size 1"),
        (lambda: mean([1.0, 2.0], clusters=[NAN, 1]), "clusters holds NaN"),
        (lambda: ratio([1.0], [1.0, 2.0]), "denominators must hold one number for each of 1"),
        (lambda: ratio([1.0] * 2, [1, -2]), r"denominators\[1\] is -2 .* counts"),
        (lambda: ratio([1.0] * 2, [0, 3], [0.0, -INF]), "denominators are 0 on every draw"),
        (lambda: change([1.0], [NAN], [0.0]), r"values_from\[0\] is nan"),
        (lambda: change([1.0] * 2, [1.0, NAN], [0.0, -INF]), r"values_from\[1\] is nan"),
        (lambda: change([1.0] * 2, [1.0], [0.0]), "values_to must hold one number for each of 1"),
        (lambda: change_of_ratio([INF], [1.0], [1], [0.0]), r"numerators_to\[0\] is inf"),
        (lambda: change_of_ratio([1.0], [1.0], [0], [0.0]), "denominators are 0"),
        (
            lambda: change_of_ratio([1.0] * 2, [1.0, NAN], [1, 1], [0.0, -INF]),
            r"numerators_from\[1\] is nan",
        ),
        (lambda: ratio([1.0] * 2, [1, NAN], [0.0, -INF]), r"denominators\[1\] is nan"),
        (lambda: rao_blackwell_gain([1.0], [-1.0]), r"naive_sums\[0\] is -1 .*its sign changed"),
        (lambda: rao_blackwell_gain([-1.0], [1.0]), r"rb_sums\[0\] is -1"),
        (lambda: rao_blackwell_gain([1.0], [1.0, 1.0]), "naive_sums must hold one number for each"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert isinstance(caught.value, SequenceError)


def test_rounding_of_a_certain_token_is_no_error():
    assert sequence_log_weights([[1e-7]], [[0.0]]).tolist() == [1e-7]
    assert rao_blackwell_gain([-1e-7, 0.0], [-1e-7, 0.0]).naive.num_draws == 2


def estimate(value, error, **fields):
    given = {"num_draws": 1024, "num_clusters": None, "effective_sample_size": 1024.0}
    return Estimate(value=value, standard_error=error, **given | fields)


class TestEstimate:
    def test_it_is_a_frozen_slotted_record(self):
        one = mean([1.0, 2.0])
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.value = 3.0  # type: ignore[misc]
        assert not hasattr(one, "__dict__")
        kinds = [type(getattr(one, f.name)) for f in dataclasses.fields(one)]
        assert kinds == [float, float, int, type(None), float]
        assert type(mean([1.0, 2.0], clusters=[0, 1]).num_clusters) is int

    @pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
    def test_intervals_are_normal(self, level):
        got = estimate(-2.0, 0.3).interval(level)
        assert got == pytest.approx(stats.norm.interval(level, -2.0, 0.3))

    @pytest.mark.parametrize("level", [0, 1, 95, NAN])
    def test_a_level_is_a_probability(self, level):
        with pytest.raises(ConfigError, match=r"level must lie in \(0, 1\), got"):
            estimate(0.0, 1.0).interval(level)

    @pytest.mark.parametrize(
        ("shown", "text"),
        [
            (estimate(2.718281828, 0.00213), "2.7183 ± 0.0021 (N = 1,024)"),
            (estimate(-1234567.8, 432.1), "-1,234,568 ± 432 (N = 1,024)"),
            (estimate(-3.35281e-9, 4.44e-12), "-3.3528e-09 ± 4.4e-12 (N = 1,024)"),
            (estimate(0.0, 2e-12), "0.0e+00 ± 2.0e-12 (N = 1,024)"),
            (estimate(0.5, NAN), "0.5 ± nan (N = 1,024)"),
            (estimate(0.5, 0.0), "0.5 ± 0 (N = 1,024)"),
            (
                estimate(1.0, 0.1, num_clusters=64, effective_sample_size=812.34),
                "1.00 ± 0.10 (N = 1,024, C = 64, ESS = 812.3)",
            ),
        ],
    )
    def test_it_shows_no_more_digits_than_it_knows(self, shown, text):
        assert str(shown) == text


def test_the_worked_example_shows_what_the_page_says():
    code, shown = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.S
    ).groups()
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {})
    assert printed.getvalue() == shown


@pytest.mark.parametrize("given", [{1, 2, 3}, "abc", {1: 1, 2: 2, 3: 3}])
def test_clusters_without_an_order_of_their_own_are_refused(given):
    with pytest.raises(
        SequenceError, match=f"list of one id per draw, got a {type(given).__name__}"
    ):
        mean([1.0, 2.0, 3.0], clusters=given)


@pytest.mark.parametrize("given", [None, (x for x in range(3)), {}, object()])
def test_what_is_no_array_is_called_by_its_type(given):
    with pytest.raises(SequenceError, match=f"list of numbers, got {type(given).__name__}"):
        mean(given)


@pytest.mark.parametrize("values", [[1e308] * 3, [1e200, 2e200, -1e200]])
def test_values_whose_squares_overflow_are_refused(values):
    with pytest.raises(SequenceError, match="too large"):
        mean(values)


@pytest.mark.parametrize("level", ["0.95", None, 0, 1])
def test_a_level_that_is_none_is_refused(level):
    with pytest.raises(ConfigError, match="level"):
        mean([1.0, 2.0]).interval(level)
