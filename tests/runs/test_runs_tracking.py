"""Experiment trackers: told of what a run commits, and never in its way."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from helpers.run_folders import CHUNK, DRAWS, Maker
from seqproc.errors import ConfigError, MissingDependencyError
from seqproc.runs import open_run
from seqproc.runs.watch import tracking
from seqproc.runs.watch.tracking import TrackedRun, require_tracker


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


class Recorder:
    """A tracker that remembers."""

    all: ClassVar[list[Recorder]] = []

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.state: str | None = None
        self.all.append(self)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged.append((step, dict(metrics)))

    def finish(self, state: str) -> None:
        self.state = state


class Broken(Recorder):
    """A tracker that stops working."""

    error: BaseException = OSError("the tracker's server is away")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        super().log(metrics, step)
        raise self.error


class Leaving(Broken):
    """A tracker that ends the process, as some do where they are not logged in."""

    error = SystemExit(1)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    Recorder.all.clear()
    monkeypatch.setitem(tracking._TRACKERS, "trackio", Recorder)
    return Recorder.all


def test_a_tracker_is_told_of_each_commit(
    maker: Maker, tmp_path: Path, recorded: list[Recorder]
) -> None:
    result = maker.complete(tmp_path / "first", track="trackio:mine")
    (tracker,) = recorded
    assert tracker.run.project == "mine"
    assert tracker.run.name == "first"
    assert tracker.state == "complete"
    assert tracker.run.config["policy.top_p"] == 0.9
    json.dumps(tracker.run.config)
    last = tracker.logged[-1][1]
    summary = result.summary
    assert last["draws_sampled"] == last["draws_scored"] == DRAWS
    assert last["reward"] == summary.reward.mean
    assert last["reward_standard_error"] == summary.reward.standard_error
    assert last["rb_entropy_per_token"] == summary.rb_entropy_per_token.mean
    assert last["length_mean"] == summary.length_mean
    sampled = [metrics["draws_sampled"] for _, metrics in tracker.logged]
    assert sampled == sorted(sampled)
    assert sampled[0] == CHUNK
    assert any(metrics.get("tokens_per_second", 0) > 0 for _, metrics in tracker.logged)


def test_a_run_that_is_taken_up_again_is_the_same_to_a_tracker(
    maker: Maker, tmp_path: Path, recorded: list[Recorder]
) -> None:
    maker.stopped(tmp_path / "run", track="trackio")
    maker.complete(tmp_path / "run", track="trackio")
    first, second = recorded
    assert first.run == second.run
    assert (first.state, second.state) == ("interrupted", "complete")
    steps = [step for tracker in recorded for step, _ in tracker.logged]
    assert steps == sorted(steps)
    maker.complete(tmp_path / "other", track="trackio")
    assert recorded[2].run.id != first.run.id


@pytest.mark.parametrize("kind", [Broken, Leaving])
def test_a_tracker_that_fails_changes_no_row(
    maker: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    kind: type[Broken],
) -> None:
    Recorder.all.clear()
    monkeypatch.setitem(tracking._TRACKERS, "trackio", kind)
    maker.complete(tmp_path / "tracked", track="trackio")
    maker.complete(tmp_path / "plain")
    (tracker,) = Recorder.all
    assert len(tracker.logged) == 1
    assert tracker.state is None
    assert caplog.text.count(f"failed ({type(kind.error).__name__}") == 1
    assert open_run(tmp_path / "tracked").rows().equals(open_run(tmp_path / "plain").rows())


@pytest.mark.parametrize("choice", ["tensorboard", "", ":mine", "trackio:", 3])
def test_a_tracker_that_there_is_not_is_refused(maker: Maker, tmp_path: Path, choice: Any) -> None:
    with pytest.raises(ConfigError, match="track must be one of trackio, wandb, mlflow"):
        maker.complete(tmp_path / "run", track=choice)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqproc._util.optional.is_installed", lambda module: False)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        require_tracker("wandb")


TRACKED = """
import sys
from pathlib import Path
from helpers.run_folders import Maker
maker, folder = Maker(), Path(sys.argv[1])
maker.stopped(folder, track="trackio:mine")
maker.complete(folder, track="trackio:mine")
print("the only line")
"""


def test_trackio_keeps_one_run_of_what_two_processes_made(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    import os

    environment = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "the only line\n"
    (database,) = (tmp_path / "trackio").glob("mine*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, _ in rows}) == 1
    found = [json.loads(metrics) for _, metrics in rows]
    sampled = [one["draws_sampled"] for one in found if "draws_sampled" in one]
    assert sampled[-1] == DRAWS
    summary = open_run(tmp_path / "run").manifest.summary
    assert summary is not None
    assert [one for one in found if "reward" in one][-1]["reward"] == summary["reward"]["mean"]
    assert found[-1] == {"is_complete": 1.0}


class FakeWandb(types.ModuleType):
    """What seqproc calls of wandb."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.exit_code: int | None = None

    def init(self, **options: Any) -> FakeWandb:
        self.opened.append(options)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append((metrics, step))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_wandb_is_told_in_its_own_words(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(tracking, "require_package", lambda *_, **__: None)
    maker.stopped(tmp_path / "run", track="wandb:mine")
    assert wandb.exit_code == 1
    maker.complete(tmp_path / "run", track="wandb:mine")
    assert wandb.exit_code == 0
    first, second = wandb.opened
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("mine", "run", "allow")
    assert wandb.logged[-1][0]["draws_scored"] == DRAWS
