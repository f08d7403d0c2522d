"""Reads a part again: its bytes, its schema, its draws and its rows, some of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqproc.errors import RunError
from seqproc.runs.format.parts import FOOTER, Part, Parts
from seqproc.runs.store.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FaultsOf = Callable[["pa.Table"], Iterable[str]]


def reread(
    folder: Folder,
    parts: Parts,
    part: Part,
    schema: pa.Schema,
    keep: Sequence[str],
    faults_of: FaultsOf,
) -> tuple[pa.Table | None, list[str]]:
    """Read a part's file as its note and the schema say that it is.

    Args:
        folder: the run's.
        parts: of which table it is one.
        part: what its note says.
        schema: of its rows.
        keep: columns to be returned.
        faults_of: what is wrong with some of its rows, in words.

    Returns:
        Those columns of all rows, where the file holds the rows that its note tells of; and what
        is wrong, in words.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = parts.file(part.name)
    try:
        parts.check(part)
        with folder.open(name) as opened, pq.ParquetFile(opened) as file:
            if faults := _faults_of_file(file, part, schema):
                return None, faults
            return _rows(file, part, keep, faults_of)
    except RunError as error:
        return None, [in_folder(error, folder, name)]
    except (OSError, pa.ArrowException) as error:
        return None, [f"it cannot be read as Parquet ({' '.join(str(error).split())})"]


def in_folder(error: RunError, folder: Folder, name: str) -> str:
    """What an error says of a file, without the file's name."""
    return str(error).removeprefix(f"{folder.url}/{name}").lstrip(": ")


def _faults_of_file(file: pq.ParquetFile, part: Part, schema: pa.Schema) -> list[str]:
    found = file.schema_arrow
    key = (found.metadata or {}).get(FOOTER, b"").decode(errors="replace")
    if key != part.key:
        return [f"its footer says that it is of the run {key or '(none)'!r:.60}, not {part.key}"]
    if not found.equals(schema):
        return [_difference(found, schema)]
    if file.metadata.num_rows != part.num_rows:
        return [f"it has {file.metadata.num_rows} rows, and {part.num_rows} by its note"]
    return []


def _difference(found: pa.Schema, expected: pa.Schema) -> str:
    if found.names != expected.names:
        return f"its columns are {', '.join(found.names)}; expected {', '.join(expected.names)}"
    wrong = next(f for f in expected if not found.field(f.name).equals(f))
    return f"its column {wrong.name} is {found.field(wrong.name)}; expected {wrong}"


def _rows(
    file: pq.ParquetFile, part: Part, keep: Sequence[str], faults_of: FaultsOf
) -> tuple[pa.Table | None, list[str]]:
    import pyarrow as pa

    expected, start = part.indices(), 0
    kept: list[pa.Table] = [file.schema_arrow.empty_table().select(keep)]
    faults: list[str] = []
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group)
        draws = rows["draw"].to_numpy()
        if not np.array_equal(draws, expected[start : start + len(draws)]):
            return None, ["its draws are not those of its note, rising"]
        start += len(draws)
        faults += faults_of(rows)
        kept.append(rows.select(keep))
    return pa.concat_tables(kept), faults
