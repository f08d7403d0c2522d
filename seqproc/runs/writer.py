"""A run's folder while it is written: the manifest, and rows in parts.

``manifest.json`` says what made the run and how far it is; ``rows/part-00000.parquet`` and on hold
the rows, in the order of the draws. Each file appears whole, by a rename, and is never changed but
for the manifest, which is replaced. Whatever ends a run, the parts that are there are valid.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from seqproc._util.arguments import require_path
from seqproc._util.atomic import sync_folder, write_atomically
from seqproc.errors import RunError, SeqprocError
from seqproc.runs.manifest import Manifest, to_json, utc_now
from seqproc.runs.schema import require_pyarrow
from seqproc.runs.summary import RunSummary

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
ROWS = "rows"

_MAX_ERROR_CHARS = 500


def part_name(number: int) -> str:
    """Name of the part of that number."""
    return f"part-{number:05d}.parquet"


def require_free(path: str | os.PathLike[str]) -> Path:
    """Refuse an output folder that holds anything; nothing is ever overwritten.

    Refuses to write at all without pyarrow, since this is what a run asks before it begins.

    Raises:
        RunError: the path is a file, a folder that is not empty, or cannot be looked at.
        MissingDependencyError: pyarrow is not installed.
    """
    require_pyarrow()
    require_path("the run's folder", path, RunError)
    if not os.fspath(path):
        raise RunError("the run's folder has an empty name: name one, or '.' for this folder")
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            if any(folder.iterdir()):
                raise _occupied(folder)
        elif folder.exists() or folder.is_symlink():
            raise RunError(f"{folder} is not a folder: name another one for the run")
    except OSError as error:
        raise RunError(f"cannot look into {folder}: {error.strerror}") from error
    return folder


def _occupied(folder: Path) -> RunError:
    return RunError(
        f"the folder {folder} is not empty, and a run overwrites nothing: "
        "name another folder, or move this one away"
    )


class RunWriter:
    """Writes a run; a context manager that leaves the manifest "complete" or "failed".

    Made by `create`.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._num_parts = 0

    @classmethod
    def create(cls, path: str | os.PathLike[str], manifest: Manifest) -> Self:
        """Make the folder and write its first manifest.

        Raises:
            RunError: the folder is occupied, or cannot be made.
        """
        folder = require_free(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ROWS).mkdir()  # of two runs that start at once, one gets it
            sync_folder(folder.parent)
        except FileExistsError as error:
            raise _occupied(folder) from error
        except OSError as error:
            raise RunError(f"cannot make the folder {folder}: {error.strerror}") from error
        self = cls(folder, manifest)
        self._write_manifest()
        return self

    def commit(self, rows: pa.Table, summary: RunSummary) -> None:
        """Add rows as a new part, then say so in the manifest.

        Args:
            rows: rows of `ROWS_SCHEMA`, following those before.
            summary: of all rows so far, these included.

        Raises:
            RunError: when a file cannot be written.
        """
        import pyarrow.parquet as pq

        part = self.path / ROWS / part_name(self._num_parts)
        write_atomically(part, lambda file: pq.write_table(rows, file, compression="zstd"))
        self._num_parts += 1
        self._update(
            num_draws_done=self.manifest.num_draws_done + rows.num_rows,
            summary=dataclasses.asdict(summary),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._update(state="complete")
            return
        done, planned = self.manifest.num_draws_done, self.manifest.num_draws
        error.add_note(f"{done} of {planned} draws are kept in {self.path}")
        try:
            self._update(state="failed", error=_one_line(error))
        except SeqprocError as second:  # the first error is the one to report
            error.add_note(str(second))

    def _update(self, **changes: Any) -> None:
        self.manifest = dataclasses.replace(self.manifest, updated=utc_now(), **changes)
        self._write_manifest()

    def _write_manifest(self) -> None:
        content = to_json(self.manifest).encode()
        write_atomically(self.path / MANIFEST, lambda file: file.write(content))


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}".removesuffix(": ")[:_MAX_ERROR_CHARS]
