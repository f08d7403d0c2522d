"""dH/dη of each token along a direction v, by differences of scores at θ and at θ + η·v.

Only scores under the run's own policy and precision are taken: H(q) of another policy differs
from the run's by more than the step, and rounding by as much as it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from seqproc.errors import RunError
from seqproc.report.text import number, shifted
from seqproc.report.tokens.packing import Floats

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs import Run

SLOPE = "dH/dη "  # what the names of these columns begin with, before that of the set of scores

_ENTROPIES = "rb_entropies"
_MAX_ETA = 1e300  # beyond it a float has no room for a difference


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """Where a set of scores was made: at θ + η·v."""

    direction: str  # digest of v
    weights: str  # digest of θ
    eta: float


def slopes_of(run: Run) -> list[Slope]:
    """The slopes that a run's further sets of scores give; none where there are none.

    A set that cannot be read is left out: what it says of itself is a part of the page elsewhere.
    """
    steps = {name: step for name in run.score_sets if (step := _step(run, name)) is not None}
    found = []
    for name in steps:
        with suppress(RunError):
            if not _is_behind(name, steps):
                found.append(_slope(run, name, steps))
    return found


def _step(run: Run, name: str) -> _Step | None:
    """Of a set of the run's policy, precision and model that keeps H(q); None of another one."""
    try:
        found = run.score_set(name)
    except RunError:
        return None
    mine, made_by = run.manifest, found.made_by
    override, model, kept = (made_by.get(key) for key in ("override", "model", "token_columns"))
    is_usable = (
        found.is_complete
        and _ENTROPIES in run.columns
        and isinstance(kept, list)
        and _ENTROPIES in kept
        and made_by.get("policy") == mine.policy
        and made_by.get("precision") == mine.precision
    )
    if not (is_usable and isinstance(override, Mapping) and isinstance(model, Mapping)):
        return None
    eta, own = override.get("eta"), _own_weights(run)
    weights = model.get("weights")
    if model.get("name") != mine.model.get("name") or (own is not None and own != weights):
        return None
    if not isinstance(eta, (int, float)) or not 0 < abs(eta) < _MAX_ETA:
        return None
    return _Step(direction=str(override.get("sha256")), weights=str(weights), eta=float(eta))


def _own_weights(run: Run) -> str | None:
    """The digest of the weights that scored the run, which only given sequences have on record."""
    own = run.manifest.model.get("weights")
    return None if own is None else str(own)


def _opposite(name: str, steps: Mapping[str, _Step]) -> str | None:
    """The set that lies as far on the other side of the same θ."""
    wanted = replace(steps[name], eta=-steps[name].eta)
    return next((one for one, step in steps.items() if step == wanted), None)


def _is_behind(name: str, steps: Mapping[str, _Step]) -> bool:
    return steps[name].eta < 0 and _opposite(name, steps) is not None


def _slope(run: Run, name: str, steps: Mapping[str, _Step]) -> Slope:
    step, other = steps[name], _opposite(name, steps)
    formula = f"(H(q) at {shifted(step.eta)} − H(q) at θ) / {number(step.eta)}"
    if other is not None:
        formula = (
            f"(H(q) at {shifted(step.eta)} − H(q) at {shifted(-step.eta)}) / {number(2 * step.eta)}"
        )
    elif _own_weights(run) is None:
        formula += ", if the run was scored with the weights of that set"
    return Slope(
        column=SLOPE + name,
        unit=f"nats per token and unit of η: {formula}, v {step.direction[:12]}",
        ahead=_scores(run, name),
        behind=None if other is None else _scores(run, other),
        distance=step.eta if other is None else 2 * step.eta,
    )


def _scores(run: Run, name: str) -> _Entropies:
    return _Entropies(run.scores(name).select(["draw", _ENTROPIES]))


def _table(batch: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    rows = pa.Table.from_batches([batch]).select(["draw", _ENTROPIES])
    return rows.sort_by("draw")  # of a run that goes on they are as they finished
