"""One sequence in a notebook: a token for each id, with its numbers, in legible colours."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from helpers.run_folders import Maker
from seqproc.errors import RunError, SequenceError
from seqproc.report import ShownSequence, colours, show_draw, show_sequence
from seqproc.report.sequence import MOST_TOKENS

HOSTILE = "<script>alert('x')</script>\x1b[31m\u202e\u200b\ud800 \"&"


class Tokens(HTMLParser):
    """The tokens of a piece of HTML: the attributes of each, and its text."""

    def __init__(self, shown: ShownSequence) -> None:
        super().__init__()
        self.attributes: list[dict[str, str | None]] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.rest = ""
        self._is_token = False
        self.feed(shown._repr_html_())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self._is_token = "data-token" in dict(attrs)
        if self._is_token:
            self.attributes.append(dict(attrs))
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_token = False

    def handle_data(self, data: str) -> None:
        if self._is_token:
            self.texts[-1] += data
        else:
            self.rest += data

    def papers(self) -> list[str]:
        styles = [str(one["style"]) for one in self.attributes]
        return [style.split(";")[0].removeprefix("background-color:") for style in styles]


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.fixture(scope="module")
def run(maker, tmp_path_factory):
    return maker.complete(tmp_path_factory.mktemp("runs") / "run").open()


def written(value: float) -> str:
    """A number as a title has it, by another way than the code's."""
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    return np.format_float_positional(
        value, precision=6, fractional=False, unique=False, trim="-"
    ).replace("-", "−")


def test_a_draw_has_a_token_for_each_id_and_the_numbers_of_its_row(run, maker):
    for draw in range(0, 24, 5):
        row = run.row(draw)
        tokens = Tokens(show_draw(run, draw, tokenizer=maker.tokenizer))
        assert len(tokens.attributes) == len(row["response_ids"]) == row["gen_len"]
        for n, attributes in enumerate(tokens.attributes):
            told = str(attributes["title"]).split("; ")
            assert told[0] == f"token {n + 1} of {row['gen_len']}"
            assert told[1] == f"id {row['response_ids'][n]}"
            numbers = dict(one.split(" ") for one in told[2:])
            assert set(numbers) == {"logprobs", "logqs", "rb_entropies", "head_mass"}
            assert numbers == {name: written(row[name][n]) for name in numbers}


def test_the_texts_of_tokens_add_up_to_that_of_the_response(run, maker):
    ids = run.row(1)["response_ids"]
    shown = show_draw(run, 1, tokenizer=maker.tokenizer)
    assert shown.pieces is not None
    assert "".join(piece or "" for piece in shown.pieces) == maker.tokenizer.decode(ids)
    assert Tokens(shown).texts[-1] == "<eos>"


def test_without_a_tokenizer_ids_stand_for_texts(run):
    ids = run.row(1)["response_ids"]
    assert Tokens(show_draw(run, 1)).texts == [f"#{token}" for token in ids]


def test_a_sequence_of_a_batch_has_its_scores(maker):
    processor = maker.processor()
    batch = processor.generate_batched(["a b", "c"], 2, seed=0)
    results = processor.teacher_force_logprobs(batch, compute_rb=False)
    shown = show_sequence(batch, results, 1, 1, tokenizer=maker.tokenizer)
    assert shown.ids == tuple(batch.response_ids(1, 1).tolist())
    assert list(shown.columns) == ["logprobs", "logqs", "head_mass"]
    assert shown.columns["logqs"].tolist() == results.token_logqs[1][1].tolist()
    total = f"sum_of_logprobs={results.sequence_logprobs[1][1]:.6g}"
    assert total in repr(shown)
    with_grad = processor.teacher_force_logprobs(batch, with_grad=True)
    assert len(Tokens(show_sequence(batch, with_grad)).attributes) == batch.gen_lens[0][0]
    alone = Tokens(show_sequence(batch))
    assert set(alone.papers()) == {colours.UNKNOWN[0]}
    with pytest.raises(SequenceError, match="none at b = 2, g = 0"):
        show_sequence(batch, results, 2)


def test_what_is_not_there_or_does_not_fit_is_refused(run, monkeypatch):
    with pytest.raises(RunError, match="has no row of draw 99"):
        show_draw(run, 99)
    row = run.row(1)
    monkeypatch.setattr(run, "row", lambda draw: row | {"logprobs": row["logprobs"][:-1]})
    with pytest.raises(
        RunError, match=r"draw 1 of the run .*logprobs must have one entry for each"
    ):
        show_draw(run, 1)


def shown(**changes: Any) -> ShownSequence:
    fields: dict[str, Any] = {
        "ids": (3, 1, 2),
        "pieces": ("a", None, "b\n\t"),
        "columns": {"logprobs": np.array([-0.05, math.nan, -math.inf])},
    }
    return ShownSequence(**fields | changes)


def test_it_prints_as_expected():
    assert repr(shown(text="ab", finish_reason="eos")) == (
        "ShownSequence(tokens=3, finish_reason='eos', sum_of_logprobs=nan, numbers=logprobs, "
        "text='ab')"
    )
    empty = shown(ids=(), pieces=(), columns={})
    assert repr(empty) == "ShownSequence(tokens=0)"
    assert Tokens(empty).attributes == []


def test_breaks_parts_and_nothing_can_be_seen():
    assert Tokens(shown()).texts == ["a", "⟨part⟩", "b⏎\n⇥\t"]
    assert Tokens(shown(pieces=("", " ", "x"))).texts == ["⟨empty⟩", " ", "x"]


def test_hostile_tokens_are_text():
    tokens = Tokens(shown(pieces=(HOSTILE,) * 3, columns={HOSTILE: np.zeros(3)}))
    seen = "<script>alert('x')</script>⟨U+001B⟩[31m⟨U+202E⟩⟨U+200B⟩⟨U+D800⟩ \"&"
    assert tokens.texts == [seen] * 3
    assert seen in str(tokens.attributes[0]["title"])
    assert tokens.tags <= {"div", "span", "p", "strong", "table", "tr", "th", "td"}
    assert all(set(one) == {"data-token", "style", "title"} for one in tokens.attributes)


def test_long_tokens_and_long_sequences_say_what_is_left_out():
    tokens = Tokens(shown(pieces=("x" * 100_000, "y", "z"), text="x" * 100_000))
    assert tokens.texts[0] == "x" * 200 + " … 99,800 more characters"
    num = MOST_TOKENS + 1234
    long = shown(ids=(7,) * num, pieces=None, columns={"logprobs": np.full(num, -1.0)})
    assert len(Tokens(long).attributes) == MOST_TOKENS
    assert "1,234 more tokens are left out" in Tokens(long).rest
    assert "99,940 more characters" in repr(shown(text="x" * 100_000))


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(SequenceError, match="logprobs must have one entry for each of 3 tokens"):
        shown(columns={"logprobs": np.zeros(2)})
    with pytest.raises(SequenceError, match="pieces must have one entry"):
        shown(pieces=("a",))


@pytest.mark.parametrize(
    ("nats", "place"),
    [(0.0, 0), (0.0999, 0), (0.1, 1), (0.7, 2), (1.5, 3), (3.9, 4), (4.0, 5), (8.0, 6)],
)
def test_colours_go_by_surprisal(nats, place):
    tokens = Tokens(shown(columns={"logprobs": np.full(3, -nats)}))
    assert tokens.papers() == [colours.PAIRS[place][0]] * 3
    by_q = Tokens(shown(columns={"logqs": np.full(3, -nats)}))
    assert by_q.papers() == tokens.papers()


def test_no_number_is_grey_and_an_infinite_surprisal_the_darkest():
    assert Tokens(shown()).papers() == [
        colours.PAIRS[0][0],
        colours.UNKNOWN[0],
        colours.PAIRS[-1][0],
    ]


def test_the_legend_names_every_colour_once():
    names = [name for name, _ in colours.legend()]
    assert names == ["< 0.1", "0.1–0.5", "0.5–1", "1–2", "2–4", "4–8", "≥ 8"]
    assert [pair for _, pair in colours.legend()] == list(colours.PAIRS)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("pair", [*colours.PAIRS, colours.UNKNOWN])
def test_every_pair_can_be_read(pair):
    assert contrast(*pair) >= 4.5


def test_the_measure_of_contrast_is_right_and_can_fail():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_pairs_and_the_grounds_own_text(page, tmp_path, scheme):
    ground, ink = ("#ffffff", "#000000") if scheme == "light" else ("#111111", "#dddddd")
    file = tmp_path / "cell.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><body style="background:{ground};color:{ink}">'
        f"{shown(columns={'logprobs': np.array([-0.05, -5.0, -20.0])})._repr_html_()}"
    )
    tab = page.open(file)
    found = tab.evaluate(
        "() => [...document.querySelectorAll('[data-token]')].map((one) => {"
        " const s = getComputedStyle(one); return [s.backgroundColor, s.color]; })"
    )
    pairs = [colours.PAIRS[0], colours.PAIRS[5], colours.PAIRS[6]]
    assert [[as_hex(one) for one in pair] for pair in found] == [list(pair) for pair in pairs]
    cells = tab.evaluate("() => getComputedStyle(document.querySelector('td')).color")
    assert contrast(as_hex(cells), ground) >= 4.5
    assert not page.console
    assert not page.requests


def as_hex(rgb: str) -> str:
    """``rgb(1, 2, 3)`` as ``#010203``."""
    return "#" + "".join(f"{int(n):02x}" for n in rgb.removeprefix("rgb(")[:-1].split(","))
