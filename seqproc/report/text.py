"""Text and numbers as a page shows them. Texts of a run are untrusted; here they become visible.

Markup is the template's business: it escapes whatever it is given.
"""

from __future__ import annotations

import math

from seqproc._util.snippets import shown

__all__ = ["count", "number", "plus_minus", "shifted", "shown"]


def number(value: float | None, digits: int = 6) -> str:
    """A number to so many significant digits; what is not finite by name, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, int):  # of any size, which float is not
        return f"{value:,}".replace("-", "−")
    if math.isnan(value):
        return "undetermined"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def plus_minus(value: float | None, error: float | None) -> str:
    """A value and its standard error, the latter to two digits."""
    if value is None or math.isnan(value):
        return "undetermined"
    if error is None or math.isnan(error):
        return f"{number(value)} ± undetermined"
    if error == 0 or not math.isfinite(error):
        return f"{number(value)} ± {number(error)}"
    places = 1 - math.floor(math.log10(error))
    if -12 <= places <= 8 and abs(value) < 1e15:
        places = max(places, 0)
        return f"{value:,.{places}f} ± {error:,.{places}f}".replace("-", "−")
    digits = places + math.floor(math.log10(abs(value) or error))
    return f"{value:.{max(digits, 0)}e} ± {error:.1e}".replace("-", "−")


def count(num: int, noun: str) -> str:
    """A count and what is counted, in the plural where it is not one."""
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def shifted(eta: object) -> str:
    """θ + η·v in words, of whatever is said that η is."""
    text = str(eta)
    return f"θ − {text[1:]}·v" if text.startswith("-") else f"θ + {text}·v"
