"""Executors by name: what makes a run's draws when this process does not."""

from __future__ import annotations

from typing import Literal, get_args

from seqproc.config import require_count
from seqproc.errors import ConfigError
from seqproc.runs.shards.worker import Executor

SHARDS_PER_WORKER = 4  # a worker that is done early takes another one

ExecutorName = Literal["local", "ray"]


def choose_executor(
    name: str, num_workers: int | None, num_gpus: float | None, num_shards: int | None
) -> tuple[Executor, int] | None:
    """An executor and the number of shards that it is to make; None: this process makes the draws.

    Raises:
        ConfigError: there is no such executor, or a number that makes no sense for it.
        MissingDependencyError: what it needs is not installed.
    """
    if name not in get_args(ExecutorName):
        known = ", ".join(get_args(ExecutorName))
        raise ConfigError(f"executor must be one of {known}, got {name!r:.60}")
    if name == "local":
        _require_none(num_workers=num_workers, num_gpus=num_gpus, num_shards=num_shards)
        return None
    if num_workers is None:
        raise ConfigError(f"executor={name!r} needs num_workers: how many make draws at a time")
    require_count("num_workers", num_workers)
    if num_shards is not None:
        require_count("num_shards", num_shards)
    from seqproc.runs.shards.ray_executor import RayExecutor

    executor = RayExecutor(num_workers=num_workers, num_gpus=_checked_gpus(num_gpus))
    return executor, num_shards or SHARDS_PER_WORKER * num_workers


def _require_none(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None:
            raise ConfigError(f"{name} is of an executor such as 'ray', and there is none")


def _checked_gpus(num_gpus: float | None) -> float:
    if num_gpus is None:
        return 0.0
    if isinstance(num_gpus, bool) or not isinstance(num_gpus, (int, float)):
        raise ConfigError(f"num_gpus must be a number, got {num_gpus!r:.60}")
    if not 0 <= num_gpus < float("inf"):
        raise ConfigError(f"num_gpus must be 0 or more, got {num_gpus}")
    return float(num_gpus)
