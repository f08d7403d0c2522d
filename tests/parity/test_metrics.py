"""Mismatch metrics against sums over a known pair of distributions, and their errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.synthetic import POLICY, synthetic
from seqproc import estimators
from seqproc.parity import Draws, Finding, NominalScores, mismatch
from seqproc.parity.logit_error import LogitError
from seqproc.parity.metrics import log_q_range, reported_log_q

E = np.array([0.5, 0.3, 0.2])  # the engine's distribution at every step
Q = np.array([0.4, 0.4, 0.2])  # the scorer's


def known(seed: int, num_prompts: int = 400) -> tuple[Draws, NDArray[np.float64]]:
    """Draws whose tokens come from E at every step, scored under Q."""
    draws = synthetic(seed, num_prompts=num_prompts)
    tokens = np.random.default_rng(seed).choice(3, size=len(draws.logqs), p=E)
    return replace(draws, logqs=np.log(Q[tokens])), np.log(E[tokens])


def test_metrics_of_a_known_pair() -> None:
    found = mismatch(*known(0))
    kl, chi2 = float(E @ np.log(E / Q)), float(Q @ (Q / E)) - 1
    expected = {
        "kl_k1": kl,
        "kl_k3": kl,
        "perplexity_ratio": np.exp(kl),
        "chi2_token": chi2,
        "mean_abs": float(E @ np.abs(np.log(E / Q))),
    }
    for name, value in expected.items():
        metric = found[name]
        assert abs(metric.value - value) < 5 * metric.standard_error, name
        assert metric.standard_error < 0.2 * abs(value), name
    assert found["max_abs"].value == pytest.approx(np.log(4 / 3))
    assert found["kl_k3"].standard_error < found["kl_k1"].standard_error


def test_tokens_without_a_log_q_leave_nan_and_no_crash() -> None:
    """An engine whose log q are NaN, all of them or those of all but one prompt."""
    draws, engine = known(0, num_prompts=6)
    nowhere = mismatch(draws, np.full_like(engine, np.nan))
    assert set(nowhere) == set(mismatch(draws, engine))
    assert all(np.isnan(m.value) and np.isnan(m.standard_error) for m in nowhere.values())
    owner = np.repeat(draws.prompts, draws.lengths)
    some = mismatch(draws, np.where(owner == owner[0], engine, np.nan))
    assert np.isfinite(some["kl_k1"].value)
    two = np.isin(owner, [owner[0], owner[-1]])
    assert np.isfinite(mismatch(draws, np.where(two, engine, np.nan))["kl_k1"].standard_error)


def test_errors_are_those_of_clusters() -> None:
    draws, engine = known(1)
    found = mismatch(draws, engine)["kl_k1"]
    per_draw = np.repeat(np.arange(len(draws.lengths)), draws.lengths)
    exact = estimators.ratio(
        np.bincount(per_draw, engine - draws.logqs), draws.lengths, clusters=draws.prompts
    )
    assert found.value == pytest.approx(exact.value, rel=1e-12)
    assert found.standard_error == pytest.approx(exact.standard_error, rel=0.2)  # 200 resamples


def test_sequences() -> None:
    draws, engine = known(2)
    found = mismatch(draws, engine)
    ends = np.cumsum(draws.lengths)
    sums = np.array([x.sum() for x in np.split(engine - draws.logqs, ends[:-1])])
    weights = np.exp(-sums)
    assert found["chi2_sequence"].value == pytest.approx((weights**2).mean() - 1)
    size = weights.sum() ** 2 / (weights**2).sum()
    assert found["effective_sample_size"].value == pytest.approx(size / len(sums))
    assert found["effective_sample_size"].value < 1


def test_equal_log_q_mismatch_in_nothing() -> None:
    draws = synthetic(0)
    found = mismatch(draws, draws.logqs.copy())
    for name in ("mean_abs", "max_abs", "p99_abs", "kl_k1", "kl_k3", "chi2_token"):
        assert found[name].value == 0
    assert found["pearson"].value == pytest.approx(1)
    assert found["effective_sample_size"].value == pytest.approx(1)


def test_tokens_outside_the_support_are_left_out() -> None:
    draws = synthetic(0)
    engine = draws.logqs.copy()
    outside = replace(draws, logqs=np.where(np.arange(len(engine)) == 7, -np.inf, draws.logqs))
    assert mismatch(outside, engine)["max_abs"].value == 0


def test_one_prompt_has_no_error() -> None:
    draws = synthetic(0, num_prompts=1, per_prompt=8)
    assert np.isnan(mismatch(draws, draws.logqs)["kl_k1"].standard_error)


HEAD = 0.92  # mass of the support at every step, where synthetic draws have top_p = 0.9


def judged(draws: Draws, engine: NDArray[np.float64], allowed: float, settled: bool) -> Finding:
    """Whether log q are those of a right engine, when the support is sure everywhere or nowhere."""
    flags, values = np.full(len(draws.logqs), settled), np.full(len(draws.logqs), HEAD)
    nominal = NominalScores(
        logprobs=draws.logqs,
        mass_before=values,
        head_mass=values,
        cut_margin=values,
        is_reachable=flags,
        is_settled=flags,
        engine_logqs=engine,
    )
    return reported_log_q(
        draws,
        engine,
        log_q_range(draws, nominal, POLICY, LogitError(nats=allowed * POLICY.temperature / 2)),
    )


def test_reported_log_q() -> None:
    draws = synthetic(0)
    engine = draws.logqs + 4e-4
    assert judged(draws, engine, 5e-4, True).p_value == 1.0
    wrong = judged(draws, engine, 3e-4, True)
    assert wrong.p_value == 0.0
    assert wrong.statistic == pytest.approx(4e-4)
    assert judged(draws, engine, 3e-4, False).p_value == 1.0


@pytest.mark.parametrize(
    ("kept", "holds"),
    [(0.9, True), (0.95, True), (1.0, True), (0.88, False), (1.02, False), (0.05, False)],
)
def test_where_the_cut_is_not_sure_log_q_are_still_those_of_a_cut(kept: float, holds: bool) -> None:
    """An engine that keeps another nucleus, of a mass that can be one or cannot."""
    draws = synthetic(0)
    found = judged(draws, draws.logqs + np.log(HEAD / kept), 1e-3, False)
    assert found.p_value == float(holds)
    assert f"of {len(draws.logqs):,} where no cut is sure fit none" in found.detail


def test_log_q_of_no_token_decide_nothing() -> None:
    draws = synthetic(0)
    everywhere = np.ones(len(draws.logqs), dtype=bool)
    outside = replace(draws, logqs=np.full(len(draws.logqs), -np.inf))
    assert judged(outside, draws.logqs, 1.0, True).p_value is None
    assert judged(draws, np.where(everywhere, np.nan, 0.0), 1.0, True).p_value is None


def test_absurd_log_q_give_metrics_and_no_warning() -> None:
    draws = synthetic(0, num_prompts=6)
    for low in (-800.0, -1e100):
        found = mismatch(draws, np.full(len(draws.logqs), low))
        assert found["max_abs"].value > 700
        assert found["kl_k3"].value == np.inf


def test_not_a_number_is_no_log_q() -> None:
    draws = synthetic(0)
    assert judged(draws, draws.logqs - np.inf, 1.0, True).p_value == 0.0
    assert judged(draws, draws.logqs - np.inf, 1.0, False).p_value == 0.0


def test_draws_that_report_none_do_not_hide_the_others() -> None:
    draws = synthetic(0)
    logqs = draws.logqs + 3.0
    logqs[: draws.lengths[0]] = np.nan
    found = judged(draws, logqs, 1.0, True)
    assert found.p_value == 0.0
    assert f"1 of {len(draws.lengths):,} draws report none" in found.detail
    assert judged(draws, logqs - 3.0, 1.0, True).p_value == 1.0
    values = mismatch(draws, logqs - 3.0)
    assert values["max_abs"].value < 1e-12
