"""`sample_run` with an executor: shards made by workers below the run's folder, then merged.

    OUT/shards/00-of-08/   a run of its own, as `RunSpec.shard` makes it
    OUT/                   at the end the run; the shards are gone then

Whatever stops it, the same call goes on: complete shards are not made again, others go on. Knows
nothing of how an executor finds workers.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqproc._util.interruption import raising_on_termination
from seqproc.errors import ConfigError, RunError
from seqproc.processor.recipe import ProcessorRecipe
from seqproc.runs.format.layout import SHARDS
from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.manifest_file import read_manifest
from seqproc.runs.opening import begin_anew, open_for_writing, require_ready, require_same
from seqproc.runs.plan import RunSpec
from seqproc.runs.result import RunResult
from seqproc.runs.shards.merge import merge_into
from seqproc.runs.shards.source import open_shards
from seqproc.runs.shards.worker import Executor, ShardTask, forget_attempts
from seqproc.runs.store.folder import Folder, open_folder
from seqproc.runs.store.lock import RunLock

if TYPE_CHECKING:
    from seqproc.processor import SequenceProcessor

_FOLDER = re.compile(rf"{SHARDS}/[0-9]+-of-([0-9]+)/.+")

_LOGGER = logging.getLogger("seqproc")


def sample_in_shards(
    processor: SequenceProcessor,
    spec: RunSpec,
    out: str | os.PathLike[str],
    executor: Executor,
    num_shards: int,
    options: Mapping[str, Any],
    *,
    fresh: bool = False,
    retry_quarantined: bool = False,
) -> RunResult:
    """See `sample_run`.

    Args:
        processor: opened by `from_pretrained`. Neither its engine nor its scorer starts.
        spec: the run, not a shard of one.
        out: the run's folder, on storage that all workers share.
        executor: what makes the shards.
        num_shards: how many, where the folder holds none yet.
        options: of `sample_run`, for each shard.
        fresh: see `sample_run`.
        retry_quarantined: see `sample_run`; only of shards that are not merged yet.
    """
    from seqproc.runs.sample import planned_sample

    if spec.shard is not None:
        raise ConfigError("a shard is not made of shards: leave out the shard, or the executor")
    recipe = ProcessorRecipe.of(processor)
    folder = require_ready(out, with_shards=True)
    _, planned = planned_sample(processor, spec, folder, options["token_columns"], fresh=fresh)
    num_shards = min(num_shards, spec.draws)
    if not fresh:
        _require_same_shards(folder, planned)
        num_shards = _count_shards(folder) or num_shards
    with raising_on_termination(), RunLock(folder) as lock:
        if fresh:
            begin_anew(folder)
        existing = read_manifest(folder)
        if existing is None or existing.state != "complete":
            options = {**options, "retry_quarantined": retry_quarantined}
            _make(folder, executor, recipe, spec, num_shards, options)
            sources = open_shards([open_folder(p) for p in _shard_paths(folder, num_shards)])
            for source in sources:
                source.check()
            run = merge_into(folder, lock, sources)
        else:
            _require_no_retry(folder, retry_quarantined)
            run = open_for_writing(folder, existing, lock)
        _drop_shards(folder)
    return RunResult.of(run)


def _make(
    folder: Folder,
    executor: Executor,
    recipe: ProcessorRecipe,
    spec: RunSpec,
    num_shards: int,
    options: Mapping[str, Any],
) -> None:
    forget_attempts(folder)
    tasks = [
        ShardTask(
            spec=dataclasses.replace(spec, shard=(i, num_shards)),
            out=_address(folder),
            name=_name(i, num_shards),
            options=options,
        )
        for i in range(num_shards)
    ]
    failures = []
    for number, outcome in enumerate(executor(recipe, tasks), 1):
        state = "complete" if outcome.error is None else outcome.error
        _LOGGER.info("shard %s: %s (%d of %d)", outcome.shard, state, number, num_shards)
        if outcome.error is not None:
            failures.append(f"shard {outcome.shard}: {outcome.error}")
    if failures:
        raise RunError(
            f"{len(failures)} of {num_shards} shards of {folder.url} failed; the same command goes "
            f"on from there. The first of them, {failures[0]}"
        )


def _name(index: int, count: int) -> str:
    width = max(2, len(str(count)))
    return f"{SHARDS}/{index:0{width}d}-of-{count:0{width}d}"


def _shard_paths(folder: Folder, count: int) -> list[str]:
    return [f"{_address(folder)}/{_name(i, count)}" for i in range(count)]


def _address(folder: Folder) -> str:
    """The folder, for processes that have another working folder."""
    return folder.url if "://" in folder.url else str(Path(folder.url).absolute())


def _count_shards(folder: Folder) -> int | None:
    """How many shards the run in a folder was begun with; None: not begun."""
    counts = {int(match[1]) for name in folder.all_names() if (match := _FOLDER.fullmatch(name))}
    if len(counts) > 1:
        raise RunError(
            f"{folder.url}/{SHARDS} holds shards of {len(counts)} ways to share out the draws: "
            "begin anew with fresh=True (--fresh), which sets them aside"
        )
    return next(iter(counts), None)


def _require_same_shards(folder: Folder, planned: Manifest) -> None:
    """Refuse to go on with shards of another run, before any worker starts."""
    for path in _shard_paths(folder, _count_shards(folder) or 0):
        shard = open_folder(path)
        if (existing := read_manifest(shard)) is not None:
            whole = dataclasses.replace(existing, spec={**existing.spec, "shard": None})
            require_same(whole, planned, shard, leave_out=("engine",))


def _require_no_retry(folder: Folder, retry_quarantined: bool) -> None:
    if retry_quarantined:
        raise ConfigError(
            f"the shards of {folder.url} are merged: draws in quarantine are tried again without "
            "an executor"
        )


def _drop_shards(folder: Folder) -> None:
    """Remove the shards, all of whose rows are in the run."""
    for name in folder.all_names():
        if name.startswith(f"{SHARDS}/"):
            folder.remove(name)
