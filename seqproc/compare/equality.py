"""Which columns of paired draws are not the same in both runs, to the last bit. NaN equals NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqproc.compare.pairing import chosen
from seqproc.compare.sides import Side
from seqproc.report.histograms import Ints

if TYPE_CHECKING:
    import pyarrow as pa

ENGINE = "engine_logqs"  # what engines report, rounded by whatever ran beside a draw

# Of where a draw comes from: settings, if they differ, and no part of it.
_OF_THE_SOURCE = {"draw", "seed", "prompt_index"}


def differing_columns(sides: tuple[Side, Side], draws: Ints) -> tuple[str, ...]:
    """The columns that both sides have and that differ somewhere; one in memory at a time."""
    a, b = sides
    there = set(b.columns()) - _OF_THE_SOURCE
    return tuple(
        name
        for name in a.columns()
        if name in there
        and not are_equal(*(chosen(side.rows([name]), draws)[name] for side in sides))
    )


def are_equal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    """Whether two columns are the same: of the same numbers, texts or lists, and null alike."""
    import pyarrow as pa

    if a.type != b.type or len(a) != len(b):
        return False
    one, other = a.combine_chunks(), b.combine_chunks()
    if not one.is_valid().equals(other.is_valid()):
        return False
    if pa.types.is_list(a.type):
        if not one.value_lengths().equals(other.value_lengths()):
            return False
        return are_equal(pa.chunked_array([one.flatten()]), pa.chunked_array([other.flatten()]))
    if not pa.types.is_floating(a.type):
        return bool(one.equals(other))
    x, y = (each.to_numpy(zero_copy_only=False) for each in (one, other))
    return bool(np.array_equal(x, y, equal_nan=True))
