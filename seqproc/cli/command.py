"""`command`: turns a function of option groups into a typer command that fails readably.

A group is a dataclass whose fields are annotated with `typer.Option` (see `options`). A command
takes groups; typer sees their fields as one flat list of options. Errors become one line on stderr
and an exit code; knows nothing of what a command does.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_type_hints

import typer

from seqproc._util.interruption import raising_on_termination
from seqproc.cli.config_file import print_config
from seqproc.cli.display import print_error
from seqproc.cli.exit_codes import BAD_USAGE, FAILURE, INTERRUPTED, TERMINATED
from seqproc.cli.manner import Manner, speaking
from seqproc.cli.options import OutputOptions
from seqproc.errors import ConfigError, RunMismatchError, SeqprocError, Terminated

_OUTPUT = "output"  # the parameter of the options that every command has


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a typer command of a function whose parameters are option groups or options.

    It takes `OutputOptions` as well. A group's options stand in a panel of ``--help``, under the
    group's ``panel``.
    """
    hints = get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    groups = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    parameters = list(_parameters(function, hints, groups))
    groups[_OUTPUT] = OutputOptions
    parameters.extend(_options(OutputOptions))

    signature = inspect.Signature(parameters)

    @functools.wraps(function)
    def run(**values: Any) -> None:
        arguments = _grouped(values, groups)
        output: OutputOptions = arguments.pop(_OUTPUT)
        manner = Manner(quiet=output.quiet, json=output.json)
        with (
            speaking(manner, function.__name__),
            _reporting(output.traceback),
            raising_on_termination(),
        ):
            if values.get("print_config"):
                print_config(function.__name__, signature, values, arguments.values())
            else:
                function(**arguments)

    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(
    function: Callable[..., None], hints: Mapping[str, Any], groups: Mapping[str, Any]
) -> Iterator[inspect.Parameter]:
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in groups:
            yield _parameter(name, hints[name], parameter.default)
            continue
        yield from _options(groups[name])


def _options(group: Any) -> Iterator[inspect.Parameter]:
    """A group's fields, each in the panel of the class that it comes from."""
    for field in dataclasses.fields(group):
        home = next(one for one in group.__mro__ if field.name in inspect.get_annotations(one))
        annotation = get_type_hints(home, include_extras=True)[field.name]
        required = field.default is dataclasses.MISSING
        default = inspect.Parameter.empty if required else field.default
        yield _parameter(field.name, _in_panel(annotation, getattr(home, "panel", None)), default)


def _in_panel(annotation: Any, panel: str | None) -> Any:
    kind, option = get_args(annotation)
    option = copy.copy(option)
    option.rich_help_panel = option.rich_help_panel or panel
    return Annotated[kind, option]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _grouped(values: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(values)
    for name, kind in groups.items():
        fields = [field.name for field in dataclasses.fields(kind)]
        arguments[name] = kind(**{field: arguments.pop(field) for field in fields})
    return arguments


@contextmanager
def _reporting(with_traceback: bool) -> Iterator[None]:
    """Report what goes wrong, and leave with the exit code that it stands for."""
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt as stop:
        print_error(_sentence("interrupted", stop))
        raise typer.Exit(INTERRUPTED) from None
    except Terminated as stop:
        print_error(_sentence("terminated (SIGTERM)", stop))
        raise typer.Exit(TERMINATED) from None
    except SystemExit as stop:  # of a library; with its own code, 0 would stand for success
        if isinstance(stop.__context__, BrokenPipeError):  # of rich: head, say, has read enough
            raise typer.Exit(FAILURE) from None
        print_error(_sentence(f"something called exit({stop.code!r})", stop))
        raise typer.Exit(FAILURE) from None
    except Exception as error:
        if with_traceback:
            traceback.print_exc()
        details = error.differences if isinstance(error, RunMismatchError) else ()
        print_error(_sentence(_message(error), error), details)
        raise typer.Exit(BAD_USAGE if isinstance(error, ConfigError) else FAILURE) from None


def _message(error: Exception) -> str:
    if isinstance(error, RunMismatchError):
        return str(error.args[0])
    if isinstance(error, SeqprocError):
        return str(error)
    kind = type(error).__name__
    return f"{kind}: {error} (not an error that seqproc expects; --traceback shows where)"


def _sentence(message: str, error: BaseException) -> str:
    """The message and the notes that were added on the way, on one line."""
    notes = getattr(error, "__notes__", [])
    return " ".join("; ".join([message, *notes]).split())
