"""The shape of the largest of some weights: a generalised Pareto distribution, fitted to them.

References: Zhang and Stephens, "A New and Efficient Estimation Method for the Generalized Pareto
Distribution" (2009), for the fit; Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto Smoothed
Importance Sampling" (2024), for how many are the largest, and for the prior.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_FEWEST = 5  # of a tail that a shape can be told of
_GRID = 30  # points beside the root of the number of exceedances
_PRIOR_DRAWS, _PRIOR_SHAPE = 10, 0.5  # a shape of ½, which counts as much as so many exceedances


def tail_shape(log_weights: Array) -> float:
    """k̂ of the largest min(N/5, 3·√N) weights; NaN where fewer than 5 exceed all the others.

    Args:
        log_weights: ``[N]`` nats, finite or −∞, up to a common constant.
    """
    ordered = np.sort(log_weights)
    num = math.ceil(min(len(ordered) / 5, 3 * math.sqrt(len(ordered))))
    if num >= len(ordered):
        return math.nan
    cutoff = ordered[-num - 1]
    tail = ordered[ordered > cutoff]
    if len(tail) < _FEWEST:
        return math.nan
    # exp(tail) − exp(cutoff) over the largest weight, without the loss of digits of a difference.
    exceedances = -np.expm1(cutoff - tail) * np.exp(tail - tail[-1])
    shape = pareto_shape(exceedances)
    return (len(tail) * shape + _PRIOR_DRAWS * _PRIOR_SHAPE) / (len(tail) + _PRIOR_DRAWS)


def pareto_shape(exceedances: Array) -> float:
    """k of the density (1 + k·x/σ)^(−1/k − 1) / σ, as Zhang and Stephens estimate it.

    The profile likelihood in θ = −k/σ is averaged over points that a prior spreads.

    Args:
        exceedances: ``[n]``, positive and rising.
    """
    num = len(exceedances)
    quartile = exceedances[math.floor(num / 4 + 0.5) - 1]
    points = _GRID + math.floor(math.sqrt(num))
    spread = np.sqrt(points / (np.arange(1, points + 1) - 0.5))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        theta = 1 / exceedances[-1] + (1 - spread) / (3 * quartile)
        shapes = np.log1p(-theta[:, None] * exceedances).mean(axis=1)
        likelihood = num * (np.log(-theta / shapes) - shapes - 1)
        kept = np.isfinite(likelihood)
        if not kept.any():
            return math.nan
        weights = np.exp(likelihood[kept] - likelihood[kept].max())
        centre = float(weights @ theta[kept] / weights.sum())
        return float(np.log1p(-centre * exceedances).mean())
