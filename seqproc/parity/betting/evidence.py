"""Evidence: what bets on the alternatives of a catalogue have come to.

The bets are placed on every token, and on those of a window only: the first ones of each draw, all
from some step on, those of the first draws, those of later ones; and on some of the draws that
nobody knows, each of which is from r with a probability that was fixed before. All of them together
are one bet, of which each has a share that was fixed before; what it comes to exceeds 1/α with
probability α at most when the engine is right, at whatever number of draws one looks.

What the bets come to is also how probable each alternative has become, against the others and
against the policy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.alternatives import Alternative
from seqproc.parity.betting.cuts import TEMPERATURE, TOP_P
from seqproc.parity.betting.distances import Distances
from seqproc.parity.betting.suspected import PROMPTS, WEIGHTS

# Shapes: N tokens of all draws together, D draws, K alternatives, B bins of steps, W windows.

STEP_EDGES = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512, 1024, 2048, 4096)
DRAW_EDGES = (32, 128, 512, 2048)
_ENDLESS = 2**31
# Of families, by how often engines have these faults; what a caller suspects is likely.
_WEIGHTS = {TEMPERATURE: 3.0, TOP_P: 3.0, WEIGHTS: 8.0, PROMPTS: 8.0}
_WHOLE = 0.7  # share of the bets on all tokens
_SOME = 0.1  # share of those on draws that nobody knows
_PARTS = (0.02, 0.05, 0.1, 0.3)  # probability with which a draw is one of these
GREEDY_DRAWS, BANNED = "greedy draws", "banned ids"  # families
OTHER_BAN = "another token id never sampled"  # all but the likeliest, in one bet
WHOLE_DRAWS = (0.02, 0.05, 0.2)  # share of draws decoded greedily

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some of the tokens, by what is known before anything is drawn."""

    name: str  # in words; empty: all of them
    share: float  # of the bets
    steps: tuple[int, int] = (0, _ENDLESS)  # [first, last) in a draw
    draws: tuple[int, int] = (0, _ENDLESS)  # [first, last)
    part: float = 1.0  # probability with which each of these draws is in it

    def holds(self, steps: Ints, owners: Ints) -> NDArray[np.bool_]:
        """Which tokens may be in it, by their steps and the numbers of their draws, ``[N]``."""
        in_draw = (self.steps[0] <= steps) & (steps < self.steps[1])
        return np.asarray(in_draw & (self.draws[0] <= owners) & (owners < self.draws[1]))


def _windows() -> list[Window]:
    """The same ones whatever is drawn, or all together would be no bet."""
    rest = (1 - _WHOLE - _SOME) / 4
    per_step, per_draw = rest / len(STEP_EDGES), rest / len(DRAW_EDGES)
    found = [Window(name="", share=_WHOLE)]
    for edge in STEP_EDGES:
        first = "at the first token" if edge == 1 else f"in the first {edge} tokens"
        found.append(Window(name=first, share=per_step, steps=(0, edge)))
        found.append(Window(name=f"from step {edge} on", share=per_step, steps=(edge, _ENDLESS)))
    for part in _PARTS:
        name = f"in {part:.0%} of the draws"
        found.append(Window(name=name, share=_SOME / len(_PARTS), part=part))
    for edge in DRAW_EDGES:
        found.append(Window(name=f"in the first {edge} draws", share=per_draw, draws=(0, edge)))
        found.append(Window(name=f"from draw {edge} on", share=per_draw, draws=(edge, _ENDLESS)))
    return found


WINDOWS = tuple(_windows())


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """log r/q of every alternative, summed by draw and bin of steps."""

    alternatives: tuple[Alternative, ...]
    sums: NDArray[np.float32]  # [D, K, B] nats
    greedy: Floats  # [D] −Σ log q of draws that are greedy throughout; −∞ of others
    lengths: Ints  # [D] tokens
    bans: Floats | None = None  # [V] of bets that an id is never sampled; None: not of these draws
    # [K] Σ |log q as reported − log r|, nats, and of how many tokens; None: of nothing reported.
    report_errors: Floats | None = None
    num_reported: int = 0
    distances: Distances | None = None  # of the alternatives; None: not asked for

    def some(self, first: int, last: int) -> Gains:
        """Those of some draws, without what is known of all together alone: bans and reports."""
        arrays = {name: getattr(self, name)[first:last] for name in _ARRAYS}
        distances = None if self.distances is None else self.distances.some(first, last)
        return Gains(alternatives=self.alternatives, distances=distances, **arrays)

    @staticmethod
    def concatenate(parts: Sequence[Gains]) -> Gains:
        """Those of all draws of several, which bet on the same alternatives.

        Echoes are named by the last part: its draws have told the most about them.
        """
        arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _ARRAYS}
        bans = [part.bans for part in parts if part.bans is not None]
        errors = [part.report_errors for part in parts if part.report_errors is not None]
        return Gains(
            alternatives=parts[-1].alternatives,
            bans=np.sum(bans, axis=0) if len(bans) == len(parts) else None,
            report_errors=np.sum(errors, axis=0) if errors else None,
            num_reported=sum(part.num_reported for part in parts),
            distances=_joined([part.distances for part in parts], axis=0),
            **arrays,
        )

    def beside(self, more: Gains) -> Gains:
        """With bets on more alternatives, of the same draws."""
        errors = (self.report_errors, more.report_errors)
        return replace(
            self,
            alternatives=(*self.alternatives, *more.alternatives),
            sums=np.concatenate([self.sums, more.sums], axis=1),
            distances=_joined([self.distances, more.distances], axis=1),
            report_errors=np.concatenate([e for e in errors if e is not None])
            if self.num_reported
            else None,
        )

    def against(self, log_ratios: Floats) -> Gains:
        """The same bets, placed against an alternative r in place of q.

        The product of a(y)/r(y) has mean 1 when r is what is sampled from.

        Args:
            log_ratios: ``[N]`` log r/q of the tokens.
        """
        own = _by_bin(log_ratios[:, None], self.lengths)[:, 0]
        return replace(
            self,
            sums=self.sums - own[:, None],
            greedy=self.greedy - own.sum(-1),
            bans=None if self.bans is None else self.bans - float(log_ratios.sum()),
        )


_ARRAYS = ("sums", "greedy", "lengths")


def _joined(parts: Sequence[Distances | None], axis: int) -> Distances | None:
    """All of them; None where one is not there."""
    found = [part for part in parts if part is not None]
    return Distances.joined(found, axis) if len(found) == len(parts) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bet:
    """One alternative in one window."""

    family: str
    name: str
    value: float | None
    window: Window
    log_e: float  # what it came to, nats
    log_share: float  # of all bets


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All bets together."""

    log_e: float  # nats; above log 1/α with probability α at most when the engine is right
    bets: tuple[Bet, ...]  # the most successful first


def gains(
    alternatives: Sequence[Alternative],
    ratios: NDArray[np.float32],
    logqs: Floats,
    ranks: NDArray[np.int64],
    lengths: NDArray[np.int64],
    bans: Floats | None = None,
    reported: Floats | None = None,
) -> Gains:
    """Sum up what was gained.

    Args:
        alternatives: K of them.
        ratios: ``[N, K]`` log r/q.
        logqs: ``[N]`` log q.
        ranks: ``[N]`` of the tokens in q.
        lengths: ``[D]`` tokens of each draw.
        bans: ``[V]`` what bets that an id is never sampled came to, nats.
        reported: ``[N]`` log q as the engine reported them, NaN where it did not.
    """
    starts = np.cumsum(lengths) - lengths
    is_greedy = np.logical_and.reduceat(ranks == 0, starts)
    log_q = np.add.reduceat(np.where(np.isfinite(logqs), logqs, 0.0), starts)
    greedy = np.where(is_greedy, -log_q, -np.inf)
    errors, num_reported = _report_errors(ratios, logqs, reported)
    return Gains(
        alternatives=tuple(alternatives),
        sums=_by_bin(ratios, lengths),
        greedy=greedy,
        lengths=np.asarray(lengths),
        bans=bans,
        report_errors=errors,
        num_reported=num_reported,
    )


def _by_bin(ratios: NDArray[Any], lengths: Ints) -> NDArray[np.float32]:
    """Sums ``[D, K, B]`` of ``[N, K]``, by draw and bin of steps."""
    starts = np.cumsum(lengths) - lengths
    steps = np.arange(len(ratios)) - np.repeat(starts, lengths)
    bins = np.searchsorted(STEP_EDGES, steps, side="right")
    shape = (len(lengths), ratios.shape[1], len(STEP_EDGES) + 1)
    sums = np.zeros(shape, dtype=np.float32)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    # The steps of a draw rise, so that its tokens of one bin stand together.
    firsts = np.flatnonzero(np.diff(owners * (len(STEP_EDGES) + 1) + bins, prepend=-1))
    sums[owners[firsts], :, bins[firsts]] = np.add.reduceat(ratios, firsts, axis=0, dtype=float)
    return sums


def _report_errors(
    ratios: NDArray[np.float32], logqs: Floats, reported: Floats | None
) -> tuple[Floats | None, int]:
    """How far what was reported is from log r of each alternative, summed; and of how many."""
    told = np.isfinite(logqs) if reported is None else np.isfinite(logqs) & np.isfinite(reported)
    if reported is None or not told.any():
        return None, 0
    gaps = (reported - np.where(told, logqs, 0.0))[told, None] - ratios[told]
    return np.abs(gaps).sum(0, dtype=float), int(told.sum())


def evidence(found: Gains) -> Evidence:
    """What all bets have come to."""
    bets = []
    shares = _shares_of_families(
        {*(one.family for one in found.alternatives), GREEDY_DRAWS, BANNED}
    )
    for window, log_es in zip(WINDOWS, _in_windows(found), strict=True):
        chosen = [one.in_some_draws or window.part == 1 for one in found.alternatives]
        sizes = Counter(one.family for one in compress(found.alternatives, chosen))
        for one, log_e in compress(zip(found.alternatives, log_es, strict=True), chosen):
            share = window.share * shares[one.family] / sizes[one.family]
            bets.append(_bet(one, window, float(log_e), share))
    bets += [bet for bet, _ in on_greedy_draws(found, shares[GREEDY_DRAWS])]
    bets += _on_bans(found, shares[BANNED])
    bets.sort(key=lambda bet: bet.log_e + bet.log_share, reverse=True)
    total = float(np.logaddexp.reduce([bet.log_e + bet.log_share for bet in bets]))
    return Evidence(log_e=total, bets=tuple(bets))


def _in_windows(found: Gains) -> Iterator[Floats]:
    """What the bets of each window came to, ``[K]``."""
    by_draws = {w.draws: found.sums[w.draws[0] : w.draws[1]].sum(0, float) for w in WINDOWS}
    of_draws = found.sums.sum(-1, float)
    for window in WINDOWS:
        if window.part < 1:
            yield in_part(of_draws, window.part).sum(0)
        else:
            first, last = np.searchsorted((*STEP_EDGES, _ENDLESS), window.steps, side="right")
            yield by_draws[window.draws][:, first:last].sum(-1)


def in_part(log_ratios: Floats, part: float) -> Floats:
    """log r/q of draws each of which is from an alternative with some probability.

    Args:
        log_ratios: log r/q of the draws if they are from it, of any shape.
        part: that probability.
    """
    found: Floats = np.logaddexp(math.log1p(-part), math.log(part) + log_ratios)
    return found


def _shares_of_families(families: Iterable[str]) -> dict[str, float]:
    """Of the bets on all tokens; they add up to 1."""
    weights = {family: _WEIGHTS.get(family, 1.0) for family in families}
    total = sum(weights.values())
    return {family: weight / total for family, weight in weights.items()}


def _bet(alternative: Alternative, window: Window, log_e: float, share: float) -> Bet:
    return Bet(
        family=alternative.family,
        name=alternative.name,
        value=alternative.value,
        window=window,
        log_e=log_e,
        log_share=math.log(share),
    )


def on_greedy_draws(found: Gains, share: float = 1.0) -> Iterator[tuple[Bet, Floats]]:
    """Whole draws decoded greedily, each with some probability; and log r/q of each draw, ``[D]``.

    Args:
        found: the bets.
        share: of these in all bets.
    """
    for part in WHOLE_DRAWS:
        log_ratios = in_part(found.greedy, part)
        bet = Bet(
            family=GREEDY_DRAWS,
            name=f"{part:.0%} of draws decoded greedily",
            value=part,
            window=WINDOWS[0],
            log_e=float(log_ratios.sum()),
            log_share=math.log(share / len(WHOLE_DRAWS)),
        )
        yield bet, log_ratios


def _on_bans(found: Gains, share: float) -> Iterator[Bet]:
    """The id that is the most likely to be banned, and all others in one bet."""
    if found.bans is None:
        return
    best = int(np.argmax(found.bans))
    others = np.delete(found.bans, best)
    each = math.log(share / len(found.bans))
    yield Bet(
        family=BANNED,
        name=f"token id {best} never sampled",
        value=float(best),
        window=WINDOWS[0],
        log_e=float(found.bans[best]),
        log_share=each,
    )
    if len(others):
        yield Bet(
            family=BANNED,
            name=OTHER_BAN,
            value=None,
            window=WINDOWS[0],
            log_e=float(np.logaddexp.reduce(others)) - math.log(len(others)),
            log_share=each + math.log(len(others)),
        )
