"""Tells an experiment tracker how a run goes: trackio, Weights & Biases or MLflow.

A run never depends on a tracker: what a tracker raises is told once, and nothing is sent after it.
A run that is taken up again goes on in the tracker as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from seqproc._util import strict_json
from seqproc._util.optional import require_package
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from seqproc.engines import Engine
    from seqproc.runs.format.manifest import Manifest
    from seqproc.runs.run_folder import RunFolder

DEFAULT_PROJECT = "seqproc"

# Of the summary: numbers, and estimates whose standard error is sent as well.
_NUMBERS = ("length_mean", "num_out_of_support")
_ESTIMATES = (
    "logprob_per_token",
    "logq_per_token",
    "rb_entropy_per_token",
    "rb_entropy_per_sequence",
    "reward",
)
_MLFLOW_STATES = {"complete": "FINISHED", "interrupted": "KILLED"}
_MAX_PARAM_CHARS = 500  # of a value that MLflow keeps in any version

_LOGGER = logging.getLogger("seqproc")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run as a tracker knows it."""

    project: str
    name: str  # for people
    id: str  # 32 hex digits: the same whenever the run is taken up again
    config: Mapping[str, Any]  # what its rows depend on


class Tracker(Protocol):
    """Somewhere to send numbers to."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send numbers; steps rise."""

    def finish(self, state: str) -> None:
        """Say that the run is "complete", "interrupted" or "failed"."""


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        import trackio

        name = f"{run.name}-{run.id[:8]}"  # it is found again by that
        with contextlib.redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=run.project, name=name, config=dict(run.config), resume="allow"
            )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, state: str) -> None:
        import trackio

        self._run.log({"is_complete": float(state == "complete")})
        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()


class _Wandb:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=run.project, name=run.name, id=run.id, config=dict(run.config), resume="allow"
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, state: str) -> None:
        self._run.finish(exit_code=int(state != "complete"))


class _Mlflow:
    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        # The client and not the module's functions, whose current run is that of a thread.
        self._client = client = MlflowClient()
        found = client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else client.create_experiment(run.project)
        earlier = client.search_runs([experiment], f"tags.`seqproc.id` = '{run.id}'")
        if earlier:
            self._id = earlier[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        tags = {"seqproc.id": run.id}
        self._id = client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
        for name, value in run.config.items():
            client.log_param(self._id, name, str(value)[:_MAX_PARAM_CHARS])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=values)

    def finish(self, state: str) -> None:
        self._client.set_terminated(self._id, _MLFLOW_STATES.get(state, "FAILED"))


_TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "trackio": _Trackio,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}


def require_tracker(choice: str | None) -> None:
    """Refuse a tracker that there is not, before anything is started.

    Args:
        choice: ``NAME`` or ``NAME:PROJECT``; None for no tracker.

    Raises:
        ConfigError: it is none of those.
        MissingDependencyError: its package is not installed.
    """
    if choice is None:
        return
    known = ", ".join(_TRACKERS)
    if not isinstance(choice, str):
        raise ConfigError(f"track must be one of {known}, or NAME:PROJECT, got {choice!r:.60}")
    name, project = _parsed(choice)
    if name not in _TRACKERS or not project:
        raise ConfigError(f"track must be one of {known}, or NAME:PROJECT, got {choice!r:.60}")
    require_package(name, purpose=f"track={choice!r}")


@contextlib.contextmanager
def tracked(run: RunFolder, choice: str | None, engine: Engine | None = None) -> Iterator[None]:
    """A scope in which a tracker is told of what is committed, and in the end how the run ended.

    Args:
        run: what is told of.
        choice: see `require_tracker`.
        engine: tells how many requests are running.
    """
    tracking = None if choice is None else _Tracking(run, choice, engine)
    if tracking is None:
        yield
        return
    run.events.listeners.append(tracking.hear)
    try:
        yield
    finally:
        run.events.listeners.remove(tracking.hear)
        tracking.finish(run.manifest.state)


class _Tracking:
    """What one tracker is told of one run."""

    def __init__(self, run: RunFolder, choice: str, engine: Engine | None) -> None:
        self._run, self._choice, self._engine = run, choice, engine
        self._mutex = threading.Lock()  # scoring may go on in a thread of its own
        self._tracker: Tracker | None = None
        self._last = time.perf_counter()  # when something was committed
        with self._failing_quietly():
            name, project = _parsed(choice)
            self._tracker = _TRACKERS[name](_as_tracked(run, project))

    def hear(self, event: str, details: Mapping[str, Any]) -> None:
        """Tell the tracker, if the event changes what it knows."""
        if event not in ("committed", "scored", "quarantined"):
            return
        with self._mutex, self._failing_quietly():
            metrics = self._counts() | _of_summary(self._run.manifest.summary)
            if event == "committed":
                metrics |= self._rates(details)
            if self._tracker is not None:
                self._tracker.log(metrics, step=self._step(metrics))

    def _step(self, metrics: Mapping[str, float]) -> int:
        """Rises from commit to commit, also from one process to the next."""
        return int(metrics["draws_sampled"] + metrics["draws_scored"])

    def _counts(self) -> dict[str, float]:
        return {
            "draws_sampled": int(self._run.is_sampled.sum()),
            "draws_scored": self._run.num_done,
            "draws_quarantined": len(self._run.quarantine),
        }

    def _rates(self, details: Mapping[str, Any]) -> dict[str, float]:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        running = None if self._engine is None else self._engine.num_running
        return {
            "tokens_per_second": details["tokens"] / seconds,
            **({} if running is None else {"running_requests": running}),
        }

    def finish(self, state: str) -> None:
        """Say how the run ended."""
        with self._failing_quietly():
            if self._tracker is not None:
                self._tracker.finish(state)

    @contextlib.contextmanager
    def _failing_quietly(self) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            self._tracker = None
            _LOGGER.warning(
                "the tracker %r failed (%s: %s): the run goes on without it",
                *(self._choice, type(error).__name__, " ".join(str(error).split())),
            )


def _parsed(choice: str) -> tuple[str, str]:
    """The name and the project of ``NAME`` or ``NAME:PROJECT``."""
    name, colon, project = choice.partition(":")
    return name, project if colon else DEFAULT_PROJECT


def _as_tracked(run: RunFolder, project: str) -> TrackedRun:
    manifest, name = run.manifest, PurePosixPath(run.folder.url).name or "run"
    made = hashlib.sha256(f"{manifest.key} {manifest.created} {name}".encode())
    return TrackedRun(
        project=project,
        name=name,
        id=made.hexdigest()[:32],
        config=_flat(manifest),
    )


def _flat(manifest: Manifest) -> dict[str, Any]:
    """What a run's rows depend on, as ``group.name`` to a value."""
    flat: dict[str, Any] = {}
    for group, value in manifest.identity().items():
        if isinstance(value, Mapping):
            flat |= {f"{group}.{name}": item for name, item in value.items()}
        else:
            flat[group] = value
    as_written: dict[str, Any] = json.loads(strict_json.dumps(flat))  # lists and tuples are one
    return as_written


def _of_summary(summary: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers that a summary has so far."""
    if summary is None:
        return {}
    found = {name: summary[name] for name in _NUMBERS}
    for name in _ESTIMATES:
        found[name] = summary[name]["mean"]
        found[f"{name}_standard_error"] = summary[name]["standard_error"]
    return {name: float(value) for name, value in found.items() if value is not None}
