"""`seqproc report`: a run as one page of HTML that opens without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqproc.cli.display import console, printable
from seqproc.cli.manner import give_result
from seqproc.cli.options import RunPath
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from seqproc.runs import Run

_Page = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="PAGE", help="The page. Default: report.html in RUN."),
]
_Parity = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A report of `seqproc parity`. Default: parity.json in RUN, if it is there.",
    ),
]
_Tokens = Annotated[
    bool, typer.Option("--tokens/--no-tokens", help="The sequences, token by token.")
]
_Title = Annotated[str | None, typer.Option(help="Of the page. Default: model and dataset.")]


def report(
    run: RunPath,
    out: _Page = None,
    parity: _Parity = None,
    tokens: _Tokens = True,
    title: _Title = None,
) -> None:
    """Write a page about a run: one file of HTML, which opens without a network.

    It shows what was run, its numbers with their errors, figures, parity, and the sequences.
    """
    from seqproc.report.page import require_report
    from seqproc.report.place import require_place
    from seqproc.runs import open_run

    require_report()
    opened = open_run(run)
    page = default_page(opened) if out is None else out
    require_place(page)
    print_page(opened, page, parity=parity, tokens=tokens, title=title)


def print_page(
    run: Run,
    page: Path,
    *,
    parity: Path | None = None,
    tokens: bool = True,
    title: str | None = None,
) -> None:
    """Write a run's page, and tell how large it is and where."""
    from seqproc.report import write_page

    size = write_page(run, page, parity=parity, tokens=tokens, title=title)
    give_result({"run": run.url, "page": str(page), "num_bytes": size}, str(page))
    text = printable(f"{page} ({size / 1e6:.1f} MB): open it in a browser")
    console().print(f"The page is {text}")


def default_page(run: Run) -> Path:
    """report.html in a folder on a local disk.

    Raises:
        ConfigError: the run is in an object store.
    """
    from seqproc.runs.format.layout import REPORT

    if "://" in run.url:
        raise ConfigError(
            f"the run in {run.url} is not on a local disk: name the page with -o PAGE, such as "
            f"-o {REPORT}"
        )
    return run.path / REPORT
