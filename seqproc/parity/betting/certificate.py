"""Certificates: which distributions of the catalogue an engine does not sample from.

Under an alternative r the product of q(y)/r(y) over all tokens is a martingale of mean 1. Where it
exceeds 1/β, r is ruled out: were r what the engine samples from, that would happen with probability
β at most, at whatever number of draws one looks. So whatever distribution of the catalogue the
engine samples from, it is wrongly ruled out with probability β at most: no correction is due for
how many there are.

An alternative that is hardly another distribution need not be ruled out: `distances` has how far it
is from q on the contexts of these draws. Draws that are decoded greedily are no such distribution,
however few they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from seqproc._util.printing import Facts, Printed
from seqproc.parity.betting.catalogue import SHARE
from seqproc.parity.betting.evidence import Floats, Gains, Ints, on_greedy_draws
from seqproc.parity.betting.suspected import PROMPTS, WEIGHTS

# Shapes: D draws.


_LEAST = 0.01  # nats of evidence, from which the draws that are left are extrapolated

State = Literal["ruled out", "near", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A distribution that is neither ruled out nor near."""

    name: str  # in words
    distance: float  # from q, nats per token; the upper end of its interval
    log_evidence: float  # log Π q(y)/r(y), nats; it is ruled out from log 1/β on
    evidence_per_token: float  # that is to be expected, nats


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Certificate(Printed):
    """What of the catalogue is left, at a level β."""

    within: float  # ε: the distance that does not matter, nats per token
    level: float  # β: probability that the distribution that is sampled from is ruled out, at most
    num_ruled_out: int
    num_near: int  # which are not, and lie within ε
    left: tuple[Open, ...]  # which are neither, the farthest first
    suspects: dict[str, State]  # the caller's, which are counted above as well

    def _facts(self) -> Facts:
        return {
            "is_given": self.is_given,
            "within": self.within,
            "level": self.level,
            "ruled_out": self.num_ruled_out,
            "near": self.num_near,
            "left": [one.name for one in self.left] or None,
        }

    @property
    def is_given(self) -> bool:
        """Whether every distribution of the catalogue is ruled out or near."""
        return not self.left

    @property
    def tokens_left(self) -> float:
        """How many more it takes, about, to rule out what is left."""
        due = -math.log(self.level)
        return max(
            ((due - one.log_evidence) / one.evidence_per_token for one in self.left), default=0.0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alternative:
    name: str
    family: str
    log_e: float  # log Π r(y)/q(y)
    sums: Floats  # [D] distances, summed over the controls of each draw
    counts: Ints  # [D] how many of them tell


def certify(
    found: Gains, *, within: float, level: float, allowed: Set[str] = frozenset()
) -> Certificate:
    """What the bets on all tokens rule out.

    Args:
        found: the bets, with distances.
        within: ε, the distance up to which an alternative need not be ruled out, nats per token.
            The upper end of its one-sided interval at 1 − β is held against it, by the normal
            approximation over draws.
        level: β.
        allowed: families that are no fault.
    """
    states: list[State] = []
    left, suspects = [], {}
    for one in _alternatives(found, allowed):
        distance = _upper_end(one.sums, one.counts, level)
        if -one.log_e >= -math.log(level):
            states.append("ruled out")
        elif distance <= within:
            states.append("near")
        else:
            states.append("left")
            left.append(_open(one, distance, found))
        if one.family in (WEIGHTS, PROMPTS):
            suspects[one.name] = states[-1]
    left.sort(key=lambda one: one.distance, reverse=True)
    return Certificate(
        within=within,
        level=level,
        num_ruled_out=states.count("ruled out"),
        num_near=states.count("near"),
        left=tuple(left),
        suspects=suspects,
    )


def _alternatives(found: Gains, allowed: Set[str]) -> Iterator[_Alternative]:
    log_es = found.sums.sum((0, 2), float)
    assert found.distances is not None, "a certificate takes controls"
    for k, alternative in enumerate(found.alternatives):
        if alternative.family not in allowed:
            yield _Alternative(
                name=alternative.name,
                family=alternative.family,
                log_e=float(log_es[k]),
                sums=found.distances.sums[:, k].astype(float),
                counts=found.distances.counts[:, k].astype(np.int64),
            )
    for bet, log_ratios in on_greedy_draws(found):
        never = np.full(len(log_ratios), math.inf)
        yield _Alternative(
            name=bet.name, family=bet.family, log_e=bet.log_e, sums=never, counts=found.lengths
        )


def _open(one: _Alternative, distance: float, found: Gains) -> Open:
    so_far = max(-one.log_e, _LEAST) / float(found.lengths.sum())
    return Open(
        name=one.name,
        distance=distance,
        log_evidence=-one.log_e,
        evidence_per_token=distance if math.isfinite(distance) else so_far,
    )


def _upper_end(sums: Floats, counts: Ints, level: float) -> float:
    """Of the interval of Σ sums / Σ counts, a ratio of means over draws.

    What no control has shown has a mass of log(1/β)/N at most, and half of |log `SHARE`| nats each.
    Where none tells, the distance is not known, and not nought.
    """
    num_controls = counts.sum()
    if num_controls == 0 or not np.isfinite(sums).all():
        return math.inf
    mean = sums.sum() / num_controls
    rest = sums - mean * counts
    error = math.sqrt(float((rest**2).sum())) / num_controls
    unseen = math.log(level) * math.log(SHARE) / 2 / num_controls
    return float(mean - NormalDist().inv_cdf(level) * error + unseen)  # 1 − β may round to 1
