"""Texts of a model are inert in the page and can be seen; colours can be read by everyone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.browser import Watched, axe_faults
from helpers.token_rows import Rows, WordTokenizer, given, write_page
from seqproc.runs.format.quarantine import Failed
from seqproc.runs.format.schema import TOKEN_COLUMNS, rows_schema

pytestmark = pytest.mark.browser

HOSTILE = (
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "<!--<script>",
    "\u202etxet\u2066",
    "a\0b\x1b[31m\x07\u200b\u200d\ufeff\u2028\u3164\U000e0041",
    "Z\u0351\u0351\u0351\u0351\u0351\u0351\u0351\u0351\u0351\u0351\u0351",
    "x" * 100_000,
    "{{7*7}} ${7*7} javascript:alert(1)",
    "__proto__",
)
UNSEEN = re.compile(
    r"[\u0000-\u0008\u000b-\u001f\u007f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


def _hostile_rows() -> list[dict[str, Any]]:
    rows = []
    for draw, text in enumerate(HOSTILE):
        row = given(draw, text, [draw + 1, 0])
        row |= {"prompt_text": text, "question": text, "answer": text, "stop_string": text}
        row["finish_reason"] = "eos" if draw else HOSTILE[0]
        rows.append(row)
    return rows


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_hostile_texts_are_shown_and_do_nothing(
    page: Watched, tmp_path: Path, has_tokenizer: bool
) -> None:
    failed = Failed(
        draw=99,
        prompt_index=0,
        seed=None,
        step="prompt",
        reason=HOSTILE[0] + HOSTILE[3],
        time="now",
    )
    run = Rows(pa.Table.from_pylist(_hostile_rows(), schema=rows_schema(TOKEN_COLUMNS)), [failed])
    write_page(tmp_path / "p.html", run, WordTokenizer(HOSTILE) if has_tokenizer else None)
    view = page.open(tmp_path / "p.html")
    view.wait_for_selector("#sp-tokens[data-ready]")
    for draw, text in enumerate([*HOSTILE, failed.reason]):
        number = failed.draw if draw == len(HOSTILE) else draw
        view.evaluate(f"location.hash = '#draw={number}'")
        view.locator("#sp-open h3", has_text=re.compile(f"^Draw {number}$")).wait_for()
        if draw == 0:
            view.locator("#sp-open summary").click()  # prompts stay unfolded
        if number != failed.draw:
            view.locator("#sp-open .sp-prompt .sp-text").wait_for()
        shown = view.locator("#sp-open").text_content()
        assert not UNSEEN.search(shown)
        plain = re.sub(r"[^ -~]", "", text.split("\u202e")[0])
        assert plain[:200].replace("\0", "") in re.sub(r"⟨U\+[0-9A-F]+⟩|[^ -~]", "", shown)
    assert not UNSEEN.search(view.locator("#sp-list").text_content())
    assert view.title() == "Tokens"
    assert view.locator("#sp-tokens img, #sp-tokens script").count() == 0
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert axe_faults(view) == []
    page.require_quiet()


def test_marks_stand_for_what_cannot_be_seen(page: Watched, tmp_path: Path) -> None:
    words = [" a", "b\n", "\t", "\u202e", "\0", "🎉", "·", ""]
    tokenizer = WordTokenizer(words)
    ids = [*range(1, len(words) + 1), 0]
    row = given(0, tokenizer.decode(ids, skip_special_tokens=True), ids)
    row["logprobs"][0] = -np.inf
    write_page(tmp_path / "p.html", Rows(_table([row])), tokenizer)
    view = page.open(tmp_path / "p.html", "#draw=0")
    tokens = view.locator("#sp-open [role=option]")
    tokens.nth(8).wait_for()
    texts = tokens.all_text_contents()
    assert texts == ["·a", "b⏎\n", "⇥", "⟨U+202E⟩", "⟨U+0⟩", "🎉", "·", "", "<eos>"]
    marked = [tokens.nth(n).locator(".sp-mark").count() for n in range(len(ids))]
    assert marked == [1, 1, 1, 1, 1, 0, 0, 0, 0]  # a written · is told from a space
    assert "sp-special" in (tokens.nth(8).get_attribute("class") or "")
    assert tokens.nth(0).get_attribute("aria-label") == "·a, Surprisal, −log p: ∞"
    page.require_quiet()


def test_without_a_tokenizer_ids_stand_beside_the_whole_text(page: Watched, tmp_path: Path) -> None:
    rows = [given(0, "the text", [7, 300, 70000]), given(1, "another", [5])]
    write_page(tmp_path / "p.html", Rows(_table(rows)))
    view = page.open(tmp_path / "p.html", "#draw=0")
    tokens = view.locator("#sp-open [role=option]")
    tokens.nth(2).wait_for()
    assert tokens.all_text_contents() == ["⟨7⟩", "⟨300⟩", "⟨70000⟩"]
    assert "the text" in view.text_content("#sp-open")
    assert "tokenizer was not at hand" in view.text_content("#sp-note")
    page.require_quiet()


def test_a_run_without_rows_says_so(page: Watched, tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", Rows(_table([])))
    view = page.open(tmp_path / "p.html")
    view.wait_for_selector("#sp-tokens[data-ready]")
    assert view.text_content("#sp-page") == "No draw fits"
    assert "no number of single tokens" in view.text_content("#sp-note")
    page.require_quiet()


def test_a_page_that_is_not_whole_says_so(page: Watched, tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    write_page(path, Rows(_table([given(0, "the text", [7])])))
    path.write_text(re.sub(r'(id="seqproc-tokens-draws">)[^<]{20}', r"\1", path.read_text()))
    page.open(path).get_by_text("The sequences cannot be shown here: ").wait_for()
    page.require_quiet()


def test_a_long_response_is_shown_in_parts(page: Watched, tmp_path: Path) -> None:
    row = given(0, "ab" * 2500, [1, 2] * 2500)
    write_page(tmp_path / "p.html", Rows(_table([row])), WordTokenizer(["a", "b"]))
    view = page.open(tmp_path / "p.html", "#draw=0")
    more = view.get_by_role("button", name=re.compile("Show more: 3000 tokens are left"))
    more.click()
    assert view.locator("#sp-open [role=option]").count() == 4000
    view.get_by_role("button", name=re.compile("1000 tokens are left")).click()
    assert view.locator("#sp-open [role=option]").count() == 5000
    page.require_quiet()


# Machado, Oliveira and Fernandes 2009, severity 1; on linear sRGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_scales_can_be_read_by_everyone(page: Watched, tmp_path: Path, theme: str) -> None:
    row = given(0, "a" * 64, [1] * 64)
    row["logprobs"] = [-float(n) for n in range(64)]
    row["engine_logqs"] = [2.0 * n - 31.5 for n in range(64)]  # Δ from −31.5 to 31.5
    write_page(tmp_path / "p.html", Rows(_table([row])), WordTokenizer(["a"]))
    view = page.open(tmp_path / "p.html")
    view.wait_for_selector("#sp-tokens[data-ready]")
    view.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    for statistic in ("surprisal", "engine_delta"):
        view.select_option("#sp-statistic", statistic)
        tokens = _colours(view, ".sp-preview .sp-token")
        assert len(tokens) == 64
        for paper, ink in tokens:
            light, dark = sorted((_light(paper), _light(ink)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5
        papers = [paper for paper, _ in _colours(view, ".sp-bar span")]
        assert len(papers) == 64
        assert {tuple(paper) for paper, _ in tokens} <= {tuple(paper) for paper in papers}
        for kind, matrix in BLINDNESS.items():
            seen = np.array([matrix @ _linear(paper) for paper in papers]).clip(0, 1)
            _check_readable(statistic, seen @ [0.2126, 0.7152, 0.0722], seen, kind)


def _check_readable(statistic: str, light: Any, seen: Any, kind: str) -> None:
    """A sequential scale by its lightness; a diverging one by its sides, as far as they differ."""
    if statistic == "surprisal":
        assert (np.diff(light) < 0).all() or (np.diff(light) > 0).all(), kind
        assert (light.max() + 0.05) / (light.min() + 0.05) > 7, kind
    else:
        assert np.linalg.norm(seen[0] - seen[-1]) > 0.35, kind
        for side in (light[:32], light[32:]):
            steps = np.diff(side)
            assert (steps < 0).all() or (steps > 0).all(), kind


def _colours(view: Any, elements: str) -> list[list[list[int]]]:
    """The colours of elements: of their grounds and of their texts."""
    styles = view.evaluate(
        f"[...document.querySelectorAll('{elements}')].map(e => getComputedStyle(e))"
        ".map(s => [s.backgroundColor, s.color])"
    )
    return [[[int(n) for n in re.findall(r"\d+", c)] for c in pair] for pair in styles]


def _linear(rgb: list[int]) -> Any:
    part = np.array(rgb) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def _light(rgb: list[int]) -> float:
    return float(_linear(rgb) @ [0.2126, 0.7152, 0.0722])


def _table(rows: list[Any]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=rows_schema(TOKEN_COLUMNS))
