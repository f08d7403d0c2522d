"""The typer application: which commands there are."""

from __future__ import annotations

from typing import Annotated

import typer

from seqproc import __version__
from seqproc._util.versions import library_versions
from seqproc.cli.catalog import datasets, models
from seqproc.cli.command import command
from seqproc.cli.demo import demo
from seqproc.cli.inspect import inspect
from seqproc.cli.merge import merge
from seqproc.cli.parity import parity
from seqproc.cli.sample import sample
from seqproc.cli.score import score
from seqproc.cli.status import status
from seqproc.cli.verify import verify

app = typer.Typer(
    name="seqproc",
    help="Language-model sequences, sampled fast and scored exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for function in (sample, score, merge, status, inspect, verify, parity, demo, models, datasets):
    app.command()(command(function))


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
