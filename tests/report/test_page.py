"""The page as a file: what is on it, that all of it is in it, and that no text of a run acts."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from helpers import parity_reports, report_runs
from helpers.run_folders import CHUNK, SPEC, Maker, edit
from seqproc import plot
from seqproc.errors import ConfigError, RunError
from seqproc.prompts import draw_seed
from seqproc.report import numbers, render_page, write_page
from seqproc.report.page import in_script
from seqproc.report.text import number, plus_minus, shown
from seqproc.runs import open_run, sample_run
from seqproc.runs.verify.verify import examine_run

NOT_TEXT = {"script", "style"}


class Parsed(HTMLParser):
    """Elements, attributes that could load something, text, and the data of figures."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text, self.blocks = "", dict[str, str]()
        self._inside, self._block = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        values = dict(attrs)
        self._inside = tag if tag in NOT_TEXT else ""
        self._block = values.get("id") or "" if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag in NOT_TEXT else self._inside

    def handle_data(self, data: str) -> None:
        if self._block and self._inside:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data
        elif not self._inside:
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = report_runs.sampled(tmp_path_factory.mktemp("page") / "run")
    report_runs.shifted(path, "moved")
    (path / "parity.json").write_text(parity_reports.report())
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return render_page(open_run(folder), tokens=False)


@pytest.fixture(scope="module")
def parsed(page: str) -> Parsed:
    return Parsed(page)


def test_everything_is_in_the_file(parsed: Parsed) -> None:
    policy = next(v for t, n, v in parsed.attributes if (t, n) == ("meta", "content"))
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    links = {v for _, n, v in parsed.attributes if n in ("src", "href", "action", "data", "srcset")}
    assert {link for link in links if not link.startswith("#")} == {"data:,"}
    assert not {n for _, n, _ in parsed.attributes if n.startswith("on")}
    assert not {"img", "iframe", "object", "embed", "form", "base"} & set(parsed.tags)


def test_links_of_the_page_lead_somewhere(parsed: Parsed) -> None:
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in parsed.attributes:
        if name == "href" and value.startswith("#"):
            assert value[1:] in ids


def test_every_figure_has_a_caption_and_a_table(page: str, parsed: Parsed) -> None:
    figures = re.findall(r"<figure>.*?</figure>", page, re.S)
    assert len(figures) == len(parsed.blocks) == 14
    for figure in figures:
        assert all(part in figure for part in ('role="img"', "<figcaption>", "<table>"))


def test_figures_are_those_of_plot(folder: Path, parsed: Parsed) -> None:
    run = open_run(folder)
    expected = {
        "data-length": plot.lengths(run),
        "data-reward": plot.rewards(run),
        "data-logprob": plot.logprobs(run),
        "data-logprob-per-token": plot.logprobs_per_token(run),
        "data-entropy": plot.entropies(run),
        "data-entropy-per-token": plot.entropies_per_token(run),
        "data-entropy-comparison": plot.entropy_comparison(run),
        "data-by-position-rb-entropies": plot.entropy_by_position(run),
        "data-by-position-logqs": plot.logq_by_position(run),
        "data-finish-reasons": plot.finish_reasons(run),
        "data-head-mass": plot.head_mass(run),
        "data-cut-margin": plot.cut_margin(run),
        "data-engine-gap": plot.engine_gap(run),
        "data-log-weights-0": plot.importance_weights(run, "moved"),
    }
    assert len(plot.__all__) == len(expected)
    assert set(parsed.blocks) == set(expected)
    for name, figure in expected.items():
        assert json.loads(parsed.blocks[name])["data"] == json.loads(figure.to_json())["data"]


def test_figures_hold_the_numbers(folder: Path) -> None:
    run = open_run(folder)
    found = numbers.by_position(run, "rb_entropies")
    low, high, mean, num = plot.entropy_by_position(run).data
    known = np.isfinite(found.standard_error)
    reach = np.array(high.y, dtype=float) - np.array(low.y, dtype=float)
    np.testing.assert_allclose(reach[known], 2 * 1.96 * found.standard_error[known])
    np.testing.assert_array_equal(np.array(mean.y, dtype=float), found.mean)
    np.testing.assert_array_equal(num.y, found.num)
    bars = plot.lengths(run).data[0]
    rows = report_runs.rows_of(folder)
    assert {x: y for x, y in zip(bars.x, bars.y, strict=True) if y} == Counter(
        row["gen_len"] for row in rows
    )


def test_headline_numbers_are_those_of_the_summary(folder: Path, parsed: Parsed) -> None:
    summary = open_run(folder).manifest.summary
    assert summary is not None
    for name in ("logprob_per_token", "logq_per_token", "rb_entropy_per_sequence"):
        assert (
            plus_minus(**{"value": summary[name]["mean"], "error": summary[name]["standard_error"]})
            in parsed.text
        )
    assert number(summary["num_tokens"]) in parsed.text


def test_parity_of_the_folder_is_shown(parsed: Parsed) -> None:
    for text in (
        "Parity does not hold.",
        "PIT vllm",
        "1.25e−09",
        "6.5",
        "0.0123",
        "−∞",
        "vllm and hf",
    ):
        assert text in parsed.text
    assert ("tr", "class", "failed") in parsed.attributes


def test_a_report_that_is_named_stands_in_its_place(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(parity_reports.report("mine", holds=True))
    text = Parsed(render_page(open_run(folder), parity=file, tokens=False)).text
    assert "Parity holds." in text
    assert "PIT mine" in text
    assert "PIT vllm" not in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "it has no checks"),
        ('{"checks": 3}', "it has no checks"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_report_that_is_none(content: str, said: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    file.write_text(content)
    with pytest.raises(RunError, match=said):
        render_page(open_run(folder), parity=file, tokens=False)
    copy = report_runs.sampled(tmp_path / "run", draws=2)
    (copy / "parity.json").write_text(content)
    assert said in Parsed(render_page(open_run(copy), tokens=False)).text


@pytest.mark.parametrize(
    "content",
    [
        '{"checks": {"a": 3, "b": [1, {}], "c": [{"findings": [{"p_value": "x"}], "verdict": 1}]}}',
        '{"checks": {"a": [{"mismatch": [], "causes": [{}], "worst": [{"text": {}}]}]}}',
        '{"checks": {}, "comparisons": [{"engines": 7, "divergences": {}}], "holds": "yes"}',
        '{"checks": {"a": [{"policy": 7, "findings": [{"statistic": 1e999, "p_value": NaN}]}]}}',
    ],
)
def test_any_report_has_a_page(content: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "parity.json"
    file.write_text(content)
    text = Parsed(render_page(open_run(folder), parity=file, tokens=False)).text
    assert "Not all checks are done." in text


def test_no_text_of_a_run_acts(tmp_path: Path, parsed: Parsed) -> None:
    hostile = "".join(report_runs.HOSTILE) + "\ud800 \u2028 ' \" `"
    path = report_runs.sampled(
        tmp_path / "<img src=x onerror=alert(4)>",
        dataset=report_runs.hostile_prompts(tmp_path / "prompts.jsonl"),
    )
    report_runs.shifted(path, "moved")
    file = tmp_path / "parity.json"
    file.write_text(parity_reports.report(hostile))
    edit_manifest(path, hostile)
    page = render_page(open_run(path), parity=file, tokens=False, title=hostile)
    found = Parsed(page)
    assert found.tags.keys() == parsed.tags.keys()
    assert found.tags["script"] == parsed.tags["script"]
    assert found.tags["img"] == 0
    assert "<img src=x onerror=alert(2)>" in found.text  # shown as it is
    assert "⟨U+202E⟩" in found.text
    unseen = {c for c in page if unicodedata.category(c) in ("Cf", "Cs", "Cc")} - set("\n\t")
    assert unseen - set(Path(plotly_file()).read_text(encoding="utf-8")) == set()
    page.encode()  # no lone surrogates


def plotly_file() -> str:
    import plotly

    return str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js")


def edit_manifest(path: Path, text: str) -> None:
    """Put a text into places of a manifest on which no key depends."""
    edit(
        path / "manifest.json", error=text.replace("\ud800", ""), created=text.replace("\ud800", "")
    )


def test_values_that_are_not_finite_break_nothing(tmp_path: Path) -> None:
    Maker().complete(tmp_path / "run")
    found = Parsed(render_page(open_run(tmp_path / "run"), tokens=False))
    assert "with a token outside the support" in found.text or "outside the support" in found.text
    for block in found.blocks.values():
        json.loads(block, parse_constant=lambda name: pytest.fail(name))
    assert "keeps no column 'cut_margin': --token-column cut_margin" in found.text
    assert "The engine reported no log q of its own" in found.text
    assert "The run has no further sets of scores" in found.text
    assert "There is no parity.json in the run's folder" in found.text


def test_a_run_that_was_stopped_says_so(tmp_path: Path) -> None:
    Maker().stopped(tmp_path / "run")
    run = open_run(tmp_path / "run")
    text = Parsed(render_page(run, tokens=False)).text
    assert "This run is not complete (interrupted)" in text
    assert f"{run.num_rows} of 24 sampled and scored" in text


def test_a_run_without_rows_has_a_page(tmp_path: Path) -> None:
    Maker().stopped(tmp_path / "run", at=0)
    assert open_run(tmp_path / "run").num_rows == 0
    text = Parsed(render_page(open_run(tmp_path / "run"))).text
    assert "has no draws yet that are sampled and scored" in text


def test_a_set_of_scores_that_is_not_complete_is_a_line(tmp_path: Path) -> None:
    path = report_runs.sampled(tmp_path / "run", draws=4)
    report_runs.shifted(path, "moved")
    edit(path / "scores" / "moved" / "set.json", merge=0)
    text = Parsed(render_page(open_run(path), tokens=False)).text
    assert "moved: the scores 'moved' of" in text
    assert "are not complete" in text


def test_draws_in_quarantine_are_listed(tmp_path: Path) -> None:
    processor = Maker().unscorable(draw_seed(SPEC.seed, 3))
    sample_run(processor, SPEC, tmp_path / "run", chunk_size=CHUNK)
    text = Parsed(render_page(open_run(tmp_path / "run"), tokens=False)).text
    assert "Draws that always failed" in text
    assert "not a number" in text


def test_a_page_does_not_grow_with_the_run(page: str, tmp_path: Path) -> None:
    path = report_runs.sampled(tmp_path / "run", draws=400)
    report_runs.shifted(path, "moved")
    (path / "parity.json").write_text(parity_reports.report())
    assert len(render_page(open_run(path), tokens=False)) < len(page) + 30_000


def test_a_page_is_written_whole_beside_a_sound_run(tmp_path: Path) -> None:
    path = report_runs.sampled(tmp_path / "run", draws=4)
    file = path / "report.html"
    size = write_page(open_run(path), file)
    assert file.stat().st_size == size
    found = examine_run(path)
    assert (found.faults, found.notes) == ([], [])
    (path / "other.html").write_text("")
    assert examine_run(path).notes == ["other.html: nothing reads it"]
    with pytest.raises(ConfigError, match="a folder that is not there"):
        write_page(open_run(path), tmp_path / "none" / "page.html")
    with pytest.raises(RunError, match="cannot read"):
        write_page(open_run(path), file, parity=tmp_path / "none.json")
    assert file.stat().st_size == size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1,234,567"),
        (-(10**400), f"−{10**400:,}"),
        (-0.000123456789, "−0.000123457"),
        (float("-inf"), "−∞"),
        (float("nan"), "undetermined"),
        (None, "–"),
        (2.0, "2"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_as_text(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (-2.25071, 0.09641, "−2.251 ± 0.096"),
        (1234.5, 12.0, "1,234 ± 12"),  # half to even
        (1.0, None, "1 ± undetermined"),
        (None, 1.0, "undetermined"),
        (0.5, 0.0, "0.5 ± 0"),
        (6e-9, 8.2e-8, "6e−09 ± 8.2e−08"),
        (3.04625e-6, 8.21e-8, "3.046e−06 ± 8.2e−08"),
        (0.0, 8.2e-11, "0.0e+00 ± 8.2e−11"),
        (1e20, 2e19, "1.00e+20 ± 2.0e+19"),
        (123456.0, 2345.0, "123,456 ± 2,345"),
    ],
)
def test_estimates_as_text(value: float | None, error: float | None, text: str) -> None:
    assert plus_minus(value, error) == text


def test_what_cannot_be_seen_is_spelt_out() -> None:
    assert shown("a\tb\n\u202e\x00\ud800é") == "a\tb\n⟨U+202E⟩⟨U+0000⟩⟨U+D800⟩é"


def test_nothing_in_a_script_ends_it() -> None:
    value = {"</script>": "<!-- & \u2028\u2029 \ud800"}
    text = in_script(value)
    assert not set(text) & set("<>&\u2028\u2029\ud800")
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        in_script(float("nan"))
