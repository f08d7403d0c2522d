"""A real Chromium for tests of pages, and what a page says and asks for in it.

`pytest.mark.browser` marks such tests. They are skipped where no Chromium is found, unless the
environment has SEQPROC_REQUIRE_BROWSER=1: then that is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass
class Watched:
    """A browser's page, offline, with a record of what went on in it."""

    page: Any  # playwright's Page
    console: list[str] = field(default_factory=list)  # messages, and errors that nothing caught
    requests: list[str] = field(default_factory=list)  # URLs, without those of the files opened
    opened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", self._record)

    def _record(self, request: Any) -> None:
        if request.url.partition("#")[0] not in self.opened:
            self.requests.append(request.url)

    def open(self, file: Path, fragment: str = "") -> Any:
        """Open a file, at a fragment such as ``#draw=1``; gives playwright's page."""
        self.opened.append(file.resolve().as_uri())
        self.page.goto(self.opened[-1] + fragment)
        return self.page

    def require_quiet(self) -> None:
        """Nothing was written to the console, and nothing was asked of a network or a disk."""
        assert self.console == []
        assert self.requests == []


def find_chromium() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def missing() -> str | None:
    """Why no browser can be started here; None when one can."""
    for package in ("playwright", "axe_core_python"):
        if importlib.util.find_spec(package) is None:
            return f"needs the package {package}"
    return None if find_chromium() else f"needs one of {', '.join(NAMES)}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Playwright's Browser. Of a module: its event loop is in the way of others that run one."""
    reason = missing()
    if reason is not None and os.environ.get("SEQPROC_REQUIRE_BROWSER") == "1":
        pytest.fail(f"SEQPROC_REQUIRE_BROWSER=1, but this {reason}")
    if reason is not None:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Watched]:
    """A page of its own context, offline."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    yield Watched(context.new_page())
    context.close()


def axe_faults(page: Any) -> list[str]:
    """What axe-core finds of serious or critical impact, each with where it is.

    Args:
        page: playwright's.
    """
    import axe_core_python

    source = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
    page.evaluate(source)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]} ({len(fault['nodes'])} times)"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
