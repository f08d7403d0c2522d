"""Colours of a surprisal, as pairs of paper and ink that bring their own contrast.

A pair does not depend on the ground that it stands on, so that one piece of HTML can be read in a
light and in a dark notebook. Every pair has a contrast of at least 4.5 (WCAG 2.2, 1.4.3).
"""

from __future__ import annotations

import bisect
import itertools
import math

_DARK, _LIGHT = "#1a1d21", "#ffffff"

LEVELS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)  # nats; a level begins where its number stands
PAIRS = (  # one more than levels
    ("#f4f4f0", _DARK),
    ("#fdeec2", _DARK),
    ("#fdd893", _DARK),
    ("#fbb765", _DARK),
    ("#f29a5a", _DARK),
    ("#b93a26", _LIGHT),
    ("#7d1620", _LIGHT),
)
UNKNOWN = ("#dfe3e8", _DARK)  # no number, or NaN


def of_surprisal(nats: float | None) -> tuple[str, str]:
    """Paper and ink, as ``#rrggbb``."""
    if nats is None or math.isnan(nats):
        return UNKNOWN
    return PAIRS[bisect.bisect_right(LEVELS, nats)]


def legend() -> list[tuple[str, tuple[str, str]]]:
    """What each pair stands for, in words, the least surprisal first."""
    ranges = [f"{low:g}–{high:g}" for low, high in itertools.pairwise(LEVELS)]
    names = [f"< {LEVELS[0]:g}", *ranges, f"≥ {LEVELS[-1]:g}"]
    return list(zip(names, PAIRS, strict=True))
