"""Code blocks of Markdown pages: found, made small, and run. Knows no page and no model.

A fenced block is run as its language says. A comment before it in the page,
``<!-- not run: REASON -->``, keeps it from being run where it needs what a test has not; its syntax
is checked all the same.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]*?) *-->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"^ *<!-- *(?:not run|test)\b", re.MULTILINE)
PLACEHOLDER = "…"  # stands for what the reader knows: such a command cannot be run


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int  # of its first line of code, counted from 1
    language: str  # "" where the fence names none
    code: str
    reason: str | None  # why it is not run; None: it is

    @property
    def place(self) -> str:
        """Page and line, for people."""
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in its order.

    Raises:
        ValueError: a mark that belongs to no block, or that gives no reason.
    """
    text = page.read_text(encoding="utf-8")
    blocks = [_block(page, text, match) for match in _BLOCK.finditer(text)]
    marked = sum(block.reason is not None for block in blocks)
    if len(_MARK.findall(text)) != marked or any(block.reason == "" for block in blocks):
        raise ValueError(f"{page.name}: a mark without a block after it, or without a reason")
    return blocks


def _block(page: Path, text: str, match: re.Match[str]) -> Block:
    indent = len(match["indent"])
    lines = match["code"].splitlines(keepends=True)
    return Block(
        page=page,
        line=text.count("\n", 0, match.start("code")) + 1,
        language=match["language"],
        code="".join(line[indent:] or "\n" for line in lines),
        reason=match["reason"],
    )


def run_python(block: Block, code: str, names: dict[str, object]) -> None:
    """Run Python in a namespace; an error names the line of the page."""
    exec(compile("\n" * (block.line - 1) + code, str(block.page), "exec"), names)


def commands(code: str) -> list[list[str]]:
    """The commands of shell code as words, without comments; continued lines are joined."""
    lines = code.replace("\\\n", " ").splitlines()
    words = (shlex.split(line, comments=True) for line in lines)
    return [command for command in words if command]


def seqproc_calls(code: str) -> Iterator[list[str]]:
    """The words after each ``seqproc`` that shell code calls, also within loops and quotes."""
    for call in re.finditer(r"\bseqproc ([a-z]+\b[^\n&;|]*)", code.replace("\\\n", " ")):
        yield re.sub(r"[\"']", " ", call[1]).split()


def check_shell_syntax(block: Block) -> None:
    """Have bash read a block without running it."""
    done = subprocess.run(
        ["bash", "-n"], input=block.code, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block.place}: {done.stderr}"


def check_options(call: Sequence[str], options_of: Callable[[str], set[str]]) -> None:
    """Refuse a call of the command line with a subcommand or an option that there is not."""
    name, *words = call
    given = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
    unknown = given - options_of(name)
    assert not unknown, f"seqproc {name} has no {', '.join(sorted(unknown))}"


def make_small(call: Sequence[str], small: dict[str, str]) -> list[str]:
    """Give options of a call other values; a value may itself be several words."""
    words: list[str] = []
    for before, word in zip(["", *call], call, strict=False):
        words += shlex.split(small[before]) if before in small else [word]
    return words
