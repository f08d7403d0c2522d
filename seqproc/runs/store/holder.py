"""Who holds the lock of a run's folder, as the lock's file says. Knows nothing of taking it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import socket
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seqproc._util import strict_json
from seqproc._util.clock import utc_now
from seqproc._util.processes import boot_id, pid_namespace, process_start

_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds a lock, or once did."""

    host: str  # name of the machine
    boot: str  # of this start of the machine; empty where that is not known
    pid_namespace: str  # of the container in which pid counts; empty where that is not known
    pid: int
    process_started: str  # as that machine counts
    since: str  # ISO 8601, UTC, by the holder's clock
    token: str  # 32 hex digits, random
    beat: int = 0  # signs of life since then
    last_beat: str  # ISO 8601, UTC, by the holder's clock: to be shown, never compared

    def after_a_beat(self) -> Holder:
        """The same, with one more sign of life."""
        return dataclasses.replace(self, beat=self.beat + 1, last_beat=utc_now())

    def described(self) -> str:
        """The process in words, for messages."""
        return (
            f"process {self.pid} on {self.host} (since {self.since}, last sign of life "
            f"{self.last_beat} by its clock)"
        )

    def to_json(self) -> bytes:
        """As the lock's file holds it."""
        return strict_json.dumps(dataclasses.asdict(self)).encode()


@dataclass(frozen=True)
class Entry:
    """A lock's file, whatever it holds."""

    content: bytes

    @cached_property
    def holder(self) -> Holder | None:
        """Who wrote it; None when it is not what a holder writes."""
        try:
            values = json.loads(self.content)
        except (ValueError, RecursionError):
            return None
        return Holder(**values) if _is_holder(values) else None

    @property
    def token(self) -> str:
        """What tells it from others: the holder's, or one made from the content."""
        if self.holder is not None:
            return self.holder.token
        return hashlib.sha256(self.content).hexdigest()[:32]

    def described(self) -> str:
        """The holder in words, for messages."""
        if self.holder is not None:
            return self.holder.described()
        return "an unknown process (its lock file cannot be read)"


def this_process(token: str) -> Holder:
    """This process as a holder."""
    now = utc_now()
    return Holder(
        host=socket.gethostname(),
        boot=boot_id(),
        pid_namespace=pid_namespace(),
        pid=os.getpid(),
        process_started=process_start(os.getpid()) or "",
        since=now,
        token=token,
        last_beat=now,
    )


def is_alive(holder: Holder) -> bool | None:
    """Whether a holder's process lives; None for one that this machine knows nothing of.

    That is one on another machine, in another container, or before this machine was last started.
    """
    here = (socket.gethostname(), boot_id(), pid_namespace())
    if here != (holder.host, holder.boot, holder.pid_namespace):
        return None
    started = process_start(holder.pid)
    if started is None:
        return False
    return not started or not holder.process_started or started == holder.process_started


def _is_holder(values: Any) -> bool:
    """Whether these are a holder's fields, of the right types."""
    fields = {field.name: field.type for field in dataclasses.fields(Holder)}
    if not isinstance(values, dict) or set(values) != set(fields):
        return False
    types = {name: type(value).__name__ for name, value in values.items()}
    return types == fields and values["pid"] > 0 and bool(_TOKEN.fullmatch(values["token"]))
