"""Findings of tests, and one verdict over many of them at a stated rate of false alarms.

Knows numbers and names; not where they come from.

References: Holm, "A simple sequentially rejective multiple test procedure" (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from seqproc._util.printing import Facts, Printed
from seqproc.errors import ConfigError

FALSE_ALARMS = 1e-3
"""Default probability that a right engine fails the verdict, at most."""


class Link(StrEnum):
    """The links of the chain from a prompt to a response, in order."""

    PROMPT = "prompt tokens"
    WEIGHTS = "weights"
    LOGITS = "logits"
    POLICY = "policy"
    LOG_Q = "log q"
    TOKENS = "sampled tokens"
    TEXT = "text and stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One test of one link.

    The p-value is the probability of a statistic at least as extreme from a right engine. Checks
    of what can only be right or wrong have p-values of 1 and 0, and take no part of the rate of
    false alarms: a right engine never fails them.
    """

    name: str
    link: Link  # the link that it speaks of
    p_value: float | None  # None: the draws hold nothing that it could be decided by
    statistic: float | None = None
    weight: float = 1.0  # in the division of the rate of false alarms among the tests
    is_exact: bool = False  # whether it can only be right or wrong, without chance
    at_any_time: bool = False  # whether the p-value holds however often, and whenever, one looks
    detail: str = ""  # what was counted, in words; plain text


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verdict(Printed):
    """Whether all the findings together are those of a right engine."""

    holds: bool
    false_alarms: float  # probability that a right engine fails, at most
    failed: tuple[str, ...]  # names of the findings that were rejected
    num_tests: int  # findings that had a p-value, exact ones among them

    def _facts(self) -> Facts:
        return {
            "holds": self.holds,
            "failed": self.failed or None,
            "tests": self.num_tests,
            "false_alarms": self.false_alarms,
        }


def decide(findings: Sequence[Finding], false_alarms: float = FALSE_ALARMS) -> Verdict:
    """Reject by Holm's weighted procedure, the smallest p/w first, up to the first that stands.

    Each p-value is held against α·w/Σw, the sum being over the tests that are left. It keeps the
    probability of any false rejection at α or below however the tests depend on each other, as
    long as each p-value alone is right. An exact check is rejected when it is wrong.

    Raises:
        ConfigError: when ``false_alarms`` is not in (0, 1).
    """
    require_rate(false_alarms)
    by_chance = [f for f in findings if f.p_value is not None and not f.is_exact]
    left = sum(finding.weight for finding in by_chance)
    failed = []
    for finding in _by_evidence(by_chance):
        if (finding.p_value or 0.0) > false_alarms * finding.weight / left:
            break
        failed.append(finding)
        left -= finding.weight
    return _verdict(findings, failed, false_alarms)


def decide_at(
    look: int, findings: Sequence[Finding], false_alarms: float = FALSE_ALARMS
) -> Verdict:
    """Reject at the n-th look at draws that grow, with one rate of false alarms for all looks.

    Each p-value is held against α·w/Σw, the sum being over all tests; one that does not hold at any
    time, against a share 1/(n(n + 1)) of that, which adds up to 1 over all looks. The probability
    of any false rejection at any look is at most α however tests and looks depend on each other.
    An exact check is rejected when it is wrong.

    Args:
        look: n, from 1.
        findings: of all draws so far; the same tests at every look, decided or not.
        false_alarms: α.

    Raises:
        ConfigError: as `decide`.
    """
    require_rate(false_alarms)
    by_chance = [finding for finding in findings if not finding.is_exact]
    total = sum(finding.weight for finding in by_chance)
    failed = [
        finding
        for finding in by_chance
        if finding.p_value is not None
        and finding.p_value
        <= false_alarms * finding.weight / total / (1 if finding.at_any_time else look * (look + 1))
    ]
    return _verdict(findings, _by_evidence(failed), false_alarms)


def _verdict(
    findings: Sequence[Finding], by_chance: Sequence[Finding], false_alarms: float
) -> Verdict:
    """With the exact checks that are wrong before the tests that were rejected."""
    wrong = [finding for finding in findings if finding.is_exact and finding.p_value == 0]
    failed = (*sorted(wrong, key=lambda finding: finding.name), *by_chance)
    return Verdict(
        holds=not failed,
        false_alarms=false_alarms,
        failed=tuple(finding.name for finding in failed),
        num_tests=sum(finding.p_value is not None for finding in findings),
    )


def _by_evidence(findings: Sequence[Finding]) -> list[Finding]:
    """The smallest p/w first."""
    return sorted(findings, key=lambda one: ((one.p_value or 0.0) / one.weight, one.name))


def require_rate(false_alarms: float) -> None:
    """Refuse a rate of false alarms that is none; before anything is sampled for it.

    Raises:
        ConfigError: when it is not in (0, 1).
    """
    if not isinstance(false_alarms, (int, float)) or not 0 < false_alarms < 1:
        raise ConfigError(f"false_alarms must lie in (0, 1), got {false_alarms!r}")
