"""Rows of a run as arrays: the numbers of their tokens one behind the other, and those of draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from seqproc.errors import RunError
from seqproc.report.tokens.packing import Floats, as_shown
from seqproc.report.tokens.statistics import DELTA, ENGINE

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs import Run

_CHUNK = 100  # draws that are unpacked together in the page


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of some draws, one behind the other."""

    lengths: list[int]  # of each draw
    ids: npt.NDArray[np.uint32]  # [N]
    columns: dict[str, Floats]  # [N] each; NaN where a draw has none
    missing: dict[str, list[int]]  # by column: the places of draws that have none of it


def chunks(run: Run, limit: int | None) -> Iterator[pa.RecordBatch]:
    """The rows, some at a time; the first ``limit`` of them.

    A complete run has them in the order of the draws, another one as they finished.
    """
    left = run.num_rows if limit is None else limit
    for batch in run.batches(batch_size=_CHUNK):
        if left <= 0:
            return
        yield batch.slice(0, left)
        left -= len(batch)


def tokens_of(batch: pa.RecordBatch) -> Tokens:
    """The tokens of some rows.

    Raises:
        RunError: a row has more or fewer numbers than tokens.
    """
    import pyarrow as pa

    ids = batch["response_ids"]
    lengths = ids.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    names = [field.name for field in batch.schema if field.type == pa.list_(pa.float64())]
    columns = {name: _flat(name, batch[name], lengths) for name in names}
    missing = {
        name: np.flatnonzero(batch[name].is_null().to_numpy(zero_copy_only=False)).tolist()
        for name in names
        if batch[name].null_count
    }
    if ENGINE in columns and "logqs" in columns:
        with np.errstate(invalid="ignore"):  # both may be −∞
            columns[DELTA] = columns[ENGINE] - columns["logqs"]
        missing[DELTA] = missing.get(ENGINE, [])
    return Tokens(
        lengths=lengths.tolist(),
        ids=ids.flatten().to_numpy(zero_copy_only=False).astype(np.uint32),
        columns=columns,
        missing=missing,
    )


def _flat(name: str, column: pa.Array, lengths: npt.NDArray[np.int64]) -> Floats:
    """The numbers of a column of lists; NaN for each token of a draw whose list is null."""
    there = column.is_valid().to_numpy(zero_copy_only=False)
    own = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    if (own[there] != lengths[there]).any():
        raise RunError(
            f"a row has another number of {name} than of tokens: `seqproc verify` tells which "
            "file is broken"
        )
    numbers = np.full(lengths.sum(), np.nan)
    numbers[np.repeat(there, lengths)] = column.flatten().to_numpy(zero_copy_only=False)
    return numbers


class Draws:
    """The numbers that each draw has one of."""

    def __init__(self) -> None:
        self.starts: list[int] = []  # the first row of each chunk
        self.num_rows = 0
        self._units: dict[str, str] = {}
        self._integers: set[str] = set()
        self._columns: dict[str, list[Floats]] = {}
        self._words: dict[str, list[str | None]] = {"seed": [], "finish_reason": []}

    def add(self, batch: pa.RecordBatch) -> None:
        """Take some rows."""
        import pyarrow as pa

        self.starts.append(self.num_rows)
        self.num_rows += len(batch)
        for field in batch.schema:
            whole = pa.types.is_integer(field.type) and field.name != "seed"
            if whole or pa.types.is_floating(field.type):
                self._take(field, batch[field.name], whole)
        self._words["seed"] += [_text(seed) for seed in batch["seed"].to_pylist()]
        self._words["finish_reason"] += batch["finish_reason"].to_pylist()

    def _take(self, field: pa.Field, column: pa.Array, whole: bool) -> None:
        self._units[field.name] = (field.metadata or {}).get(b"unit", b"").decode()
        self._integers |= {field.name} if whole else set()
        numbers = column.to_numpy(zero_copy_only=False).astype(np.float64)
        self._columns.setdefault(field.name, []).append(numbers)

    def header(self, run: Run) -> dict[str, Any]:
        """What the page's script knows of them, JSON-ready, without the numbers."""
        failed = [asdict(one) | {"seed": _text(one.seed)} for one in run.quarantined]
        columns = [
            {"name": name, "unit": unit, "whole": name in self._integers}
            for name, unit in self._units.items()
        ]
        return {
            "rows": self.num_rows,
            "run_rows": run.num_rows,
            "starts": self.starts,
            "columns": columns,
            "quarantined": failed,
            **self._words,
        }

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The numbers, by column; integers as they are, in float64."""
        joined = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        return {
            name: numbers if name in self._integers else as_shown(numbers)
            for name, numbers in joined.items()
        }


def _text(seed: int | None) -> str | None:
    return None if seed is None else str(seed)  # more digits than the page's numbers have
