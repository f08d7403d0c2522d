"""Objects that print in a few lines, and as a small table in notebooks. Knows nothing of them.

A class says by `Printed._facts` what is worth knowing: shapes, counts, dtypes, names. Both forms
are made of that. No tensor is read for it, and no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from seqproc._util import snippets

Facts = Mapping[str, object]
"""What an object says of itself, by name; None and empty words are left out."""

_WIDTH = 100  # columns of a line
_LONGEST_TEXT = 80  # characters
_LONGEST_ITEM = 40  # characters of a text in a list
_MOST_ITEMS = 3
_LARGEST = 10**18  # integers above are said to be large: some have more digits than Python prints


class Words(str):
    """A text of seqproc's own, printed without quotes."""

    __slots__ = ()


class Printed:
    """Prints as ``Name(fact=value, …)``, and in a notebook as a table of its facts."""

    __slots__ = ()

    def _facts(self) -> Facts:
        """What is worth knowing, the most important first; quick, and without side effects."""
        raise NotImplementedError

    def _pieces(self) -> Iterable[str]:
        """More HTML to stand below the facts in a notebook, escaped already."""
        return ()

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            facts = _texts(self._facts())
        except Exception as error:  # a repr that raises would hide what it was printed to find
            return f"<{name} that cannot be described: {type(error).__name__}>"
        return _filled(name, [f"{key}={value}" for key, value in facts.items()])

    def _repr_html_(self) -> str:
        try:
            facts, pieces = _texts(self._facts()), list(self._pieces())
        except Exception:  # as above
            return snippets.card(repr(self), {})
        return snippets.card(type(self).__name__, facts, *pieces)


def quoted(text: str, limit: int = _LONGEST_TEXT) -> str:
    """A text as Python writes it, cut, with how much is left out; control characters escaped."""
    beginning, left_out = snippets.cut(text, limit)
    note = f"… {left_out:,} more characters" if left_out else ""
    return str.__repr__(beginning) + note


def items(values: Sequence[object], most: int = _MOST_ITEMS) -> Words:
    """A list in brackets, cut, with how many are left out."""
    told = [
        quoted(value, _LONGEST_ITEM) if isinstance(value, str) else as_text(value)
        for value in values[:most]
    ]
    left_out = [f"… {len(values) - most:,} more"] if len(values) > most else []
    return Words(f"[{', '.join(told + left_out)}]")


def spread(counts: Sequence[int]) -> Words | None:
    """The sum of some counts, and between what they lie; None of none."""
    if not counts:
        return None
    least, most = min(counts), max(counts)
    each = as_text(least) if least == most else f"{as_text(least)} to {as_text(most)}"
    return Words(f"{as_text(sum(counts))} ({each} each)") if len(counts) > 1 else Words(each)


def as_text(value: object) -> str:
    """A value in a few characters. Of what may be large, such as an array, only its type."""
    if isinstance(value, Words):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool | Printed):
        return repr(value)
    if isinstance(value, Integral):  # numpy's as well
        return _integer(int(value))
    if isinstance(value, list | tuple):
        return items(value)
    return f"<{type(value).__name__}>"


def _integer(value: int) -> str:
    if -_LARGEST < value < _LARGEST:
        return str(value)
    return f"<an integer of {value.bit_length():,} bits>"


def name_of_dtype(dtype: Any) -> Words:
    """``float32`` of torch's and numpy's alike."""
    return Words(snippets.cut(str(dtype).removeprefix("torch."), _LONGEST_TEXT)[0])


def _texts(facts: Facts) -> dict[str, str]:
    there = {key: value for key, value in facts.items() if not _is_nothing(value)}
    return {key: as_text(value) for key, value in there.items()}


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value)


def _filled(name: str, parts: Sequence[str]) -> str:
    """``name(a, b, …)``, broken between the parts, later lines indented by four."""
    line = ", ".join(parts)
    if len(name) + len(line) + 2 <= _WIDTH:
        return f"{name}({line})"
    lines = [f"{name}("]
    for n, part in enumerate(parts):
        piece = part + ("," if n < len(parts) - 1 else ")")
        if lines[-1].endswith("(") or len(lines[-1]) + 1 + len(piece) <= _WIDTH:
            lines[-1] += piece if lines[-1].endswith("(") else f" {piece}"
        else:
            lines.append(f"    {piece}")
    return "\n".join(lines)
