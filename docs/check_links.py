"""Find dead links in the documentation, without a network: `python docs/check_links.py [root]`.

Reads README.md, CONTRIBUTING.md, CHANGELOG.md, SECURITY.md and docs/**/*.md. A relative link must
lead to a file or folder of the checkout, an anchor to a heading of the page, a reference to its
definition; of a web address only the spelling is checked. Prints ``page:line: problem`` for each
dead link and exits with 1 when there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**/*.md")

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_CODE_SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
_LINKS = (
    re.compile(r"\]\(\s*(?:<([^>]*)>|([^\s)]*))(?:\s+[\"'(].*?[\"')])?\s*\)"),  # [text](target)
    re.compile(r"^ {0,3}\[[^\]]+\]:\s*(?:<([^>]*)>|(\S+))"),  # [name]: target
    re.compile(r"<(https?:[^>]*)>"),
    re.compile(r"\b(?:href|src)=\"([^\"]*)\""),
)
_REFERENCE = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")
_DEFINITION = re.compile(r"^ {0,3}\[([^\]]+)\]:\s*\S")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$")
_EXPLICIT_ANCHOR = re.compile(r"<[a-z]+\s[^>]*\b(?:id|name)=\"([^\"]+)\"")
_LINE_ANCHOR = re.compile(r"L\d+(-L\d+)?")


@dataclass(frozen=True, slots=True)
class DeadLink:
    """One link that leads nowhere."""

    page: Path  # relative to the root
    line: int  # counted from 1
    problem: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.problem}"


def find_pages(root: Path) -> list[Path]:
    """The pages to check, sorted."""
    return sorted(page for pattern in PAGES for page in root.glob(pattern))


def dead_links(root: Path) -> list[DeadLink]:
    """Every dead link of every page below `root`."""
    root = root.resolve()
    return [
        DeadLink(page.relative_to(root), line, problem)
        for page in find_pages(root)
        for line, problem in _problems(page, root)
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page: its headings, spelled as GitHub does, and explicit ids."""
    found: set[str] = set()
    for _, line in _prose(page, keep_code=True):
        found.update(_EXPLICIT_ANCHOR.findall(line))
        if heading := _HEADING.match(line):
            slug = _slug(heading[1])
            numbered = (f"{slug}-{n}" if n else slug for n in range(len(found) + 1))
            found.add(next(name for name in numbered if name not in found))
    return found


def _slug(heading: str) -> str:
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link counts as its text
    text = re.sub(r"[^\w\- ]", "", text.strip().lower())
    return text.replace(" ", "-")


def _prose(page: Path, *, keep_code: bool = False) -> Iterator[tuple[int, str]]:
    """Numbered lines outside fenced code; code spans are blanked unless `keep_code`."""
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
        elif mark:
            fence = mark[1]
        else:
            yield number, line if keep_code else _CODE_SPAN.sub("", line)


def _problems(page: Path, root: Path) -> Iterator[tuple[int, str]]:
    lines = list(_prose(page))
    defined = {match[1].lower() for _, line in lines if (match := _DEFINITION.match(line))}
    for number, line in lines:
        for link in (match for pattern in _LINKS for match in pattern.finditer(line)):
            target = next((group for group in link.groups() if group), "")
            if problem := _problem(target, page, root):
                yield number, f"{problem}: {target!r}"
        for text, name in _REFERENCE.findall(line):
            if (name or text).lower() not in defined:
                yield number, f"no definition of the reference: {(name or text)!r}"


def _problem(target: str, page: Path, root: Path) -> str | None:
    """What is wrong with a link of `page` to `target`; None when nothing is."""
    try:
        parts = urlsplit(target)
        host = parts.hostname
    except ValueError:
        return "not a web address"
    if parts.scheme in ("http", "https"):
        return None if host and "." in host and " " not in target else "not a web address"
    if parts.scheme:
        return None if parts.scheme == "mailto" else "a scheme that no browser opens"
    if not target or target.startswith("/"):
        return "empty link" if not target else "an absolute path; write it relative to the page"
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not path.is_relative_to(root):
        return "leads out of the checkout"
    if not path.exists():
        return "no such file"
    return _anchor_problem(path, unquote(parts.fragment))


def _anchor_problem(path: Path, anchor: str) -> str | None:
    if not anchor:
        return None
    if path.suffix == ".md":
        return None if anchor in anchors(path) else "no such heading"
    return None if _LINE_ANCHOR.fullmatch(anchor) else "an anchor into what is not a page"


def main(arguments: list[str]) -> int:
    """Check the checkout that holds this file, or the one named; return the exit code."""
    root = Path(arguments[0]) if arguments else Path(__file__).parent.parent
    pages, dead = find_pages(root), dead_links(root)
    for link in dead:
        print(link)
    print(f"{len(pages)} pages, {len(dead)} dead links")
    return 1 if dead or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
