"""Why an engine failed: which other distribution its tokens, and its reported log q, come from.

The bets of the catalogue have told already how probable each alternative is; other weights are
scored, and are alternatives as well. Those that come near to the most probable one are scored under
the alternative taken for true: what then holds is explained. There is one cause of the tokens, and
whatever does as well is named beside it. Runs only after a failure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.bans import without
from seqproc.parity.betting.catalogue import SHARE
from seqproc.parity.betting.cuts import TEMPERATURE, TOP_P
from seqproc.parity.betting.echoes import PLACE, SAME
from seqproc.parity.betting.evidence import (
    BANNED,
    GREEDY_DRAWS,
    OTHER_BAN,
    WINDOWS,
    Bet,
    Evidence,
    Window,
    evidence,
    in_part,
)
from seqproc.parity.cause import Cause
from seqproc.parity.draws import Draws, Floats, score
from seqproc.parity.places import PLACES, place_findings
from seqproc.parity.positions import LogDistribution
from seqproc.parity.replay import REPLAY
from seqproc.parity.reports import cause_of_reports
from seqproc.parity.sampler import sampler_findings
from seqproc.parity.structure import ENDINGS
from seqproc.parity.suspects import Case, of_policy, other_weights
from seqproc.parity.verdict import Finding, Link, decide

_MOSTLY = 0.999  # share of tokens in a suspect's support; rounding may put a few outside
_RARE = 1e-6  # chance of a draw that another of the same prompt does not repeat
_CONTENDING = math.log(20)  # nats behind the most probable, up to which one contends with it
_LOOKED_AT = 4  # families that are scored, at most
_MOSTLY_REPORTED = 0.99  # share of log q that agree; a cut of the support may move a few
_MANY_REPORTED = 0.5  # share of them with which a cause may pass, if not for the very one
_SMALL_PART = 0.2  # of the median error that a cause leaves, and is taken to explain
_STEPS = 9  # of a parameter between the neighbours of the best one in the catalogue
_LEAST_SHIFT = 1e-3  # of a fitted parameter that is worth naming

_FAMILIES_OF_NOISE = (SAME, PLACE)
_FAMILIES_WITHIN = (SAME, PLACE, GREEDY_DRAWS)  # which keep to the policy's support


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A family of alternatives, by its best member."""

    description: str
    link: Link
    family: str
    log_odds: float  # against the policy, nats
    log_share: float = 0.0  # of its prior in them
    # By description, what can be scored: one of each parameter, or none.
    wholes: Mapping[str, LogDistribution] = field(default_factory=dict)
    window: Window = WINDOWS[0]  # the steps and draws that it is about; the policy holds elsewhere
    fit: _Fit | None = None

    @property
    def holds(self) -> bool:
        """Whether the tests hold when it is taken for true; unknown is taken for yes."""
        return self.fit is None or self.fit.tests_hold


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """How well draws scored under an alternative fit it."""

    tests_hold: bool  # those of the sampler
    reported: float  # share of the engine's log q that are its own; NaN without


def attribute(case: Case, failed: Sequence[Finding]) -> list[Cause]:
    """Causes of what failed, the first link of the chain first."""
    links = {finding.link for finding in failed}
    causes = [_plain(finding) for finding in failed if finding.link in (Link.PROMPT, Link.TEXT)]
    if Link.PROMPT in links:  # then everything behind it differs
        return [cause for cause in causes if cause.link is Link.PROMPT]
    chances = [finding for finding in failed if finding.name != REPLAY]
    by_link = {finding.link for finding in chances}
    found = _cause_of_tokens(case, chances) if by_link & {Link.POLICY, Link.TOKENS} else None
    if found is not None:
        if found.explains and found.link is not Link.TOKENS:  # also when draws end
            causes = [_plain(finding) for finding in failed if finding.name == ENDINGS]
        causes.append(found)
    elif Link.LOG_Q in links:
        causes.append(cause_of_reports(case))
    if REPLAY in {finding.name for finding in failed} and not any(c.explains for c in causes):
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
    dependence = _dependence(case, failed)
    candidates = [one for one in _candidates(case) if one.log_odds > 0]
    is_explained = any(one.fit is not None and one.holds for one in candidates)
    if dependence.explains and not is_explained:  # what is drawn twice also counts twice
        return dependence
    if not candidates:
        only = all(finding.link is Link.TOKENS for finding in failed)
        return replace(dependence, explains=True) if only else _unknown(failed)
    best = max(candidates, key=lambda one: (_reports_it(one), one.holds, one.log_odds))
    if not best.holds:
        return _unknown(failed, f"the nearest is: {best.description}")
    rivals = [
        one.description
        for one in candidates
        if one.family != best.family
        and one.holds
        and _reports_it(one) == _reports_it(best)
        and one.log_odds > best.log_odds - _CONTENDING
    ]
    leaves, of_reports = _of_reports(best, case)
    return Cause(
        link=best.link,
        description=best.description,
        explains=not rivals and not leaves,
        detail=f"e^{best.log_odds:.1f} times as probable as the policy{of_reports}",
        contenders=tuple(rivals),
    )


def _reports_it(candidate: _Candidate) -> bool:
    """Whether the engine's log q are the candidate's."""
    return candidate.fit is not None and candidate.fit.reported >= _MOSTLY_REPORTED


def _of_reports(best: _Candidate, case: Case) -> tuple[bool, str]:
    """Whether a cause leaves the reported log q unexplained, and what is to be said of them."""
    if best.fit is None or not best.fit.reported < _MANY_REPORTED:
        return False, ""
    if _share_reported(case, case.draws) >= _MOSTLY_REPORTED:
        return False, "; the engine reports the log q of the policy all the same"
    share = 1 - best.fit.reported
    return True, f"; {share:.1%} of the reported log q are not its own, which it leaves unexplained"


def _share_reported(case: Case, draws: Draws) -> float:
    """Which share of the reported log q is that of draws as they were scored; NaN without.

    A fitted parameter is near the true one and not it: so an error that is a small part of the
    policy's own counts as none.
    """
    reported = case.nominal.engine_logqs
    if reported is None:
        return math.nan
    told = ~np.isnan(reported)
    with np.errstate(invalid="ignore"):
        gaps = np.abs(reported[told] - draws.logqs[told])
        nominal = np.abs(reported[told] - case.draws.logqs[told])
    allowed = max(case.tolerance, _SMALL_PART * float(np.median(nominal)))
    return float((gaps <= allowed).mean())


def _unknown(failed: Sequence[Finding], *details: str) -> Cause:
    """With where it is wrong, as far as that is told."""
    where = [f"{finding.name}, {finding.detail}" for finding in failed if finding.name in PLACES]
    return Cause(
        link=Link.LOGITS,
        description="another distribution, not a known one",
        explains=False,
        detail="; ".join([*details, *where]),
    )


def _candidates(case: Case) -> list[_Candidate]:
    """Families of the catalogue and other weights, the most probable scored."""
    found = None if case.nominal.gains is None else evidence(case.nominal.gains)
    share = math.log(1 / (1 + (0 if found is None else len({bet.family for bet in found.bets}))))
    weights = _weight_candidates(case, share)
    if any(_reports_it(one) for one in weights):
        return weights
    families = [] if found is None else _families(case, found)
    families.sort(key=lambda one: one.log_odds, reverse=True)
    near = [one for one in families if one.wholes and one.log_odds > 0][:_LOOKED_AT]
    return [*weights, *_scored(near, case), *(one for one in families if one not in near)]


def _scored(candidates: Sequence[_Candidate], case: Case) -> list[_Candidate]:
    """Candidates at their most probable parameter, by the exact likelihood of the tokens."""
    wholes = {
        f"{n}/{words}": whole
        for n, one in enumerate(candidates)
        for words, whole in one.wholes.items()
    }
    if not wholes:
        return []
    found = score(case.answers, case.scorer, wholes, override=case.override)
    scored = []
    for n, one in enumerate(candidates):
        draws = {words: _within(one.window, found[f"{n}/{words}"], case) for words in one.wholes}
        gains = {words: _gain(case, found[f"{n}/{words}"], one.window) for words in one.wholes}
        words = max(gains, key=lambda name: gains[name])
        scored.append(
            replace(
                one,
                description=_placed(words, one.window),
                log_odds=gains[words] + one.log_share,
                fit=_fit_of(case, draws[words]),
            )
        )
    return scored


def _within(window: Window, draws: Draws, case: Case) -> Draws:
    """Draws scored under an alternative in a window, and under the policy elsewhere."""
    if window == WINDOWS[0]:
        return draws
    inside = window.holds(draws.steps, draws.owners)
    if window.part < 1:
        inside &= _probably_from(_gains_of_draws(case, draws), window.part)[draws.owners]
    mixed = {
        name: np.where(inside.reshape(-1, *(1,) * (values.ndim - 1)), values, policys)
        for (name, values), policys in zip(
            draws.of_tokens().items(), case.draws.of_tokens().values(), strict=True
        )
    }
    return replace(draws, **mixed)


def _placed(words: str, window: Window) -> str:
    return f"{words}, {window.name}" if window.name else words


def _weight_candidates(case: Case, log_share: float) -> list[_Candidate]:
    """Of other weights, one after another; none after one whose log q the engine reports."""
    candidates: list[_Candidate] = []
    for name, parameters in other_weights(case).items():
        own = {"q": of_policy(case.policy)}
        draws = score(case.answers, case.scorer, own, override=parameters())["q"]
        candidates.append(
            _Candidate(
                description=name,
                link=Link.WEIGHTS,
                family=name,
                log_odds=_gain(case, draws) + log_share,
                fit=_fit_of(case, draws),
            )
        )
        if _reports_it(candidates[-1]):
            break
    return candidates


def _families(case: Case, found: Evidence) -> list[_Candidate]:
    """The families of the catalogue, each with all that it gained."""
    by_family: dict[str, list[Bet]] = {}
    for bet in found.bets:
        if bet.name != OTHER_BAN:
            by_family.setdefault(bet.family, []).append(bet)
    assert case.nominal.gains is not None
    wholes = {one.name: one.whole for one in case.nominal.gains.alternatives}
    for bet in by_family.get(BANNED, ()):
        if bet.value is not None:
            wholes[bet.name] = without(int(bet.value), case.policy)
    return [one for bets in by_family.values() for one in _family(case, bets, wholes)]


def _family(
    case: Case, bets: Sequence[Bet], wholes: Mapping[str, LogDistribution | None]
) -> list[_Candidate]:
    """A family by its best bet on all tokens, and by its best on some where that came to more."""
    is_within = bets[0].family in _FAMILIES_WITHIN
    odds = {
        bet: bet.log_e + bet.log_share + (0.0 if is_within else _unreachable(case, bet.window))
        for bet in bets
    }
    on_all = max((bet for bet in bets if not bet.window.name), key=lambda bet: odds[bet])
    best = max(bets, key=lambda bet: odds[bet])
    found = [_candidate(on_all, bets, odds)]
    if best is not on_all:
        found.append(_candidate(best, bets, odds))
    if on_all.family in _FAMILIES_OF_NOISE:
        return found
    bests = (on_all, best)
    return [
        replace(one, wholes=_members(case, of, bets, wholes))
        for one, of in zip(found, bests, strict=False)
    ]


def _candidate(best: Bet, bets: Sequence[Bet], odds: Mapping[Bet, float]) -> _Candidate:
    """By one bet, with all that the bets of its family on the same tokens came to."""
    alike = [bet for bet in bets if bet.window == best.window]
    is_noise = best.family in _FAMILIES_OF_NOISE
    description = _placed(best.name, best.window)
    if is_noise:
        description = f"what should be independent is not: randomness is used twice ({description})"
    return _Candidate(
        description=description,
        link=Link.TOKENS if is_noise else Link.POLICY,
        family=best.family,
        log_odds=float(np.logaddexp.reduce([odds[bet] for bet in alike])),
        log_share=float(np.logaddexp.reduce([bet.log_share for bet in alike])),
        window=best.window,
    )


def _members(
    case: Case,
    best: Bet,
    bets: Sequence[Bet],
    wholes: Mapping[str, LogDistribution | None],
) -> dict[str, LogDistribution]:
    """The best of a family; where its parameter can be fitted, also those around it."""
    whole = wholes.get(best.name)
    found = {} if whole is None else {best.name: whole}
    if best.family == TEMPERATURE:
        profile = {
            bet.value: bet.log_e
            for bet in bets
            if bet.window == best.window and bet.value is not None
        }
        found |= _temperatures(case, profile)
    if best.family == TOP_P:
        # The largest mass before a token is the maximum-likelihood estimate.
        inside = best.window.holds(case.draws.steps, case.draws.owners)
        top_p = float(min(case.nominal.mass_before[inside].max(initial=0.0) * (1 + 1e-6), 1.0))
        found |= _with(case, "top_p", [top_p])
    return found


def _temperatures(case: Case, profile: Mapping[float, float]) -> dict[str, LogDistribution]:
    """Between the neighbours of the best one in the catalogue."""
    values = sorted(profile)
    n = values.index(max(profile, key=lambda value: profile[value]))
    low, high = values[max(n - 1, 0)], values[min(n + 1, len(values) - 1)]
    return _with(case, "temperature", np.linspace(low, high, _STEPS)[1:-1].tolist())


def _with(case: Case, name: str, values: Sequence[float]) -> dict[str, LogDistribution]:
    asked = getattr(case.policy, name)
    found = {}
    for value in values:
        if abs(value - asked) > _LEAST_SHIFT and value > 0:
            change: dict[str, Any] = {name: value}
            words = f"{name} {value:.4g} in place of {asked:g}"
            found[words] = of_policy(replace(case.policy, **change))
    return found


def _gain(case: Case, draws: Draws, window: Window = WINDOWS[0]) -> float:
    """Log-likelihood of a window's tokens against that under the policy, as a bet would have it."""
    if window.part < 1:
        return float(in_part(_gains_of_draws(case, draws), window.part).sum())
    inside = window.holds(draws.steps, draws.owners)
    return float(_gains_of_tokens(case, draws)[inside].sum())


def _gains_of_draws(case: Case, draws: Draws) -> Floats:
    """``[D]``."""
    gains: Floats = np.add.reduceat(_gains_of_tokens(case, draws), draws.starts)
    return gains


def _gains_of_tokens(case: Case, draws: Draws) -> Floats:
    """``[N]``."""
    own, other = case.draws.logqs, draws.logqs
    inside = np.isfinite(own)
    gains = np.where(np.isfinite(other), 0.0, math.log(SHARE))
    with np.errstate(over="ignore"):
        ratios = np.exp(other[inside] - own[inside])
    gains[inside] = np.log(SHARE + (1 - SHARE) * ratios)
    gains[~inside & ~case.nominal.is_reachable] -= math.log(SHARE)
    return gains


def _probably_from(log_ratios: Floats, part: float) -> NDArray[np.bool_]:
    """Which draws are from an alternative, by chance: each with the probability that it is.

    Given these the tokens of either kind are distributed as they are to be, if the alternative is
    true; those that are most probably from it would not be.

    Args:
        log_ratios: ``[D]`` log r/q of each draw if it is from it, nats.
        part: probability of that, before.
    """
    probabilities = np.exp(math.log(part) + log_ratios - in_part(log_ratios, part))
    return np.asarray(np.random.default_rng(0).random(len(log_ratios)) < probabilities)


def _unreachable(case: Case, window: Window | None = None) -> float:
    """What the tokens of a window that the policy cannot have emitted tell against it, nats.

    Of some draws, which nobody knows, it is told when they are scored: nothing, here.
    """
    if window is not None and window.part < 1:
        return 0.0
    outside = ~case.draws.in_support & ~case.nominal.is_reachable
    if window is not None:
        outside = outside & window.holds(case.draws.steps, case.draws.owners)
    return -math.log(SHARE) * int(outside.sum())


def _fit_of(case: Case, draws: Draws) -> _Fit:
    """How well draws that were scored under an alternative fit it."""
    findings = [*sampler_findings(draws), *place_findings(draws, case.stopping.max_new_tokens)]
    return _Fit(
        tests_hold=float(draws.in_support.mean()) >= _MOSTLY
        and decide(findings, case.false_alarms).holds,
        reported=_share_reported(case, draws),
    )


# ---------------------------------------------------------------------- dependence


def _dependence(case: Case, failed: Sequence[Finding]) -> Cause:
    """Randomness used twice; certain when draws have twins that chance would not give them."""
    draws = case.draws
    owner = np.repeat(np.arange(len(draws.lengths)), draws.lengths)
    chances = np.exp(np.bincount(owner, draws.logqs))
    answers = [answer for answer in case.answers if answer.completion.token_ids]
    keys = [(answer.prompt, answer.completion.token_ids) for answer in answers]
    counts = Counter(keys)
    twins = sum(
        counts[key] > 1 and chance < _RARE for key, chance in zip(keys, chances, strict=True)
    )
    repeated = sum(count for count in counts.values() if count > 1)
    which = ", ".join(finding.name for finding in failed if finding.link is Link.TOKENS)
    return Cause(
        link=Link.TOKENS,
        description=f"what should be independent is not ({which}): randomness is used twice"
        + _or_constant(counts),
        explains=twins > 0,
        detail=f"{repeated:,} of {len(keys):,} draws are the same as another of their prompt; "
        f"{twins:,} of these are less likely than {_RARE:g} each",
    )


def _or_constant(counts: Mapping[tuple[int, tuple[int, ...]], int]) -> str:
    """The other explanation, where the draws of each (prompt, answer) leave it open."""
    prompts = {prompt for prompt, _ in counts}
    if len(prompts) > 1 and len({token_ids for _, token_ids in counts}) == 1:
        ignored = "seed and prompt"
    elif max(counts.values(), default=0) > 1 and len(counts) == len(prompts):
        ignored = "the seed"
    else:
        return ""
    return f", or the engine's answers do not depend on {ignored} at all"
