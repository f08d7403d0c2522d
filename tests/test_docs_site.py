"""The documentation site: links and charts, what it loads, and whether it has all public names."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
CHECK = ROOT / "docs" / "check_site.py"
PACKAGES = (
    "",
    ".engines",
    ".scorers",
    ".runs",
    ".parity",
    ".report",
    ".plot",
)  # those with a list of public names
REPOSITORY = "https://example.org/seqproc"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The module docs/site_hooks.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("home", "place", "link", "becomes"),
    [
        ("docs", "", "runs.md#reading", "runs.md#reading"),
        ("docs", "", "api/index.md", "api/index.md"),
        ("docs", "", "../README.md#install", "start.md#install"),
        ("docs", "", "../CHANGELOG.md", "CHANGELOG.md"),
        ("docs", "", "../seqproc/policy.py", f"{REPOSITORY}/blob/main/seqproc/policy.py"),
        ("docs", "", "../examples", f"{REPOSITORY}/tree/main/examples"),
        ("docs/api", "api", "../runs.md", "../runs.md"),
        ("docs/api", "api", "runs.md", "runs.md"),
        (".", "", "docs/runs.md#reading", "runs.md#reading"),
        (".", "", "CONTRIBUTING.md", "CONTRIBUTING.md"),
        (".", "", "bench", f"{REPOSITORY}/tree/main/bench"),
        ("docs", "", "#reading", "#reading"),
        ("docs", "", "https://example.com/x", "https://example.com/x"),
    ],
)
def test_a_link_leads_to_the_site_or_to_the_repository(hooks, home, place, link, becomes):
    text = f"See [a]({link}).\n\n```md\n[a](../README.md)\n```\n\n[b]: {link}\n"
    expected = f"See [a]({becomes}).\n\n```md\n[a](../README.md)\n```\n\n[b]: {becomes}\n"
    assert hooks.rewritten(text, home, place, REPOSITORY) == expected


CHART = """
flowchart TD
    top["the <top>"] --> left
    top --> right
    left --> below["below"]
    top --> below
"""


def test_a_chart_has_its_boxes_in_layers_and_its_arrows_around_them(hooks):
    svg = ElementTree.fromstring(hooks.draw(CHART))
    boxes = {text.text: (float(text.get("x")), int(text.get("y"))) for text in svg.iter("text")}
    assert list(boxes) == ["the <top>", "left", "right", "below"]
    top, left, right, below = boxes.values()
    assert top[1] < left[1] == right[1] < below[1]
    arrows = [path.get("d") for path in svg.iter("path") if path.get("class") == "arrow"]
    assert len(arrows) == 4
    passing = next(float(x) for x, _ in re.findall(r"(\d+) (\d+) V", arrows[3]))
    half = float(svg.find("rect").get("width")) / 2
    assert all(abs(passing - x) > half for x, _ in (left, right))


@pytest.mark.parametrize("line", ["a --- b", "a --> b --> c", "subgraph a", "a -->|yes| b"])
def test_a_chart_that_cannot_be_drawn_is_refused(hooks, line):
    with pytest.raises(ValueError, match="cannot draw"):
        hooks.draw(f"flowchart TD\n{line}\n")


def test_a_chart_stands_in_the_place_of_its_block(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="runs.md"))
    config = {"extra": {"repository": REPOSITORY}}
    block = f"A\n\n```mermaid{CHART}```\n\n```sh\nb\n```\n"
    page_text = hooks.on_page_markdown(block, page=page, config=config)
    assert page_text == f"A\n\n{hooks.draw(CHART)}\n\n```sh\nb\n```\n"


Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Checks a site of a page, a style sheet and a script; returns exit code and faults."""

    def write_and_check(body: str, style: str = "") -> tuple[int, list[str]]:
        (tmp_path / "index.html").write_text(f'<html><body id="top">{body}</body></html>')
        (tmp_path / "site.css").write_text(style)
        (tmp_path / "site.js").write_text("")
        return run_check(tmp_path)

    return write_and_check


def run_check(site: Path) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(CHECK), str(site)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    *faults, last = done.stdout.splitlines()
    assert f"{len(faults)} faults" in last
    return done.returncode, faults


@pytest.mark.parametrize(
    "body",
    [
        '<a href="#top">a</a> <a href="index.html#top">b</a> <a href="/">c</a>',
        '<a href="https://example.org/elsewhere">a link is no load</a>',
        '<script src="site.js"></script><link rel="stylesheet" href="site.css">',
        '<link rel="canonical" href="https://example.org/"><img src="data:image/png;base64,">',
    ],
)
def test_a_site_in_order(check, body):
    assert check(body) == (0, [])


@pytest.mark.parametrize(
    ("body", "style", "problem"),
    [
        ('<a href="absent.html">a</a>', "", "no such file"),
        ('<a href="#nowhere">a</a>', "", "no such anchor"),
        ('<script src="https://example.org/x.js"></script>', "", "from elsewhere"),
        ('<script src="//example.org/x.js"></script>', "", "from elsewhere"),
        ('<link rel="stylesheet" href="https://example.org/x.css">', "", "from elsewhere"),
        ('<img src="https://example.org/x.png">', "", "from elsewhere"),
        ('<p style="background: url(https://example.org/x.png)">', "", "from elsewhere"),
        ("", "@import 'https://example.org/x.css';", "from elsewhere"),
        ("", "@font-face { src: url(//example.org/x.woff2) }", "from elsewhere"),
        ('<script src="absent.js"></script>', "", "not there"),
        ('<pre class="mermaid">', "", "the theme fetches"),
        ('<div data-md-component="source">', "", "the theme fetches"),
    ],
)
def test_faults_of_a_site(check, body, style, problem):
    code, faults = check(body, style)
    assert code == 1
    assert len(faults) == 1
    assert problem in faults[0]


def test_a_site_without_pages_is_not_in_order(tmp_path):
    assert run_check(tmp_path) == (1, [])


@pytest.mark.slow
def test_the_site_builds_and_has_every_public_name(tmp_path):
    """Where `make docs` has installed what it takes, as continuous integration does."""
    pytest.importorskip("mkdocs", reason="make docs installs it")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert run_check(tmp_path / "site") == (0, [])
    missing = {}
    for package in PACKAGES:
        module = importlib.import_module(f"seqproc{package}")
        page = tmp_path / "site" / "api" / f"{package.lstrip('.') or 'seqproc'}.html"
        shown = {
            path.rsplit(".")[-1] for path in re.findall(r'id="(seqproc[\w.]+)"', page.read_text())
        }
        missing[package] = sorted(set(module.__all__) - shown - {"__version__"})
    assert missing == {package: [] for package in PACKAGES}
