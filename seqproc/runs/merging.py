"""Merges the parts of a run into few files, in the order of the draws.

The merged files are written beside the parts, and count once the manifest says so; only then do
the parts go. A merge that is interrupted is made again from the parts, which are still there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqproc.runs.format.parts import Part, Parts, merged_name
from seqproc.runs.format.schema import samples_schema, scores_schema

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs.run_folder import RunFolder

ROWS_IN_MEMORY = 1024  # and in a row group
ROWS_IN_FILE = 64 * ROWS_IN_MEMORY

_MIN_ROWS_IN_GROUP = 128  # in less, a group's own entry in the file's footer weighs too much


def merge_parts(run: RunFolder, *, rows_in_memory: int = ROWS_IN_MEMORY) -> None:
    """Merge samples and scores, unless they are merged; remove what that has replaced.

    Draws in quarantine are left out.
    """
    if not run.is_done:  # else it was stopped after the merged files counted, or had nothing to do
        _merge_tables(run, rows_in_memory)
    drop_merged(run)


def _merge_tables(run: RunFolder, rows_in_memory: int) -> None:
    """Write the merged files, and let them count.

    The row groups of a shard are small, since who joins shards holds one of each in memory.
    """
    merge = run.manifest.merge + 1
    kept = run.is_sampled.copy()
    kept[[one.draw for one in run.quarantine if one.draw < len(kept)]] = False
    draws = np.flatnonzero(kept)
    columns = tuple(run.manifest.token_columns)
    _, num_shards = run.manifest.shard or (0, 1)
    rows_in_group = max(rows_in_memory // num_shards, min(_MIN_ROWS_IN_GROUP, rows_in_memory))
    for parts, sources, schema in (
        (run.samples, run.sampled, samples_schema()),
        (run.scores, list(run.scored.values()), scores_schema(columns)),
    ):
        _merge(parts, sources, schema, draws, merge, rows_in_memory, rows_in_group)
    run.update(merge=merge)
    run.events.tell("merged", rows=len(draws))


def merge_table(parts: Parts, sources: Sequence[Part], schema: pa.Schema, merge: int) -> list[Part]:
    """Write the merged parts of one table, which are returned; the sources stay.

    Args:
        parts: the table's.
        sources: parts to merge; no draw is in two of them.
        schema: of the table.
        merge: the number of this merge.
    """
    draws = np.sort(np.concatenate([np.zeros(0, np.int64), *(s.indices() for s in sources)]))
    return _merge(parts, sources, schema, draws, merge, ROWS_IN_MEMORY, ROWS_IN_MEMORY)


def drop_merged(run: RunFolder) -> None:
    """Remove the parts that a merge has replaced, and what an unfinished merge left."""
    for parts in (run.samples, run.scores):
        kept = {name for name in parts.names(run.manifest.merge) if not name.startswith("part-")}
        for name in parts.all_names():
            if name not in kept:
                parts.drop(name)


def _merge(
    parts: Parts,
    sources: Sequence[Part],
    schema: pa.Schema,
    draws: np.ndarray,
    merge: int,
    rows_in_memory: int,
    rows_in_group: int,
) -> list[Part]:
    per_file = ROWS_IN_FILE // ROWS_IN_MEMORY * rows_in_memory
    seconds = total_seconds(sources)
    owners = _owners(sources, draws)
    merged = []
    for number, start in enumerate(range(0, max(len(draws), 1), per_file)):
        some = slice(start, start + per_file)
        tables = _rows(parts, sources, schema, draws[some], owners[some], rows_in_memory)
        part = parts.write(
            merged_name(merge, number),
            tables,
            {} if number else seconds,
            rows_in_group=rows_in_group,
        )
        merged.append(part)
    return merged


def _owners(sources: Sequence[Part], draws: np.ndarray) -> np.ndarray:
    """Which source has each draw, ``[len(draws)]``."""
    owners = np.full(len(draws), -1, dtype=np.int32)
    for number, source in enumerate(sources):
        places = np.searchsorted(draws, indices := source.indices())
        places, indices = places[places < len(draws)], indices[places < len(draws)]
        owners[places[draws[places] == indices]] = number
    assert (owners >= 0).all()
    return owners


def _rows(
    parts: Parts,
    sources: Sequence[Part],
    schema: pa.Schema,
    draws: np.ndarray,
    owners: np.ndarray,
    rows_in_memory: int,
) -> Iterator[pa.Table]:
    """Rows of these draws, some at a time, in their order."""
    import pyarrow as pa

    for start in range(0, max(len(draws), 1), rows_in_memory):
        some = draws[start : start + rows_in_memory]
        having = np.unique(owners[start : start + rows_in_memory])
        tables = [parts.read_draws(sources[number], some).cast(schema) for number in having]
        yield pa.concat_tables([schema.empty_table(), *tables]).combine_chunks().sort_by("draw")


def total_seconds(parts: Iterable[Part]) -> dict[str, float]:
    """The time [s] that went into parts, by step."""
    total: dict[str, float] = {}
    for part in parts:
        for step, value in part.seconds.items():
            total[step] = total.get(step, 0.0) + value
    return total
