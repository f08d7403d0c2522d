"""The page in a real Chromium: drawn, quiet, readable, and without effect of its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import parity_reports, report_runs
from helpers.browser import Watched, axe_faults
from seqproc.report import write_page
from seqproc.runs import open_run

pytestmark = pytest.mark.browser

FIGURES = 14


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with all panels, of a run whose texts would do something if they could."""
    folder = tmp_path_factory.mktemp("browser")
    path = report_runs.sampled(
        folder / "<img src=x onerror=alert(4)>",
        draws=24,
        dataset=report_runs.hostile_prompts(folder / "prompts.jsonl"),
    )
    report_runs.shifted(path, "moved")
    (path / "parity.json").write_text(parity_reports.report("".join(report_runs.HOSTILE)))
    write_page(open_run(path), folder / "page.html", title=report_runs.HOSTILE[0])
    return folder / "page.html"


def drawn(page: Any) -> int:
    """Go through all of the page, and count the figures that were drawn."""
    places = page.locator("[data-figure]")
    for n in range(places.count()):
        places.nth(n).scroll_into_view_if_needed()
        page.wait_for_selector(f":nth-match([data-figure], {n + 1})[data-drawn]")
    return page.locator("[data-figure]:has(.main-svg)").count()


def colours(page: Any) -> tuple[str, str]:
    """Of the page, and of the paper of its first figure."""
    return page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
        document.querySelector("[data-figure] .main-svg").style.background]"""
    )


def test_every_figure_is_drawn_and_nothing_is_asked_for(page: Watched, file: Path) -> None:
    opened = page.open(file)
    assert drawn(opened) == FIGURES
    opened.locator("summary").first.click()
    assert opened.locator("details table").first.is_visible()
    page.require_quiet()


def test_texts_of_a_run_do_nothing(page: Watched, file: Path) -> None:
    said: list[str] = []

    def dismiss(dialog: Any) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.page.on("dialog", dismiss)
    opened = page.open(file)
    drawn(opened)
    assert said == []
    assert opened.locator("img").count() == 0
    assert opened.title() == report_runs.HOSTILE[0]
    assert opened.locator("h1").inner_text() == report_runs.HOSTILE[0]
    page.require_quiet()


def test_the_policy_lets_nothing_load(page: Watched, file: Path) -> None:
    opened = page.open(file)
    opened.evaluate(
        """() => new Promise((done) => {
        document.addEventListener("securitypolicyviolation", (e) => done(e.blockedURI));
        document.body.append(Object.assign(new Image(), { src: "https://example.invalid/x.png" }));
        })"""
    )
    assert any("Content Security Policy" in line for line in page.console)
    with pytest.raises(AssertionError):
        page.require_quiet()  # which can fail


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_can_be_read_by_everyone(scheme: str, page: Watched, file: Path) -> None:
    page.page.emulate_media(color_scheme=scheme)
    opened = page.open(file)
    opened.locator("[data-figure]").first.scroll_into_view_if_needed()
    opened.wait_for_selector("[data-drawn]")
    body, paper = colours(opened)
    assert body == paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
    assert axe_faults(opened) == []
    other = "light" if scheme == "dark" else "dark"
    opened.locator("#theme").click()
    assert opened.locator("#theme").inner_text().lower().startswith(scheme)
    opened.wait_for_function(
        """(old) => document.querySelector("[data-figure] .main-svg").style.background !== old""",
        arg=paper,
    )
    assert colours(opened)[0] == colours(opened)[1] != body
    assert opened.locator("html").get_attribute("data-theme") == other
    assert axe_faults(opened) == []
    page.require_quiet()


def test_axe_finds_what_is_wrong(page: Watched, file: Path) -> None:
    opened = page.open(file)
    opened.evaluate("document.querySelector('#theme').textContent = ''")
    opened.evaluate("document.querySelector('.muted').style.color = 'var(--line)'")
    found = " ".join(axe_faults(opened))
    assert "button-name" in found
    assert "color-contrast" in found


def test_the_keyboard_reaches_all(page: Watched, file: Path) -> None:
    opened = page.open(file)
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "Skip to the content"
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.id") == "theme"
    opened.keyboard.press("Enter")
    assert opened.locator("html").get_attribute("data-theme") == "dark"
    opened.locator("summary").first.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("details").first.get_attribute("open") is not None
    page.require_quiet()


def test_figures_have_their_numbers_without_scripts(browser: Any, file: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    opened = context.new_page()
    opened.goto(file.as_uri())
    assert opened.locator("footer + noscript p").is_visible()
    assert opened.locator("figure table").count() == FIGURES
    context.close()
