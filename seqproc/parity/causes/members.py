"""Members of a family of alternatives, also those between the values of the catalogue.

The catalogue has a few values of each parameter. Around the likeliest of them others are tried, so
that a cause names the value that the draws tell, and between which values it may lie.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from seqproc.parity.betting.bans import without
from seqproc.parity.betting.changes import EOS, GREEDY_TOKENS, eos_biased, greedy_mixture
from seqproc.parity.betting.coarse import COARSE, coarse_like
from seqproc.parity.betting.cuts import (
    BEFORE,
    IGNORED,
    MIN_P,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    TYPICAL_P,
    of_first,
    of_likely,
    typical,
)
from seqproc.parity.betting.evidence import BANNED, GREEDY_DRAWS, Bet
from seqproc.parity.causes.histories import PENALTIES, penalised, with_greedy_draws
from seqproc.parity.positions import LogDistribution
from seqproc.parity.scoring import RowDistribution, of_logits
from seqproc.parity.suspects import Case, of_policy
from seqproc.policy import MAX_TEMPERATURE, MIN_TEMPERATURE

_STEPS = 9  # between the neighbours of the likeliest value
_LEAST_SHIFT = 1e-3  # from the policy, of a value that is worth naming


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One distribution of a family."""

    words: str  # as a cause
    whole: RowDistribution
    value: float | None = None  # of the parameter that is fitted; None where there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """What the members of a family differ in."""

    member: Callable[[float], Member]
    least: float  # that is looked at
    most: float
    policys: float  # value that changes nothing
    on_line: bool = False  # whether its values are compared by differences, and not by ratios
    is_count: bool = False
    is_smooth: bool = True  # whether the likelihood is, in the value
    is_round: bool = True  # whether the values of the catalogue are such as engines have

    def around(self, log_es: Mapping[float, float]) -> list[Member]:
        """Those between the neighbours of the likeliest value; up to the bounds at either end.

        Args:
            log_es: what each value came to, nats.
        """
        values = sorted(filter(math.isfinite, log_es))
        best = max(log_es, key=lambda value: log_es[value])
        if best not in values:
            return []
        n = values.index(best)
        low = values[n - 1] if n else self.least
        high = values[n + 1] if n + 1 < len(values) else self.most
        between = np.linspace if self.on_line else np.geomspace
        tried = between(low, high, _STEPS)[1:-1]
        tried = np.unique(tried.round()) if self.is_count else tried
        return [
            self.member(value)
            for value in tried.tolist()
            if abs(value - self.policys) > _LEAST_SHIFT and self.least <= value <= self.most
        ]


def parameter_of(bet: Bet, case: Case) -> Parameter | None:
    """What is fitted of a bet's family; None where nothing is."""
    family, policy = bet.family, case.policy
    if family not in _OF_VALUE:
        return None
    if family == TEMPERATURE:  # below half of the policy's it is taken for greedy decoding
        bounds = max(policy.temperature / 2, MIN_TEMPERATURE), 8 * policy.temperature
        least, most, policys = bounds[0], min(bounds[1], MAX_TEMPERATURE), policy.temperature
    else:
        least, most, policys = _BOUNDS[family]
    moves_cut = policy.truncates and family not in (GREEDY_TOKENS, GREEDY_DRAWS)
    return Parameter(
        member=partial(_OF_VALUE[family], bet, case),
        least=least,
        most=most,
        policys=policys,
        on_line=family == EOS,
        is_count=family == TOP_K,
        is_smooth=not moves_cut and family not in (TOP_K, MIN_P, TYPICAL_P),
        is_round=family != TEMPERATURE,
    )


def members(case: Case, bet: Bet, whole: LogDistribution | None) -> list[Member]:
    """The member that a bet was on, and others that the draws may be likelier under.

    Args:
        case: the draws.
        bet: on it.
        whole: its distribution, where the logits tell it.
    """
    if bet.family in PENALTIES:
        assert bet.value is not None
        return [_penalised(bet, case, bet.value)]
    if bet.family == GREEDY_DRAWS:
        assert bet.value is not None
        return [_with_greedy_draws(bet, case, bet.value)]
    if bet.family == BANNED:
        assert bet.value is not None
        whole = without(int(bet.value), case.policy)
    if whole is None:
        return []
    own = Member(words=bet.name, whole=of_logits(whole), value=bet.value)
    if bet.family == COARSE:
        return [own, *_of_other_bits(case, bet)]
    return [own, *_likeliest_cut(case, bet)]


def span(
    log_es: Mapping[float, float], factor: float, *, is_smooth: bool
) -> tuple[float, float] | None:
    """Between which values the draws are less than so many times as unlikely as at the likeliest.

    Between two values that were tried a smooth log L is taken to fall as a parabola around the
    likeliest. Another one may fall at once, so that the ends are values that were tried.

    Args:
        log_es: log L of each value that was tried, nats.
        factor: so many.
        is_smooth: whether log L is, in the value. Under a cut, which moves with it, it is not.

    Returns:
        The lowest and the highest; None where nothing on either side of the likeliest was tried.
    """
    values = sorted(filter(math.isfinite, log_es))
    best = max(values, key=lambda value: log_es[value], default=math.nan)
    below = [value for value in values if value <= best][::-1]
    above = [value for value in values if value >= best]
    if len(below) < 2 or len(above) < 2:
        return None
    # Grows in proportion to the distance from the vertex of a parabola.
    fall = {value: math.sqrt(log_es[best] - log_es[value]) for value in values}
    allowed = math.sqrt(math.log(factor))
    low, high = (_crossing(values, fall, allowed, is_smooth) for values in (below, above))
    return low, high


def _crossing(
    values: Sequence[float], fall: Mapping[float, float], allowed: float, is_smooth: bool
) -> float:
    """Where it exceeds what is allowed, from the first value on; the last one, if nowhere."""
    for inner, outer in itertools.pairwise(values):
        if fall[outer] > allowed:
            if not is_smooth:
                return outer
            part = (allowed - fall[inner]) / (fall[outer] - fall[inner])
            return inner + part * (outer - inner)
    return values[-1]


# ---------------------------------------------------------------------- of each family


def _of_temperature(_: Bet, case: Case, value: float) -> Member:
    asked = case.policy.temperature
    return Member(
        words=IGNORED if value == 1 != asked else f"temperature {value:.4g} in place of {asked:g}",
        whole=of_logits(of_policy(replace(case.policy, temperature=value))),
        value=value,
    )


def _likeliest_cut(case: Case, bet: Bet) -> list[Member]:
    """The narrowest cut that leaves all tokens in: after top_p, the maximum-likelihood estimate."""
    policy, draws = case.policy, case.draws
    inside = bet.window.holds(draws.steps, draws.owners)
    if bet.family == TOP_P:
        top_p = float(min(case.nominal.mass_before[inside].max(initial=0.0) * (1 + 1e-6), 1.0))
        if not top_p > 0 or abs(top_p - policy.top_p) <= _LEAST_SHIFT:
            return []
        words = f"top_p {top_p:.4g} in place of {policy.top_p:g}"
        return [Member(words=words, whole=of_logits(of_policy(replace(policy, top_p=top_p))))]
    inside &= draws.in_support
    if bet.family == TOP_K and inside.any():
        return [_of_first(bet, case, draws.ranks[inside].max() + 1)]
    if bet.family == MIN_P and inside.any():
        share = float(np.exp(draws.logqs[inside] - np.log(draws.rank_masses[inside, 0])).min())
        least, most, _ = _BOUNDS[MIN_P]  # up to 1 it is greedy decoding
        return [_of_likely(bet, case, share * (1 - 1e-6))] if least < share < most else []
    return []


def _of_other_bits(case: Case, bet: Bet) -> list[Member]:
    return [
        Member(words=one.name, whole=of_logits(one.whole))
        for one in coarse_like(bet.name, case.policy)
        if one.whole is not None and one.name != bet.name
    ]


def is_alike(bet: Bet, other: Bet) -> bool:
    """Whether two bets of a family differ in the value of its parameter alone."""
    return bet.window == other.window and bet.name.endswith(BEFORE) == other.name.endswith(BEFORE)


def _of_first(bet: Bet, case: Case, value: float) -> Member:
    before = bet.name.endswith(BEFORE)
    return Member(
        words=f"top_k = {value:.0f} left on{BEFORE if before else ''}",
        whole=of_logits(of_first(int(value), case.policy, before)),
        value=float(value),
    )


def _of_likely(bet: Bet, case: Case, value: float) -> Member:
    before = bet.name.endswith(BEFORE)
    return Member(
        words=f"min_p = {value:.3g} left on{BEFORE if before else ''}",
        whole=of_logits(of_likely(value, case.policy, before)),
        value=value,
    )


def _of_typical(_: Bet, case: Case, value: float) -> Member:
    return Member(
        words=f"typical_p = {value:.3g} left on",
        whole=of_logits(typical(value, case.policy)),
        value=value,
    )


def _penalised(bet: Bet, case: Case, value: float) -> Member:
    return Member(
        words=f"{bet.family} {value:.4g} left on",
        whole=penalised(bet.family, value, case.answers, case.policy),
        value=value,
    )


def _with_greedy_tokens(_: Bet, case: Case, value: float) -> Member:
    return Member(
        words=f"{100 * value:.3g}% of tokens decoded greedily",
        whole=of_logits(greedy_mixture(value, case.policy)),
        value=value,
    )


def _with_greedy_draws(_: Bet, case: Case, value: float) -> Member:
    return Member(
        words=f"{100 * value:.3g}% of draws decoded greedily",
        whole=with_greedy_draws(value, case.draws, case.policy),
        value=value,
    )


def _eos_biased(_: Bet, case: Case, value: float) -> Member:
    return Member(
        words=f"EOS with a logit {value:+.3g} off",
        whole=of_logits(eos_biased(value, case.scorer.eos_token_ids, case.policy)),
        value=value,
    )


# The member of a family with a value, given the bet on the best one of the catalogue.
_OF_VALUE: dict[str, Callable[[Bet, Case, float], Member]] = {
    TEMPERATURE: _of_temperature,
    TOP_K: _of_first,
    MIN_P: _of_likely,
    TYPICAL_P: _of_typical,
    **dict.fromkeys(PENALTIES, _penalised),
    GREEDY_TOKENS: _with_greedy_tokens,
    GREEDY_DRAWS: _with_greedy_draws,
    EOS: _eos_biased,
}

# Of its values the least and the largest that are looked at, and the one that changes nothing.
_BOUNDS = {
    TOP_K: (2.0, 1e3, 0.0),
    MIN_P: (1e-3, 0.9, 0.0),
    TYPICAL_P: (0.1, 0.998, 1.0),
    "repetition penalty": (0.8, 5.0, 1.0),
    "presence penalty": (0.02, 4.0, 0.0),
    "frequency penalty": (0.02, 4.0, 0.0),
    GREEDY_TOKENS: (0.005, 0.995, 0.0),
    GREEDY_DRAWS: (0.005, 0.995, 0.0),
    EOS: (-5.0, 5.0, 0.0),
}
