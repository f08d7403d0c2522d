"""The command line: parse, build, run, close. No numerics, and no heavy import before a command.

Exit codes: 0; 1 for a failure, or a run that was verified and is not sound; 2 for bad usage (an
option that does not parse, a configuration that is not valid, a folder that holds another run); 3
when parity was tested and does not hold; 4 when a run is complete but for draws that always fail;
130 after Ctrl-C, 143 after SIGTERM. An error is one line on stderr, and how a run differs from what
was asked for a line each; ``--traceback`` shows more.
"""

from __future__ import annotations

import io
import os
import sys

from seqproc._util.optional import require_package
from seqproc.errors import MissingDependencyError

__all__ = ["main"]


def main() -> None:
    """Entry point of the `seqproc` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    _require_extra()
    try:
        from seqproc.cli.app import app

        app()
    except KeyboardInterrupt:  # while modules are imported; a command reports it itself
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


def _require_extra() -> None:
    """Leave with a line on stderr where the command line's packages are missing."""
    try:
        for module in ("typer", "rich"):
            require_package(module, extra="cli", purpose="the command line")
    except MissingDependencyError as error:
        sys.exit(f"error: {error}")
