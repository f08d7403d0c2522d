"""Columns of a run as arrays, one column in memory at a time. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqproc.errors import RunError
from seqproc.report.histograms import Floats, Ints

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs import Run


class NotKeptError(RunError):
    """A run does not hold what is asked for; it is otherwise sound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Numbers of the tokens of D draws, N in all."""

    values: Floats  # [N]
    lengths: Ints  # [D], which sum to N

    @property
    def owners(self) -> Ints:
        """``[N]``, the place of the draw that each token is of."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def positions(self) -> Ints:
        """``[N]``, the position of each token in its response, from 0."""
        starts = np.cumsum(self.lengths) - self.lengths
        return np.arange(len(self.values)) - np.repeat(starts, self.lengths)

    def split(self) -> list[Floats]:
        """D arrays, of one draw each."""
        return np.split(self.values, np.cumsum(self.lengths)[:-1])


def per_draw(rows: pa.Table, name: str) -> Floats:
    """``[D]``; NaN in the place of what is null."""
    return np.asarray(rows[name].to_numpy(), dtype=np.float64)


def per_token(rows: pa.Table, name: str) -> Ragged:
    """A column of lists. NaN in the place of what is null in them; a list that is null is empty."""
    lists = rows[name].combine_chunks()
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return Ragged(
        values=np.asarray(values, dtype=np.float64), lengths=np.asarray(lengths, dtype=np.int64)
    )


def require_columns(run: Run, names: Sequence[str]) -> None:
    """Refuse to go on without per-token columns that a run may or may not keep.

    Raises:
        NotKeptError: the run does not have one.
    """
    for name in names:
        if name not in run.columns:
            raise NotKeptError(
                f"the run keeps no column {name!r}: --token-column {name} (token_columns=) keeps it"
            )


def token_values(run: Run, name: str) -> Ragged:
    """The numbers of a per-token column of every draw.

    Raises:
        NotKeptError: the run does not have it, or has no rows.
    """
    require_columns(run, [name])
    return per_token(draws_of(run, [name]), name)


def draws_of(run: Run, names: Sequence[str]) -> pa.Table:
    """Columns of all draws.

    Raises:
        NotKeptError: the run has no rows yet.
    """
    rows = run.rows(names)
    if not rows.num_rows:
        raise NotKeptError(f"the run in {run.url} has no draws yet that are sampled and scored")
    return rows
