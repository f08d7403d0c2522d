"""What an executor runs, in processes of its own: a worker that makes shards one after the other.

Knows nothing of which executor that is. What it is made of, and what it is given, can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqproc.errors import RunError, SeqprocError
from seqproc.processor.recipe import ProcessorRecipe
from seqproc.runs.format.layout import SHARDS
from seqproc.runs.plan import RunSpec
from seqproc.runs.shards.shard import shown
from seqproc.runs.store.folder import Folder, open_folder

MOST_DEATHS = 8  # of workers at one shard, after which the shard is taken for the cause

_ATTEMPT = ".attempt-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard that is to be made."""

    spec: RunSpec  # with the shard
    out: str  # folder of the whole run, by a path that means the same on all machines
    name: str  # of the shard's folder below it
    options: Mapping[str, Any]  # of `sample_run`


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a shard ended."""

    shard: str  # as it is written: "3/8"
    error: str | None = None  # what stopped it; None: it is complete


class ShardWorker:
    """Makes shards with a processor of its own, which it opens once.

    Args:
        recipe: of the processor.
    """

    def __init__(self, recipe: ProcessorRecipe) -> None:
        self._processor = recipe.open()

    def make(self, task: ShardTask) -> Outcome:
        """Make a shard, or go on with it; an error of seqproc's is what comes back."""
        from seqproc.runs.sample import sample_run

        assert task.spec.shard is not None
        shard = shown(task.spec.shard)
        try:
            _count_attempt(open_folder(task.out), task.name)
            sample_run(self._processor, task.spec, f"{task.out}/{task.name}", **task.options)
        except SeqprocError as error:
            return Outcome(shard=shard, error=f"{type(error).__name__}: {error}")
        return Outcome(shard=shard)


# Has workers make shards, however many workers there are; outcomes as they come.
Executor = Callable[[ProcessorRecipe, Sequence[ShardTask]], Iterator[Outcome]]


def forget_attempts(folder: Folder) -> None:
    """Let every shard be tried as often as at first."""
    for name in folder.names(SHARDS):
        if _ATTEMPT in name:
            folder.remove(f"{SHARDS}/{name}")


def _count_attempt(folder: Folder, name: str) -> None:
    """Refuse a shard at which workers die again and again, which would go on for ever."""
    for attempt in range(MOST_DEATHS):
        if folder.create(f"{name}{_ATTEMPT}{attempt}", b""):
            return
    raise RunError(
        f"{MOST_DEATHS} workers died at this shard, and seqproc cannot tell why: their machines' "
        "logs may. Out of memory, for instance: give workers more, or smaller batches"
    )
