"""Holm's procedure against its definition, and its rate of false alarms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from seqproc.errors import ConfigError
from seqproc.parity import Finding, Link, decide
from seqproc.parity.verdict import decide_at


def findings(*p_values: float | None) -> list[Finding]:
    return [Finding(name=f"test {n}", link=Link.POLICY, p_value=p) for n, p in enumerate(p_values)]


def test_sorted_p_values_against_growing_thresholds() -> None:
    """α = 0.1 over 4 tests: thresholds 0.025, 0.0333, 0.05, 0.1 for the sorted p-values."""
    verdict = decide(findings(0.04, 0.03, 0.5, 0.02), 0.1)
    assert verdict.failed == ("test 3", "test 1", "test 0")
    assert not verdict.holds
    assert verdict.num_tests == 4


def test_the_first_that_passes_ends_it() -> None:
    assert decide(findings(0.026, 0.027, 0.5, 0.6), 0.1).failed == ()


def test_undecided_tests_do_not_count() -> None:
    assert decide(findings(0.04, None, None), 0.05).failed == ("test 0",)
    assert decide(findings(None)).holds


def test_the_rate_of_false_alarms_is_kept() -> None:
    """Of 4,000 families of 8 right tests, 5 % fail: within 5 standard deviations of 5 %."""
    rng = np.random.default_rng(0)
    failed = sum(not decide(findings(*rng.random(8)), 0.05).holds for _ in range(4_000))
    assert abs(failed / 4_000 - 0.05) < 5 * (0.05 * 0.95 / 4_000) ** 0.5


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan"), "0.1", None])
def test_a_rate_that_is_none_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match="false_alarms"):
        decide(findings(0.5), rate)


def test_a_look_spends_a_share_of_the_rate() -> None:
    """α = 0.12 over weights 1, 1, 2 (at any time): 0.03/(n(n + 1)) at look n, and 0.06."""
    bets = Finding(name="bets", link=Link.POLICY, p_value=0.06, weight=2.0, at_any_time=True)
    first = Finding(name="first", link=Link.POLICY, p_value=0.005)
    unknown = Finding(name="unknown", link=Link.POLICY, p_value=None)
    assert decide_at(1, [first, unknown, bets], 0.12).failed == ("first", "bets")
    assert decide_at(2, [first, unknown, bets], 0.12).failed == ("first", "bets")
    assert decide_at(3, [first, unknown, bets], 0.12).failed == ("bets",)
    assert decide_at(1, [first, unknown, bets], 0.12).num_tests == 2
    assert decide_at(1, [unknown], 0.12).holds


def test_looks_at_growing_draws_keep_the_rate() -> None:
    """Two z tests and a bet of normal draws, looked at 10 times: α = 0.1."""
    rng = np.random.default_rng(0)
    alarms, runs = 0, 2_000
    for _ in range(runs):
        x = rng.normal(size=(2, 1_000))
        log_e = np.cumsum(0.2 * x[0] - 0.02)
        for look in range(1, 11):
            n = 100 * look
            z = np.abs(x[:, :n].sum(1)) / np.sqrt(n)
            found = [
                Finding(name=f"z {k}", link=Link.POLICY, p_value=float(2 * stats.norm.sf(z[k])))
                for k in range(2)
            ]
            p = min(1.0, float(np.exp(-log_e[n - 1])))
            found.append(Finding(name="bet", link=Link.POLICY, p_value=p, at_any_time=True))
            if not decide_at(look, found, 0.1).holds:
                alarms += 1
                break
    assert 0.01 < alarms / runs < 0.1


def exact(p_value: float) -> Finding:
    return Finding(name="exact", link=Link.TEXT, p_value=p_value, is_exact=True)


def test_an_exact_check_takes_nothing_of_the_rate() -> None:
    """α = 0.1 over two tests by chance: a threshold of 0.05, with or without the exact check."""
    found = findings(0.049, 0.9)
    for rule in (decide, lambda some, rate: decide_at(1, some, 2 * rate)):
        assert rule([*found, exact(1.0)], 0.1).failed == ("test 0",)
        assert rule([*found, exact(0.0)], 0.1).failed == ("exact", "test 0")
        assert rule([*findings(0.9), exact(0.0)], 0.1).failed == ("exact",)
