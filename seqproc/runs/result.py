"""A finished run: its folder and its summary. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from seqproc._util.printing import Facts, Printed
from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.quarantine import Failed
from seqproc.runs.format.summary import RunSummary
from seqproc.runs.reader import Run, open_run

if TYPE_CHECKING:
    from seqproc.runs.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunResult(Printed):
    """Where a run is, and what it amounts to."""

    url: str  # its folder, or the URL of one in an object store
    manifest: Manifest  # as the folder has it
    summary: RunSummary
    quarantined: Sequence[Failed] = ()  # draws that always failed, and why

    def _facts(self) -> Facts:
        summary = self.summary._facts()  # noqa: SLF001 - of a record that prints in the same way
        return {"url": self.url, "state": self.manifest.state, **summary} | {
            "quarantined": len(self.quarantined) or None
        }

    @classmethod
    def of(cls, run: RunFolder) -> Self:
        """The result of a run that has ended."""
        return cls(
            url=run.folder.url,
            manifest=run.manifest,
            summary=run.summary.result(),
            quarantined=tuple(run.quarantine),
        )

    @property
    def path(self) -> Path:
        """Its folder, where that is on a local disk."""
        return Path(self.url)

    def open(self) -> Run:
        """The run, for reading."""
        return open_run(self.url)
