"""Plotly figures of histograms, means by position, counts and pairs of estimates.

Knows numbers; not where they come from. The colours stand out on white and on black. Labels that
may hold a run's text are escaped, since plotly reads some HTML in them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc._util.optional import require_package
from seqproc.report.text import shown

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from seqproc.report.histograms import Floats, Histogram
    from seqproc.report.numbers import ByPosition

FIRST, SECOND = "#2f7ed8", "#d2691e"  # each 3:1 or more against white and against #14171c
_BAND = "rgba(47, 126, 216, 0.3)"
_MARGIN = {"l": 60, "r": 20, "t": 20, "b": 50}
_Z = 1.96  # of a normal interval of 95 %


def require_plotly() -> None:
    """Refuse to go on without plotly.

    Raises:
        MissingDependencyError: it is not installed.
    """
    require_package("plotly", extra="report", purpose="a figure of a run")


def of_histogram(shown_numbers: Histogram, title: str) -> Figure:
    """A bar for each bin; the title is the axis's."""
    require_plotly()
    import plotly.graph_objects as go

    figure = go.Figure([_bars(shown_numbers, FIRST)])
    return _laid_out(figure, x=title, y="count")


def of_two_histograms(
    first: Histogram, second: Histogram, names: tuple[str, str], title: str
) -> Figure:
    """Two histograms of the same bins, one over the other."""
    require_plotly()
    import plotly.graph_objects as go

    bars = [_bars(one, colour) for one, colour in ((first, FIRST), (second, SECOND))]
    for bar, name in zip(bars, names, strict=True):
        bar.update(name=name, opacity=0.6, showlegend=True)
    figure = go.Figure(bars, {"barmode": "overlay", "legend": {"orientation": "h", "y": 1.1}})
    return _laid_out(figure, x=title, y="count")


def of_counts(counts: Mapping[str, int], title: str) -> Figure:
    """A bar for each name."""
    require_plotly()
    import plotly.graph_objects as go

    names = [html.escape(shown(name)) for name in counts]
    bar = go.Bar(x=names, y=list(counts.values()), marker={"color": FIRST})
    return _laid_out(go.Figure([bar], {"xaxis": {"type": "category"}}), x=title, y="draws")


def of_positions(means: ByPosition, title: str) -> Figure:
    """Means with a band of ± 1.96 standard errors, above the number of draws at each position."""
    require_plotly()
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.75, 0.25])
    position = np.arange(1, len(means.mean) + 1)
    reach = _Z * means.standard_error
    edge: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=position, y=_plain(means.mean - reach), **edge), 1, 1)
    band = go.Scatter(
        x=position, y=_plain(means.mean + reach), fill="tonexty", fillcolor=_BAND, **edge
    )
    figure.add_trace(band, 1, 1)
    line = go.Scatter(x=position, y=_plain(means.mean), mode="lines", line={"color": FIRST})
    figure.add_trace(line, 1, 1)
    figure.add_trace(go.Bar(x=position, y=means.num, marker={"color": SECOND}), 2, 1)
    figure.update_layout(
        yaxis={"title": {"text": title}},
        yaxis2={"title": {"text": "draws"}, "rangemode": "tozero"},
        xaxis2={"title": {"text": "position in the response, from 1"}},
        margin=_MARGIN,
        bargap=0,
        height=420,
        showlegend=False,
    )
    return figure


def _bars(binned: Histogram, colour: str) -> Any:
    """The bins as bars that touch; where each begins and ends is told under the pointer."""
    import plotly.graph_objects as go

    left, right = binned.edges[:-1], binned.edges[1:]
    return go.Bar(
        x=(left + right) / 2,
        y=binned.counts,
        width=right - left,
        customdata=np.column_stack([left, right]),
        hovertemplate="%{customdata[0]:.6g} to %{customdata[1]:.6g}: %{y}<extra></extra>",
        marker={"color": colour},
    )


def _laid_out(figure: Figure, *, x: str, y: str) -> Figure:
    figure.update_layout(
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}, "rangemode": "tozero"},
        margin=_MARGIN,
        height=320,
        bargap=0.1,
    )
    return figure


def _plain(values: Floats) -> list[float | None]:
    """Numbers with None in the place of those that are not finite: a gap in a line."""
    return [value if np.isfinite(value) else None for value in values.tolist()]
