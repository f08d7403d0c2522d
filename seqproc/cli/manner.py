"""How a command speaks: to a person, quietly, or to a program as JSON.

A command prints as for a person, and gives its result to `give_result`. What reaches the standard
output is decided here: all that was printed; with ``--quiet`` one line, the answer; with ``--json``
one object of strict JSON. Whatever else is written to the standard output then, by a library or a
process that was started, goes to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperGroup

from seqproc.cli.exit_codes import BAD_USAGE, SUCCESS
from seqproc.errors import ConfigError

_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # of the click that typer brings


@dataclass(slots=True, kw_only=True)
class Manner:
    """How one command speaks, and what it has to say."""

    quiet: bool = False
    json: bool = False
    result: dict[str, Any] = field(default_factory=dict)  # keys of the command's own
    answer: str | None = None  # the result on a line
    error: str | None = None  # the first that was printed
    details: list[str] = field(default_factory=list)  # of the error, such as what differs

    @property
    def is_terse(self) -> bool:
        """Whether the standard output is kept for the result."""
        return self.quiet or self.json


_MANNER: ContextVar[Manner | None] = ContextVar("seqproc_manner", default=None)


def current_manner() -> Manner:
    """Of the command that is running; outside of one, as for a person."""
    return _MANNER.get() or Manner()


def give_result(values: Mapping[str, Any], answer: str) -> None:
    """Say what came out of the command that is running. The last call counts.

    Args:
        values: for ``--json``; documented in `docs/cli.md`.
        answer: for ``--quiet``, on one line.
    """
    manner = current_manner()
    manner.result, manner.answer = dict(values), answer


@contextmanager
def speaking(manner: Manner, command: str) -> Iterator[None]:
    """Let a command speak so, and print its result at the end.

    Args:
        manner: how.
        command: its name.
    """
    token = _MANNER.set(manner)
    code = SUCCESS
    try:
        with (
            _only_result_on_stdout() if manner.is_terse else nullcontext(),
            _without_progress() if manner.quiet else nullcontext(),
        ):
            yield
    except typer.Exit as stop:
        code = stop.exit_code
        raise
    finally:
        _MANNER.reset(token)
        _print_result(manner, command, code)


def _print_result(manner: Manner, command: str, code: int) -> None:
    from seqproc._util import strict_json
    from seqproc.cli.display import visible

    if manner.json:
        common = {
            "command": command,
            "exit_code": int(code),
            "error": manner.error,
            "details": manner.details,
        }
        typer.echo(strict_json.dumps({**common, **manner.result}), nl=False)
    elif manner.quiet and manner.answer is not None:
        typer.echo(visible(manner.answer))


@contextmanager
def _only_result_on_stdout() -> Iterator[None]:
    """Send to stderr what is written to the standard output, by child processes as well."""
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        if not _is_descriptor(stdout, 1) or not _is_descriptor(sys.stderr, 2):
            yield
            return
        stdout.flush()
        kept = os.dup(1)
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _is_descriptor(stream: Any, number: int) -> bool:
    with suppress(OSError, ValueError, AttributeError):  # closed, or in memory, as in tests
        return bool(stream.fileno() == number)
    return False


@contextmanager
def _without_progress() -> Iterator[None]:
    """Switch off progress bars, also those of libraries and of processes that are started."""
    from seqproc._util.progress import NO_PROGRESS

    before = os.environ.get(NO_PROGRESS)
    os.environ[NO_PROGRESS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_PROGRESS]
        else:
            os.environ[NO_PROGRESS] = before


class ReportsBadUsage(TyperGroup):
    """The group of all commands: says what was probably meant, and tells a program as well."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """As of `TyperGroup`."""
        with self._reporting(args):
            context = super().make_context(info_name, list(args), *more, **extra)
        context.meta[__name__] = tuple(args)
        return context

    def invoke(self, ctx: Any) -> Any:
        """As of `TyperGroup`."""
        with self._reporting(ctx.meta[__name__]):
            return super().invoke(ctx)

    @contextmanager
    def _reporting(self, arguments: Sequence[str]) -> Iterator[None]:
        """Tell of what does not parse, before a command runs."""
        from seqproc.cli.display import print_error

        try:
            yield
        except ConfigError as error:  # of a configuration file
            print_error(str(error))
            _tell_program(arguments, "", str(error))
            raise typer.Exit(BAD_USAGE) from None
        except _USAGE_ERROR as error:
            possible = getattr(error, "possibilities", None)  # the nearest first
            if possible:
                error.message += f". Did you mean {' or '.join(possible)}?"
                error.possibilities = None
            command = "" if error.ctx is None else error.ctx.info_name or ""
            _tell_program(arguments, command, error.format_message())
            raise


def _tell_program(arguments: Sequence[str], command: str, message: str) -> None:
    """Print the error of a command that did not begin, if its caller reads JSON."""
    if "--json" in arguments:
        _print_result(Manner(json=True, error=message), command, BAD_USAGE)
