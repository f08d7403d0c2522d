"""Reading a run while it changes, and with arguments that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.run_folders import DRAWS, Maker
from seqproc.errors import MissingFileError, RunError, SeqprocError
from seqproc.runs import Run, add_scores, open_run, score_run
from seqproc.runs.format.parts import Parts


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


@pytest.fixture(scope="module")
def run(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(maker.complete(tmp_path_factory.mktemp("runs") / "run").path)


@pytest.mark.parametrize(
    "read",
    [
        lambda run: run.rows(["draw"])["draw"].to_pylist(),
        lambda run: [run.row(draw)["draw"] for draw in range(16)],
        lambda run: run.to_batched_sequences(range(16)).seeds,
        lambda run: run.to_batched_sequences().seeds,
    ],
)
def test_a_run_that_is_merged_after_it_was_opened_is_read_on(
    maker: Maker, tmp_path: Path, read: Callable[[Run], list[Any]]
) -> None:
    maker.stopped(tmp_path / "run")
    opened = open_run(tmp_path / "run")
    before = read(open_run(tmp_path / "run"))
    maker.complete(tmp_path / "run")
    found = read(opened)
    assert found[: len(before)] == before
    assert opened.manifest.state == "complete"


def test_parts_that_are_merged_while_they_are_found_are_found(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker.stopped(tmp_path / "run")
    names = Parts.names
    merged: list[int] = []

    def then_merged(parts: Parts, merge: int) -> list[str]:
        found = names(parts, merge)
        if not merged:
            merged.append(1)
            maker.complete(tmp_path / "run")
        return found

    monkeypatch.setattr(Parts, "names", then_merged)
    assert open_run(tmp_path / "run").num_rows == DRAWS


def test_a_file_that_is_lost_is_named_once(maker: Maker, tmp_path: Path) -> None:
    opened = maker.complete(tmp_path / "run").open()
    file = tmp_path / "run/samples/rows-1-00000.parquet"
    file.unlink()
    with pytest.raises(MissingFileError) as caught:
        opened.rows()
    assert str(caught.value) == f"cannot read {file}: it is not there"


@pytest.mark.parametrize("draw", [1.5, float("nan"), "a", None, [1], np.array([1, 2])])
def test_what_is_no_draw_is_refused(run: Run, draw: Any) -> None:
    with pytest.raises(RunError, match="a draw must be an integer, got"):
        run.row(draw)
    with pytest.raises(RunError, match="a draw must be an integer, got"):
        run.to_batched_sequences([draw])


@pytest.mark.parametrize("draws", [5, "12", b"12"])
def test_what_are_no_draws_is_refused(run: Run, draws: Any) -> None:
    with pytest.raises(RunError, match="draws must be a list of integers, got"):
        run.to_batched_sequences(draws)


def test_integers_of_numpy_are_draws(run: Run) -> None:
    assert run.row(np.int64(3))["draw"] == 3  # type: ignore[arg-type]
    draws: Any = np.array([3, 1])
    assert run.to_batched_sequences(draws).seeds == run.to_batched_sequences([3, 1]).seeds


@pytest.mark.parametrize("size", [0, -1, 1.5, float("nan"), "a", None, True])
def test_what_is_no_size_of_a_batch_is_refused_at_once(run: Run, size: Any) -> None:
    for read in (run.batches, run.sample_batches):
        with pytest.raises(SeqprocError, match="batch_size must be an integer >= 1"):
            read(batch_size=size)


def test_a_batch_may_be_larger_than_any_run(run: Run) -> None:
    assert [batch.num_rows for batch in run.batches(batch_size=10**30)] == [DRAWS]


def test_columns_that_cannot_be_are_refused(run: Run) -> None:
    for read in (run.rows, run.batches, lambda columns: run.row(1, columns)):
        with pytest.raises(RunError, match="columns must be a list of names, got 5"):
            read(5)  # type: ignore[arg-type]
        with pytest.raises(RunError, match="the column 'draw' is asked for twice"):
            read(["draw", "gen_len", "draw"])


def test_what_cannot_be_scored_again_is_refused(maker: Maker, run: Run, tmp_path: Path) -> None:
    sources: list[Any] = [None, 5, b"x", "~nobody-of-that-name/x", "x" * 300, "\0"]
    for source in sources:
        with pytest.raises(RunError, match=r"the source must be a path|cannot look at"):
            score_run(maker.processor(), source, tmp_path / "out")
    for size in (0, -1, 1.5, "a"):
        with pytest.raises(SeqprocError, match="chunk_size must be an integer >= 1"):
            add_scores(maker.processor(), run.path, "x", chunk_size=size)  # type: ignore[arg-type]
    with pytest.raises(SeqprocError, match="override must be a path"):
        add_scores(maker.processor(), run.path, "x", override=5)  # type: ignore[arg-type]


def test_a_run_is_not_scored_into_itself(maker: Maker, tmp_path: Path) -> None:
    maker.complete(tmp_path / "outer/run")
    rows = open_run(tmp_path / "outer/run").rows()
    (tmp_path / "link").symlink_to(tmp_path / "outer/run")
    for source, out, wrong in (
        ("outer/run", "outer/run", "is read, and cannot be the new run's folder as well"),
        ("outer/run", "link", "is read, and cannot be the new run's folder as well"),
        ("outer/run", "outer", "lies in"),
    ):
        for fresh in (False, True):
            with pytest.raises(RunError, match=wrong):
                score_run(maker.processor(), tmp_path / source, tmp_path / out, fresh=fresh)
    assert open_run(tmp_path / "outer/run").rows().equals(rows)
