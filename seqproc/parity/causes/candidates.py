"""Candidates for the cause: families of alternatives, by what bets on their members came to.

How probable each is can be read off the bets of the catalogue; suspected weights and prompts, the
caller's and those of common mistakes, are scored for it. Whether a candidate explains the draws is
for `fit` to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from seqproc.parity.betting.bans import without
from seqproc.parity.betting.catalogue import SHARE
from seqproc.parity.betting.cuts import TEMPERATURE, TOP_P, is_temperature
from seqproc.parity.betting.echoes import PLACE, SAME
from seqproc.parity.betting.evidence import (
    BANNED,
    GREEDY_DRAWS,
    OTHER_BAN,
    WINDOWS,
    Bet,
    Evidence,
    Window,
    in_part,
)
from seqproc.parity.betting.suspected import PROMPTS, WEIGHTS, log_ratios_of
from seqproc.parity.causes.histories import PENALTIES, penalised, with_greedy_draws
from seqproc.parity.draws import Floats, RowDistribution
from seqproc.parity.positions import LogDistribution
from seqproc.parity.reading import Rows
from seqproc.parity.suspects import Case, Suspect, of_policy
from seqproc.parity.verdict import Link

NOISE = (SAME, PLACE)  # families of randomness that is used twice
_WITHIN = (SAME, PLACE, GREEDY_DRAWS)  # families that keep to the policy's support
_STEPS = 9  # of a parameter between the neighbours of the best one in the catalogue
_BEYOND = 4.0  # times the last value of the catalogue, up to which a likelier one is looked for
_LEAST_SHIFT = 1e-3  # of a fitted parameter that is worth naming


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A family of alternatives, by its best member."""

    description: str
    link: Link
    family: str
    log_odds: float  # against the policy, nats
    log_share: float = 0.0  # of its prior in them
    # By description, what can be scored: one of each parameter. Empty for noise and suspects.
    wholes: Mapping[str, RowDistribution] = field(default_factory=dict)
    temperatures: tuple[float, ...] = ()  # of those members that are about one
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
    profile = {bet.value: bet.log_e for bet in alike if bet.value is not None}
    temperatures = tuple(_around(profile)) if best.family == TEMPERATURE else ()
    description = placed(best.name, best.window)
    if is_noise:
        description = f"what should be independent is not: randomness is used twice ({description})"
    return Candidate(
        description=description,
        link=Link.TOKENS if is_noise else Link.POLICY,
        family=best.family,
        log_odds=float(np.logaddexp.reduce([odds[bet] for bet in alike])),
        log_share=float(np.logaddexp.reduce([bet.log_share for bet in alike])),
        wholes={} if is_noise else _members(case, best, wholes.get(best.name), temperatures),
        temperatures=temperatures,
        window=best.window,
    )


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


# ---------------------------------------------------------------------- members of a family


def _members(
    case: Case, best: Bet, whole: LogDistribution | None, temperatures: Sequence[float]
) -> dict[str, RowDistribution]:
    """The best of a family; where its parameter can be fitted, also those around it."""
    if best.family in PENALTIES:
        assert best.value is not None
        return {best.name: penalised(best.family, best.value, case.answers, case.policy)}
    if best.family == GREEDY_DRAWS:
        assert best.value is not None
        return {best.name: with_greedy_draws(best.value, case.draws, case.policy)}
    if best.family == BANNED:
        assert best.value is not None
        whole = without(int(best.value), case.policy)
    found = {} if whole is None else {best.name: whole}
    if best.family == TEMPERATURE:
        found |= _with(case, "temperature", temperatures)
    if best.family == TOP_P:
        # The largest mass before a token is the maximum-likelihood estimate.
        inside = best.window.holds(case.draws.steps, case.draws.owners)
        top_p = float(min(case.nominal.mass_before[inside].max(initial=0.0) * (1 + 1e-6), 1.0))
        found |= _with(case, "top_p", [top_p])
    return _read_alone(found)


def _of_logits(whole: LogDistribution, logits_RV: Tensor, _: Rows) -> Tensor:
    return whole(logits_RV)


def closer(candidate: Candidate, case: Case, gains: Mapping[str, float]) -> Candidate | None:
    """The same with temperatures closer around the likeliest that was scored; None of no such.

    Args:
        candidate: whose members were scored.
        case: the draws.
        gains: what each member came to, by description, nats.
    """
    scored = {
        value: gains[words]
        for value in candidate.temperatures
        if (words := _in_place("temperature", value, case)) in gains
    }
    if len(scored) < 2:
        return None
    values = tuple(_around(scored))
    return replace(
        candidate,
        wholes=_read_alone(_with(case, "temperature", values)),
        temperatures=values,
    )


def _around(profile: Mapping[float, float]) -> list[float]:
    """Between the neighbours of the likeliest value; beyond it, where it is the highest.

    Not below the lowest: there it is greedy decoding that is looked for.
    """
    values = sorted(profile)
    n = values.index(max(profile, key=lambda value: profile[value]))
    low = values[max(n - 1, 0)]
    high = values[n + 1] if n + 1 < len(values) else values[-1] * _BEYOND
    between: list[float] = np.geomspace(low, high, _STEPS)[1:-1].tolist()
    return [value for value in between if is_temperature(value)]


def _with(case: Case, name: str, values: Sequence[float]) -> dict[str, LogDistribution]:
    asked = getattr(case.policy, name)
    found = {}
    for value in values:
        if abs(value - asked) > _LEAST_SHIFT and value > 0:
            change: dict[str, Any] = {name: value}
            found[_in_place(name, value, case)] = of_policy(replace(case.policy, **change))
    return found


def _in_place(name: str, value: float, case: Case) -> str:
    return f"{name} {value:.4g} in place of {getattr(case.policy, name):g}"


def _read_alone(wholes: Mapping[str, LogDistribution]) -> dict[str, RowDistribution]:
    """As distributions of rows, of which logits alone are read."""
    return {words: partial(_of_logits, one) for words, one in wholes.items()}


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
