"""Candidates for the cause: families of alternatives, by what bets on their members came to.

How probable each is can be read off the bets of the catalogue; suspected weights and prompts, the
caller's and those of common mistakes, are scored for it. Whether a candidate explains the draws is
for `fit` to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqproc.parity.betting.catalogue import SHARE
from seqproc.parity.betting.coarse import COARSE
from seqproc.parity.betting.echoes import PLACE, SAME
from seqproc.parity.betting.evidence import (
    GREEDY_DRAWS,
    OTHER_BAN,
    WINDOWS,
    Bet,
    Evidence,
    Window,
    in_part,
)
from seqproc.parity.betting.suspected import PROMPTS, WEIGHTS, log_ratios_of
from seqproc.parity.causes.members import Member, Parameter, is_alike, members, parameter_of
from seqproc.parity.draws import Floats
from seqproc.parity.positions import LogDistribution
from seqproc.parity.suspects import Case, Suspect
from seqproc.parity.verdict import Link

NOISE = (SAME, PLACE)  # families of randomness that is used twice
_WITHIN = (SAME, PLACE, COARSE, GREEDY_DRAWS)  # families that keep to the policy's support


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A family of alternatives, by its best member."""

    description: str
    link: Link
    family: str
    log_odds: float  # against the policy, nats
    log_share: float = 0.0  # of its prior in them
    members: tuple[Member, ...] = ()  # that can be scored; none of noise and suspects
    parameter: Parameter | None = None  # that is fitted
    suspect: Suspect | None = None
    window: Window = WINDOWS[0]  # the steps and draws that it is about; the policy holds elsewhere

    @property
    def is_distribution(self) -> bool:
        """Whether it says of each token what it was drawn from; else what it depends on."""
        return self.family not in NOISE


def placed(words: str, window: Window) -> str:
    """A description with the steps or draws that it is about."""
    return f"{words}, {window.name}" if window.name else words


def gains_in(window: Window, log_r: Floats, case: Case) -> Floats:
    """log r/q of every token where r holds in a window alone, ``[N]``, nats.

    Of some draws, which nobody knows, r is what is due given the tokens before: a draw has become
    the more probably one of these.

    Args:
        window: in it, r is
        log_r: ``[N]`` log-probabilities of the tokens, and q elsewhere.
        case: the draws.
    """
    draws = case.draws
    gains = log_ratios_of(log_r, draws.logqs)
    gains[~draws.in_support & ~case.nominal.is_reachable] -= np.log(SHARE)
    gains = np.where(window.holds(draws.steps, draws.owners), gains, 0.0)
    if window.part == 1:
        return gains
    upto = np.cumsum(gains)
    first = draws.starts[draws.owners]
    of_draw = upto - (upto[first] - gains[first])
    mixed = in_part(of_draw, window.part)
    before = np.where(draws.steps > 0, np.roll(mixed, 1), 0.0)
    return np.asarray(mixed - before)


# ---------------------------------------------------------------------- of the catalogue


def of_catalogue(case: Case, found: Evidence) -> list[Candidate]:
    """The families of the catalogue, each with all that it gained."""
    by_family: dict[str, list[Bet]] = {}
    for bet in found.bets:
        if bet.name != OTHER_BAN and bet.family not in (WEIGHTS, PROMPTS):
            by_family.setdefault(bet.family, []).append(bet)
    assert case.nominal.gains is not None
    wholes = {one.name: one.whole for one in case.nominal.gains.alternatives}
    return [one for bets in by_family.values() for one in _family(case, bets, wholes)]


def _family(
    case: Case, bets: Sequence[Bet], wholes: Mapping[str, LogDistribution | None]
) -> list[Candidate]:
    """A family by its best bet on all tokens, and by its best on some where that came to more."""
    is_within = bets[0].family in _WITHIN
    odds = {
        bet: bet.log_e + bet.log_share + (0.0 if is_within else unreachable(case, bet.window))
        for bet in bets
    }
    on_all = max((bet for bet in bets if not bet.window.name), key=lambda bet: odds[bet])
    best = max(bets, key=lambda bet: odds[bet])
    found = [on_all] if best is on_all else [on_all, best]
    return [_candidate(case, one, bets, odds, wholes) for one in found]


def _candidate(
    case: Case,
    best: Bet,
    bets: Sequence[Bet],
    odds: Mapping[Bet, float],
    wholes: Mapping[str, LogDistribution | None],
) -> Candidate:
    """By one bet, with all that the bets of its family on the same tokens came to."""
    alike = [bet for bet in bets if bet.window == best.window]
    is_noise = best.family in NOISE
    parameter = parameter_of(best, case)
    description = placed(best.name, best.window)
    if is_noise:
        description = f"what should be independent is not: randomness is used twice ({description})"
    return Candidate(
        description=description,
        link=Link.TOKENS if is_noise or best.family == COARSE else Link.POLICY,
        family=best.family,
        log_odds=float(np.logaddexp.reduce([odds[bet] for bet in alike])),
        log_share=float(np.logaddexp.reduce([bet.log_share for bet in alike])),
        members=() if is_noise else _members(case, best, alike, wholes.get(best.name), parameter),
        parameter=parameter,
        window=best.window,
    )


def _members(
    case: Case,
    best: Bet,
    alike: Sequence[Bet],
    whole: LogDistribution | None,
    parameter: Parameter | None,
) -> tuple[Member, ...]:
    """The best of a family, and those around it."""
    found = members(case, best, whole)
    if parameter is not None:
        log_es = {
            bet.value: bet.log_e for bet in alike if bet.value is not None and is_alike(bet, best)
        }
        found += parameter.around(log_es)
    return tuple(found)


def unreachable(case: Case, window: Window | None = None) -> float:
    """What the tokens of a window that the policy cannot have emitted tell against it, nats.

    Of some draws, which nobody knows, it is told when they are scored: nothing, here.
    """
    if window is not None and window.part < 1:
        return 0.0
    outside = ~case.draws.in_support & ~case.nominal.is_reachable
    if window is not None:
        outside = outside & window.holds(case.draws.steps, case.draws.owners)
    return -float(np.log(SHARE)) * int(outside.sum())


# ---------------------------------------------------------------------- suspects


def of_suspect(
    case: Case, name: str, suspect: Suspect, log_r: Floats, log_share: float
) -> list[Candidate]:
    """A suspect on all tokens, and on some where that came to more.

    Args:
        case: the draws.
        name: of the suspect, in words.
        suspect: what the engine may hold or see.
        log_r: ``[N]`` of all tokens under it, nats.
        log_share: of its prior.
    """
    odds = {
        window: float(gains_in(window, log_r, case).sum()) + float(np.log(window.share)) + log_share
        for window in WINDOWS
    }
    best = max(odds, key=lambda window: odds[window])
    return [
        Candidate(
            description=placed(name, window),
            link=suspect.link,
            family=name,
            log_odds=odds[window],
            log_share=float(np.log(window.share)) + log_share,
            suspect=suspect,
            window=window,
        )
        for window in dict.fromkeys((WINDOWS[0], best))
    ]
