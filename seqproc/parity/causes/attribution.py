"""Why an engine failed: the chain followed link by link, and one cause of what its tokens are.

The bets of the catalogue have told already how probable each alternative is; other weights and
other prompts are scored, and are alternatives as well. The most probable ones are scored in full,
and only one that then leaves nothing unexplained is a cause. Where none does, the tokens come from
a distribution that is not known, or, where their distribution is right, are not independent. Runs
only after a failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from seqproc.parity.betting.catalogue import SHARE
from seqproc.parity.betting.evidence import evidence
from seqproc.parity.causes.candidates import Candidate, of_catalogue, of_suspect, unreachable
from seqproc.parity.causes.cause import Cause, Tried
from seqproc.parity.causes.dependence import dependence
from seqproc.parity.causes.fit import Fit, fitted, share_reported, with_second
from seqproc.parity.causes.likeliest import SPAN
from seqproc.parity.causes.reports import cause_of_reports
from seqproc.parity.findings.places import BY_CLASS, PLACES
from seqproc.parity.findings.replay import REPLAY
from seqproc.parity.findings.sampler import LENGTHS
from seqproc.parity.findings.structure import ENDINGS
from seqproc.parity.suspected import log_r
from seqproc.parity.suspects import Case, other_prompts, other_weights
from seqproc.parity.verdict import Finding, Link

_CONTENDING = math.log(SPAN)  # nats behind the most probable, up to which one contends with it
_SUSPECTS, _FAMILIES = 2, 5  # candidates that are scored in full, at most
_MOSTLY_REPORTED = 0.99  # share of log q that agree; a cut of the support may move a few
_MANY_REPORTED = 0.5  # share of them with which a cause may pass, if not for the very one
_OFF = 1e-3  # share of tokens that logits which are a little off put outside the support, at most
_UNKNOWN = "another distribution, not a known one"
_OTHERS = "other weights or prompts, which look like a higher temperature"


def attribute(case: Case, failed: Sequence[Finding]) -> list[Cause]:
    """Causes of what failed, the first link of the chain first."""
    links = {finding.link for finding in failed}
    certain = [finding for finding in failed if finding.is_exact]
    causes = [_plain(f) for f in certain if f.link in (Link.PROMPT, Link.TEXT)]
    if Link.PROMPT in links:  # then everything behind it differs
        return [cause for cause in causes if cause.link is Link.PROMPT]
    names = {finding.name for finding in failed}
    # Where responses are cut in the wrong place, the tokens that end them are missing.
    apart = {REPLAY, BY_CLASS, LENGTHS} if ENDINGS in names else {REPLAY}
    rest = [finding for finding in failed if finding.name not in apart]
    if any(f.link in (Link.POLICY, Link.TOKENS) or f.name == LENGTHS for f in rest):
        causes.append(_cause_of_tokens(case, rest))
    elif Link.LOG_Q in links:
        causes.append(cause_of_reports(case))
    if REPLAY in names and not any(c.explains for c in causes):
        causes.append(_other_tokens(failed))
    order = list(Link)
    return sorted(causes, key=lambda cause: order.index(cause.link))


def _plain(finding: Finding) -> Cause:
    return Cause(link=finding.link, description=finding.detail, explains=True)


def _other_tokens(failed: Sequence[Finding]) -> Cause:
    """The replay failed, and nothing else explains it."""
    finding = next(finding for finding in failed if finding.name == REPLAY)
    return Cause(
        link=finding.link,
        description="the tokens are not those that the engine's noise and the scorer's logits give",
        explains=False,
        detail=finding.detail,
    )


# ---------------------------------------------------------------------- the tokens


def _cause_of_tokens(case: Case, failed: Sequence[Finding]) -> Cause:
    """The one cause of tokens that are not the policy's, or not independent."""
    candidates = _candidates(case)
    distributions = [one for one in candidates if one.is_distribution and one.log_odds > 0]
    fits = _fits(distributions, case)
    able = [fit for fit in fits if fit.holds and fit.candidate.log_odds > 0]
    if able:
        best = with_second(max(able, key=_probability), case)
        fits = _with(best, fits)
        return (
            _known(best, able, case, failed, fits) if best.holds else _unknown(failed, best, fits)
        )
    noise = [one for one in candidates if not one.is_distribution]
    found = dependence(case, failed, _likeliest(noise), _likeliest(distributions))
    if found is not None:
        return found
    if not fits:
        return _unknown(failed, None, fits)
    nearest = with_second(max(fits, key=lambda fit: fit.candidate.log_odds), case)
    return _unknown(failed, nearest, _with(nearest, fits))


def _with(one: Fit, fits: Sequence[Fit]) -> list[Fit]:
    """All of them, of which one was held against more."""
    return [one if fit.candidate is one.candidate else fit for fit in fits]


def _tried(fits: Sequence[Fit]) -> tuple[Tried, ...]:
    """All that were scored in full, the most probable first."""
    return tuple(
        Tried(
            description=fit.candidate.description,
            log_odds=fit.candidate.log_odds,
            interval=fit.span,
            left=fit.left,
        )
        for fit in sorted(fits, key=lambda fit: fit.candidate.log_odds, reverse=True)
    )


def _likeliest(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=lambda one: one.log_odds, default=None)


def _probability(fit: Fit) -> tuple[bool, float]:
    """What the engine says that it sampled from goes first."""
    return fit.is_reported, fit.candidate.log_odds


def _known(
    best: Fit, able: Sequence[Fit], case: Case, failed: Sequence[Finding], fits: Sequence[Fit]
) -> Cause:
    """A distribution that leaves nothing to explain, and those that do about as well.

    One that is hardly more probable than what is not known has this for a contender.
    """
    rivals = [
        fit.candidate.description
        for fit in able
        if fit.candidate.family != best.candidate.family
        and fit.is_reported == best.is_reported
        and fit.candidate.log_odds > best.candidate.log_odds - _CONTENDING
    ]
    if best.is_vague and not best.is_reported:
        rivals.append(_OTHERS)
    sure = best.candidate.log_odds - _odds_of_unknown(case) >= -math.log(case.false_alarms)
    if not sure and not best.is_reported:
        rivals.append(_UNKNOWN)
    leaves, of_reports = _of_reports(best, case)
    likelier = f"e^{best.candidate.log_odds:.1f} times as probable as the policy{of_reports}"
    return Cause(
        link=best.candidate.link,
        description=best.candidate.description,
        explains=not rivals and not leaves,
        detail="; ".join([likelier, *_interval(best), *_where(failed)]),
        contenders=tuple(rivals),
        interval=best.span,
        tried=_tried(fits),
    )


def _odds_of_unknown(case: Case) -> float:
    """Log odds against the policy of logits that are a little off, nobody knows how.

    Any such logits bring n tokens that the policy cannot emit, which tell against it what they tell
    for the alternatives that can. But what emits them emits the others less often, by n nats in
    all; a token at the edge of the support comes in or stays out as it may happen, by a half; and
    they bring few: what brings many has to tell how.
    """
    num_tokens, told = len(case.draws.steps), unreachable(case)
    num_outside = told / -math.log(SHARE)
    cost, rate = num_outside * (1 + math.log(2)), num_outside / num_tokens
    if rate > _OFF:
        cost += num_outside * math.log(rate / _OFF) - num_tokens * (rate - _OFF)
    return told - cost


def _interval(fit: Fit) -> list[str]:
    if fit.span is None:
        return []
    return [f"values from {fit.span[0]:.4g} to {fit.span[1]:.4g} are within a factor of {SPAN:g}"]


def _of_reports(best: Fit, case: Case) -> tuple[bool, str]:
    """Whether a cause leaves the reported log q unexplained, and what is to be said of them."""
    if not best.reported < _MANY_REPORTED:
        return False, ""
    if share_reported(case, case.draws.logqs) >= _MOSTLY_REPORTED:
        return False, "; the engine reports the log q of the policy all the same"
    share = 1 - best.reported
    return True, f"; {share:.1%} of the reported log q are not its own, which it leaves unexplained"


def _unknown(failed: Sequence[Finding], nearest: Fit | None, fits: Sequence[Fit]) -> Cause:
    """With the nearest that is known, and where it is wrong."""
    near: list[str] = []
    if nearest is not None:
        near.append(f"the nearest is: {nearest.candidate.description}")
        near.append(f"what fails under it: {', '.join(nearest.left)}")
        near += [f"the nearest beside it: {nearest.second}"] if nearest.second else []
    return Cause(
        link=Link.LOGITS,
        description=_UNKNOWN,
        explains=False,
        detail="; ".join([*near, *_where(failed)]),
        tried=_tried(fits),
    )


def _where(failed: Sequence[Finding]) -> list[str]:
    """The places that are wrong, as far as that is told."""
    places = (*PLACES, LENGTHS)
    return [f"{finding.name}, {finding.detail}" for finding in failed if finding.name in places]


# ---------------------------------------------------------------------- candidates


def _candidates(case: Case) -> list[Candidate]:
    """Families of the catalogue, other weights and other prompts."""
    found = None if case.nominal.gains is None else evidence(case.nominal.gains)
    families = [] if found is None else of_catalogue(case, found)
    suspects = {**other_weights(case), **other_prompts(case)}
    log_share = -math.log(1 + len({one.family for one in families}))
    suspected: list[Candidate] = []
    for name, suspect in suspects.items():
        logqs = log_r(case, suspect)
        own = of_suspect(case, name, suspect, logqs, log_share)
        if share_reported(case, logqs) >= _MOSTLY_REPORTED:
            return own
        suspected += own
    return [*suspected, *families]


def _fits(candidates: Sequence[Candidate], case: Case) -> list[Fit]:
    """The most probable ones of either kind, scored in full."""
    by_odds = sorted(candidates, key=lambda one: one.log_odds, reverse=True)
    suspected = [one for one in by_odds if one.suspect is not None]
    families = [one for one in by_odds if one.suspect is None]
    return fitted([*suspected[:_SUSPECTS], *families[:_FAMILIES]], case)
