"""A finished run: its folder and its summary. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from seqproc.runs.manifest import Manifest
from seqproc.runs.reader import Run, open_run
from seqproc.runs.summary import RunSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Where a run is, and what it amounts to."""

    path: Path  # its folder
    manifest: Manifest  # as the folder has it
    summary: RunSummary

    def open(self) -> Run:
        """The run, for reading."""
        return open_run(self.path)
