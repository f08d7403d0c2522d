"""How far a run is, and whether a process is at work on it. Reads no rows, and needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from seqproc._util.arguments import require_path
from seqproc.errors import RunError
from seqproc.runs.format.events import read_events
from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.manifest_file import require_manifest
from seqproc.runs.store.folder import open_folder
from seqproc.runs.store.holder import Holder, is_alive
from seqproc.runs.store.lock import holder_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What was done since a run was started, or last taken up."""

    sampled: int  # draws, those of before included
    sampled_per_second: float | None  # None: nothing was committed since
    scored_per_second: float | None

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> Self:
        """The last session that these events tell of."""
        before, since = 0, None
        committed, scored = _Counter(), _Counter()
        for event in events:
            if event["event"] in ("started", "resumed"):
                before, since = _count(event, "sampled"), _time(event)
                committed, scored = _Counter(), _Counter()
            elif event["event"] == "committed":
                committed.add(event)
            elif event["event"] == "scored":
                scored.add(event)
        return cls(
            sampled=before + committed.rows,
            sampled_per_second=committed.rate(since),
            scored_per_second=scored.rate(since),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """How far a run is."""

    url: str
    manifest: Manifest
    holder: Holder | None  # of the folder's lock
    is_holder_alive: bool | None  # None: there is no holder, or it is on another machine
    session: Session

    @property
    def is_at_work(self) -> bool:
        """Whether a process is at work on the run, as far as can be told from here."""
        return self.holder is not None and self.is_holder_alive is not False

    @property
    def was_killed(self) -> bool:
        """Whether the run is said to go on, and nobody is at work on it."""
        return self.manifest.state == "running" and not self.is_at_work

    @property
    def num_left(self) -> int:
        """Draws that are neither scored nor in quarantine."""
        manifest = self.manifest
        return max(0, manifest.num_own_draws - manifest.num_draws_done - manifest.num_quarantined)

    @property
    def seconds_left(self) -> float | None:
        """Until the run is complete, if it goes on as in this session; None where that is unknown.

        Draws that are sampled and wait for their scores are taken to be scored as they were so far.
        """
        session = self.session
        if not self.is_at_work or self.manifest.state != "running":
            return None
        if session.scored_per_second:
            return self.num_left / session.scored_per_second
        if session.sampled_per_second:
            to_make = self.manifest.num_own_draws - self.manifest.num_quarantined
            left = max(0, to_make - session.sampled)
            return left / session.sampled_per_second
        return None


def run_status(path: str | os.PathLike[str]) -> RunStatus:
    """Look at a run.

    Args:
        path: its folder, or the URL of one in an object store.

    Raises:
        RunError: there is no run, or its manifest cannot be read.
    """
    require_path("the run's folder", path, RunError)
    folder = open_folder(path)
    holder = holder_of(folder)  # before the manifest: a run that ends meanwhile was not killed
    return RunStatus(
        url=folder.url,
        manifest=require_manifest(folder),
        holder=holder,
        is_holder_alive=None if holder is None else is_alive(holder),
        session=Session.of(read_events(folder)),
    )


class _Counter:
    """Rows of events, and when the last was."""

    def __init__(self) -> None:
        self.rows = 0
        self._last: float | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        self.rows += _count(event, "rows")
        self._last = _time(event)

    def rate(self, since: float | None) -> float | None:
        """Rows per second; None where that is unknown."""
        if since is None or self._last is None or self._last <= since:
            return None
        return self.rows / (self._last - since)


def _count(event: Mapping[str, Any], name: str) -> int:
    value = event.get(name)
    return value if isinstance(value, int) else 0


def _time(event: Mapping[str, Any]) -> float | None:
    try:
        return datetime.fromisoformat(str(event["time"])).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
