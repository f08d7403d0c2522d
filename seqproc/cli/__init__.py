"""The command line: parse, build, run, close. No numerics, and no heavy import before a command.

`exit_codes` has what a script may rely on. An error is one line on stderr, and how a run differs
from what was asked for a line each; ``--traceback`` shows more.
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

        _colour_help()
        app()
    except KeyboardInterrupt:  # while modules are imported; a command reports it itself
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # of the standard output: a command reports what else fails
        sys.exit(f"error: the standard output cannot be written: {error}")


def _require_extra() -> None:
    """Leave with a line on stderr where the command line's packages are missing."""
    try:
        for module in ("typer", "rich"):
            require_package(module, extra="cli", purpose="the command line")
    except MissingDependencyError as error:
        sys.exit(f"error: {error}")


def _colour_help() -> None:
    """Colour help, and what is said of bad usage, where the environment wants colours."""
    from typer import rich_utils

    from seqproc.cli.display import colour_choice

    rich_utils.COLOR_SYSTEM, rich_utils.FORCE_TERMINAL = colour_choice()
