"""Histograms of any numbers: −∞ and NaN are counted, and never binned. Knows arrays alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FEWEST_BINS, _MOST_BINS = 10, 40
_TOO_LARGE = 1e150  # a difference of two such numbers, or a square, may overflow
_TOO_SMALL = 1e-150  # a distance that bins cannot divide


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often numbers fall between edges, and their moments. All of finite numbers alone."""

    edges: Floats  # [B + 1], rising; a bin holds its left edge, the last one both
    counts: Ints  # [B]
    num: int  # finite numbers: the sum of the counts
    mean: float  # NaN without a number, and so are the others
    deviation: float  # standard deviation, with N − 1; NaN of one number
    least: float
    median: float
    most: float
    left_out: Mapping[str, int]  # numbers that are not finite, by what they are; none with 0


def histogram(values: Floats, *, whole: bool = False) -> Histogram:
    """Bins of one width from the least to the largest number: 2·√N of them, from 10 to 40.

    Args:
        values: ``[N]``, any numbers.
        whole: whether they are integers: then bins are of whole width, edges between integers.
    """
    is_binned = np.isfinite(values) & (np.abs(np.nan_to_num(values)) < _TOO_LARGE)
    kept = values[is_binned]
    edges = _edges(kept, whole)
    counts, _ = np.histogram(kept, bins=edges)
    nothing = math.nan
    return Histogram(
        edges=edges,
        counts=counts.astype(np.int64),
        num=len(kept),
        mean=float(kept.mean()) if len(kept) else nothing,
        deviation=float(kept.std(ddof=1)) if len(kept) > 1 else nothing,
        least=float(kept.min()) if len(kept) else nothing,
        median=float(np.median(kept)) if len(kept) else nothing,
        most=float(kept.max()) if len(kept) else nothing,
        left_out=_left_out(values[~is_binned]),
    )


def _edges(kept: Floats, whole: bool) -> Floats:
    if not len(kept):
        return np.array([0.0, 1.0])
    bins = min(max(math.ceil(2 * math.sqrt(len(kept))), _FEWEST_BINS), _MOST_BINS)
    low, high = float(kept.min()), float(kept.max())
    if whole:
        width = math.ceil((high - low + 1) / bins)
        num = math.ceil((high - low + 1) / width)
        return low - 0.5 + width * np.arange(num + 1, dtype=np.float64)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), _TOO_SMALL):
        reach = max(abs(low), abs(high)) * 1e-3 or 0.5
        return np.array([low - reach, high + reach])
    return np.linspace(low, high, bins + 1)


def _left_out(values: Floats) -> dict[str, int]:
    kinds = {
        "−∞": np.isneginf(values),
        "∞": np.isposinf(values),
        "NaN": np.isnan(values),
        "beyond 10^150": np.isfinite(values),
    }
    return {name: int(which.sum()) for name, which in kinds.items() if which.any()}
