"""What `make docs` does to pages on their way into the site: links, charts, pages from elsewhere.

Pages are written for readers of the checkout: their links go to files relative to the page. In the
site, README.md, CHANGELOG.md and CONTRIBUTING.md are pages as well, and links to files that are
neither pages nor pictures lead to the repository. Knows nothing of what the pages say.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))  # mkdocs runs this file alone
from site_diagram import draw  # noqa: E402

# By the name that each has in the site; there README.md would take the place of index.md.
FROM_THE_TOP = {
    "start.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
}
_IN_SITE = {path: name for name, path in FROM_THE_TOP.items()}

_CHART = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2[`~]*$", re.MULTILINE | re.DOTALL)
_TARGET = re.compile(r"(\]\(\s*|^\[[^\]]+\]:\s*)([^\s)#]+)(#[^\s)]*)?", re.MULTILINE)


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that stand at the top of the checkout."""
    from mkdocs.structure.files import File

    for name, path in FROM_THE_TOP.items():
        content = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Draw a page's charts, and point its links to the site or to the repository."""
    name = page.file.src_uri
    home = "." if name in FROM_THE_TOP else posixpath.join("docs", posixpath.dirname(name))
    drawn = _CHART.sub(lambda chart: draw(chart[1]), markdown)
    return rewritten(drawn, home, posixpath.dirname(name), config["extra"]["repository"])


def rewritten(markdown: str, home: str, place: str, repository: str) -> str:
    """Rewrite relative links of Markdown outside fenced code.

    Args:
        markdown: the page.
        home: the folder of the page in the checkout, such as ``docs``.
        place: its folder in the site's sources, such as ``api``; empty for the top.
        repository: the address that stands for the top of the checkout.
    """

    def link(match: re.Match[str]) -> str:
        before, target, anchor = match[1], match[2], match[3] or ""
        return before + _new_target(target, home, place, repository) + anchor

    parts, end = [], 0
    for fence in _FENCED.finditer(markdown):
        parts += [_TARGET.sub(link, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _TARGET.sub(link, markdown[end:])])


def _new_target(target: str, home: str, place: str, repository: str) -> str:
    if ":" in target or target.startswith("<"):
        return target
    path = posixpath.normpath(posixpath.join(home, target))
    if path in _IN_SITE:
        return posixpath.relpath(_IN_SITE[path], place or ".")
    if path.startswith("docs/") and path.endswith((".md", ".png")):
        return posixpath.relpath(path.removeprefix("docs/"), place or ".")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository}/{kind}/main/{path}"
