"""Distances: how far the alternatives are from the policy's q, on the contexts of the draws.

The distance of r is ½ Σ (r − q)(log r − log q) = ½(KL(r‖q) + KL(q‖r)) per token, where a token that
one of the two cannot emit counts as if its ratio were `SHARE`. What the engine samples tells
nothing of tokens that it leaves out, however much of q they have. So in each context the test draws
a token of its own from q, a control. With ρ = r/q of controls, r being mixed with `SHARE` of q,

- ½(ρ − 1)·log ρ has the distance within the support of q as its mean, and
- 1 − ρ what r has outside it.

Knows arrays.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.catalogue import SHARE


def distances(
    log_ratios: NDArray[np.float32], lengths: NDArray[np.int64], truncates: bool
) -> NDArray[np.float32]:
    """Summed over the tokens of each draw, ``[D, K]`` nats.

    Where ρ is not known it is taken to be as where it is; where it never is, to be infinite.

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
    missing = lengths[:, None] - np.add.reduceat(known.astype(np.int64), starts, axis=0)
    num_known = known.sum(0)
    means = np.where(num_known, sums.sum(0) / np.maximum(num_known, 1), math.inf)
    filled = np.where(missing, missing * np.where(missing, means, 0.0), 0.0)
    return np.asarray(sums + filled, dtype=np.float32)
