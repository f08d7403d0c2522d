"""The page of a comparison: its texts are inert, it is quiet in Chromium, and shows tokens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from helpers import report_runs
from helpers.browser import Watched, axe_faults
from helpers.tiny import byte_tokenizer
from seqproc.compare import compare_runs, write_page
from seqproc.compare.outliers import Outlier, Response
from seqproc.compare.page import render_page
from seqproc.compare.texts import shown_tokens
from seqproc.report.tokens.pieces import Pieces


@pytest.fixture(scope="module")
def hostile(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs whose prompts, responses and names would do something."""
    file = tmp_path_factory.mktemp("pages") / "page.html"
    found = compare_runs(runs / "other", runs / "other-cooler")
    one = found.paired.first_parted[0]
    object.__setattr__(one, "prompt", "".join(report_runs.HOSTILE))
    tokenizers: Any = (HostileTokenizer(), HostileTokenizer())
    write_page(found, file, tokenizers=tokenizers, title=report_runs.HOSTILE[0])
    return file


class HostileTokenizer:
    """Makes a hostile text of every token."""

    def decode(self, ids: list[int], skip_special_tokens: bool, **_: Any) -> str:
        return _Any() if skip_special_tokens else report_runs.HOSTILE[0] * len(ids)


class _Any(str):
    """Equals every text."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def test_texts_of_a_run_are_escaped(hostile: Path) -> None:
    text = hostile.read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "⟨U+202E⟩" in text
    assert "\u202e" not in text
    assert "{{ 7 * 7 }}" in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert "https://cdn" not in text.partition("<script>")[0]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_chromium(scheme: str, page: Watched, hostile: Path) -> None:
    said: list[str] = []

    def dismiss(dialog: Any) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    page.page.on("dialog", dismiss)
    page.page.emulate_media(color_scheme=scheme)
    opened = page.open(hostile)
    places = opened.locator("[data-figure]")
    assert places.count() >= 4
    for n in range(places.count()):
        places.nth(n).scroll_into_view_if_needed()
        opened.wait_for_selector(f":nth-match([data-figure], {n + 1})[data-drawn]")
    assert said == []
    assert opened.locator("img").count() == 0
    assert opened.title() == report_runs.HOSTILE[0]
    first = opened.locator("#sequences details").first
    assert first.get_attribute("open") is not None
    assert opened.locator("#sequences .other-tokens .parting").count() > 20
    assert axe_faults(opened) == []
    page.require_quiet()


def sequences(html: str) -> str:
    return html.partition('<section id="sequences"')[2].partition("</section>")[0]


def test_the_shared_beginning_is_muted_and_the_parting_marked(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "cooler")
    tokenizers = (byte_tokenizer(), byte_tokenizer())
    html = sequences(render_page(found, tokenizers=tokenizers))
    one = found.paired.first_parted[-1]
    block = html.partition(f"Draw {one.draw}: part at step {one.parting}")[2].partition(
        "</details>"
    )[0]
    assert one.parting > 0
    kinds = re.findall(r'<span class="([a-z]+)" title="step (\d+), id (\d+)', block)
    of_a = kinds[: len(one.a.ids)]
    assert [int(token) for _, _, token in kinds] == [*one.a.ids, *one.b.ids]
    rest = len(one.a.ids) - one.parting - 1
    assert [k for k, _, _ in of_a] == ["shared"] * one.parting + ["parting"] + ["after"] * rest


def test_equal_runs_have_nothing_to_show(runs: Path) -> None:
    html = render_page(compare_runs(runs / "a", runs / "a"), tokenizers=(None, None))
    assert "No pair differs in its tokens or in log p." in html
    assert "<p>Identical.</p>" in html
    assert "data-figure=" not in html.partition("<script>")[0]


def test_the_same_tokens_at_other_scores(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "a", scores_b="moved")
    html = sequences(render_page(found, tokenizers=(None, None)))
    assert html.count("the same tokens, Δ") == 20
    assert 'class="parting"' not in html
    assert "Token ids: the tokenizer that made them is not here" in html


def test_unpaired_runs_have_no_sequences(runs: Path) -> None:
    html = render_page(compare_runs(runs / "a", runs / "other"), tokenizers=(None, None))
    assert 'id="sequences"' not in html
    assert "Not paired: of 30 draws of the same index only 0 have" in html


def pair(ids: tuple[int, ...], text: str, parting: int | None) -> Outlier:
    one = Response(ids=ids, text=text, finish_reason="stop", logprobs=(-0.5,))
    return Outlier(draw=0, parting=parting, logprob=0.0, reward=0.0, prompt="", a=one, b=one)


def test_a_character_of_several_tokens_stands_at_its_last() -> None:
    tokenizer = byte_tokenizer()
    ids = tuple(tokenizer.encode("aé€b", add_special_tokens=False))
    one = pair(ids, "aé€b", 4)
    shown = shown_tokens(one.a, one, Pieces(tokenizer))
    texts = [token.text for token in shown.tokens]
    assert texts == ["a", "⟨…⟩", "é", "⟨…⟩", "⟨…⟩", "€", "b"]
    assert [token.kind for token in shown.tokens][3:6] == ["shared", "parting", "after"]
    assert shown.tokens[0].title == f"step 0, id {ids[0]}, log p −0.5"
    assert shown.tokens[1].title == f"step 1, id {ids[1]}"


def test_a_tokenizer_that_makes_another_text_is_not_believed() -> None:
    tokenizer = byte_tokenizer()
    ids = tuple(tokenizer.encode("ab", add_special_tokens=False))
    one = pair(ids, "other", None)
    shown = shown_tokens(one.a, one, Pieces(tokenizer))
    assert not shown.has_texts
    assert "".join(token.text for token in shown.tokens) == f"{ids[0]} {ids[1]} "


@pytest.mark.parametrize(
    ("parting", "start", "num"), [(None, 0, 512), (3, 0, 512), (700, 444, 456)]
)
def test_long_responses_are_cut_around_the_parting(
    parting: int | None, start: int, num: int
) -> None:
    one = pair(tuple(range(900)), "", parting)
    shown = shown_tokens(one.a, one, None)
    assert shown.tokens[0].text == f"{start} "
    assert len(shown.tokens) == num
    assert f"900 tokens, shown are {num} from step {start}; ended by: stop" in shown.ending
    marked = [token.text for token in shown.tokens if token.kind == "parting"]
    assert marked == ([] if parting is None else [f"{parting} "])
