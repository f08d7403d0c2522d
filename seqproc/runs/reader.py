"""Reading a run's folder back: its manifest, samples and scores. Needs no torch.

Rows are read part by part, so that a run need not fit in memory. Draws in quarantine are not among
them, and of a run that goes on neither are those that are not scored yet.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from seqproc._util.arguments import require_path
from seqproc._util.optional import require_package
from seqproc._util.printing import Facts, Printed
from seqproc.errors import MissingFileError, RunError, did_you_mean
from seqproc.runs.format.layout import SAMPLES, SCORES
from seqproc.runs.format.manifest import Manifest, run_facts
from seqproc.runs.format.manifest_file import require_manifest
from seqproc.runs.format.parts import Part, Parts, is_merged_name
from seqproc.runs.format.quarantine import Failed, read_quarantine
from seqproc.runs.format.schema import require_pyarrow, rows_schema, scores_schema
from seqproc.runs.format.score_set import (
    ScoreSet,
    committed_parts,
    read_score_set,
    score_set_names,
    set_table,
)
from seqproc.runs.store.folder import Folder, open_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs.format.tables import Sample
    from seqproc.types import BatchedSequences

_T = TypeVar("_T")

_TRIES = 3  # to find the parts of a run that is merged at this moment
_MAX_BATCH_SIZE = 2**31  # more rows than a table in memory has


class Run(Printed):
    """A run on disk. Made by `open_run`.

    Args:
        folder: where it is.
        manifest: what the folder says about itself.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.url = folder.url
        self.manifest = manifest
        self._folder = folder
        self._samples = Parts(folder, SAMPLES, manifest.key)
        self._scores = Parts(folder, SCORES, manifest.key)
        self._schema = rows_schema(tuple(manifest.token_columns))
        self._parts = self._find_parts()

    def _facts(self) -> Facts:
        return {"url": self.url, "rows": self.num_rows, **run_facts(self.manifest)}

    def _look_again(self) -> None:
        """Find the parts of a run that was merged since it was opened."""
        found = _opened(self._folder)
        if found.manifest.key != self.manifest.key:
            raise RunError(f"there is another run in {self.url} now: open it anew")
        self.manifest, self._parts = found.manifest, found._parts  # noqa: SLF001 - of this class

    def _read_on(self, read: Callable[[], _T]) -> _T:
        """Read; once more from where rows are now, if they were merged meanwhile."""
        for _ in range(_TRIES - 1):
            try:
                return read()
            except MissingFileError:
                with contextlib.suppress(MissingFileError):
                    self._look_again()
        return read()

    def _find_parts(self) -> list[tuple[Part, Part]]:
        """Samples and their scores, by the parts that have both."""
        merge = self.manifest.merge
        scored = set(self._scores.names(merge))
        names = [name for name in self._samples.names(merge) if name in scored]
        parts = [(self._samples.read_note(n), self._scores.read_note(n)) for n in names]
        unmerged = [pair for pair in parts if not is_merged_name(pair[0].name)]
        if not merge or not unmerged:
            return parts
        merged = [pair for pair in parts if is_merged_name(pair[0].name)]
        draws = np.concatenate([samples.indices() for samples, _ in merged])
        # A process that was killed may not have removed the parts that it had merged.
        return merged + [p for p in unmerged if not np.isin(p[0].indices(), draws).any()]

    @property
    def path(self) -> Path:
        """Its folder, where that is on a local disk."""
        return Path(self.url)

    @property
    def num_rows(self) -> int:
        """Rows that are sampled and scored."""
        return sum(scores.num_rows for _, scores in self._parts)

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return list(self._schema.names)

    @property
    def quarantined(self) -> list[Failed]:
        """The draws that always failed, and why."""
        return read_quarantine(self._folder, self.manifest)

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, in the order of the draws, in memory at once.

        Args:
            columns: only these; None for all.

        Raises:
            RunError: a part cannot be read, or there is no such column.
        """
        schema = self._selected(columns)
        return self._read_on(lambda: self._rows(schema))

    def _rows(self, schema: pa.Schema) -> pa.Table:
        import pyarrow as pa

        wanted = schema.names if "draw" in schema.names else ["draw", *schema.names]
        tables = list(self._tables(wanted))
        if not tables:
            return schema.empty_table()
        rows = pa.concat_tables(tables)
        draws = rows["draw"].to_numpy()
        if (np.diff(draws) < 0).any():
            rows = rows.take(draws.argsort())
        return rows.select(schema.names).cast(schema)

    to_arrow = rows

    def batches(
        self, columns: Sequence[str] | None = None, *, batch_size: int = 256
    ) -> Iterator[pa.RecordBatch]:
        """The rows in batches of at most ``batch_size``, some thousand in memory at a time.

        In the order of the draws once the run is complete, and until then as they finished.

        Raises:
            RunError: a part cannot be read, or there is no such column.
            ConfigError: ``batch_size`` is no count.
        """
        from seqproc.config import require_count

        schema = self._selected(columns)
        size = min(require_count("batch_size", batch_size), _MAX_BATCH_SIZE)
        return self._batches(schema, size)

    def _batches(self, schema: pa.Schema, size: int) -> Iterator[pa.RecordBatch]:
        for table in self._tables(schema.names):
            yield from table.cast(schema).combine_chunks().to_batches(max_chunksize=size)

    def sample_batches(self, *, batch_size: int = 256) -> Iterator[pa.Table]:
        """What was drawn, without scores, at most ``batch_size`` rows at a time."""
        import pyarrow as pa

        from seqproc.runs.format.schema import samples_schema

        batches = self.batches(samples_schema().names, batch_size=batch_size)
        return (pa.Table.from_batches([batch]) for batch in batches)

    @property
    def score_sets(self) -> list[str]:
        """The names of further scores of its samples, see `seqproc.runs.add_scores`."""
        return score_set_names(self._folder)

    def score_set(self, name: str) -> ScoreSet:
        """What made further scores of its samples, and how far they are.

        Raises:
            RunError: there is no such set.
        """
        found = read_score_set(self._folder, name) if name in self.score_sets else None
        if found is None:
            known = ", ".join(self.score_sets) or "none"
            raise RunError(f"the run in {self.url} has no scores {name!r}; it has {known}")
        return found

    def scores(self, name: str) -> pa.Table:
        """Further scores of its samples, in the order of the draws: the draw and its scores.

        Raises:
            RunError: there is no such set, or it is not complete.
        """
        return self._read_on(lambda: self._score_set(name))

    def _score_set(self, name: str) -> pa.Table:
        import pyarrow as pa

        found = self.score_set(name)
        parts = Parts(self._folder, set_table(name), found.key)
        committed = committed_parts(parts, found.merge)
        if not found.is_complete or self._has_more_draws(found, committed):
            raise RunError(
                f"the scores {name!r} of {self.url} are not complete: give the command again that "
                "began them"
            )
        schema = scores_schema(tuple(found.made_by["token_columns"]))
        rows = pa.concat_tables([schema.empty_table(), *(parts.read(one) for one in committed)])
        return rows.sort_by("draw")

    def _has_more_draws(self, found: ScoreSet, committed: Sequence[Part]) -> bool:
        """Whether the run has draws that a set neither scores nor names as failed."""
        failed = np.array([one["draw"] for one in found.failed], dtype=np.int64)
        there = np.concatenate([failed, *(part.indices() for part in committed)])
        return not all(np.isin(scores.indices(), there).all() for _, scores in self._parts)

    def row(self, draw: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """One draw's row, by column; reads the part that has it, and no other.

        Raises:
            RunError: the draw has no row, the part cannot be read, or there is no such column.
        """
        names, index = self._selected(columns).names, _index(draw)
        return self._read_on(lambda: self._row(index, names))

    def _row(self, draw: int, names: list[str]) -> dict[str, Any]:
        for pair in self._parts:
            if any(start <= draw < stop for start, stop in pair[1].draws):
                found = self._table(*pair, names, np.array([draw])).to_pylist()
                return dict(found[0])
        raise RunError(f"the run in {self.url} has no row of draw {draw}{self._why(draw)}")

    def _why(self, draw: int) -> str:
        """Why a draw has no row."""
        for one in self.quarantined:
            if one.draw == draw:
                return f": it is in quarantine, its {one.step} failed ({one.reason})"
        return ""

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as a `pandas.DataFrame`."""
        require_package("pandas", purpose="a run as a data frame")
        return self.rows(columns).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as a `polars.DataFrame`."""
        require_package("polars", purpose="a run as a polars data frame")
        import polars

        return polars.from_arrow(self.rows(columns))

    def to_dataset(self, columns: Sequence[str] | None = None) -> Any:
        """All rows as a `datasets.Dataset`."""
        require_package("datasets", extra="hub", purpose="a run as a dataset")
        import datasets

        return datasets.Dataset(self.rows(columns))

    def to_batched_sequences(self, draws: Sequence[int] | None = None) -> BatchedSequences:
        """Draws as `BatchedSequences` ``[n, 1, L]``, to be scored or differentiated.

        Args:
            draws: indices of draws, in the order wanted; None for all.

        Raises:
            RunError: there is no such draw.
        """
        from seqproc.runs.format.tables import batch_of

        indices = None if draws is None else _indices(draws)
        samples = self._read_on(lambda: self._samples_by_draw(indices))
        chosen = sorted(samples) if indices is None else indices
        if missing := [draw for draw in chosen if draw not in samples]:
            raise RunError(f"the run in {self.url} has no row of draw {missing[0]}")
        if not chosen:
            raise RunError("no draws were asked for: a batch holds at least one")
        return batch_of([samples[draw] for draw in chosen])

    def _samples_by_draw(self, draws: Sequence[int] | None) -> dict[int, Sample]:
        """The samples of some draws, those that there are, or of all."""
        from seqproc.runs.format.schema import samples_schema
        from seqproc.runs.format.tables import samples_of

        names = samples_schema().names
        if draws is None:
            tables = self._tables(names)
        else:
            tables = self._tables_of([draw for draw in draws if 0 <= draw < 2**63], names)
        return {one.draw.index: one for table in tables for one in samples_of(table)}

    def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of part after part, samples and scores beside each other."""
        of_samples, of_scores = _by_table(columns)
        for samples, scores in self._parts:
            if scores.num_rows < samples.num_rows:
                yield self._table(samples, scores, columns)
                continue
            groups = self._samples.row_groups(samples, of_samples)
            more = self._scores.row_groups(scores, of_scores)
            for rows, others in zip(groups, more, strict=True):
                yield self._joined(rows, others, columns)

    def _tables_of(self, draws: Sequence[int], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of some draws, part after part."""
        rising = np.unique(np.array(draws, dtype=np.int64))
        for samples, scores in self._parts:
            if np.isin(scores.indices(), rising).any():
                yield self._table(samples, scores, columns, rising)

    def _table(
        self, samples: Part, scores: Part, columns: Sequence[str], draws: np.ndarray | None = None
    ) -> pa.Table:
        """Rows of one part, of some draws or of all that have scores."""
        of_samples, of_scores = _by_table(columns)
        scored = scores.indices()
        kept = scored if draws is None else draws[np.isin(draws, scored)]
        rows = self._samples.read_draws(samples, kept, of_samples)
        return self._joined(rows, self._scores.read_draws(scores, kept, of_scores), columns)

    def _joined(self, rows: pa.Table, scores: pa.Table, columns: Sequence[str]) -> pa.Table:
        """Samples and their scores, beside each other."""
        if not np.array_equal(rows["draw"].to_numpy(), scores["draw"].to_numpy()):
            raise RunError(
                f"samples and scores of the run in {self.url} do not fit together: "
                "`seqproc verify` tells which"
            )
        for name in scores.column_names:
            if name not in rows.column_names:
                rows = rows.append_column(self._schema.field(name), scores[name])
        return rows.select(list(columns))

    def _selected(self, columns: Sequence[str] | None) -> pa.Schema:
        import pyarrow as pa

        schema = self._schema
        if isinstance(columns, str):
            raise RunError(f"columns must be a list of names, got one: [{columns!r}]")
        if not (columns is None or isinstance(columns, Iterable)):
            raise RunError(f"columns must be a list of names, got {columns!r:.60}")
        names = schema.names if columns is None else list(columns)
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise RunError(f"the column {twice[0]!r} is asked for twice: name it once")
        if unknown := [name for name in names if name not in schema.names]:
            hint = did_you_mean(unknown[0], schema.names)
            raise RunError(
                f"the run has no column {unknown[0]!r}{hint}; its columns are "
                f"{', '.join(schema.names)}"
            )
        return pa.schema([schema.field(name) for name in names], metadata=schema.metadata)


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run's folder, whether the run is complete, was stopped or still goes on.

    Args:
        path: the folder, or the URL of one in an object store.

    Raises:
        RunError: there is no manifest, it is of another format version, or the parts of a
            complete run are not all there.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow()
    require_path("the run's folder", path, RunError)
    folder = open_folder(path)
    run = _opened(folder)
    manifest = run.manifest
    if manifest.state == "complete" and run.num_rows != manifest.num_draws_done:
        raise RunError(
            f"the run in {folder.url} says that it has {manifest.num_draws_done} rows, but "
            f"{run.num_rows} are there: files were lost or added; `seqproc verify` tells which"
        )
    return run


def _opened(folder: Folder) -> Run:
    """The run in a folder; one that is merged at this moment is looked at again."""
    for tries_left in reversed(range(_TRIES)):
        manifest = require_manifest(folder)
        try:
            run = Run(folder, manifest)
        except MissingFileError:
            if not tries_left:
                raise
            continue
        now = require_manifest(folder)
        if (now.merge, now.state) == (manifest.merge, manifest.state):
            break
    return run


def _index(draw: object) -> int:
    """The index of a draw, as an int."""
    try:
        return operator.index(draw)  # type: ignore[arg-type]
    except TypeError:
        raise RunError(f"a draw must be an integer, got {draw!r:.60}") from None


def _indices(draws: object) -> list[int]:
    if isinstance(draws, (str, bytes)) or not isinstance(draws, Iterable):
        raise RunError(f"draws must be a list of integers, got {draws!r:.60}")
    return [_index(draw) for draw in draws]


def _by_table(columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which columns the samples have, and which their scores; the draw is in both."""
    from seqproc.runs.format.schema import samples_schema

    names = samples_schema().names
    of_samples = [name for name in columns if name in names and name != "draw"]
    of_scores = [name for name in columns if name not in names]
    return ["draw", *of_samples], ["draw", *of_scores]
