"""Every number of a page against plain Python over the rows, as pyarrow alone reads them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import report_runs
from helpers.run_folders import Maker, rewrite, with_column
from seqproc.report import numbers, weights
from seqproc.report.histograms import histogram
from seqproc.report.rows import NotKeptError
from seqproc.runs import open_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = report_runs.sampled(tmp_path_factory.mktemp("report") / "run")
    report_runs.shifted(path, "moved")
    report_runs.shifted(path, "sums", ("rb_entropies",))
    return path


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which many tokens lie outside the support."""
    path = tmp_path_factory.mktemp("report") / "scripted"
    Maker().complete(path)
    return path


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


def ratio(sums: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """Σ x / Σ t and its standard error, clustered by draw (Cochran 1977, ch. 6)."""
    n, value = len(sums), sum(sums) / sum(counts)
    squares = sum((x - value * t) ** 2 for x, t in zip(sums, counts, strict=True))
    return value, math.sqrt(n / (n - 1) * squares) / sum(counts)


@pytest.mark.parametrize("which", ["folder", "scripted"])
def test_headline(which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    found, rows = numbers.summary_of_rows(open_run(path)), report_runs.rows_of(path)
    lengths = column(rows, "gen_len")
    assert found.num_draws == len(rows)
    assert found.num_tokens == sum(lengths)
    assert found.num_out_of_support == sum(x == -math.inf for r in rows for x in r["logqs"])
    for estimate, name in (
        (found.logprob_per_token, "logprobs"),
        (found.rb_entropy_per_token, "rb_entropies"),
    ):
        value, error = ratio([sum(row[name]) for row in rows], lengths)
        assert estimate.mean == pytest.approx(value, rel=1e-12)
        assert estimate.standard_error == pytest.approx(error, rel=1e-9)
    inside = [[x for x in row["logqs"] if x > -math.inf] for row in rows]
    value, error = ratio([sum(x) for x in inside], [len(x) for x in inside])
    assert found.logq_per_token.mean == pytest.approx(value, rel=1e-12)
    assert found.logq_per_token.standard_error == pytest.approx(error, rel=1e-9)
    rewards = column(rows, "reward")
    assert found.reward.mean == pytest.approx(statistics.mean(rewards))
    assert found.reward.standard_error == pytest.approx(
        statistics.stdev(rewards) / math.sqrt(len(rewards))
    )


def test_distributions_over_draws(folder: Path) -> None:
    run, rows = open_run(folder), report_runs.rows_of(folder)
    expected = {
        "length": column(rows, "gen_len"),
        "reward": column(rows, "reward"),
        "logprob": [sum(row["logprobs"]) for row in rows],
        "logprob_per_token": [statistics.mean(row["logprobs"]) for row in rows],
        "entropy": [sum(row["rb_entropies"]) for row in rows],
        "entropy_per_token": [statistics.mean(row["rb_entropies"]) for row in rows],
    }
    assert set(expected) == set(numbers.OF_DRAWS)
    for name, values in expected.items():
        found = numbers.of_draws(run, name)
        assert found.num == found.counts.sum() == len(values)
        assert found.mean == pytest.approx(statistics.mean(values), rel=1e-9)
        assert found.deviation == pytest.approx(statistics.stdev(values), rel=1e-9)
        assert found.median == pytest.approx(statistics.median(values), rel=1e-9)
        assert (found.least, found.most) == pytest.approx((min(values), max(values)), rel=1e-9)
        assert found.edges[0] <= min(values) + 1e-9
        assert found.edges[-1] >= max(values) - 1e-9
        if name == "length":
            in_bins = [
                sum(left <= x < right for x in values)
                for left, right in zip(found.edges[:-1], found.edges[1:], strict=True)
            ]
            assert found.counts.tolist() == in_bins


def test_distributions_over_tokens(folder: Path) -> None:
    run, rows = open_run(folder), report_runs.rows_of(folder)
    for name in ("head_mass", "cut_margin"):
        values = [x for row in rows for x in row[name]]
        found = numbers.of_tokens(run, name)
        finite = [x for x in values if math.isfinite(x)]
        assert found.num == len(finite)
        assert found.mean == pytest.approx(statistics.mean(finite))
        assert sum(found.left_out.values()) == len(values) - len(finite)


@pytest.mark.parametrize("which", ["folder", "scripted"])
@pytest.mark.parametrize("name", ["rb_entropies", "logqs"])
def test_means_by_position(name: str, which: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(which)
    found, rows = numbers.by_position(open_run(path), name), report_runs.rows_of(path)
    assert len(found.mean) == max(len(row[name]) for row in rows)
    for position in range(len(found.mean)):
        reaching = [row[name][position] for row in rows if len(row[name]) > position]
        values = [x for x in reaching if math.isfinite(x)]
        assert found.num_reaching[position] == len(reaching)
        assert found.num[position] == len(values)
        if not values:
            assert math.isnan(found.mean[position])
            continue
        assert found.mean[position] == pytest.approx(statistics.mean(values), rel=1e-12)
        if len(values) == 1:
            assert math.isnan(found.standard_error[position])
        else:
            error = statistics.stdev(values) / math.sqrt(len(values))
            assert found.standard_error[position] == pytest.approx(error, rel=1e-9, abs=1e-12)


def test_entropy_both_ways(folder: Path) -> None:
    found, rows = numbers.entropy_comparison(open_run(folder)), report_runs.rows_of(folder)
    rb = [sum(row["rb_entropies"]) for row in rows]
    naive = [-sum(row["logqs"]) for row in rows]
    n = len(rows)
    for estimate, values in (
        (found.gain.rao_blackwell, rb),
        (found.gain.naive, naive),
        (found.gain.difference, [a - b for a, b in zip(naive, rb, strict=True)]),
    ):
        assert estimate.value == pytest.approx(statistics.mean(values), rel=1e-9)
        error = statistics.stdev(values) / math.sqrt(n)
        assert estimate.standard_error == pytest.approx(error, rel=1e-9)
    ratios = [
        statistics.variance(naive[:i] + naive[i + 1 :]) / statistics.variance(rb[:i] + rb[i + 1 :])
        for i in range(n)
    ]
    centre = statistics.mean(ratios)
    error = math.sqrt((n - 1) / n * sum((x - centre) ** 2 for x in ratios))
    assert found.gain.variance_ratio == pytest.approx(
        statistics.variance(naive) / statistics.variance(rb)
    )
    assert found.variance_ratio_error == pytest.approx(error, rel=1e-9)
    assert found.rao_blackwell.counts.sum() == found.naive.counts.sum() == n


def test_the_error_of_a_variance_ratio_is_that_of_many_samples() -> None:
    # 400 samples of 200 draws: the spread of the ratio is told to 4 %, the jackknife's mean to 1 %.
    rng = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(400):
        x, y = rng.normal(size=(2, 200))
        ratios.append(x.var(ddof=1) / (x + y).var(ddof=1))
        errors.append(numbers.variance_ratio_error(x, x + y))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.15)
    assert np.mean(errors) != pytest.approx(np.std(ratios) * math.sqrt(2), rel=0.15)


@pytest.mark.parametrize("y", [[1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
def test_a_variance_ratio_has_no_error_where_one_draw_is_all(y: list[float]) -> None:
    x = np.arange(len(y), dtype=float)
    assert math.isnan(numbers.variance_ratio_error(x, np.array(y)))


def test_draws_outside_the_support_are_counted_and_left_out(scripted: Path) -> None:
    rows = report_runs.rows_of(scripted)
    outside = sum(-math.inf in row["logqs"] for row in rows)
    assert 0 < outside < len(rows)
    assert numbers.entropy_comparison(open_run(scripted)).num_left_out == outside


def test_engine_against_scorer(folder: Path, tmp_path: Path) -> None:
    found, rows = numbers.engine_gap(open_run(folder)), report_runs.rows_of(folder)
    gaps = [[a - b for a, b in zip(row["engine_logqs"], row["logqs"], strict=True)] for row in rows]
    lengths = [len(x) for x in gaps]
    for estimate, sums in (
        (found.mean, [sum(x) for x in gaps]),
        (found.mean_absolute, [sum(map(abs, x)) for x in gaps]),
    ):
        value, error = ratio(sums, lengths)
        assert estimate.value == pytest.approx(value, rel=1e-6, abs=1e-15)
        assert estimate.standard_error == pytest.approx(error, rel=1e-6)
    largest = max((abs(x), d, t) for d, row in enumerate(gaps) for t, x in enumerate(row))
    assert found.largest == pytest.approx(largest[0])
    assert abs(gaps[found.largest_draw][found.largest_position]) == pytest.approx(largest[0])
    assert found.gaps.num == sum(lengths)
    assert (found.num_left_out, found.num_silent) == (0, 0)


def test_engine_reports_with_gaps_in_them(tmp_path: Path) -> None:
    path = report_runs.sampled(tmp_path / "run", draws=6)

    def broken(values: list[Any]) -> list[Any]:
        _, second, *rest = values
        return [None, [-math.inf, *second[1:]], *rest]

    rewrite(path, "samples/rows-1-00000", with_column("engine_logqs", broken))
    found, rows = numbers.engine_gap(open_run(path)), report_runs.rows_of(path)
    assert (found.num_left_out, found.num_silent) == (1, 1)
    kept = [
        a - b
        for row in rows[1:]
        for a, b in zip(row["engine_logqs"], row["logqs"], strict=True)
        if a > -math.inf
    ]
    assert found.gaps.num == len(kept)
    assert found.mean.value == pytest.approx(statistics.mean(kept), rel=1e-6)


@pytest.mark.parametrize("name", ["moved", "sums"])
def test_importance_weights(name: str, folder: Path) -> None:
    run = open_run(folder)
    found = weights.importance_weights(run, name)
    own, moved = report_runs.rows_of(folder), report_runs.rows_of(folder, name)
    logs = [b["sequence_logq"] - a["sequence_logq"] for a, b in zip(own, moved, strict=True)]
    w = [math.exp(x) for x in logs]
    assert found.num_draws == len(w)
    assert found.mean.value == pytest.approx(statistics.mean(w))
    assert found.mean.standard_error == pytest.approx(statistics.stdev(w) / math.sqrt(len(w)))
    assert found.effective_sample_size == pytest.approx(sum(w) ** 2 / sum(x * x for x in w))
    finite = [x for x in logs if math.isfinite(x)]
    assert found.log_weights.num == len(finite)
    assert found.log_weights.left_out.get("−∞", 0) == len(logs) - len(finite)
    assert len(set(w)) > 30  # η moves them
    assert f"θ + {report_runs.ETA}·v" in weights.scored_at(found.made_by)


def test_finish_reasons(folder: Path) -> None:
    expected = Counter(row["finish_reason"] for row in report_runs.rows_of(folder))
    found = numbers.finish_reasons(open_run(folder))
    assert found == dict(expected)
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [math.nan, math.inf, -math.inf],
        [3.0],
        [3.0, 3.0, math.nan],
        [0.0, 5e-324],
        [1.0, 1.0 + 2**-52],
        [1e308, -1e308, 2.0],
        [-1e20, 1e20],
    ],
)
def test_any_numbers_have_a_histogram(values: list[float]) -> None:
    for whole in (False, True):
        if whole and any(x != math.floor(x) for x in values if math.isfinite(x)):
            continue
        found = histogram(np.array(values), whole=whole)
        assert found.num + sum(found.left_out.values()) == len(values)
        assert found.counts.sum() == found.num
        assert (np.diff(found.edges) > 0).all()


def test_what_is_not_kept_is_named(tmp_path: Path) -> None:
    path = report_runs.sampled(tmp_path / "run", draws=3, columns=("logprobs",))
    run = open_run(path)
    for name in ("cut_margin", "head_mass"):
        with pytest.raises(NotKeptError, match=f"--token-column {name}"):
            numbers.of_tokens(run, name)
    with pytest.raises(NotKeptError, match="--token-column logqs"):
        numbers.engine_gap(run)
    with pytest.raises(NotKeptError, match="seqproc score RUN --name"):
        weights.score_sets(run)
