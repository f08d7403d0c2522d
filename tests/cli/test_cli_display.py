"""Untrusted text on a terminal: it is shown, and does nothing else."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from seqproc.cli.display import print_error, printable, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nof two lines", "plain\ttext\nof two lines"),
        ("Ünïcödé 数学 🙂", "Ünïcödé 数学 🙂"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b[1;1Hcleared", "cleared"),
        ("\x1b]0;new title\x07after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31m8-bit\x9d0;title\x9c", "8-bit"),
        ("\x1bP1;2|payload\x1b\\x", "x"),
        ("\x1bcreset \x1b(Bcharset", "reset charset"),
        ("unfinished \x1b]0;title", "unfinished 0;title"),
        ("cut \x1b[31", "cut 31"),
        ("at the end \x1b", "at the end "),
        ("back\x08\x08\x08space\rreturn\x00\x7f", "backspace\nreturn"),
        ("one\r\ntwo\u2028three", "one\ntwo\nthree"),
        ("admin\u202etxt.exe\u202c \u2066x\u2069", "admintxt.exe x"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("lone \ud800 surrogate, private \ue000", "lone  surrogate, private "),
        ("[bold]not bold[/bold] [/]", "[bold]not bold[/bold] [/]"),
        ("[link=http://evil]x[/link] :smile:", "[link=http://evil]x[/link] :smile:"),
        ("\x1b[[bold]31m", "bold]31m"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert Text.from_markup(printable(text), emoji=False).plain == shown


HIDDEN = {"Cc", "Cf", "Cs", "Co"}
HOSTILE = st.text(
    st.one_of(st.sampled_from("\x1b\x9b\x9d\x07[]()\\;/=31mboldK "), st.characters()),
    max_size=40,
)


@given(HOSTILE)
def test_nothing_but_shown_characters_and_line_ends_comes_out(text: str) -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system=None, width=10_000, emoji=False).print(
        printable(text), highlight=False
    )
    for character in out.getvalue():
        assert character in "\n\t" or unicodedata.category(character) not in HIDDEN


def test_an_error_is_one_line_whatever_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("no file '[bold]a\x1b[31m\nb[/nope]'" + " and more" * 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no file '[bold]a b[/nope]'" + " and more" * 40 + "\n"
