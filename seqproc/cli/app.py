"""The typer application: which commands there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from seqproc import __version__
from seqproc._util.versions import library_versions
from seqproc.cli.catalog import datasets, models
from seqproc.cli.command import command
from seqproc.cli.compare import compare
from seqproc.cli.demo import demo
from seqproc.cli.doctor import doctor
from seqproc.cli.examples import examples_of, exit_codes
from seqproc.cli.inspect import inspect
from seqproc.cli.manner import ReportsBadUsage
from seqproc.cli.merge import merge
from seqproc.cli.parity import parity
from seqproc.cli.report import report
from seqproc.cli.sample import sample
from seqproc.cli.score import score
from seqproc.cli.status import status
from seqproc.cli.verify import verify

# By the panels of the main help.
COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Make runs": (sample, score, merge),
    "Look at runs": (report, compare, status, inspect, verify),
    "Test engines": (parity,),
    "Find your way": (doctor, demo, models, datasets),
}

app = typer.Typer(
    cls=ReportsBadUsage,
    name="seqproc",
    help="Language-model sequences, sampled fast and scored exactly.",
    epilog=exit_codes(),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

for panel, functions in COMMANDS.items():
    for function in functions:
        ending = examples_of(function.__name__)
        app.command(rich_help_panel=panel, epilog=ending)(command(function))


def _print_version(wanted: bool) -> None:
    if wanted:
        libraries = ", ".join(f"{name} {v}" for name, v in library_versions().items())
        typer.echo(f"seqproc {__version__} ({libraries})")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show all versions."
        ),
    ] = False,
) -> None:
    """Language-model sequences, sampled fast and scored exactly."""
