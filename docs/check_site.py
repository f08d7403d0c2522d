"""Find faults of the built site, without a network: `python docs/check_site.py [folder]`.

Reads every page and style sheet below build/site, or the folder named. A page must load nothing
from elsewhere: scripts, styles, fonts and pictures are files of the site. Each link within the site
must lead to a file of it, and to an anchor that the page has. Prints ``page: problem`` for each
fault and exits with 1 when there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
# Marks for which the theme's script fetches something: a drawing library, stars from GitHub.
FETCHING = {"class": "mermaid", "data-md-component": "source"}
HARMLESS = ("canonical", "alternate", "license")  # relations of <link> that nothing is loaded for

_IN_STYLES = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)")


class Page(HTMLParser):
    """What one page links to, what it loads, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.fetching: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's links and anchors."""
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif values.get("rel") not in HARMLESS and LOADS.get(tag, "") in values:
            self.loads.append(values[LOADS[tag]])
        self.loads += _IN_STYLES.findall(values.get("style", ""))
        self.fetching += [v for name, v in FETCHING.items() if v in values.get(name, "").split()]


def problems(site: Path) -> Iterator[tuple[Path, str]]:
    """Every fault of the pages and style sheets below a folder, with the file that has it."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for target in page.loads:
            if is_elsewhere(target):
                yield path, f"loads {target!r} from elsewhere"
            elif not target.startswith("data:") and not _file(target, path, site).is_file():
                yield path, f"loads {target!r}, which is not there"
        for mark in page.fetching:
            yield path, f"has the mark {mark!r}, for which the theme fetches something"
        for target in page.links:
            if not is_elsewhere(target) and (problem := _dead(target, path, site, pages)):
                yield path, f"{problem}: {target!r}"
    for path in sorted(site.rglob("*.css")):
        for target in _IN_STYLES.findall(path.read_text(encoding="utf-8")):
            yield path, f"loads {target!r} from elsewhere"


def is_elsewhere(target: str) -> bool:
    """Whether an address is one of another host."""
    parts = urlsplit(target)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "mailto")


def _file(target: str, page: Path, site: Path) -> Path:
    path = unquote(urlsplit(target).path)
    if not path:
        return page
    return site / path.lstrip("/") if path.startswith("/") else (page.parent / path).resolve()


def _dead(target: str, page: Path, site: Path, pages: dict[Path, Page]) -> str:
    path, anchor = _file(target, page, site), unquote(urlsplit(target).fragment)
    if path.is_dir():
        path = path / "index.html"
    if not path.is_file():
        return "no such file"
    if anchor and path in pages and anchor not in pages[path].anchors:
        return "no such anchor"
    return ""


def main(arguments: list[str]) -> int:
    """Check a built site; return the exit code."""
    root = Path(__file__).parent.parent
    site = Path(arguments[0] if arguments else root / "build" / "site").resolve()
    num_pages, found = len(list(site.rglob("*.html"))), list(problems(site))
    for path, problem in found:
        print(f"{path.relative_to(site)}: {problem}")
    print(f"{num_pages} pages of the site, {len(found)} faults")
    return 1 if found or not num_pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
