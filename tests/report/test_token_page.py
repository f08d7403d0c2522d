"""The token view in a real browser: what it shows is the run's, and it goes by mouse and keys."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from helpers.browser import Watched, axe_faults
from helpers.run_folders import Maker
from helpers.token_rows import Rows, made_up, write_page
from seqproc.runs import RunSpec, open_run
from seqproc.runs.format.quarantine import Failed
from seqproc.runs.format.schema import TOKEN_COLUMNS

pytestmark = pytest.mark.browser

DRAWS = 70
FAILED = Failed(
    draw=DRAWS,
    prompt_index=3,
    seed=2**64 - 1,
    step="scoring",
    reason="its logits are not numbers",
    time="2026-01-01T00:00:00+00:00",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The page of a run, and its rows."""
    folder = tmp_path_factory.mktemp("page")
    maker = Maker()
    spec = RunSpec(dataset="arithmetic", draws=DRAWS, seed=5)
    maker.complete(folder / "run", spec, token_columns=TOKEN_COLUMNS)
    table = open_run(folder / "run").rows()
    table = _with(table, "reward", [float(n % 4) / 2 for n in range(DRAWS)])
    reasons = ["length" if n % 3 == 1 else "eos" for n in range(DRAWS)]
    table = _with(table, "finish_reason", reasons)
    write_page(folder / "page.html", Rows(table, [FAILED]), maker.tokenizer)
    return folder / "page.html", table.to_pylist()


def _with(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    place = table.schema.get_field_index(name)
    field = table.schema.field(name)
    return table.set_column(place, field, pa.array(values, field.type))


@pytest.fixture
def view(page: Watched, made: tuple[Path, list[Any]]) -> Iterator[Any]:
    opened = _open(page, made[0])
    yield opened
    page.require_quiet()


def _open(page: Watched, path: Path, fragment: str = "") -> Any:
    opened = page.open(path, fragment)
    opened.wait_for_selector("#sp-tokens[data-ready]")
    return opened


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("∞", "inf"))


def heads(view: Any) -> list[str]:
    """The lines of the draws that are listed."""
    return view.locator(".sp-head").all_text_contents()


def draws(view: Any) -> list[int]:
    return [int(line.split()[1]) for line in heads(view)]


def wait_draws(view: Any, expected: list[int]) -> None:
    """Wait until these draws are listed, in this order."""
    end = time.monotonic() + 10
    while draws(view) != expected and time.monotonic() < end:
        view.wait_for_timeout(20)
    assert draws(view) == expected


def listed(view: Any, count: int) -> None:
    """Wait until so many draws fit."""
    view.get_by_text(re.compile(rf"of {count} draws")).wait_for()


def wait_open(view: Any, draw: int) -> None:
    view.locator("#sp-open h3", has_text=re.compile(f"^Draw {draw}$")).wait_for()


def numbers(view: Any, place: str) -> dict[str, str]:
    """Names and values of a list."""
    entries = view.locator(f"{place} > div").all()
    return {e.locator("dt").inner_text(): e.locator("dd").inner_text() for e in entries}


def test_the_card_has_the_numbers_of_the_row(view: Any, made: tuple[Path, list[Any]]) -> None:
    row = made[1][7]
    view.locator(".sp-head", has_text=re.compile("^Draw 7 ")).click()
    tokens = view.locator("#sp-open [role=option]")
    tokens.first.wait_for()
    assert tokens.count() == row["gen_len"]
    for step in range(row["gen_len"]):
        tokens.nth(step).hover()
        shown = numbers(view, "#sp-card dl")
        assert int(shown["token id"]) == row["response_ids"][step]
        assert int(shown["step, from 0"]) == step
        for name in TOKEN_COLUMNS:
            assert number(shown[name]) == float(f"{row[name][step]:.6g}"), (name, step)
    assert "engine_logqs" not in shown  # the scripted engine reports none


def test_the_opened_draw_tells_what_the_row_tells(view: Any, made: tuple[Path, list[Any]]) -> None:
    row = made[1][3]
    view.locator(".sp-head", has_text=re.compile("^Draw 3 ")).click()
    wait_open(view, 3)
    shown = numbers(view, "#sp-open .sp-facts")
    assert shown["seed"] == str(row["seed"])
    assert shown["finish_reason"] == row["finish_reason"]
    for name in ("draw", "gen_len", "reward", "sequence_logprob", "rb_entropy_sum"):
        assert number(shown[name]) == float(f"{row[name]:.6g}"), name
    assert view.locator("#sp-open .sp-prompt").get_attribute("open") is None
    view.locator("#sp-open summary").click()
    assert view.locator("#sp-open .sp-prompt .sp-text").inner_text() == row["prompt_text"]


def _colours(view: Any) -> list[str]:
    return view.evaluate(
        "[...document.querySelectorAll('.sp-preview .sp-token')].map(e => e.style.backgroundColor)"
    )


def test_colours_follow_the_statistic(view: Any, made: tuple[Path, list[Any]]) -> None:
    first = _colours(view)
    view.select_option("#sp-statistic", "top1_prob")
    second = _colours(view)
    assert len(first) == len(second)
    assert first != second
    rows = made[1][: len(heads(view))]
    values = [value for row in rows for value in row["top1_prob"]]
    light = [_luminance(_rgb(colour)) for colour in second]
    in_order = [light[n] for n in sorted(range(len(values)), key=values.__getitem__)]
    assert in_order == sorted(in_order, reverse=True)  # higher is darker on a light page
    assert "Top-1 probability" in view.inner_text("#sp-legend")
    ends = [number(text.strip("≤≥ ")) for text in view.locator(".sp-ends span").all_inner_texts()]
    assert ends == sorted(ends)


def test_a_theme_turns_the_scale_around(view: Any) -> None:
    view.select_option("#sp-statistic", "top1_prob")
    light = [_luminance(_rgb(colour)) for colour in _colours(view)]
    view.evaluate("document.documentElement.dataset.theme = 'dark'")
    dark = [_luminance(_rgb(colour)) for colour in _colours(view)]
    lightest, darkest = light.index(max(light)), light.index(min(light))
    assert dark[lightest] < dark[darkest]


@pytest.mark.parametrize(("field", "length"), [("question", 12), ("response_text", 3)])
def test_search_finds_substrings_in_any_case(view: Any, made: Any, field: str, length: int) -> None:
    word = made[1][5][field][:length]
    expected = [
        row["draw"]
        for row in made[1]
        if word.lower() in row["prompt_text"].lower()
        or word.lower() in row["response_text"].lower()
    ]
    word = word.swapcase()
    assert 0 < len(expected) < DRAWS
    view.fill("#sp-search", word)
    listed(view, len(expected))
    wait_draws(view, expected[:20])
    view.fill("#sp-search", "LOGITS are")
    wait_draws(view, [FAILED.draw])
    view.fill("#sp-search", "no such text")
    view.get_by_text("No draw fits").wait_for()


@pytest.mark.parametrize("column", ["gen_len", "sequence_logq", "rb_entropy_mean", "reward"])
def test_any_column_sorts(view: Any, made: tuple[Path, list[Any]], column: str) -> None:
    view.select_option("#sp-sort", column)
    view.check("#sp-descending")
    ordered = sorted(made[1], key=lambda row: (-_six(row[column]), row["draw"]))
    wait_draws(view, [row["draw"] for row in ordered[:20]])


def _six(value: float) -> float:
    return float(f"{value:.6g}")


@pytest.mark.parametrize(
    ("condition", "fits"),
    [
        ("0.5", lambda r: r == 0.5),
        ("= 1.5", lambda r: r == 1.5),
        (">= 1", lambda r: r >= 1),
        ("<0.5", lambda r: r < 0.5),
        ("0.5..1", lambda r: 0.5 <= r <= 1),
    ],
)
def test_rewards_are_filtered(view: Any, made: Any, condition: str, fits: Any) -> None:
    expected = [row["draw"] for row in made[1] if fits(row["reward"])]
    assert 0 < len(expected) < DRAWS
    view.fill("#sp-reward", condition)
    listed(view, len(expected))
    wait_draws(view, expected[:20])


def test_a_condition_that_is_none_is_marked(view: Any) -> None:
    view.fill("#sp-reward", "about 1")
    view.locator('#sp-reward[aria-invalid="true"]').wait_for()
    view.fill("#sp-reward", "1")
    view.locator('#sp-reward[aria-invalid="false"]').wait_for()


def test_finish_reasons_and_quarantine_are_filtered(view: Any, made: Any) -> None:
    expected = [row["draw"] for row in made[1] if row["finish_reason"] == "length"]
    assert 0 < len(expected) < DRAWS
    view.select_option("#sp-finish", "length")
    listed(view, len(expected))
    wait_draws(view, expected[:20])
    view.select_option("#sp-finish", "quarantined")
    listed(view, 1)
    view.locator(".sp-head").click()
    wait_open(view, FAILED.draw)
    shown = numbers(view, "#sp-open .sp-facts")
    assert (shown["reason"], shown["seed"]) == (FAILED.reason, str(FAILED.seed))
    view.get_by_role("button", name="Clear").click()
    listed(view, DRAWS + 1)


def test_keys_go_through_draws_pages_and_tokens(view: Any) -> None:
    view.locator(".sp-head").first.click()
    wait_open(view, 0)
    view.keyboard.press("j")
    wait_open(view, 1)
    view.keyboard.press("ArrowDown")
    wait_open(view, 2)
    view.keyboard.press("k")
    wait_open(view, 1)
    view.keyboard.press("ArrowRight")
    assert view.evaluate("document.activeElement.dataset.step") == "0"
    assert view.locator("#sp-card").is_visible()
    view.keyboard.press("ArrowRight")
    assert view.evaluate("document.activeElement.dataset.step") == "1"
    assert view.locator("#sp-open [tabindex='0']").count() == 1
    label = view.evaluate("document.activeElement.ariaLabel")
    assert re.search(r"Surprisal, −log p: [\d.]+$", label)
    view.keyboard.press("Escape")
    assert not view.locator("#sp-card").is_visible()
    assert view.evaluate("document.activeElement.className") == "sp-head"
    view.keyboard.press("n")
    view.get_by_text("21 to 40 of").wait_for()
    view.keyboard.press("?")
    assert view.locator("dialog#sp-keys").is_visible()
    view.keyboard.press("Escape")
    view.keyboard.press("/")
    assert view.evaluate("document.activeElement.id") == "sp-search"
    view.keyboard.type("jk?")
    assert view.input_value("#sp-search") == "jk?"


def test_the_next_draw_may_be_on_the_next_page(view: Any) -> None:
    view.locator(".sp-head", has_text=re.compile("^Draw 19 ")).click()
    wait_open(view, 19)
    view.keyboard.press("j")
    wait_open(view, 20)
    view.get_by_text("21 to 40 of").wait_for()
    assert view.evaluate("document.activeElement.textContent").startswith("Draw 20 ")
    view.keyboard.press("k")
    wait_open(view, 19)
    view.get_by_text("1 to 20 of").wait_for()


def test_an_address_opens_a_draw(page: Watched, made: tuple[Path, list[Any]]) -> None:
    view = _open(page, made[0], "#draw=45")
    wait_open(view, 45)
    view.get_by_text("41 to 60 of").wait_for()
    assert view.locator('.sp-head[aria-current="true"]').inner_text().startswith("Draw 45 ")
    view.locator(".sp-head").first.click()
    wait_open(view, 40)
    assert view.evaluate("location.hash") == "#draw=40"
    view.evaluate("location.hash = '#draw=2'")
    wait_open(view, 2)
    view.evaluate("location.hash = '#draw=9999'")
    view.get_by_text("There is no draw 9999 here.").wait_for()
    page.require_quiet()


def test_the_link_is_copied(page: Watched, made: tuple[Path, list[Any]]) -> None:
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    view = _open(page, made[0], "#draw=5")
    wait_open(view, 5)
    view.get_by_role("button", name="Copy link").click()
    view.get_by_text("The link to draw 5 is in the clipboard.").wait_for()
    assert view.evaluate("navigator.clipboard.readText()") == f"{made[0].as_uri()}#draw=5"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("statistic", ["surprisal", "engine_delta"])
def test_axe_finds_nothing_serious(
    page: Watched, tmp_path: Path, theme: str, statistic: str
) -> None:
    run, tokenizer = made_up(30, 20)
    write_page(tmp_path / "page.html", run, tokenizer)
    view = _open(page, tmp_path / "page.html", "#draw=3")
    view.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    view.select_option("#sp-statistic", statistic)
    wait_open(view, 3)
    view.locator("#sp-open [role=option]").first.focus()
    assert axe_faults(view) == []
    page.require_quiet()


def _rgb(colour: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", colour)]


def _luminance(rgb: list[int]) -> float:
    """Relative luminance by the WCAG's definition."""
    parts = [p / 255 for p in rgb]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
