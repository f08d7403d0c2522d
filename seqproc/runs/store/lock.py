"""One process at a time writes a run's folder.

The lock is a file, ``lock.json``, that says who holds it and is rewritten all the time. It needs no
locks of a file system, and compares no clocks: a holder on this machine is dead when its process
is, one elsewhere when its file stays the same for as long as somebody watched.

Taking over from a dead holder: ``lock-TOKEN.stale``, TOKEN being that of the dead, can be created
by one process only. Who did so is the next holder, and says so in ``lock.json``; should it die
before that, the next one continues from its token. So whoever follows the tokens finds the holder.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from types import TracebackType
from typing import Self

from seqproc._util.arguments import require
from seqproc.errors import ConfigError, MissingFileError, RunError, SeqprocError
from seqproc.runs.store.folder import LOCK_PREFIX, Folder
from seqproc.runs.store.holder import Entry, Holder, is_alive, this_process

LOCK = f"{LOCK_PREFIX}.json"

_LOGGER = logging.getLogger("seqproc")


def holder_of(folder: Folder) -> Holder | None:
    """Who holds the lock of a folder, alive or not (`is_alive`). Takes nothing.

    Returns:
        None when nobody does, and when the file is not one that a holder wrote.
    """
    chain = _chain(folder)
    return chain[-1].holder if chain else None


class RunLock:
    """The lock of a run's folder; a context manager. Not to be shared by threads.

    The owner calls `check` before each commit.

    Args:
        folder: whose lock it is.
        heartbeat_s: seconds between signs of life.
        expires_s: seconds without a sign of life after which a holder elsewhere is taken for dead.
        wait: whether to watch a holder elsewhere for as long as that. Otherwise it is refused at
            once, as one that lives always is.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        heartbeat_s: float = 10.0,
        expires_s: float = 60.0,
        wait: bool = True,
    ) -> None:
        _require_times(heartbeat_s, expires_s)
        self._folder = folder
        self._heartbeat_s = heartbeat_s
        self._expires_s = expires_s
        self._wait = wait
        self._mine: Holder | None = None
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: dict[str, Entry] = {}  # by token, as first seen

    @property
    def lost(self) -> bool:
        """Whether it was found that another process took the lock over."""
        return self._lost

    def acquire(self) -> None:
        """Take the lock, also from a dead holder.

        Raises:
            RunError: another process holds it.
        """
        if self._mine is not None:
            raise RunError(f"this lock of {self._folder.url} is held already: release it first")
        mine = this_process(secrets.token_hex(16))
        self._watched = {}
        while not self._try(mine):
            pass
        self._mine, self._lost = mine, False
        self._remove_claims(mine)
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep_alive, name="seqproc-lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is still this process's; reads the file.

        Raises:
            RunError: it is not, or the file cannot be read.
        """
        if self._mine is None:
            raise RunError(f"the lock of {self._folder.url} is not held: acquire it first")
        if not self._lost and self._is_mine(self._mine):
            return
        self._lost = True
        taker = holder_of(self._folder)
        raise RunError(
            f"this process has lost the lock of {self._folder.url} to "
            f"{taker.described() if taker else 'whoever removed it'}; it gave no sign of life for "
            "a while. What was written before is whole: run the same command again once no other "
            "process writes there"
        )

    def release(self) -> None:
        """Give the lock back, if it is held. A forked process leaves it to its parent."""
        mine, self._mine = self._mine, None
        if mine is None or mine.pid != os.getpid():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()  # or it might write the file once more
            self._thread = None
        if not self._lost and self._is_mine(mine):
            self._folder.remove(LOCK)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.release()
        except SeqprocError as second:
            if error is None:
                raise
            error.add_note(str(second))  # the first error is the one to report

    def _try(self, mine: Holder) -> bool:
        """Take the lock if it can be had now; wait, or raise, if it cannot."""
        if self._folder.create(LOCK, mine.to_json()):
            return True
        chain = _chain(self._folder)
        if not chain:
            return False  # released meanwhile
        if chain[-1].token == mine.token:
            return True  # the store had written it, and its answer got lost
        if not self._is_dead(chain):
            return False
        return self._take_over(chain, mine)

    def _is_dead(self, chain: list[Entry]) -> bool:
        """Whether nobody in it lives; raises if one does, and False if things have changed."""
        lives = [is_alive(entry.holder) if entry.holder else None for entry in chain]
        for entry, alive in zip(chain, lives, strict=True):
            if alive or self._watched.setdefault(entry.token, entry) != entry:
                raise self._refusal(entry)
        return None not in lives or self._stays(chain)

    def _stays(self, chain: list[Entry]) -> bool:
        """Watch until holders elsewhere have expired, or one has done anything."""
        last = chain[-1]
        if not self._wait:
            raise self._refusal(last)
        _LOGGER.warning(
            "%s is locked by %s; waiting %g s for a sign of life",
            *(self._folder.url, last.described(), self._expires_s),
        )
        end = time.monotonic() + self._expires_s
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, self._expires_s / 10, left))
            if _chain(self._folder) != chain:
                return False
        return True

    def _take_over(self, chain: list[Entry], mine: Holder) -> bool:
        """Become the holder after a dead one, unless another process was quicker."""
        last = chain[-1]
        claim = _claim_on(last.token)
        created = self._folder.create(claim, mine.to_json())
        # What was watched is read again, behind a change to the folder: a network file system may
        # have shown an old state until now, and a claim on who holds it no more claims nothing.
        if _chain(self._folder) != [*chain, Entry(mine.to_json())]:
            if created:
                self._folder.remove(claim)
            return False
        self._write(mine)
        _LOGGER.warning(
            "took over the lock of %s from %s, which is dead",
            *(self._folder.url, last.described()),
        )
        return True

    def _remove_claims(self, mine: Holder) -> None:
        """Remove claims on those who held the lock before; nobody finds these by the tokens."""
        for name in self._folder.names():
            if _is_claim(name) and name != _claim_on(mine.token):
                self._folder.remove(name)

    def _keep_alive(self) -> None:
        """Rewrite the file again and again, until it is no longer this process's."""
        mine = self._mine
        while mine is not None and not self._stop.wait(self._heartbeat_s):
            try:
                if not self._is_mine(mine):
                    self._lost = True
                    _LOGGER.error("the lock of %s was taken over", self._folder.url)
                    return
                mine = mine.after_a_beat()
                self._write(mine)
            except SeqprocError as error:  # perhaps it works the next time
                _LOGGER.warning("no sign of life in %s: %s", self._folder.url, error)

    def _write(self, mine: Holder) -> None:
        self._folder.write(LOCK, lambda file: file.write(mine.to_json()))

    def _is_mine(self, mine: Holder) -> bool:
        entry = _read(self._folder, LOCK)
        return entry is not None and entry.token == mine.token

    def _refusal(self, entry: Entry) -> RunError:
        return RunError(
            f"{self._folder.url} is in use by {entry.described()}: wait for it, stop it, or name "
            f"another folder. If nothing of it runs any more, remove {LOCK} from the folder"
        )


def _chain(folder: Folder) -> list[Entry]:
    """Who holds the lock, preceded by those who are dead and whose successor has not said so."""
    chain: list[Entry] = []
    tokens: set[str] = set()
    name = LOCK
    while (entry := _read(folder, name)) is not None and entry.token not in tokens:
        chain.append(entry)
        tokens.add(entry.token)
        name = _claim_on(entry.token)
    return chain


def _read(folder: Folder, name: str) -> Entry | None:
    try:
        return Entry(folder.read(name))
    except MissingFileError:
        return None


def _claim_on(token: str) -> str:
    return f"{LOCK_PREFIX}-{token}.stale"


def _is_claim(name: str) -> bool:
    return name.startswith(f"{LOCK_PREFIX}-") and name.endswith(".stale")


def _require_times(heartbeat_s: float, expires_s: float) -> None:
    for name, value in (("heartbeat_s", heartbeat_s), ("expires_s", expires_s)):
        require(name, value, (int, float), "a number of seconds")
    if not 0 < 2 * heartbeat_s <= expires_s < float("inf"):
        raise ConfigError(
            "heartbeat_s must be above 0, and expires_s at least twice as long and finite, got "
            f"{heartbeat_s} and {expires_s}"
        )
