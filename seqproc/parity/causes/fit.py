"""Whether draws are what they should be when a candidate is taken for true.

Every token is scored in the candidate's own distribution. Then all that is tested of the policy is
tested of it: places, ranks, surprisal, independence, and the bets of the whole catalogue, which now
are placed against the candidate, and on the likeliest one on top of it. So nothing is a cause that
leaves anything to explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seqproc.engines.answers import batch_size_of
from seqproc.parity.betting.cuts import IGNORED, TEMPERATURE
from seqproc.parity.betting.evidence import WINDOWS, Window, evidence, in_part
from seqproc.parity.betting.findings import allowed_families, bet_findings
from seqproc.parity.causes.beside import bets_beside, in_words
from seqproc.parity.causes.candidates import Candidate, gains_in, placed
from seqproc.parity.causes.likeliest import Likeliest, likeliest
from seqproc.parity.causes.repeats import same_contexts
from seqproc.parity.draws import Draws, Floats, with_tokens
from seqproc.parity.findings.places import place_findings
from seqproc.parity.findings.sampler import sampler_findings
from seqproc.parity.scoring import RowDistribution, of_logits, score_rows
from seqproc.parity.suspected import scored_under, under
from seqproc.parity.suspects import Case, of_policy
from seqproc.parity.verdict import Finding, decide

_MOSTLY = 0.999  # share of tokens in a candidate's support; rounding may put a few outside
# Probability that the true candidate is said to leave something, at most; of one whose log q the
# engine reports, which is told apart by these, it is the rate of false alarms.
_LEVEL = 0.01
_MOSTLY_REPORTED = 0.99  # share of log q that agree; a cut of the support may move a few
_SMALL_PART = 0.2  # of the median error that a cause leaves, and is taken to explain


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A candidate at its most probable parameter, by the exact likelihood of the tokens."""

    candidate: Candidate
    holds: bool  # whether all tests of the tokens do when it is taken for true
    left: tuple[str, ...]  # what does not hold then, in words
    reported: float  # share of the engine's log q that are its own; NaN without
    level: float  # probability that it is said to leave something if it is true, at most
    whole: RowDistribution  # its own
    draws: Draws  # scored under it
    span: tuple[float, float] | None = None  # values of its parameter that do about as well
    is_vague: bool = False  # whether other weights look like it: a temperature above the policy's
    second: str = ""  # the most probable fault beside it, in words, where one is left

    @property
    def is_reported(self) -> bool:
        """Whether the engine's log q are the candidate's."""
        return self.reported >= _MOSTLY_REPORTED


def fitted(candidates: Sequence[Candidate], case: Case) -> list[Fit]:
    """Candidates scored in full: those of the catalogue together, each suspect alone."""
    found = likeliest(candidates, case)
    wholes = {str(n): one.member.whole for n, one in enumerate(found) if one is not None}
    draws = score_rows(case.answers, case.scorer, wholes, override=case.override) if wholes else {}
    return [
        _of_suspect(candidate, case)
        if one is None
        else _of_member(candidate, one, draws[str(n)], case)
        for n, (candidate, one) in enumerate(zip(candidates, found, strict=True))
    ]


def _of_suspect(candidate: Candidate, case: Case) -> Fit:
    assert candidate.suspect is not None
    draws = scored_under(case, candidate.suspect)
    return _fit(candidate, draws, of_logits(of_policy(case.policy)), case)


def _of_member(candidate: Candidate, found: Likeliest, draws: Draws, case: Case) -> Fit:
    member = found.member
    named = replace(candidate, description=placed(member.words, found.window), window=found.window)
    fit = _fit(named, draws, member.whole, case)
    is_vague = (
        candidate.family == TEMPERATURE
        and member.words != IGNORED  # by chance no other weights look like T = 1 and nothing else
        and not case.policy.truncates  # they would cut at other tokens, too
        and float(fit.draws.entropies.sum()) > float(case.draws.entropies.sum())
    )
    return replace(fit, span=found.span, is_vague=is_vague)


def _fit(candidate: Candidate, draws: Draws, whole: RowDistribution, case: Case) -> Fit:
    """What holds when draws are from the distribution that they are scored under."""
    gains = gains_in(candidate.window, draws.logqs, case)
    draws = _within(candidate.window, draws, case)
    reported = share_reported(case, draws.logqs)
    level = case.false_alarms if reported >= _MOSTLY_REPORTED else max(_LEVEL, case.false_alarms)
    left = leaves(case, draws, gains, level)
    return Fit(
        candidate=replace(candidate, log_odds=float(gains.sum()) + candidate.log_share),
        holds=not left,
        left=left,
        reported=reported,
        level=level,
        whole=whole,
        draws=draws,
    )


def with_second(fit: Fit, case: Case) -> Fit:
    """The fit, held against bets on a second fault beside its candidate.

    It takes a forward of its own. Candidates of draws that are not known stay as they are, and
    so do suspects of some tokens alone.
    """
    suspect, window = fit.candidate.suspect, fit.candidate.window
    if window.part < 1 or (suspect is not None and window != WINDOWS[0]):
        return fit
    answers, override = (case.answers, case.override) if suspect is None else under(case, suspect)
    found = bets_beside(fit.whole, window, fit.draws, answers, override, case)
    failed = decide(bet_findings(found, case.error.nats), fit.level).failed
    if not failed:
        return fit
    best = next(bet for bet in found.bets if bet.family not in allowed_families(case.error.nats))
    return replace(
        fit,
        holds=False,
        left=tuple(dict.fromkeys((*fit.left, *failed))),
        second=in_words(best, case.policy),
    )


def _within(window: Window, draws: Draws, case: Case) -> Draws:
    """Draws scored under an alternative in a window, and under the policy elsewhere."""
    if window == WINDOWS[0]:
        return draws
    inside = window.holds(draws.steps, draws.owners)
    if window.part < 1:
        inside = inside & _is_from(window, draws, case)[draws.owners]
    mixed = {
        name: np.where(inside.reshape(-1, *(1,) * (values.ndim - 1)), values, policys)
        for (name, values), policys in zip(
            draws.of_tokens().items(), case.draws.of_tokens().values(), strict=True
        )
    }
    return replace(draws, **mixed)


def _is_from(window: Window, draws: Draws, case: Case) -> NDArray[np.bool_]:
    """Which draws are from an alternative, ``[D]``: each by chance, as probably as it is.

    Given these the tokens of either kind are distributed as they are to be, if the alternative is
    true; those that are most probably from it would not be.
    """
    gains = np.add.reduceat(gains_in(WINDOWS[0], draws.logqs, case), draws.starts)
    probabilities = np.exp(math.log(window.part) + gains - in_part(gains, window.part))
    return np.asarray(np.random.default_rng(0).random(len(gains)) < probabilities)


def leaves(case: Case, draws: Draws, gains: Floats, level: float) -> tuple[str, ...]:
    """The tests that fail when draws come from the distributions that they are scored under.

    Args:
        case: the draws under the policy.
        draws: they under an alternative r.
        gains: ``[N]`` log r/q of the tokens, nats.
        level: probability that one fails if r is what they come from, at most.
    """
    findings: list[Finding] = [
        *sampler_findings(draws),
        *place_findings(draws, case.stopping.max_new_tokens, batch_size_of(case.engine)),
        same_contexts(with_tokens(case.answers), draws),
    ]
    # Where tokens lie outside the policy's support the bets are not on all that came.
    if case.nominal.gains is not None and case.draws.in_support.all():
        against = case.nominal.gains.against(gains)
        findings += bet_findings(evidence(against), case.error.nats)
    outside = ("support",) if float(draws.in_support.mean()) < _MOSTLY else ()
    return (*outside, *decide(findings, level).failed)


def share_reported(case: Case, logqs: Floats) -> float:
    """Which share of the reported log q is that of tokens as they were scored; NaN without.

    A fitted parameter is near the true one and not it: so an error that is a small part of the
    policy's own counts as none.
    """
    reported = case.nominal.engine_logqs
    if reported is None:
        return math.nan
    told = ~np.isnan(reported)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(reported[told] - logqs[told])
        nominal = np.abs(reported[told] - case.draws.logqs[told])
    allowed = max(case.tolerance, _SMALL_PART * float(np.median(nominal)))
    return float((gaps <= allowed).mean())
