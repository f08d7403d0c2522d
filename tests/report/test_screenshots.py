"""Pictures of the pages for the documentation: made here, from a run of a tiny model.

With SEQPROC_SCREENSHOTS=RUN,OTHER they are of two runs of yours, and replace those in docs/images.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers import report_runs
from helpers.browser import Watched
from seqproc.compare import compare_runs
from seqproc.compare import write_page as write_comparison
from seqproc.report import write_page
from seqproc.runs import open_run

pytestmark = pytest.mark.browser

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SHOTS = {
    "page-light": ("page.html", "light", "#distributions"),
    "page-dark": ("page.html", "dark", "#distributions"),
    "tokens": ("page.html", "light", "#draw=3"),
    "comparison": ("comparison.html", "light", "#sequences"),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about a run, and one about two."""
    folder = tmp_path_factory.mktemp("pages")
    given = os.environ.get("SEQPROC_SCREENSHOTS")
    if given:
        first, second = given.split(",")
    else:
        first, second = (str(folder / name) for name in ("first", "second"))
        report_runs.sampled(Path(first), draws=24)
        report_runs.sampled(Path(second), draws=24, temperature=0.7)
    write_page(open_run(first), folder / "page.html")
    write_comparison(compare_runs(first, second), folder / "comparison.html")
    return folder


def colours(file: Path) -> int:
    """How many different ones a picture has."""
    with Image.open(file) as image:
        return len(image.convert("RGB").getcolors(maxcolors=1 << 24) or [])


@pytest.mark.parametrize("name", SHOTS)
def test_a_page_looks_like_something(page: Watched, pages: Path, tmp_path: Path, name: str) -> None:
    file, scheme, fragment = SHOTS[name]
    page.page.set_viewport_size({"width": 1100, "height": 800})
    page.page.emulate_media(color_scheme=scheme)
    opened: Any = page.open(pages / file, fragment)
    opened.wait_for_timeout(1_000)  # figures are drawn as they come into view
    shot = tmp_path / f"{name}.png"
    opened.screenshot(path=shot)
    page.require_quiet()
    assert colours(shot) > 50  # an empty page has one
    if os.environ.get("SEQPROC_SCREENSHOTS"):
        IMAGES.mkdir(exist_ok=True)
        shutil.copy(shot, IMAGES / shot.name)
    else:
        assert (IMAGES / shot.name).is_file()
