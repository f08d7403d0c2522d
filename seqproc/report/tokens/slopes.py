"""dH/dη of each token along a direction v, by differences of scores at θ and at θ + η·v.

Only scores under the run's own policy and precision are taken: H(q) of another policy differs
from the run's by more than the step, and rounding by as much as it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc.report.tokens.packing import Floats

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs import Run

SLOPE = "dH/dη "  # what the names of these columns begin with, before that of the set of scores

_ENTROPIES = "rb_entropies"


class _Entropies:
    """H(q) of each token of each draw, to be found by draw."""

    def __init__(self, rows: pa.Table) -> None:
        lists = rows[_ENTROPIES].combine_chunks()
        self._draws = rows["draw"].to_numpy()  # rising
        self._values = lists.flatten().to_numpy(zero_copy_only=False)
        lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        self._ends = np.cumsum(lengths)

    def of(self, draw: int) -> Floats:
        """Of one draw, empty where it has none."""
        place = int(np.searchsorted(self._draws, draw))
        if place == len(self._draws) or self._draws[place] != draw:
            return np.empty(0)
        start = self._ends[place - 1] if place else 0
        return np.asarray(self._values[start : self._ends[place]], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """The slope that one set of scores gives, or two on both sides of θ."""

    column: str
    unit: str
    ahead: _Entropies  # at θ + η·v
    behind: _Entropies | None  # at θ − η·v; None: at θ, which the run's own rows have
    distance: float  # in η, between the two

    def of(self, batch: pa.RecordBatch) -> tuple[Floats, list[int]]:
        """``[N]`` of the tokens of some rows, and the places of rows that have none."""
        found, missing = [], []
        own = _Entropies(_table(batch)) if self.behind is None else self.behind
        lengths = batch["response_ids"].value_lengths().to_pylist()
        for place, (draw, length) in enumerate(
            zip(batch["draw"].to_pylist(), lengths, strict=True)
        ):
            here, there = own.of(draw), self.ahead.of(draw)
            if len(here) == len(there) == length:
                with np.errstate(invalid="ignore"):
                    found.append((there - here) / self.distance)
            else:
                found.append(np.full(length, np.nan))
                missing.append(place)
        return np.concatenate([np.empty(0), *found]), missing


def slopes_of(run: Run) -> list[Slope]:
    """The slopes that a run's further sets of scores give; none where there are none."""
    steps = dict(_steps(run))
    return [_slope(run, name, steps) for name in steps if not _is_behind(name, steps)]


def _steps(run: Run) -> Iterator[tuple[str, tuple[str, float]]]:
    """By the name of a set: the digest of its direction, and its η."""
    for name in run.score_sets:
        found = run.score_set(name)
        override, kept = found.made_by.get("override"), found.made_by["token_columns"]
        if not found.is_complete or not isinstance(override, Mapping) or _ENTROPIES not in kept:
            continue
        if _ENTROPIES in run.columns and override.get("eta") and _is_alike(run, found.made_by):
            yield name, (str(override.get("sha256")), float(override["eta"]))


def _is_alike(run: Run, made_by: Mapping[str, Any]) -> bool:
    """Whether a set is of the run's policy, precision and model."""
    mine, model = run.manifest, made_by.get("model")
    own = mine.model.get("weights")  # kept where given sequences were scored
    return (
        made_by.get("policy") == mine.policy
        and made_by.get("precision") == mine.precision
        and isinstance(model, Mapping)
        and model.get("name") == mine.model.get("name")
        and own in (None, model.get("weights"))
    )


def _opposite(name: str, steps: Mapping[str, tuple[str, float]]) -> str | None:
    """The set that lies as far on the other side of θ."""
    direction, eta = steps[name]
    return next((one for one, step in steps.items() if step == (direction, -eta)), None)


def _is_behind(name: str, steps: Mapping[str, tuple[str, float]]) -> bool:
    return steps[name][1] < 0 and _opposite(name, steps) is not None


def _slope(run: Run, name: str, steps: Mapping[str, tuple[str, float]]) -> Slope:
    (direction, eta), other = steps[name], _opposite(name, steps)
    formula = f"(H(q) at θ + {eta:g}·v − H(q) at θ) / {eta:g}"
    if other is not None:
        formula = f"(H(q) at θ + {eta:g}·v − H(q) at θ − {eta:g}·v) / {2 * eta:g}"
    return Slope(
        column=SLOPE + name,
        unit=f"nats per token and unit of η: {formula}, v {direction[:12]}",
        ahead=_scores(run, name),
        behind=None if other is None else _scores(run, other),
        distance=eta if other is None else 2 * eta,
    )


def _scores(run: Run, name: str) -> _Entropies:
    return _Entropies(run.scores(name).select(["draw", _ENTROPIES]))


def _table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    rows = pa.Table.from_batches([batch]).select(["draw", _ENTROPIES])
    return rows.sort_by("draw")  # of a run that goes on they are as they finished
