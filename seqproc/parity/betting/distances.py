"""Distances: how far the alternatives are from the policy's q, on the contexts of the draws.

The distance of r is ½ Σ (r − q)(log r − log q) = ½(KL(r‖q) + KL(q‖r)) per token, where a token that
one of the two cannot emit counts as if its ratio were `SHARE`. What the engine samples tells
nothing of tokens that it leaves out, however much of q they have. So in each context the test draws
a token of its own from q, a control. With ρ = r/q of controls, r being mixed with `SHARE` of q,

- ½(ρ − 1)·log ρ has the distance within the support of q as its mean, and
- 1 − ρ what r has outside it.

Controls whose ρ is not known tell nothing: the others stand for them. Knows arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.catalogue import SHARE

# Shapes: N tokens of all draws together, D draws, K alternatives.


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """Distances of alternatives, summed over the controls of each draw whose ρ is known."""

    sums: NDArray[np.float32]  # [D, K] nats
    counts: NDArray[np.int32]  # [D, K] how many controls these are

    def some(self, first: int, last: int) -> Distances:
        """Those of some draws."""
        return Distances(sums=self.sums[first:last], counts=self.counts[first:last])

    @staticmethod
    def joined(parts: Sequence[Distances], axis: int) -> Distances:
        """Those of more draws, axis 0, or of more alternatives, axis 1."""
        return Distances(
            sums=np.concatenate([part.sums for part in parts], axis=axis),
            counts=np.concatenate([part.counts for part in parts], axis=axis),
        )


def distances(
    log_ratios: NDArray[np.float32], lengths: NDArray[np.int64], truncates: bool
) -> Distances:
    """Of each draw.

    Args:
        log_ratios: ``[N, K]`` log ρ of the controls; NaN where it is not known.
        lengths: ``[D]`` tokens of each draw.
        truncates: whether there is anything outside the support of q.
    """
    starts = np.cumsum(lengths) - lengths
    with np.errstate(over="ignore"):
        less_one = np.expm1(log_ratios.astype(np.float64))
    apart = less_one * log_ratios / 2
    if truncates:
        apart += less_one * math.log(SHARE) / 2
    known = ~np.isnan(log_ratios)
    sums = np.add.reduceat(np.where(known, apart, 0.0), starts, axis=0)
    counts = np.add.reduceat(known.astype(np.int32), starts, axis=0)
    return Distances(sums=sums.astype(np.float32), counts=counts)
