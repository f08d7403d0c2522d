"""Reading a run's folder back: its manifest and its rows. Needs no torch.

The parts that are in the folder are the record; the manifest says whether they are all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqproc._util.arguments import require_path
from seqproc.errors import RunError
from seqproc.runs.manifest import Manifest, from_json
from seqproc.runs.schema import require_pyarrow, rows_schema
from seqproc.runs.writer import MANIFEST, ROWS, part_name

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_PART = re.compile(r"part-[0-9]{5,}\.parquet")


class Run:
    """A run on disk. Made by `open_run`.

    Args:
        path: its folder.
        manifest: what the folder says about itself.
        parts: its files of rows, in order.
    """

    def __init__(self, path: Path, manifest: Manifest, parts: Sequence[Path]) -> None:
        self.path = path
        self.manifest = manifest
        self._parts = tuple(parts)

    @property
    def num_rows(self) -> int:
        """Rows on disk."""
        return sum(_open_part(part).metadata.num_rows for part in self._parts)

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, in the order of the draws, in memory at once.

        Args:
            columns: only these; None for all.

        Raises:
            RunError: a part cannot be read, or there is no such column.
        """
        import pyarrow as pa

        schema = _selected(columns)
        return pa.Table.from_batches(self.batches(columns), schema=schema)

    def batches(
        self, columns: Sequence[str] | None = None, *, batch_size: int = 256
    ) -> Iterator[pa.RecordBatch]:
        """The rows in batches of at most ``batch_size``, one part in memory at a time.

        Raises:
            RunError: a part cannot be read, or there is no such column.
        """
        import pyarrow as pa

        schema = _selected(columns)
        for part in self._parts:
            file = _open_part(part)
            try:
                for batch in file.iter_batches(batch_size=batch_size, columns=schema.names):
                    yield batch.select(schema.names).cast(schema)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(part, error) from error


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run's folder, whether the run is complete, failed or still going on.

    Raises:
        RunError: there is no manifest, it is of another format version, or the parts of a
            complete run are not all there.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow()
    require_path("the run's folder", path, RunError)
    folder = Path(path).expanduser()
    manifest = _read_manifest(folder)
    run = Run(folder, manifest, _find_parts(folder))
    if manifest.state == "complete" and run.num_rows != manifest.num_draws_done:
        raise RunError(
            f"the run in {folder} says that it has {manifest.num_draws_done} rows, but "
            f"{run.num_rows} are there: files of {folder / ROWS} were lost or added"
        )
    return run


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        text = _inside(folder, file).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(
            f"there is no run in {folder}: it has no {MANIFEST}. Name the folder that --out named"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {file}: {error}") from error
    try:
        return from_json(text)
    except RunError as error:
        raise RunError(f"{file}: {error}") from error


def _find_parts(folder: Path) -> list[Path]:
    """The parts, which must be numbered without a gap. Unfinished files have other names."""
    rows = folder / ROWS
    try:
        names = {entry.name for entry in rows.iterdir() if _PART.fullmatch(entry.name)}
    except OSError as error:
        raise RunError(f"cannot look into {rows}: {error.strerror}") from error
    expected = [part_name(number) for number in range(len(names))]
    if missing := sorted(set(expected) - names):
        raise RunError(f"{rows} lacks {missing[0]}, though later parts are there")
    return [_inside(folder, rows / name) for name in expected]


def _inside(folder: Path, file: Path) -> Path:
    """Refuse a file that a link leads out of the run's folder."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{file} leads out of the run's folder; it is not read")
    return file


def _open_part(part: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(part)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(part, error) from error
    if not file.schema_arrow.equals(rows_schema()):
        raise RunError(f"{part} does not have the columns of a run")
    return file


def _unreadable(part: Path, error: Exception) -> RunError:
    return RunError(f"cannot read {part}: {' '.join(str(error).split())}")


def _selected(columns: Sequence[str] | None) -> pa.Schema:
    import pyarrow as pa

    schema = rows_schema()
    names = schema.names if columns is None else list(columns)
    if unknown := [name for name in names if name not in schema.names]:
        raise RunError(
            f"a run has no column {unknown[0]!r}; its columns are {', '.join(schema.names)}"
        )
    return pa.schema([schema.field(name) for name in names], metadata=schema.metadata)
