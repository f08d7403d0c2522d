"""`seqproc compare`: two runs side by side, on the terminal and as one page of HTML."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from seqproc.cli.display import console, printable
from seqproc.cli.manner import give_result

if TYPE_CHECKING:
    from seqproc.compare import Comparison
    from seqproc.report.panel import Table

_RunA = Annotated[str, typer.Argument(metavar="RUN_A", help="A: a run's folder, or its URL.")]
_RunB = Annotated[
    str, typer.Argument(metavar="RUN_B", help="B: another one, or the same with other scores.")
]
_Page = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="PAGE", help="Write a page as well, such as compare.html."),
]
_ScoresA = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A further set of A's scores. Default: its own policy's."),
]
_ScoresB = Annotated[
    str | None, typer.Option(metavar="NAME", help="The same of B, such as those at θ + η·v.")
]
_Clusters = Annotated[
    Literal["draw", "prompt"],
    typer.Option(help="What standard errors take to be independent."),
]
_Title = Annotated[str | None, typer.Option(help="Of the page. Default: the two models.")]


def compare(
    run_a: _RunA,
    run_b: _RunB,
    out: _Page = None,
    scores_a: _ScoresA = None,
    scores_b: _ScoresB = None,
    clusters: _Clusters = "draw",
    title: _Title = None,
) -> None:
    """Compare two runs: settings, numbers, and draw by draw where their draws are the same.

    Differences are A minus B, with standard errors, paired where both runs have the same draws.
    """
    from seqproc.compare import compare_runs, write_page
    from seqproc.report.page import require_report
    from seqproc.report.place import require_place

    if out is not None:
        require_report()
        require_place(out)
    found = compare_runs(run_a, run_b, scores_a=scores_a, scores_b=scores_b, clusters=clusters)
    size = None if out is None else write_page(found, out, title=title)
    page = None if out is None else str(out)
    give_result({**found.to_dict(), "page": page, "num_bytes": size}, found.verdict)
    _print(found)
    if size is not None:
        text = printable(f"{page} ({size / 1e6:.1f} MB): open it in a browser")
        console().print(f"\nThe page is {text}")


def _print(found: Comparison) -> None:
    from seqproc.compare import panels

    show = console().print
    for name, side in (("A", found.a), ("B", found.b)):
        show(printable(f"{name}  {side.label}"))
    if found.settings:
        show()
        _print_table(panels.settings_table(found))
    show(f"{found.num_same_settings} settings are the same.\n")
    for line in (found.pairing.said, *found.notes):
        show(printable(line))
    show()
    _print_table(panels.numbers_table(found))
    for line in panels.left_out(found):
        show(printable(line))
    if found.paired is not None:
        show(f"\n{printable(panels.identical_line(found.paired))}")
        if found.paired.token_gaps:
            show()
            _print_table(panels.tokens_table(found.paired))
    show(f"\n{printable(found.verdict)}")


def _print_table(table: Table) -> None:
    """Columns beside each other; no cell is cut, and only the last one is not padded."""
    for line in _lines([table.header, *table.rows]):
        console().print(printable(line))


def _lines(rows: list[tuple[str, ...]]) -> Iterator[str]:
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(padded).rstrip()
