"""Draw the flow charts of pages as SVG, so that the site needs no drawing library.

Reads what the pages use of Mermaid's language: lines ``a["label"] --> b``, from top to bottom. A
box stands a layer below the lowest box that points at it. An arrow that passes a layer gets a place
in it, among the boxes, so that none runs through a box.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean

Place = str | tuple[str, str, int]  # a box, or where an arrow passes a layer

_NODE = r'(\w+)(?:\["([^"]*)"\])?'
_EDGE = re.compile(rf"^\s*{_NODE}\s*-->\s*{_NODE}\s*$")
_WIDTH, _ROW, _BOX_WIDTH, _BOX_HEIGHT = 760, 90, 164, 36  # px; a row is a box and what is below it


@dataclass(slots=True)
class Chart:
    """The boxes and arrows of one chart, in the order in which they are named."""

    labels: dict[str, str] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def read(cls, text: str) -> Chart:
        """Read a chart.

        Raises:
            ValueError: a line that is no arrow from a box to a box.
        """
        chart = cls()
        first, *lines = text.strip().splitlines()
        for line in lines:
            edge = _EDGE.match(line)
            if first.strip() != "flowchart TD" or edge is None:
                raise ValueError(f"cannot draw {line.strip()!r} of {first.strip()!r}")
            for name, label in ((edge[1], edge[2]), (edge[3], edge[4])):
                chart.labels[name] = label or chart.labels.get(name, name)
            chart.edges.append((edge[1], edge[3]))
        return chart

    def depth(self, name: str) -> int:
        """The layer of a box, from 0 at the top."""
        return max((1 + self.depth(a) for a, b in self.edges if b == name), default=0)

    def paths(self) -> list[list[Place]]:
        """The places of each arrow: its boxes, and one in each layer that it passes."""
        return [
            [a, *((a, b, layer) for layer in range(self.depth(a) + 1, self.depth(b))), b]
            for a, b in self.edges
        ]


def draw(text: str) -> str:
    """A chart as an SVG element."""
    chart = Chart.read(text)
    at = _positions(chart)
    arrows = [_arrow([at[place] for place in path]) for path in chart.paths()]
    boxes = [_box(label, *at[name]) for name, label in chart.labels.items()]
    height = max(y for _, y in at.values()) + _BOX_HEIGHT + 2
    return (
        f'<svg class="diagram" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="flow chart">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        f"{''.join(arrows)}{''.join(boxes)}</svg>"
    )


def _positions(chart: Chart) -> dict[Place, tuple[float, int]]:
    """The middle of each place's upper edge [px]: below what points at it, in order of that."""
    layers: dict[int, dict[Place, list[Place]]] = {}  # with what points at each
    for name in chart.labels:
        layers.setdefault(chart.depth(name), {})[name] = []
    for path in chart.paths():
        for above, place in pairwise(path):
            layer = chart.depth(place) if isinstance(place, str) else place[2]
            layers[layer].setdefault(place, []).append(above)
    at: dict[Place, tuple[float, int]] = {}
    for layer, places in sorted(layers.items()):
        order = sorted(places, key=lambda p: fmean([at[q][0] for q in places[p]] or [0]))
        for i, place in enumerate(order):
            at[place] = ((i + 0.5) * _WIDTH / len(order), 1 + layer * _ROW)
    return at


def _arrow(points: list[tuple[float, int]]) -> str:
    """An arrow from the lower edge of the first place to the upper edge of the last."""
    (x, y), *rest = points
    y += _BOX_HEIGHT
    steps = [f"M{x:.0f} {y}"]
    for number, (to_x, to_y) in enumerate(rest, start=1):
        middle = (y + to_y) // 2
        steps.append(f"C{x:.0f} {middle} {to_x:.0f} {middle} {to_x:.0f} {to_y}")
        if number < len(rest):
            steps.append(f"V{to_y + _BOX_HEIGHT}")
        x, y = to_x, to_y + _BOX_HEIGHT
    return f'<path class="arrow" d="{" ".join(steps)}" marker-end="url(#tip)"/>'


def _box(label: str, x: float, y: int) -> str:
    left = x - _BOX_WIDTH / 2
    return (
        f'<rect x="{left:.0f}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="4"/>'
        f'<text x="{x:.0f}" y="{y + _BOX_HEIGHT // 2 + 5}">{html.escape(label)}</text>'
    )
