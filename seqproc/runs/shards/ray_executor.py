"""Shards on a Ray cluster: workers are an actor pool of Ray Data.

Ray starts an actor anew when it dies, on another machine if need be, and gives its shard to one
that lives; that one goes on where the dead one stopped, since both write the same folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from seqproc._util.optional import require_package
from seqproc.processor.recipe import ProcessorRecipe
from seqproc.runs.shards.worker import Outcome, ShardTask, ShardWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class RayExecutor:
    """Makes shards on the cluster that Ray is connected to, or connects to by itself.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    num_workers: int  # actors, each with a processor of its own
    num_gpus: float = 0.0  # of each

    def __post_init__(self) -> None:
        require_package("ray", extra="ray", purpose="executor='ray'")

    def __call__(self, recipe: ProcessorRecipe, tasks: Sequence[ShardTask]) -> Iterator[Outcome]:
        """Make the shards; outcomes as they come."""
        import ray.data

        with _connected():
            shards = ray.data.from_items(
                [{"task": number} for number in range(len(tasks))], override_num_blocks=len(tasks)
            )
            outcomes = shards.map(
                _Actor,
                fn_constructor_args=(recipe, tuple(tasks)),
                compute=ray.data.ActorPoolStrategy(
                    size=min(self.num_workers, len(tasks)), max_tasks_in_flight_per_actor=1
                ),
                num_cpus=1,
                num_gpus=self.num_gpus,
            )
            for row in outcomes.iter_rows():
                yield Outcome(shard=row["shard"], error=row["error"] or None)


class _Actor:
    """A worker whose tasks and outcomes are rows of Ray Data."""

    def __init__(self, recipe: ProcessorRecipe, tasks: Sequence[ShardTask]) -> None:
        self._worker = ShardWorker(recipe)
        self._tasks = tasks

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        outcome = asdict(self._worker.make(self._tasks[row["task"]]))
        return {**outcome, "error": outcome["error"] or ""}


@contextmanager
def _connected() -> Iterator[None]:
    """A connection to a cluster: the caller's, or one for as long as this lasts."""
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init()
    try:
        yield
    finally:
        ray.shutdown()
