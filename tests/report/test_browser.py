"""The tests' own browser: it tells of what a page does that a report must not do."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.browser import Watched, axe_faults

pytestmark = pytest.mark.browser

GOOD = "<!doctype html><html lang=en><title>A page</title><main><h1>It is</h1></main></html>"


def test_a_quiet_page_is_quiet(page: Watched, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(GOOD)
    page.open(tmp_path / "page.html", "#here")
    page.require_quiet()
    assert axe_faults(page.page) == []


def test_requests_messages_and_faults_are_told_of(page: Watched, tmp_path: Path) -> None:
    bad = "<img src='http://example.org/a.png'><script>console.log('x'); nothing()</script>"
    (tmp_path / "page.html").write_text(GOOD.replace("</main>", f"{bad}</main>"))
    page.open(tmp_path / "page.html")
    assert page.requests == ["http://example.org/a.png"]
    assert any("x" in message for message in page.console)
    assert any("nothing is not defined" in message for message in page.console)
    assert any(fault.startswith("image-alt") for fault in axe_faults(page.page))
