"""Draws that always fail: each with the step that failed and why, in a file of their own."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from seqproc._util.clock import utc_now
from seqproc.errors import RunError
from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.parts import FOOTER
from seqproc.runs.shards.shard import shard_range
from seqproc.runs.store.folder import Folder

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs.plan import Draw

QUARANTINE = "quarantine.parquet"

Step = Literal["prompt", "generation", "reward", "scoring"]

_MAX_REASON_CHARS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A draw that failed again when it was tried alone."""

    draw: int
    prompt_index: int
    seed: int | None
    step: Step  # what failed: reading its prompt, its generation, its reward or its scoring
    reason: str  # on one line
    time: str  # ISO 8601, UTC


def failed(draw: Draw, step: Step, error: BaseException) -> Failed:
    """The record of a draw and the error that it fails with."""
    return Failed(
        draw=draw.index,
        prompt_index=draw.prompt_index,
        seed=draw.seed,
        step=step,
        reason=" ".join(str(error).split())[:_MAX_REASON_CHARS] or type(error).__name__,
        time=utc_now(),
    )


class Quarantine:
    """The draws of a run that are left out because they always fail.

    Args:
        folder: the run's.
        manifest: as it stands there.

    Raises:
        RunError: what the folder holds cannot be read, or is of another run.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self._folder = folder
        self._key = manifest.key
        self._failed = {one.draw: one for one in read_quarantine(folder, manifest)}

    def __len__(self) -> int:
        return len(self._failed)

    def __iter__(self) -> Iterator[Failed]:
        return iter(sorted(self._failed.values(), key=lambda one: one.draw))

    def __contains__(self, draw: int) -> bool:
        return draw in self._failed

    def add(self, some: Iterable[Failed]) -> None:
        """Keep these as well."""
        self._write(self._failed | {one.draw: one for one in some})

    def replace(self, some: Iterable[Failed]) -> None:
        """Keep these, and no others."""
        self._write({one.draw: one for one in some})

    def clear(self) -> list[Failed]:
        """Let all go, to be tried again."""
        former = list(self)
        self._write({})
        return former

    def _write(self, records: dict[int, Failed]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if records == self._failed:
            return
        self._failed = records
        schema = _schema().with_metadata({FOOTER: self._key.encode()})
        rows = pa.Table.from_pylist([asdict(one) for one in self], schema=schema)
        buffer = io.BytesIO()
        pq.write_table(rows, buffer)
        self._folder.write(QUARANTINE, lambda file: file.write(buffer.getvalue()))


def read_quarantine(folder: Folder, manifest: Manifest) -> list[Failed]:
    """The records of a folder; none where there is no such file.

    Args:
        folder: the run's.
        manifest: as it stands there.

    Raises:
        RunError: the file cannot be read, or is not of this run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.exists(QUARANTINE):
        return []
    where = f"{folder.url}/{QUARANTINE}"
    content = folder.read(QUARANTINE)
    try:
        key = (pq.read_schema(io.BytesIO(content)).metadata or {}).get(FOOTER)
        rows = pq.read_table(io.BytesIO(content), schema=_schema())
        records = [Failed(**row) for row in rows.to_pylist()]
    except (OSError, ValueError, pa.ArrowException, TypeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"cannot read {where}: {reason}") from error
    strange = [one.draw for one in records if not _is_of(manifest, one)]
    if strange or key not in (None, manifest.key.encode()):  # None: as it was written at first
        raise RunError(f"{where} is of another run")
    return records


def _is_of(manifest: Manifest, record: Failed) -> bool:
    """Whether a draw may be one of the run's; those of given sequences may have gaps."""
    if manifest.kind != "sample":
        return record.draw >= 0
    return record.draw in shard_range(manifest.shard, manifest.num_draws)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("draw", pa.int64(), nullable=False),
            pa.field("prompt_index", pa.int64(), nullable=False),
            pa.field("seed", pa.uint64()),
            pa.field("step", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("time", pa.string(), nullable=False),
        ]
    )
