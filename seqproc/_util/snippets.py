"""Small pieces of HTML for notebooks, with their styles inline. Knows strings alone.

Texts are untrusted: whatever goes into a piece is escaped, cut, and made visible. Colours of text
are the notebook's own, so that pieces can be read on a light and on a dark ground.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

# Control, format (bidi overrides, zero-width), surrogate, private-use and unassigned characters,
# and the two that end lines for some readers only.
_SPELT_OUT = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_KEPT = "\n\t"

_LIMIT = 400  # characters of a cell
_CELL = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;unicode-bidi:isolate"


def shown(text: str) -> str:
    """A text in which every character can be seen: the others are spelt out, as in ⟨U+202E⟩."""
    return "".join(c if c in _KEPT or _is_visible(c) else f"⟨U+{ord(c):04X}⟩" for c in text)


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in _SPELT_OUT


def cut(text: str, limit: int) -> tuple[str, int]:
    """The beginning of a text, of at most ``limit`` characters, and how many it leaves out."""
    return text[:limit], max(len(text) - limit, 0)


def safe(text: str, limit: int = _LIMIT) -> str:
    """A text as HTML, also for an attribute in quotes: escaped, visible, and cut with a note."""
    beginning, left_out = cut(text, limit)
    note = f" … {left_out:,} more characters" if left_out else ""
    return html.escape(shown(beginning) + note)


def card(title: str, facts: Mapping[str, str], *more: str) -> str:
    """A title, a table of names and values, and further pieces below it.

    Args:
        title: plain text.
        facts: plain text by plain text.
        more: HTML, as it is.
    """
    rows = (
        f'<tr><th scope="row" style="{_CELL}">{safe(name)}</th>'
        f'<td style="{_CELL}">{safe(value)}</td></tr>'
        for name, value in facts.items()
    )
    table = f'<table style="border-collapse:collapse">{"".join(rows)}</table>' if facts else ""
    return f"<div><strong>{safe(title)}</strong>{table}{''.join(more)}</div>"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts, with a caption."""
    heads = "".join(f'<th scope="col" style="{_CELL}">{safe(name)}</th>' for name in head)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        '<table style="border-collapse:collapse"><caption style="text-align:left">'
        f"{safe(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cells(row: Sequence[str]) -> str:
    return "".join(f'<td style="{_CELL}">{safe(cell)}</td>' for cell in row)
