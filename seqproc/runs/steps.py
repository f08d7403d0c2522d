"""The steps that sampling and scoring runs share: describe the run, time it, score and reward."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from seqproc._util.versions import library_versions
from seqproc.runs.manifest import Kind, Manifest

if TYPE_CHECKING:
    from seqproc.processor import SequenceProcessor
    from seqproc.prompts import PromptEntry
    from seqproc.types import BatchedSequences, DiagnosticsResults, LogprobResults

T = TypeVar("T")


def describe_run(
    processor: SequenceProcessor, kind: Kind, spec: Mapping[str, Any], num_draws: int
) -> Manifest:
    """The manifest of a run that is about to start; a sampling run's engine has started."""
    sampled = kind == "sample"
    return Manifest(
        kind=kind,
        spec=spec,
        model={"name": processor.source.name, "dtype": processor.source.dtype},
        policy=dataclasses.asdict(processor.policy),
        stopping=dataclasses.asdict(processor.stopping) if sampled else {},
        precision=dataclasses.asdict(processor.precision),
        engine=processor.engine.describe() if sampled else {},
        reward=processor.provenance().reward,
        versions=library_versions(),
        num_draws=num_draws,
    )


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of at most ``size`` items."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk


class Stopwatch:
    """Adds up the seconds of the step that is being timed, since it was last read."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        """Time a block as part of a step."""
        start = time.perf_counter()
        yield
        self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Seconds by step; starts over."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def score_and_reward(
    processor: SequenceProcessor,
    sequences: BatchedSequences,
    entries: Sequence[PromptEntry],
    watch: Stopwatch,
) -> tuple[LogprobResults, DiagnosticsResults]:
    """Score sequences with everything that a row holds, and reward them."""
    processor.scorer  # noqa: B018 - the model loads now, outside of the time
    with watch.timing("scoring_seconds"):
        results, diagnostics = processor.teacher_force_logprobs_with_diagnostics(
            sequences, compute_rb=True
        )
    graded = processor.reward is not None or any(entry.answer is not None for entry in entries)
    results.rewards = processor.compute_rewards(sequences, entries if graded else None)
    return results, diagnostics
