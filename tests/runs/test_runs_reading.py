"""Reading a run with what people read data with: polars, pandas, DuckDB."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from helpers.run_folders import DRAWS, SPEC, Maker, Scripted
from seqproc import SequenceProcessor
from seqproc.runs import Run, RunSpec, add_scores, open_run, sample_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "runs.md"
RECIPES = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)

duckdb = pytest.importorskip("duckdb")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "first"
    maker = Maker()
    processor = SequenceProcessor(
        maker.model,
        maker.tokenizer,
        config={"generation": {"max_new_tokens": 4}},  # cuts some of the responses off
        engine=Scripted(maker.tokenizer, None, KeyboardInterrupt),
    )
    spec = RunSpec(dataset=SPEC.dataset, draws=DRAWS, seed=5, max_prompts_pool=4)
    sample_run(processor, spec, folder)
    add_scores(processor, folder, "eta-1e-6")
    return open_run(folder)


def answer(recipe: int, run: Run) -> list[tuple[float, ...]]:
    """What DuckDB says to a recipe of the document."""
    rows = duckdb.sql(RECIPES[recipe].replace("runs/first", str(run.path))).fetchall()
    return [tuple(row) for row in rows]


def test_every_recipe_is_looked_at() -> None:
    assert len(RECIPES) == 4


def test_duckdb_joins_samples_and_scores(run: Run) -> None:
    rows = run.to_pandas(["finish_reason", "gen_len", "rb_entropy_sum"])
    groups = rows.groupby("finish_reason")
    expected = {
        (reason, len(own), own.gen_len.mean(), own.rb_entropy_sum.mean()) for reason, own in groups
    }
    found = answer(0, run)
    assert len(found) == len(expected) > 1
    for reason, count, *means in sorted(expected):
        (same,) = [row for row in found if row[0] == reason]
        assert same[1] == count
        assert same[2:] == pytest.approx(means, rel=1e-12)


def test_duckdb_knows_the_entropy_at_each_position(run: Run) -> None:
    per_draw = run.rows(["rb_entropies"])["rb_entropies"].to_pylist()
    found = answer(1, run)
    assert [row[0] for row in found] == list(range(1, max(map(len, per_draw)) + 1))
    for position, entropy, draws in found:
        own = [values[int(position) - 1] for values in per_draw if len(values) >= position]
        assert draws == len(own)
        assert entropy == pytest.approx(np.mean(own), rel=1e-12)


def test_duckdb_finds_the_best_prompts(run: Run) -> None:
    rows = run.to_pandas(["prompt_index", "reward"])
    means = rows.groupby("prompt_index").reward.agg(["count", "mean"])
    several = means[means["count"] > 1]
    found = answer(2, run)
    assert {row[:2] for row in found} == set(zip(several.index, several["count"], strict=True))
    assert [row[2] for row in found] == sorted((row[2] for row in found), reverse=True)


def test_duckdb_weighs_further_scores(run: Run) -> None:
    own, moved = run.rows(["sequence_logq"]), run.scores("eta-1e-6")
    log_w = moved["sequence_logprob"].to_numpy() - own["sequence_logq"].to_numpy()
    ((found,),) = answer(3, run)
    weights = np.exp(log_w)
    assert found == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-9)
    assert 1 <= found <= DRAWS


def test_polars_and_pandas_hold_the_rows_of_arrow(run: Run) -> None:
    polars = pytest.importorskip("polars")
    rows = run.rows()
    frame = run.to_polars()
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == rows.column_names
    assert frame["response_ids"].to_list() == rows["response_ids"].to_pylist()
    assert frame["logqs"].to_list() == rows["logqs"].to_pylist()
    assert run.to_polars(["draw"])["draw"].to_list() == list(range(DRAWS))
    again = pa.Table.from_pandas(run.to_pandas(["draw", "reward"]), preserve_index=False)
    assert again["reward"].to_pylist() == rows["reward"].to_pylist()
