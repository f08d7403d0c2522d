"""Asks for the lock of a folder, in processes of its own: `contender.py FOLDER COMMAND`.

`hold` takes the lock, prints a line, and keeps it until it is killed.
`rounds` tries once for each line of its input, prints what came of it, and releases at the next.
`churn N SEED` forks N processes, one after the other; each takes the lock, makes sure that it is
alone, and releases or is killed while it has it. Prints how many had it, and how many were killed.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from seqproc.errors import RunError
from seqproc.runs.store.folder import open_folder
from seqproc.runs.store.lock import RunLock

REFUSED = 12


def hold(folder: str) -> None:
    """Take the lock and keep it."""
    RunLock(open_folder(folder), heartbeat_s=0.05, expires_s=5).acquire()
    print("held", flush=True)
    time.sleep(600)


def rounds(folder: str) -> None:
    """Try once for each line of the input."""
    for _ in sys.stdin:
        lock = RunLock(open_folder(folder))
        try:
            lock.acquire()
            print("got", flush=True)
        except RunError as error:
            print(f"refused: {error}", flush=True)
        sys.stdin.readline()
        lock.release()
        print("released", flush=True)


def churn(folder: str, number: int, seed: int) -> None:
    """Fork processes that take the lock, one after the other."""
    choices = random.Random(seed)
    had = killed = 0
    while had < number:
        dies = choices.random() < 0.3
        pid = os.fork()
        if pid == 0:
            os._exit(enter(folder, dies))
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, REFUSED, -signal.SIGKILL):
            sys.exit(f"a process ended with {code}")
        had += code != REFUSED
        killed += code == -signal.SIGKILL
    print(had, killed)


def enter(folder: str, dies: bool) -> int:
    """Take the lock, and make sure of being alone; the exit code."""
    lock = RunLock(open_folder(folder))
    try:
        lock.acquire()
    except RunError:
        return REFUSED
    with Path(f"{folder}-witness").open("a") as witness:
        # Unlike the lock, this one is the system's: it goes with its process.
        fcntl.flock(witness, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.002)
        lock.check()
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
    lock.release()
    return 0


if __name__ == "__main__":
    logging.disable()  # the test's output is read
    commands: dict[str, Callable[..., int]] = {"hold": hold, "rounds": rounds, "churn": churn}
    commands[sys.argv[2]](sys.argv[1], *map(int, sys.argv[3:]))
