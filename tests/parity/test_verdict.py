"""Holm's procedure against its definition, and its rate of false alarms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqproc.errors import ConfigError
from seqproc.parity import Finding, Link, decide


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
