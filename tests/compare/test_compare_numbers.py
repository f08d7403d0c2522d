"""The numbers of a comparison against the rows of both runs, read and summed on their own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from helpers.report_runs import rows_of
from seqproc._util import strict_json
from seqproc.compare import Comparison, compare_runs
from seqproc.errors import ConfigError, RunError
from seqproc.runs import Run, open_run

Row = dict[str, Any]
Rows = list[Row]


def pairs_of(runs: Path, a: str = "a", b: str = "cooler") -> list[tuple[Row, Row]]:
    """Rows of both with the same draw."""
    of_b = {row["draw"]: row for row in rows_of(runs / b)}
    return [(row, of_b[row["draw"]]) for row in rows_of(runs / a) if row["draw"] in of_b]


def by_name(found: Comparison) -> dict[str, Any]:
    return {one.name: one for one in found.numbers}


# Numerator and denominator of each headline number, of one row.
ORACLES = {
    "length": lambda r: (len(r["response_ids"]), 1),
    "cut off at the longest length": lambda r: (r["finish_reason"] == "length", 1),
    "log p": lambda r: (sum(r["logprobs"]), len(r["response_ids"])),
    "log q, inside the support": lambda r: (
        sum(x for x in r["logqs"] if x > -math.inf),
        sum(x > -math.inf for x in r["logqs"]),
    ),
    "Rao-Blackwell entropy": lambda r: (sum(r["rb_entropies"]), len(r["rb_entropies"])),
    "Rao-Blackwell entropy per response": lambda r: (sum(r["rb_entropies"]), 1),
    "out of support": lambda r: (sum(x == -math.inf for x in r["logqs"]), len(r["logqs"])),
    "reward": lambda r: (r["reward"], 1),
}


def columns(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    made = np.array([ORACLES[name](row) for row in rows], dtype=float)
    return made[:, 0], made[:, 1]


def jackknife(estimate: Any, num: int) -> float:
    """The delete-one standard error of an estimate: what linearisation approximates."""
    left = np.array([estimate(np.delete(np.arange(num), i)) for i in range(num)])
    return math.sqrt((num - 1) / num * ((left - left.mean()) ** 2).sum())


@pytest.mark.parametrize("name", list(ORACLES))
def test_paired_differences_and_their_errors(name: str, runs: Path) -> None:
    one = by_name(compare_runs(runs / "a", runs / "cooler"))[name]
    of_a, of_b = zip(*pairs_of(runs), strict=True)
    (h_a, t_a), (h_b, t_b) = columns(list(of_a), name), columns(list(of_b), name)
    value_a, value_b = h_a.sum() / t_a.sum(), h_b.sum() / t_b.sum()
    assert one.a.value == pytest.approx(value_a, rel=1e-6)
    assert one.b.value == pytest.approx(value_b, rel=1e-6)
    assert one.difference == pytest.approx(value_a - value_b, rel=1e-5, abs=1e-7)
    assert one.num_left_out == 0
    if (t_a == 1).all() and (t_b == 1).all():  # means: the paired t-test has its own code
        expected = stats.sem(h_a - h_b)
        assert one.standard_error == pytest.approx(expected, rel=1e-6)
    else:
        expected = jackknife(
            lambda i: h_a[i].sum() / t_a[i].sum() - h_b[i].sum() / t_b[i].sum(), len(h_a)
        )
        assert one.standard_error == pytest.approx(expected, rel=0.02)
    if expected:
        assert one.z == pytest.approx(one.difference / one.standard_error)
        assert one.p == pytest.approx(2 * stats.norm.sf(abs(one.z)), rel=1e-9)
    else:
        assert math.isnan(one.z)
        assert math.isnan(one.p)


def test_pairs_by_prompt_are_summed_by_prompt(runs: Path) -> None:
    found = compare_runs(runs / "other", runs / "other-cooler", clusters="prompt")
    one = by_name(found)["Rao-Blackwell entropy per response"]
    pairs = pairs_of(runs, "other", "other-cooler")
    gaps = np.array([sum(a["rb_entropies"]) - sum(b["rb_entropies"]) for a, b in pairs])
    prompts = [a["prompt_text"] for a, _ in pairs]
    names = sorted(set(prompts))
    assert one.a.num_clusters == len(names) == 3
    centred = gaps - gaps.mean()
    sums = [centred[[p == name for p in prompts]].sum() for name in names]
    expected = math.sqrt(3 / 2 * sum(s**2 for s in sums)) / len(gaps)
    assert one.standard_error == pytest.approx(expected, rel=1e-6)
    by_draw = by_name(compare_runs(runs / "other", runs / "other-cooler"))
    assert by_draw[one.name].standard_error != pytest.approx(expected, rel=1e-3)


def test_other_datasets_are_compared_unpaired_and_it_says_so(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "other")
    assert found.paired is None
    assert found.verdict == "not paired"
    assert found.pairing.said.startswith("Not paired: of 30 draws of the same index only 0 have")
    for name, one in by_name(found).items():
        (h_a, t_a), (h_b, t_b) = (columns(rows_of(runs / r), name) for r in ("a", "other"))
        assert one.difference == pytest.approx(
            h_a.sum() / t_a.sum() - h_b.sum() / t_b.sum(), rel=1e-5, abs=1e-7
        )
        if name == "length":
            expected = math.hypot(stats.sem(h_a), stats.sem(h_b))
            assert one.standard_error == pytest.approx(expected, rel=1e-9)
        assert one.a.num_draws == 40
        assert one.b.num_draws == 30


def test_a_run_and_itself_are_identical(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "a")
    assert found.verdict == "identical"
    assert found.settings == []
    assert found.num_same_settings > 40
    assert all(one.difference == one.standard_error == 0 for one in found.numbers)
    assert found.paired.responses.num_identical == found.paired.responses.num == 40
    assert all(h.least == h.most == 0 for h in found.paired.differences.values() if h.num)
    for gap in found.paired.token_gaps:
        assert gap.largest == gap.mean.value == gap.mean_absolute.value == 0
        assert gap.k3 is None or gap.k3.value == gap.k3.standard_error == 0
    assert found.paired.most_different == found.paired.first_parted == []


def test_settings_that_differ(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "cooler")
    kept = {one.name: (one.a, one.b) for one in found.settings}
    of_a, of_b = (json.loads((runs / r / "manifest.json").read_text()) for r in ("a", "cooler"))
    assert kept.pop("prompts") == (of_a["prompts"], of_b["prompts"])
    assert kept == {
        "policy.temperature": ("1.0", "0.7"),
        "spec.draws": ("40", "48"),
        "num_draws": ("40", "48"),
    }


def test_draws_of_one_run_alone_are_left_out_and_said(runs: Path) -> None:
    found = compare_runs(runs / "cooler", runs / "a")
    assert found.pairing.is_paired
    assert found.pairing.draws.tolist() == list(range(40))
    assert "no such draw: 8 draws of A." in found.pairing.said
    back = by_name(compare_runs(runs / "a", runs / "cooler"))
    for name, one in by_name(found).items():
        assert one.difference == pytest.approx(-back[name].difference, abs=1e-12)
        assert one.standard_error == pytest.approx(back[name].standard_error)


# ---------------------------------------------------------------------- tokens


def shared_of(a: Row, b: Row) -> int:
    """Tokens before the first that differs."""
    num = 0
    for x, y in zip(a["response_ids"], b["response_ids"], strict=False):
        if x != y:
            break
        num += 1
    return num


def test_where_responses_part(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "cooler").paired.responses
    pairs = pairs_of(runs)
    expected = [shared_of(a, b) for a, b in pairs]
    assert found.prefix.tolist() == expected
    same = [a["response_ids"] == b["response_ids"] for a, b in pairs]
    assert found.is_identical.tolist() == same
    parted = [n for n, is_same in zip(expected, same, strict=True) if not is_same]
    assert found.partings.tolist() == parted
    assert len(parted) > 30


@pytest.mark.parametrize("column", ["logprobs", "logqs", "rb_entropies", "engine_logqs"])
def test_differences_of_shared_tokens(column: str, runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "cooler").paired
    gap = next(one for one in found.token_gaps if one.column == column)
    gaps = [
        (a["draw"], step, a[column][step] - b[column][step])
        for a, b in pairs_of(runs)
        for step in range(shared_of(a, b))
    ]
    values = np.array([x for _, _, x in gaps])
    assert gap.num_tokens == len(gaps) > 40
    assert gap.mean.value == pytest.approx(values.mean(), abs=1e-12)
    assert gap.mean_absolute.value == pytest.approx(np.abs(values).mean())
    draw, step, largest = max(gaps, key=lambda one: abs(one[2]))
    assert (gap.largest_draw, gap.largest_position) == (draw, step)
    assert gap.largest == abs(largest)
    assert gap.num_left_out == 0
    if column == "rb_entropies":
        assert gap.k3 is None
    else:
        expected = (np.exp(-values) - 1 + values).mean()
        assert gap.k3.value == pytest.approx(expected, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize(
    ("column", "change", "verdict"),
    [
        ("logprobs", lambda row: [math.nan, *row[1:]], "identical tokens, other scores"),
        ("logqs", lambda row: [-math.inf, *row[1:]], "identical tokens, other scores"),
        ("reward", lambda _: math.nan, "identical tokens, other scores"),
        ("finish_reason", lambda _: None, "identical tokens, other scores"),
        ("response_text", lambda row: row + " ", "identical tokens, other scores"),
        ("out_of_support", lambda row: row + 1, "identical tokens, other scores"),
        (
            "engine_logqs",
            lambda row: [row[0] + 1e-6, *row[1:]],
            "identical but for the engines' own log q",
        ),
    ],
)
def test_one_number_that_differs_is_seen(
    runs: Path, monkeypatch: Any, column: str, change: Any, verdict: str
) -> None:
    run, whole = open_run(runs / "a"), Run.rows

    def rows(self: Any, columns: Any = None) -> Any:
        table = whole(self, columns)
        if self is not run or column not in table.column_names:
            return table
        values = table[column].to_pylist()
        values[7] = change(values[7])
        place = table.schema.get_field_index(column)
        changed = pa.array(values, table.schema.field(column).type)
        return table.set_column(place, column, changed)

    monkeypatch.setattr(Run, "rows", rows)
    for pair in ((run, runs / "a"), (runs / "a", run)):
        found = compare_runs(*pair)
        assert found.paired.differing == (column,)
        assert found.verdict == verdict
    assert compare_runs(run, run).verdict == "identical"


def test_scores_at_theta_and_theta_plus_eta_v(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "a", scores_b="moved")
    assert found.verdict == "identical tokens, other scores"
    kept = {one.name: one.b for one in found.settings}
    assert kept["scores.override.eta"] == "0.02"
    assert any("without importance weights" in note for note in found.notes)
    own, moved = rows_of(runs / "a"), rows_of(runs / "a", "moved")
    gaps = np.array(
        [
            x - y
            for a, b in zip(own, moved, strict=True)
            for x, y in zip(a["logqs"], b["logqs"], strict=True)
        ]
    )
    gap = next(one for one in found.paired.token_gaps if one.column == "logqs")
    kept_gaps = gaps[np.isfinite(gaps)]
    assert gap.num_left_out == len(gaps) - len(kept_gaps)
    assert gap.mean.value == pytest.approx(kept_gaps.mean())
    assert gap.k3.value == pytest.approx((np.exp(-kept_gaps) - 1 + kept_gaps).mean())
    sums = [a["sequence_logprob"] - b["sequence_logprob"] for a, b in zip(own, moved, strict=True)]
    listed = found.paired.most_different
    order = sorted(range(40), key=lambda n: -abs(sums[n]))[:20]
    assert [one.draw for one in listed] == order
    assert [one.logprob for one in listed] == [sums[n] for n in order]
    assert found.paired.differences["sequence_logprob"].mean == pytest.approx(np.mean(sums))


def test_those_that_part_first_are_listed_first(runs: Path) -> None:
    found = compare_runs(runs / "a", runs / "cooler").paired
    pairs = [(a, b) for a, b in pairs_of(runs) if a["response_ids"] != b["response_ids"]]
    order = sorted(
        pairs, key=lambda p: (shared_of(*p), -abs(p[0]["reward"] - p[1]["reward"]), p[0]["draw"])
    )
    assert [one.draw for one in found.first_parted] == [a["draw"] for a, _ in order[:20]]
    first = found.first_parted[0]
    assert list(first.a.ids) == order[0][0]["response_ids"]
    assert list(first.b.ids) == order[0][1]["response_ids"]


# ---------------------------------------------------------------------- as JSON, and errors


def test_all_of_it_is_json(runs: Path) -> None:
    for other, scores in (("cooler", None), ("other", None), ("a", "moved")):
        found = compare_runs(runs / "a", runs / other, scores_b=scores)
        values = json.loads(strict_json.dumps(found.to_dict()))
        assert values["verdict"] == found.verdict
        assert len(values["numbers"]) == len(ORACLES)
        if found.paired is not None:
            parted = sum(values["paired"]["partings"].values())
            assert parted + values["paired"]["num_identical"] == values["num_pairs"]


def test_errors(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run in"):
        compare_runs(runs / "a", tmp_path)
    with pytest.raises(RunError, match="has no scores 'nope'; it has moved"):
        compare_runs(runs / "a", runs / "a", scores_b="nope")
    with pytest.raises(ConfigError, match="clusters must be 'draw' or 'prompt', got 'seed'"):
        compare_runs(runs / "a", runs / "a", clusters="seed")  # type: ignore[arg-type]
