"""Parts: Parquet files of rows, each committed by a note that says what it holds.

A part is in the run once its note is there: the file is written first, whole, and the note after
it. The note has the file's checksum, the run's key and the draws of the rows, so that a file that
was changed, cut, exchanged or brought from another run is found before anything is read from it.

While a run goes on its parts are in the order that draws finish, under ``parts/``. At the end they
are merged, and the merged ones are in the order of the draws.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from seqproc._util import strict_json
from seqproc.errors import MissingFileError, RunError
from seqproc.runs.store.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa

FOOTER = b"seqproc.run"  # names the run's key in a Parquet file's metadata

_COMPRESSION = "zstd"
_BYTES_IN_MEMORY = 8 * 2**20  # of a file that is compared with its checksum

# Of what a note says.
_KINDS = {
    "name": str,
    "num_rows": int,
    "draws": list,
    "sha256": str,
    "size": int,
    "key": str,
    "seconds": dict,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What the note of a part says."""

    name: str  # of the file, without folder and ending
    num_rows: int
    draws: tuple[tuple[int, int], ...]  # ranges [start, stop) of the rows' draws, rising
    sha256: str  # hex digest of the file
    size: int  # of the file, in bytes
    key: str  # of the run
    seconds: Mapping[str, float] = field(default_factory=dict)  # of the steps that made the rows

    def indices(self) -> np.ndarray:
        """The rows' draws, ``[num_rows]`` int64, rising."""
        parts = [np.arange(start, stop) for start, stop in self.draws]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


class Parts:
    """The parts of one table of a run.

    Args:
        folder: the run's.
        table: ``"samples"`` or ``"scores/NAME"``.
        key: the run's key.
    """

    def __init__(self, folder: Folder, table: str, key: str) -> None:
        self._folder = folder
        self.table = table
        self._key = key

    def file(self, name: str) -> str:
        """The name of a part's file in the run's folder."""
        return f"{self._place(name)}/{name}.parquet"

    def note(self, name: str) -> str:
        """The name of the note that commits it."""
        return f"{self._place(name)}/{name}.json"

    def _place(self, name: str) -> str:
        return f"parts/{self.table}" if name.startswith("part-") else self.table

    def names(self, merge: int) -> list[str]:
        """Of the parts that are committed, in order: merged ones, then those since the merge.

        Args:
            merge: how often the run was merged; what an older or unfinished merge left is no part.
        """
        merged = self._noted(self.table, merged_name(merge))
        return [*(merged if merge else []), *self._noted(f"parts/{self.table}", "part-")]

    def all_names(self) -> list[str]:
        """Of every file that is, was or was to become a part."""
        files = [*self._folder.names(self.table), *self._folder.names(f"parts/{self.table}")]
        ours = [name for name in files if name.startswith(("part-", "rows-"))]
        return sorted({name.partition(".")[0] for name in ours})

    def _noted(self, place: str, prefix: str) -> list[str]:
        return [
            name.removesuffix(".json")
            for name in self._folder.names(place)
            if name.startswith(prefix) and name.endswith(".json")
        ]

    def write(
        self,
        name: str,
        tables: Iterable[pa.Table],
        seconds: Mapping[str, float] | None = None,
        *,
        rows_in_group: int | None = None,
    ) -> Part:
        """Commit rows, by rising draw; each table becomes a row group, or several.

        Args:
            name: of the part.
            tables: the rows, at least one table of them.
            seconds: of the steps that made them.
            rows_in_group: rows of a row group, at most; None: all of a table.

        Raises:
            RunError: when a file cannot be written.
        """
        draws: list[np.ndarray] = []
        digest = hashlib.sha256()
        size = 0

        def write_file(file: BinaryIO) -> None:
            nonlocal size
            counted = _Counted(file, digest)
            draws.extend(_write_parquet(counted, tables, self._key, rows_in_group))
            size = counted.size

        self._folder.write(self.file(name), write_file)
        rows = np.concatenate(draws)
        part = Part(
            name=name,
            num_rows=len(rows),
            draws=ranges(rows),
            sha256=digest.hexdigest(),
            size=size,
            key=self._key,
            seconds=dict(seconds or {}),
        )
        note = strict_json.dumps({**asdict(part), "draws": as_written(rows)}).encode()
        self._folder.write(self.note(name), lambda file: file.write(note))
        return part

    def read_note(self, name: str) -> Part:
        """What a note says.

        Raises:
            RunError: it is no note, or of another run.
        """
        where = f"{self._folder.url}/{self.note(name)}"
        try:
            part = _part(json.loads(self._folder.read(self.note(name))))
        except MissingFileError:
            raise
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{where} is not the note of a part ({error})") from error
        if part.key != self._key:
            raise RunError(f"{where} is of another run")
        if part.name != name:
            raise RunError(f"{where} is the note of {part.name}: files were exchanged")
        return part

    def check(self, part: Part) -> None:
        """Read a part's file whole, and compare it with its note.

        Raises:
            RunError: the file is missing, or is not the one that was committed.
        """
        name = self.file(part.name)
        where = f"{self._folder.url}/{name}"
        if not self._folder.exists(name):
            raise RunError(f"{where} is missing")
        size = self._folder.size(name)
        if size != part.size:
            raise RunError(f"{where} has {size} bytes, and had {part.size} when written")
        if self._digest(name) != part.sha256:
            raise RunError(f"{where} was changed after it was written: its checksum differs")

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        try:
            with self._folder.open(name) as file:
                while piece := file.read(_BYTES_IN_MEMORY):
                    digest.update(piece)
        except OSError as error:
            raise RunError(f"cannot read {self._folder.url}/{name}: {error}") from error
        return digest.hexdigest()

    def read(self, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a part, some columns or all.

        Raises:
            RunError: the file is not the one that was committed, or lacks a column.
        """
        rows = self._read(part, columns=None if columns is None else list(columns))
        self._require_count(part, rows.num_rows)
        return rows

    def _require_count(self, part: Part, num_rows: int) -> None:
        if num_rows != part.num_rows:
            raise RunError(
                f"{self._folder.url}/{self.file(part.name)} has {num_rows} rows, and had "
                f"{part.num_rows} when written"
            )

    def read_draws(
        self, part: Part, draws: np.ndarray, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The rows of some draws, those that the part has; skips row groups that have none.

        Args:
            part: which.
            draws: rising.
            columns: which, ``"draw"`` among them; None for all.

        Raises:
            RunError: the file cannot be read.
        """
        if not len(draws):
            return self.read(part, columns).slice(0, 0)
        between = [("draw", ">=", int(draws[0])), ("draw", "<=", int(draws[-1]))]
        named = None if columns is None else list(columns)
        rows = self._read(part, columns=named, filters=between)
        return rows.filter(np.isin(rows["draw"].to_numpy(), draws))

    def _read(self, part: Part, **options: Any) -> pa.Table:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._folder.open(self.file(part.name)) as file:
                return pq.read_table(file, **options)
        except MissingFileError:
            raise
        except (OSError, pa.ArrowException, KeyError) as error:
            where = f"{self._folder.url}/{self.file(part.name)}"
            raise RunError(f"cannot read {where}: {' '.join(str(error).split())}") from error

    def row_groups(self, part: Part, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a part, some columns or all, a row group in memory at a time.

        Raises:
            RunError: the file cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._folder.open(self.file(part.name)) as file:
                reader = pq.ParquetFile(file)
                self._require_count(part, reader.metadata.num_rows)
                found = reader.schema_arrow.names
                if missing := [name for name in columns or () if name not in found]:
                    raise RunError(f"{self._folder.url}/{self.file(part.name)} lacks {missing[0]}")
                for number in range(reader.num_row_groups):
                    yield reader.read_row_group(number, None if columns is None else list(columns))
        except MissingFileError:
            raise
        except (OSError, pa.ArrowException) as error:
            where = f"{self._folder.url}/{self.file(part.name)}"
            raise RunError(f"cannot read {where}: {' '.join(str(error).split())}") from error

    def drop(self, name: str) -> None:
        """Remove a part: its note first, so that what is left is no part."""
        self._folder.remove(self.note(name))
        self._folder.remove(self.file(name))


class _Counted:
    """A file to write to, which sums up what is written."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file = file
        self._digest = digest
        self.size = 0
        self.closed = False

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        self.size += len(content)
        self._file.write(content)
        return len(content)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def _write_parquet(
    file: _Counted, tables: Iterable[pa.Table], key: str, rows_in_group: int | None
) -> list[np.ndarray]:
    """Write tables of one schema as row groups; the draws of each."""
    import pyarrow.parquet as pq

    stream = iter(tables)
    first = next(stream)
    footer = {**(first.schema.metadata or {}), FOOTER: key.encode()}
    schema = first.schema.with_metadata(footer)
    draws = []
    with pq.ParquetWriter(file, schema, compression=_COMPRESSION) as writer:
        for table in itertools.chain([first], stream):
            writer.write_table(table.cast(schema), row_group_size=rows_in_group)
            draws.append(table["draw"].to_numpy())
    return draws


def merged_name(merge: int, number: int | None = None) -> str:
    """The name of a merged part, or what the names of all those of a merge begin with."""
    return f"rows-{merge}-" + ("" if number is None else f"{number:05d}")


def is_merged_name(name: str) -> bool:
    """Whether a part of this name is a merged one."""
    return name.startswith("rows-")


def part_number(name: str) -> int:
    """The number of a part that is not merged; -1 of any other."""
    digits = name.removeprefix("part-")
    return int(digits) if digits.isdigit() else -1


def ranges(draws: np.ndarray, step: int = 1) -> tuple[tuple[int, int], ...]:
    """Rising indices as ranges [start, stop), of every step-th index."""
    if not len(draws):
        return ()
    cuts = np.flatnonzero(np.diff(draws) != step) + 1
    starts, stops = draws[np.r_[0, cuts]], draws[np.r_[cuts - 1, len(draws) - 1]] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))


def as_written(draws: np.ndarray) -> list[tuple[int, ...]]:
    """Rising indices as a note has them: ranges (start, stop), or of a shard (start, stop, step).

    The step is the largest that leads to all of them: 3, 11, 19, 35 are (3, 20, 8), (35, 36, 8).
    """
    step = max(int(np.gcd.reduce(np.diff(draws))), 1)
    return [bounds if step == 1 else (*bounds, step) for bounds in ranges(draws, step)]


def _pairs(start: int, stop: int, step: int = 1) -> Iterator[tuple[int, int]]:
    """The ranges [start, stop) that one range of a note stands for."""
    if step == 1:
        yield start, stop
    else:
        yield from ((draw, draw + 1) for draw in range(start, stop, step))


def _part(values: Any) -> Part:
    known = {f.name for f in fields(Part)}
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError(f"expected the keys {', '.join(sorted(known))}")
    if wrong := [name for name, kind in _KINDS.items() if not isinstance(values[name], kind)]:
        raise ValueError(f"{wrong[0]} is {values[wrong[0]]!r:.60}")
    if not all(isinstance(value, (int, float)) for value in values["seconds"].values()):
        raise ValueError("its seconds are not numbers")
    ranges_ = tuple(pair for bounds in values["draws"] for pair in _pairs(*bounds))
    flat = [bound for pair in ranges_ for bound in pair]
    if not all(isinstance(bound, int) and 0 <= bound < 2**63 for bound in flat):
        raise ValueError("its draws are not indices")
    rising = all(a < b for a, b in ranges_) and flat == sorted(flat)
    if not rising or sum(b - a for a, b in ranges_) != values["num_rows"]:
        raise ValueError("its draws are not its rows")
    return Part(**{**values, "draws": ranges_})
