"""A panel of a run's page: text, tables, and figures with a table beside each. Knows no markup."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from seqproc.estimators import Estimate
from seqproc.plot import figures
from seqproc.report.histograms import Histogram
from seqproc.report.text import number, plus_minus

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under a header."""

    caption: str
    header: Row
    rows: list[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A figure, what it shows in words, and its numbers."""

    name: str  # of letters, digits and hyphens; one of a kind on a page
    caption: str
    figure: Figure
    table: Table


@dataclass(slots=True, kw_only=True)
class Panel:
    """A section of the page."""

    id: str
    title: str
    lines: list[str] = field(default_factory=list)  # paragraphs
    tables: list[Table] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # what is not there, and why


def estimate(found: Estimate) -> str:
    """A value and its standard error."""
    return plus_minus(found.value, found.standard_error)


def histogram_view(
    name: str, caption: str, found: Histogram, title: str, noun: str = "draws"
) -> View:
    """A histogram with its moments, and its bins as a table.

    Args:
        name: of the figure.
        caption: what it shows, as sentences.
        found: the histogram.
        title: of its axis, with the unit.
        noun: what is counted.
    """
    moments = (
        f"{number(found.num)} {noun}, mean {number(found.mean)}, standard deviation "
        f"{number(found.deviation)}, {number(found.least)} to {number(found.most)}, median "
        f"{number(found.median)}."
    )
    left = ", ".join(f"{number(n)} are {kind}" for kind, n in found.left_out.items())
    rows: list[Row] = [
        (number(left), number(right), number(n))
        for left, right, n in zip(
            found.edges[:-1].tolist(),
            found.edges[1:].tolist(),
            found.counts.tolist(),
            strict=True,
        )
        if n
    ]
    return View(
        name=name.replace("_", "-"),
        caption=f"{caption} {moments}{f' Not shown: {left}.' if left else ''}",
        figure=figures.of_histogram(found, title),
        table=Table(
            caption=f"{title}: bins that are not empty",
            header=("from", "to", noun),
            rows=rows,
        ),
    )
