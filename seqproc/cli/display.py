"""Text for a terminal, made harmless: it can do nothing but be shown.

Model output, prompts and file names are untrusted: `printable` makes any text harmless.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich.markup import escape

from seqproc.cli.manner import current_manner

if TYPE_CHECKING:
    from rich.console import Console

# ECMA-48 sequences, with their 7-bit and 8-bit introducers: CSI, strings (OSC, DCS, …), others.
_TERMINAL_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
_KEPT_CONTROLS = "\n\t"
# Control, format (bidi overrides, zero-width), surrogate and private-use characters.
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co"})


def printable(text: str) -> str:
    """A text that can go to a `rich` console as markup and comes out as itself.

    Terminal sequences, control characters other than newline and tab, and invisible formatting
    characters (such as those that reverse the direction of writing) are dropped; what rich would
    read as markup is escaped.
    """
    return escape(visible(text))


def visible(text: str) -> str:
    """`printable` without the escaping of markup: for `print` and `rich.text.Text`."""
    without = _LINE_ENDS.sub("\n", _TERMINAL_SEQUENCE.sub("", text))
    return "".join(c for c in without if c in _KEPT_CONTROLS or _is_shown(c))


def _is_shown(character: str) -> bool:
    return unicodedata.category(character) not in _DROPPED_CATEGORIES


def duration(seconds: float) -> str:
    """A time in words: hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def console(*, stderr: bool = False) -> Console:
    """A console that adds no colours or emoji of its own to what it is given.

    With ``--quiet`` that of the standard output shows nothing.
    """
    from rich.console import Console

    colours, is_terminal = colour_choice()
    return Console(
        stderr=stderr,
        quiet=current_manner().quiet and not stderr,
        color_system=colours,
        force_terminal=is_terminal,
        highlight=False,
        emoji=False,
        soft_wrap=True,
    )


def colour_choice() -> tuple[Literal["auto", "standard"] | None, Literal[True] | None]:
    """Colours and other styles as the environment wants them: rich's color_system, force_terminal.

    None at all with NO_COLOR; else always with FORCE_COLOR; else on a terminal, unless it is dumb.
    An empty variable is as none.
    """
    is_dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    if os.environ.get("NO_COLOR"):
        return None, None
    if os.environ.get("FORCE_COLOR"):
        return ("standard" if is_dumb else "auto"), True
    return (None if is_dumb else "auto"), None


def print_error(message: str, details: Sequence[str] = ()) -> None:
    """One line on stderr, and one for each detail."""
    manner = current_manner()
    if manner.error is None:
        manner.error, manner.details = _one_line(message), [_one_line(one) for one in details]
    err = console(stderr=True)
    err.print(f"[bold red]error:[/] {escape(_one_line(message))}")
    for detail in details:
        err.print(f"  {escape(_one_line(detail))}")


def _one_line(text: str) -> str:
    return " ".join(visible(text).split())
