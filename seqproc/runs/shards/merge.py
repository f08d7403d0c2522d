"""`merge_runs`: the shards of a plan become one run, as if it had been made in one.

The shards are read, never changed. Their rows come in the order of the draws already, so that
they are joined as they are read: of each shard one row group is in memory, and a block of rows of
the new run. Whatever is wrong with the shards comes up before anything is written. The new files
count once the manifest says so; a merge that was killed is simply made again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqproc._util.arguments import require_path
from seqproc._util.clock import utc_now
from seqproc._util.interruption import raising_on_termination
from seqproc.config import require_flag
from seqproc.errors import RunError
from seqproc.runs.format.manifest import Manifest, with_key
from seqproc.runs.format.manifest_file import read_manifest
from seqproc.runs.format.parts import Part, Parts, merged_name
from seqproc.runs.format.schema import samples_schema, scores_schema
from seqproc.runs.going_on import going_on
from seqproc.runs.merging import ROWS_IN_FILE, ROWS_IN_MEMORY, drop_merged, total_seconds
from seqproc.runs.opening import open_for_writing, require_apart, require_ready, require_same
from seqproc.runs.result import RunResult
from seqproc.runs.run_folder import RunFolder
from seqproc.runs.shards.source import ShardSource, open_shards
from seqproc.runs.store.folder import Folder, open_folder
from seqproc.runs.store.lock import RunLock

if TYPE_CHECKING:
    import pyarrow as pa


def merge_runs(
    shards: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, fresh: bool = False
) -> RunResult:
    """Make one run of all the shards of a plan; its rows are theirs, to the bit.

    The new run is the one that the same specification without ``shard`` describes. Draws in
    quarantine stay in quarantine. The times of its summary are the sums over the shards. Called
    again after it was stopped, it begins anew; once it is done, it does nothing.

    Args:
        shards: folders of complete runs with ``RunSpec.shard`` (0, n) to (n - 1, n), in any order.
        out: the new run's folder, or the URL of one in an object store.
        fresh: begin anew, after all that the folder holds was set aside.

    Raises:
        RunMismatchError: the shards are not of one plan, or ``out`` holds another run; the error
            says how they differ.
        RunError: a shard is missing, given twice, not complete or damaged, lies in ``out``, or
            ``out`` cannot be written.
    """
    _require_list(shards)
    require_flag("fresh", fresh)
    folders = [open_folder(path) for path in shards]
    for shard in folders:
        require_apart(open_folder(out), shard, with_shards=True)
    folder = require_ready(out, with_shards=True)
    sources = open_shards(folders)
    existing = read_manifest(folder)
    if existing is not None and not fresh:
        require_same(existing, whole_plan(sources), folder)
    for source in sources:
        source.check()
    with raising_on_termination(), RunLock(folder) as lock:
        return RunResult.of(merge_into(folder, lock, sources, fresh=fresh))


def merge_into(
    folder: Folder, lock: RunLock, sources: Sequence[ShardSource], *, fresh: bool = False
) -> RunFolder:
    """Merge shards, which have been checked, into a folder whose lock is held."""
    run = open_for_writing(folder, whole_plan(sources), lock, fresh=fresh, with_shards=True)
    if run.is_done:
        _require_nothing_new(run, sources)
    if not run.is_done or run.manifest.state != "complete":
        with going_on(run):
            _merge(run, sources)
    return run


def whole_plan(sources: Sequence[ShardSource]) -> Manifest:
    """The manifest of the run that the shards are of, before anything is in it."""
    first, now = sources[0].manifest, utc_now()
    return with_key(
        dataclasses.replace(
            first,
            spec={**first.spec, "shard": None},
            state="running",
            num_draws_done=0,
            num_quarantined=0,
            merge=0,
            error=None,
            summary=None,
            created=now,
            updated=now,
        )
    )


def _merge(run: RunFolder, sources: Sequence[ShardSource]) -> None:
    if run.is_done:  # it was stopped after the new files counted
        drop_merged(run)
        return
    merge = run.manifest.merge + 1
    quarantined = [one for source in sources for one in source.quarantined]
    is_kept = np.ones(run.manifest.num_draws, dtype=bool)
    is_kept[[one.draw for one in quarantined]] = False
    draws = np.flatnonzero(is_kept)
    columns = tuple(run.manifest.token_columns)
    _drop_unfinished(run, merge)
    samples = _join(
        run.samples, [(s.samples, s.sampled) for s in sources], samples_schema(), draws, merge
    )
    scores = _join(
        run.scores, [(s.scores, s.scored) for s in sources], scores_schema(columns), draws, merge
    )
    run.quarantine.replace(quarantined)
    run.replace_parts(samples, scores, merge)
    drop_merged(run)


def _join(
    to: Parts,
    sources: Sequence[tuple[Parts, Sequence[Part]]],
    schema: pa.Schema,
    draws: np.ndarray,
    merge: int,
) -> list[Part]:
    """Write one table of the new run."""
    streams = [_Stream(table, parts, schema) for table, parts in sources]
    seconds = total_seconds(part for _, parts in sources for part in parts)
    return [
        to.write(
            merged_name(merge, number),
            _blocks(streams, schema, draws[start : start + ROWS_IN_FILE]),
            {} if number else seconds,
        )
        for number, start in enumerate(range(0, max(len(draws), 1), ROWS_IN_FILE))
    ]


def _blocks(streams: Sequence[_Stream], schema: pa.Schema, draws: np.ndarray) -> Iterator[pa.Table]:
    """The rows of these draws, some at a time: of draw d the next row of stream d mod n."""
    import pyarrow as pa

    for start in range(0, max(len(draws), 1), ROWS_IN_MEMORY):
        some = draws[start : start + ROWS_IN_MEMORY]
        counts = np.bincount(some % len(streams), minlength=len(streams))
        tables = [s.take(int(count)) for s, count in zip(streams, counts, strict=True)]
        rows = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks().sort_by("draw")
        if not np.array_equal(rows["draw"].to_numpy(), some):
            raise RunError("the rows of a shard are not those of its notes: verify the shards")
        yield rows


class _Stream:
    """The rows of one table of a shard, in their order; holds a row group at a time."""

    def __init__(self, table: Parts, parts: Sequence[Part], schema: pa.Schema) -> None:
        self._groups = (rows.cast(schema) for part in parts for rows in table.row_groups(part))
        self._left = schema.empty_table()

    def take(self, num_rows: int) -> pa.Table:
        """The next rows; fewer where there are no more."""
        import pyarrow as pa

        taken = []
        while num_rows:
            if not self._left.num_rows:
                group = next(self._groups, None)
                if group is None:
                    break
                self._left = group
            taken.append(self._left.slice(0, num_rows))
            self._left = self._left.slice(taken[-1].num_rows)
            num_rows -= taken[-1].num_rows
        return pa.concat_tables([self._left.schema.empty_table(), *taken])


def _drop_unfinished(run: RunFolder, merge: int) -> None:
    """Remove what a merge of this number wrote before it was killed."""
    for parts in (run.samples, run.scores):
        for name in parts.all_names():
            if name.startswith(merged_name(merge)):
                parts.drop(name)


def _require_nothing_new(run: RunFolder, sources: Sequence[ShardSource]) -> None:
    """Refuse to take for done a merge of what the shards were before."""
    num_rows = sum(source.manifest.num_draws_done for source in sources)
    if run.num_done != num_rows:
        raise RunError(
            f"{run.folder.url} has {run.num_done} rows of these shards, which now have {num_rows}: "
            "begin anew with fresh=True (--fresh), which sets the old rows aside"
        )


def _require_list(shards: object) -> None:
    if isinstance(shards, (str, os.PathLike)) or not isinstance(shards, Sequence):
        raise RunError(f"shards must be a list of folders, got {shards!r:.60}")
    if not shards:
        raise RunError("there is nothing to merge: name the folders of all shards")
    for path in shards:
        require_path("a shard's folder", path, RunError)
