"""Runs that an executor makes in shards: by a fake executor in this process, and by Ray."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from helpers import kill_harness
from helpers.kill_harness import differences
from seqproc import SequenceProcessor
from seqproc._util.optional import is_installed
from seqproc.engines import ScriptedEngine
from seqproc.errors import ConfigError, MissingDependencyError, RunError, RunMismatchError
from seqproc.processor.recipe import ProcessorRecipe
from seqproc.runs import DEFAULT_TOKEN_COLUMNS, RunResult, RunSpec, merge_runs, sample_run
from seqproc.runs.shards.executors import choose_executor
from seqproc.runs.shards.sharded import sample_in_shards
from seqproc.runs.shards.worker import MOST_DEATHS, Outcome, ShardTask, ShardWorker

HARNESS = Path(__file__).parents[1] / "helpers" / "ray_harness.py"
CONFIG = {"generation": {"max_new_tokens": 6, "top_p": 0.9, "gen_batch_size": 4}}
OPTIONS = {"chunk_size": 2, "score": "now", "token_columns": DEFAULT_TOKEN_COLUMNS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    processor = kill_harness.processor()
    processor.model.save_pretrained(folder)  # type: ignore[operator]
    processor.tokenizer.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture
def processor(model: str) -> SequenceProcessor:
    return SequenceProcessor.from_pretrained(model, engine="hf", config=CONFIG)


class FakeExecutor:
    """One worker in this process, which is opened from a pickled recipe.

    Args:
        fails: shards that it answers an error for, without making them.
    """

    def __init__(self, fails: Sequence[int] = ()) -> None:
        self.fails = fails
        self.tasks: list[ShardTask] = []

    def __call__(self, recipe: ProcessorRecipe, tasks: Sequence[ShardTask]) -> Iterator[Outcome]:
        recipe, tasks = pickle.loads(pickle.dumps((recipe, tuple(tasks))))
        worker = ShardWorker(recipe)
        for task in tasks:
            self.tasks.append(task)
            assert task.spec.shard is not None
            if task.spec.shard[0] in self.fails:
                yield Outcome(shard=f"{task.spec.shard[0]}", error="EngineError: broken")
            else:
                yield worker.make(task)


def spec(**fields: Any) -> RunSpec:
    return RunSpec(**{"dataset": "arithmetic", "draws": 10, "seed": 5, **fields})


def sample(
    processor: SequenceProcessor,
    out: Path,
    executor: FakeExecutor,
    num_shards: int = 3,
    *,
    fresh: bool = False,
    **fields: Any,
) -> RunResult:
    named = spec(model=processor.source.name, **fields)
    return sample_in_shards(processor, named, out, executor, num_shards, OPTIONS, fresh=fresh)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_workers_make_the_rows_of_one_process(processor: SequenceProcessor, tmp_path: Path) -> None:
    whole = sample_run(processor, spec(), tmp_path / "whole")
    result = sample(processor, tmp_path / "out", FakeExecutor())
    assert differences(whole.open().rows(), result.open().rows()) == []
    assert result.manifest.key == whole.manifest.key
    assert result.manifest.state == "complete"
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_what_is_complete_is_not_made_again(processor: SequenceProcessor, tmp_path: Path) -> None:
    out, first, second = tmp_path / "out", FakeExecutor(fails=[1]), FakeExecutor()
    with pytest.raises(RunError, match=r"1 of 3 shards .* failed; .* shard 1: EngineError: broken"):
        sample(processor, out, first)
    made = (out / "shards" / "00-of-03" / "samples" / "rows-1-00000.parquet").stat()
    with pytest.raises(RunError, match="holds shards of a run that an executor makes"):
        sample_run(processor, spec(), out)
    with pytest.raises(RunError, match="1 of 3"):
        sample(processor, out, FakeExecutor(fails=[2]), num_shards=7)  # it goes on with three
    still = (out / "shards" / "00-of-03" / "samples" / "rows-1-00000.parquet").stat()
    assert (made.st_ino, made.st_mtime_ns) == (still.st_ino, still.st_mtime_ns)
    result = sample(processor, out, second)
    assert [task.name for task in second.tasks] == [f"shards/0{i}-of-03" for i in range(3)]
    assert result.open().num_rows == 10
    third = FakeExecutor()
    assert sample(processor, out, third).summary.num_draws == 10
    assert third.tasks == []


def test_complete_shards_can_be_merged_by_hand(
    processor: SequenceProcessor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError):
        sample(processor, out, FakeExecutor(fails=[1]))
    made = sample_run(processor, spec(shard=(1, 3)), out / "shards" / "01-of-03")
    assert made.summary.num_draws == 3
    folders = [out / "shards" / f"0{i}-of-03" for i in range(3)]
    assert merge_runs(folders, out).summary.num_draws == 10
    assert sample(processor, out, FakeExecutor()).summary.num_draws == 10
    assert not [name for name in files(out) if name.startswith("shards/")]


def test_shards_of_another_run_are_refused_before_a_worker_starts(
    processor: SequenceProcessor, tmp_path: Path
) -> None:
    out, executor = tmp_path / "out", FakeExecutor()
    with pytest.raises(RunError):
        sample(processor, out, FakeExecutor(fails=[0]))
    with pytest.raises(RunMismatchError) as caught:
        sample(processor, out, executor, seed=6)
    assert any(line.startswith("spec.seed") for line in caught.value.differences)
    assert executor.tasks == []
    result = sample(processor, out, executor, num_shards=2, fresh=True, seed=6)
    assert result.manifest.spec["seed"] == 6
    assert [task.name for task in executor.tasks] == ["shards/00-of-02", "shards/01-of-02"]
    assert any("shards/01-of-03" in name for name in files(out / "set-aside"))


def test_no_more_shards_than_draws(processor: SequenceProcessor, tmp_path: Path) -> None:
    executor = FakeExecutor()
    sample(processor, tmp_path / "out", executor, num_shards=50, draws=2)
    assert len(executor.tasks) == 2


def test_a_shard_that_kills_its_workers_is_given_up(
    processor: SequenceProcessor, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    (folder / "shards").mkdir(parents=True)
    for attempt in range(MOST_DEATHS):
        (folder / "shards" / f"00-of-01.attempt-{attempt}").touch()
    task = ShardTask(
        spec=spec(shard=(0, 1)), out=str(folder), name="shards/00-of-01", options=OPTIONS
    )
    outcome = ShardWorker(ProcessorRecipe.of(processor)).make(task)
    assert outcome.error is not None
    assert f"{MOST_DEATHS} workers died at this shard" in outcome.error
    assert not (folder / "shards" / "00-of-01").exists()
    assert sample(processor, folder, FakeExecutor(), num_shards=1).summary.num_draws == 10


def test_a_worker_says_what_is_wrong_with_its_shard(
    processor: SequenceProcessor, tmp_path: Path
) -> None:
    (tmp_path / "shards" / "00-of-01").mkdir(parents=True)
    (tmp_path / "shards" / "00-of-01" / "mine").touch()
    task = ShardTask(
        spec=spec(shard=(0, 1)), out=str(tmp_path), name="shards/00-of-01", options=OPTIONS
    )
    outcome = ShardWorker(ProcessorRecipe.of(processor)).make(task)
    assert outcome.error is not None
    assert outcome.error.startswith("RunError: ")
    assert "is not empty and holds no run" in outcome.error


def test_a_recipe_opens_a_processor_like_this_one(processor: SequenceProcessor) -> None:
    processor.config.temperature = 0.5
    processor.precision.entropy_fp64 = True
    other = pickle.loads(pickle.dumps(ProcessorRecipe.of(processor))).open()
    assert other.config == processor.config
    assert other.precision == processor.precision
    assert other.source.name == processor.source.name


def test_what_is_in_memory_has_no_recipe(processor: SequenceProcessor, model: str) -> None:
    with pytest.raises(ConfigError, match="model that is in memory"):
        ProcessorRecipe.of(SequenceProcessor(processor.model, processor.tokenizer))
    engine = ScriptedEngine(lambda request: [9, 0], processor.tokenizer)
    with pytest.raises(ConfigError, match="the name of an engine, not a ScriptedEngine"):
        ProcessorRecipe.of(SequenceProcessor.from_pretrained(model, engine=engine))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "slurm"}, "executor must be one of local, ray, got 'slurm'"),
        ({"num_workers": 2}, "num_workers is of an executor"),
        ({"num_gpus": 1}, "num_gpus is of an executor"),
        ({"num_shards": 1}, "num_shards is of an executor"),
        ({"executor": "ray"}, "needs num_workers"),
        ({"executor": "ray", "num_workers": 0}, "num_workers must be an integer >= 1"),
        ({"executor": "ray", "num_workers": 1, "num_shards": 0}, "num_shards must be an integer"),
        ({"executor": "ray", "num_workers": 1, "num_gpus": -1}, "num_gpus must be 0 or more"),
        ({"executor": "ray", "num_workers": 1, "num_gpus": "all"}, "num_gpus must be a number"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    processor: SequenceProcessor, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sample_run(processor, spec(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_shard_is_not_made_of_shards(processor: SequenceProcessor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a shard is not made of shards"):
        sample(processor, tmp_path / "out", FakeExecutor(), shard=(0, 2))


def test_ray_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqproc._util.optional.is_installed", lambda module: module != "ray")
    with pytest.raises(MissingDependencyError, match=r"seqproc\[ray\]"):
        choose_executor("ray", 2, None, None)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("ray"), reason="needs Ray: pip install seqproc[ray]")
@pytest.mark.parametrize("options", [(), ("--kill",)])
def test_ray_makes_the_rows_of_one_process(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, HARNESS, tmp_path, *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(reports[-1]) == {
        "differences": [],
        "state": "complete",
        "same_key": True,
        "killed": len(options),
        "left": 0,
    }
