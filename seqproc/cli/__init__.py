"""The command line: parse, build, run, close. No numerics, and no heavy import before a command.

Exit codes: 0; 1 for a failure; 2 for bad usage (an option that does not parse, a configuration
that is not valid); 3 when parity was tested and does not hold; 130 after Ctrl-C. An error is one
line on stderr; ``--traceback`` shows more.
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
    from seqproc.cli.app import app

    app()


def _require_extra() -> None:
    """Leave with a line on stderr where the command line's packages are missing."""
    try:
        for module in ("typer", "rich"):
            require_package(module, extra="cli", purpose="the command line")
    except MissingDependencyError as error:
        sys.exit(f"error: {error}")
