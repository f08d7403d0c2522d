"""Turns the signal that ends a process into an exception, so that a run can end well.

Ctrl-C raises `KeyboardInterrupt` by itself. What schedulers send is SIGTERM, which would end the
process without a word.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from seqproc.errors import Terminated


@contextmanager
def raising_on_termination() -> Iterator[None]:
    """A scope in which SIGTERM raises `Terminated` in the main thread.

    A handler of the caller's own stays; so does the default in other threads, where Python has no
    say in signals.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated("terminated by a signal (SIGTERM)")
