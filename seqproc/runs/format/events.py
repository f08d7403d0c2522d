"""The events of a run: what happened and when, a line of JSON each. Rows never depend on them.

In a local folder all processes that worked on a run add to one file, ``events.jsonl``. Objects of a
store do not grow: there each process writes its own, ``events/HOST-PID-TIME.jsonl``, which appears
anew with each commit.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from seqproc._util import strict_json
from seqproc.runs.store.folder import Folder

EVENTS = "events.jsonl"
EVENTS_FOLDER = "events"  # of an object store

EventName = Literal[
    "started",
    "resumed",
    "set_aside",
    "committed",
    "scored",
    "quarantined",
    "retried",
    "engine_restarted",
    "smaller_batches",
    "merged",
    "interrupted",
    "failed",
    "complete",
]

# In an object store the others wait for the next of these: some of them come by the thousand.
_WRITTEN_AT_ONCE = ("started", "resumed", "committed", "scored", "merged")
_ENDS = ("interrupted", "failed", "complete")
_LINES_IN_OBJECT = 1000  # which is uploaded with each commit
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class Events:
    """The events of one process that works on a run; to be told of by any of its threads.

    Args:
        folder: the run's.

    Attributes:
        listeners: each is called with an event's name and details once it is kept.
    """

    def __init__(self, folder: Folder) -> None:
        self.listeners: list[Callable[[EventName, Mapping[str, Any]], object]] = []
        self._folder = folder
        self._who = {"host": socket.gethostname(), "pid": os.getpid()}
        self._mutex = threading.Lock()
        self._is_first = True
        self._lines: list[str] = []  # of the object that is being written
        self._object = ""

    def tell(self, event: EventName, **details: Any) -> None:
        """Keep an event; details are JSON-ready.

        Raises:
            RunError: it cannot be written.
        """
        line = strict_json.dumps_line({"time": _now(), "event": event, **self._who, **details})
        with self._mutex:
            self._keep(event, line)
        for listener in self.listeners:
            listener(event, details)

    def _keep(self, event: EventName, line: str) -> None:
        if self._folder.grows:
            self._append(line)
            return
        self._lines.append(line)
        if event in _WRITTEN_AT_ONCE or event in _ENDS:
            self._write_object()

    def _append(self, line: str) -> None:
        start = "\n" if self._is_first and _is_torn(self._folder) else ""
        self._folder.append(EVENTS, f"{start}{line}".encode())
        self._is_first = False

    def _write_object(self) -> None:
        if not self._object:
            who = f"{self._who['host']}-{self._who['pid']}-{_now()}"
            self._object = f"{EVENTS_FOLDER}/{_NOT_IN_NAMES.sub('', who)}.jsonl"
        content = "".join(self._lines).encode()
        self._folder.write(self._object, lambda file: file.write(content))
        if len(self._lines) >= _LINES_IN_OBJECT:
            self._lines, self._object = [], ""


def read_events(folder: Folder) -> list[dict[str, Any]]:
    """The events of a run in their order, with ``time``, ``event``, ``host``, ``pid`` and details.

    A line that is not whole, as one whose writer was killed, is left out.

    Raises:
        RunError: the folder cannot be read.
    """
    events = _parsed(folder.read(EVENTS)) if folder.exists(EVENTS) else []
    by_process = [
        _parsed(folder.read(f"{EVENTS_FOLDER}/{name}")) for name in folder.names(EVENTS_FOLDER)
    ]
    in_objects = [event for some in by_process for event in some]
    return [*events, *sorted(in_objects, key=lambda event: str(event["time"]))]


def _parsed(content: bytes) -> list[dict[str, Any]]:
    values = [_event(line) for line in content.decode(errors="replace").split("\n")]
    return [value for value in values if value is not None]


def _event(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and {"time", "event"} <= set(value) else None


def _is_torn(folder: Folder) -> bool:
    """Whether the last line of the file has no end."""
    if not folder.exists(EVENTS) or folder.size(EVENTS) == 0:
        return False
    with folder.open(EVENTS) as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
