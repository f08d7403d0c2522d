"""Asks math-verify whether two answers are equal, in a helper process that can be ended.

math-verify hands its input to sympy, and `9**9**9**9` keeps sympy busy for ever. Its own
time limits rest on `signal.alarm`, which works in the main thread only and cannot interrupt
an operation on huge integers. So the question goes to a process of its own
(`math_worker.py`), started with the first question, kept for the next ones, ended when one
takes too long, and started again when it is needed.

Knows nothing of tags or rewards, and nothing of math-verify beyond the one question.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seqproc._util.optional import install_command, require_package
from seqproc.errors import MissingDependencyError, SeqprocError

_WORKER = Path(__file__).with_name("math_worker.py")
_START_SECONDS = 120.0


def require_math_verify() -> None:
    """Refuse to go on without math-verify.

    Raises:
        MissingDependencyError: it is not installed.
    """
    require_package("math_verify", extra="rewards", purpose="comparing answers")


class MathJudge:
    """One helper process and the lock around it; any thread may ask.

    A question has `cpu_seconds` of the helper's processor time, so that a verdict does not
    depend on how busy the machine is, and `wall_seconds` on the clock in any case.
    """

    def __init__(self, cpu_seconds: float = 5.0, wall_seconds: float = 30.0) -> None:
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def are_equal(self, gold: str, answer: str) -> bool:
        """Whether math-verify holds the two for equal; False if it fails or takes too long.

        Raises:
            MissingDependencyError: math-verify is not installed.
            SeqprocError: the helper process cannot be started.
        """
        with self._lock:
            process = self._running()
            reply = self._ask(process, {"gold": gold, "answer": answer}, self._wall_seconds)
        return reply is not None and reply["equal"] is True

    def close(self) -> None:
        """End the helper process; the next question starts another."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        require_math_verify()
        # `-P`: modules beside the script must not hide the standard ones.
        command = [sys.executable, "-P", str(_WORKER), str(self._cpu_seconds)]
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise SeqprocError(f"cannot start math-verify's process {command}: {error}") from error
        atexit.register(self.close)
        process = self._process
        greeting = self._ask(process, None, _START_SECONDS)
        if greeting is None:
            raise SeqprocError(
                f"math-verify's process ended, or said nothing for {_START_SECONDS:.0f} s, while "
                f"it was being started. Run {' '.join(command)!r} to see why"
            )
        if "error" in greeting:
            self._end()
            raise MissingDependencyError(
                f"comparing answers needs the package 'math_verify', which cannot be imported "
                f"({greeting['error']}): {install_command('rewards')}"
            )
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], question: dict[str, str] | None, seconds: float
    ) -> dict[str, Any] | None:
        """The reply, or None if the process ended or had to be ended; then it is gone."""
        assert process.stdin is not None
        assert process.stdout is not None
        reply = b""
        try:
            with _killed_after(process, seconds) as was_killed:
                if question is not None:
                    process.stdin.write(json.dumps(question).encode("ascii") + b"\n")
                reply = process.stdout.readline()
        except OSError:  # it ended before it had read the question
            reply = b""
        except BaseException:  # an interrupt: its reply must not answer the next question
            self._end()
            raise
        if not reply.endswith(b"\n") or was_killed.is_set():
            self._end()
        if not reply.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(reply)
        return message

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            _close_pipes(process)
            atexit.unregister(self.close)

    def _forget(self) -> None:
        """In a forked child: leave the parent's process alone, and start from nothing."""
        process, self._process = self._process, None
        self._lock = threading.Lock()
        if process is not None:
            _close_pipes(process)
            process.returncode = 0  # it is not this process's child to wait for


@contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Kill the process if the block takes longer; the event says whether that happened."""
    was_killed = threading.Event()

    def kill() -> None:
        was_killed.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield was_killed
    finally:
        timer.cancel()
        timer.join()


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
