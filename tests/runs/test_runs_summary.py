"""The streaming summary, against numpy on all rows at once, and its errors against a simulation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqproc.runs.format.schema import rows_schema
from seqproc.runs.format.summary import (
    SAMPLE_COLUMNS,
    SCORE_COLUMNS,
    Moments,
    SummaryAccumulator,
    summary_of,
)


def tables(rows: Sequence[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """Samples and their scores."""

    def table(columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([rows_schema().field(name) for name in columns])
        return pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows], schema)

    return table(SAMPLE_COLUMNS), table(SCORE_COLUMNS)


def random_rows(rng: np.random.Generator, num: int) -> list[dict[str, Any]]:
    rows = []
    for i in range(num):
        length = int(rng.integers(0, 20))
        logqs = -rng.exponential(size=length)
        logqs[rng.random(length) < 0.1] = -np.inf
        rows.append(
            {
                "draw": i,
                "answer": None if i % 3 == 0 else "5",
                "finish_reason": ("eos", "stop", "length", None)[i % 4],
                "gen_len": length,
                "logqs": logqs.tolist(),
                "sequence_logprob": float(-rng.exponential(size=length).sum()),
                "rb_entropy_sum": float(rng.random(length).sum()),
                "inside_logq": float(logqs[np.isfinite(logqs)].sum()),
                "out_of_support": int(np.isneginf(logqs).sum()),
                "reward": float(rng.choice([0.0, 0.5, 1.0])),
            }
        )
    return rows


def test_chunks_add_up_to_what_numpy_says_of_all_rows() -> None:
    rows = random_rows(np.random.default_rng(0), 101)
    summary = SummaryAccumulator()
    for start in range(0, 101, 17):
        some = tables(rows[start : start + 17])
        summary.add(*some, scoring_seconds=0.5, generation_seconds=0.25)
    got = summary.result()

    lengths = np.array([row["gen_len"] for row in rows])
    flat = np.concatenate([row["logqs"] for row in rows])
    entropies = np.array([row["rb_entropy_sum"] for row in rows])
    rewards = np.array([row["reward"] for row in rows if row["answer"]])
    assert got.num_draws == 101
    assert got.num_tokens == lengths.sum()
    assert (got.length_min, got.length_max) == (lengths.min(), lengths.max())
    assert got.length_mean == pytest.approx(lengths.mean())
    assert got.finish_reasons == {"eos": 26, "stop": 25, "length": 25, "unknown": 25}
    assert got.num_out_of_support == np.isneginf(flat).sum() > 0
    assert got.logq_per_token.mean == pytest.approx(flat[np.isfinite(flat)].mean())
    assert got.rb_entropy_per_token.mean == pytest.approx(entropies.sum() / lengths.sum())
    assert got.rb_entropy_per_sequence.mean == pytest.approx(entropies.mean())
    assert got.rb_entropy_per_sequence.standard_error == pytest.approx(
        entropies.std(ddof=1) / np.sqrt(101)
    )
    assert got.reward.mean == pytest.approx(rewards.mean())
    assert got.reward.standard_error == pytest.approx(
        rewards.std(ddof=1) / np.sqrt(got.num_rewarded)
    )
    assert got.generation_tokens_per_second == pytest.approx(lengths.sum() / (6 * 0.25))
    assert got.scoring_tokens_per_second == pytest.approx(lengths.sum() / (6 * 0.5))


def test_the_ratio_standard_error_is_the_jackknifes() -> None:
    """The delete-one jackknife is another route to the same error, equal to O(1/n)."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, 30, size=400).astype(float)
    sums = tokens * rng.gamma(2.0, size=400)
    moments = Moments(2)
    moments.add(np.column_stack([sums, tokens]))
    without_one = (sums.sum() - sums) / (tokens.sum() - tokens)
    jackknife = np.sqrt(399 / 400 * ((without_one - without_one.mean()) ** 2).sum())
    got = moments.ratio(0, 1)
    assert got.mean == pytest.approx(sums.sum() / tokens.sum())
    assert got.standard_error == pytest.approx(jackknife, rel=0.02)


def test_moments_keep_their_digits_far_from_zero() -> None:
    values = np.random.default_rng(2).normal(size=(1000, 1)) + 1e9
    moments = Moments(1)
    for part in np.array_split(values, 13):
        moments.add(part)
    error = moments.average(0).standard_error
    assert error == pytest.approx(float((values - 1e9).std(ddof=1)) / np.sqrt(1000), rel=1e-6)


def _runs(num_runs: int, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and mean-entropy levels of draws whose tokens share a level: strongly clustered."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(5, 40, size=(num_runs, num_draws)).astype(float)
    levels = rng.gamma(4.0, 0.25, size=(num_runs, num_draws))
    return lengths, levels


def test_standard_errors_clustered_by_draw_cover_the_truth() -> None:
    """z² averages 1 over 2,000 simulated runs.

    Its mean has standard deviation √(2/2000) = 0.03, so a band of ±0.2 is 6σ: a false alarm in
    about 1e-9 of seeds. The twin takes tokens for independent and is far outside.
    """
    lengths, levels = _runs(2000, 200)
    squares, naive_squares = [], []
    for tokens, level in zip(lengths, levels, strict=True):
        moments = Moments(2)
        moments.add(np.column_stack([tokens * level, tokens]))
        estimate = moments.ratio(0, 1)
        assert estimate.mean is not None
        assert estimate.standard_error is not None
        deviation = estimate.mean - 1.0  # a level is 4.0 × 0.25 on average, whatever the length
        naive = np.sqrt(np.average((level - estimate.mean) ** 2, weights=tokens) / tokens.sum())
        squares.append((deviation / estimate.standard_error) ** 2)
        naive_squares.append((deviation / naive) ** 2)
    assert np.mean(squares) == pytest.approx(1.0, abs=0.2)
    assert np.mean(naive_squares) > 5


def test_what_one_draw_or_none_does_not_determine_is_none() -> None:
    summary = SummaryAccumulator()
    empty = summary.result()
    assert empty.num_draws == 0
    assert empty.length_mean is None
    assert empty.rb_entropy_per_token.mean is None
    assert empty.generation_tokens_per_second is None

    row = random_rows(np.random.default_rng(4), 2)[1] | {"gen_len": 0, "inside_logq": 0.0}
    summary.add(*tables([row]), scoring_seconds=0.0)
    one = summary.result()
    assert one.length_mean == 0
    assert one.rb_entropy_per_token.mean is None
    assert one.rb_entropy_per_sequence.mean is not None
    assert one.rb_entropy_per_sequence.standard_error is None
    assert one.generation_seconds is None


def test_rewards_count_only_where_there_is_an_answer() -> None:
    base = random_rows(np.random.default_rng(5), 1)[0]
    rows = [base | {"answer": "1", "reward": 1.0}, base | {"answer": None, "reward": 0.0}]
    summary = SummaryAccumulator()
    summary.add(*tables(rows), scoring_seconds=0.0)
    assert summary.result().reward.mean == 1.0
    assert summary.result().num_rewarded == 1
    every = SummaryAccumulator(all_rewarded=True)  # by a reward of one's own
    every.add(*tables(rows), scoring_seconds=0.0)
    assert every.result().reward.mean == 0.5
    assert every.result().num_rewarded == 2


def test_a_summary_is_read_back_as_it_was() -> None:
    summary = SummaryAccumulator()
    rows = random_rows(np.random.default_rng(6), 7)
    summary.add(*tables(rows), scoring_seconds=1.0, generation_seconds=2.0)
    written = json.loads(json.dumps(dataclasses.asdict(summary.result())))
    assert summary_of(written) == summary.result()
