"""What tokens can be coloured by, and from which value to which each scale goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from seqproc.report.tokens.packing import Floats
from seqproc.report.tokens.slopes import SLOPE

ENGINE = "engine_logqs"
DELTA = "engine_delta"  # of the page alone: engine_logqs − logqs

_SAMPLED = 2000  # numbers of each chunk that the ends of a scale follow from


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """A number of each token, to colour it by."""

    name: str  # in the page
    label: str
    column: str  # of tokens
    sign: int = 1  # what the column is multiplied with
    diverging: bool = False  # around 0


_KNOWN = (
    Statistic(name="surprisal", label="Surprisal, −log p", column="logprobs", sign=-1),
    Statistic(name="rb_entropies", label="RB entropy, H(q)", column="rb_entropies"),
    Statistic(name="logqs", label="log q", column="logqs"),
    Statistic(name="top1_prob", label="Top-1 probability, max q", column="top1_prob"),
    Statistic(name="margin", label="Margin, top-1 minus top-2", column="margin"),
    Statistic(name="head_mass", label="Head mass", column="head_mass"),
    Statistic(name=DELTA, label="Δ log q, engine − scorer", column=DELTA, diverging=True),
)


def statistics_of(columns: Iterable[str]) -> list[Statistic]:
    """What tokens with such columns can be coloured by, the usual first."""
    there = list(columns)
    usual = [one for one in _KNOWN if one.column in there]
    taken = {one.column for one in usual} | {ENGINE}
    others = [
        Statistic(name=name, label=name, column=name, diverging=name.startswith(SLOPE))
        for name in there
        if name not in taken
    ]
    return usual + others


class Scales:
    """The ends of scales, from an even sample of the numbers that are seen."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Floats]] = {}

    def add(self, columns: Mapping[str, Floats]) -> None:
        """Take the columns of some tokens into account."""
        for name, values in columns.items():
            finite = values[np.isfinite(values)]
            step = max(1, -(-len(finite) // _SAMPLED))
            self._seen.setdefault(name, []).append(finite[::step])

    def describe(self, statistics: Sequence[Statistic]) -> list[dict[str, Any]]:
        """The statistics with the ``low`` and ``high`` end of their scales, JSON-ready.

        1 % of the tokens lie beyond either end. A diverging scale goes as far on both sides of 0
        as 99 % of the numbers do. Without a number the scale goes from 0 to 1.
        """
        return [
            asdict(one) | dict(zip(("low", "high"), self._ends(one), strict=True))
            for one in statistics
        ]

    def _ends(self, statistic: Statistic) -> tuple[float, float]:
        parts = self._seen.get(statistic.column, [])
        values = statistic.sign * np.concatenate(parts) if parts else np.empty(0)
        if not values.size:
            return (-1.0, 1.0) if statistic.diverging else (0.0, 1.0)
        if statistic.diverging:
            far = float(np.quantile(np.abs(values), 0.99)) or 1.0
            return -far, far
        low, high = (float(end) for end in np.quantile(values, [0.01, 0.99]))
        return (low, high) if low < high else (low - 0.5, low + 0.5)
