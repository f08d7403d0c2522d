"""Rewards and scores samples, and finds those that cannot be rewarded or scored.

Knows samples and their scores; nothing of where they come from or are kept.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

from seqproc.errors import ScoringError, SequenceError
from seqproc.runs.format.parts import Part
from seqproc.runs.format.quarantine import Failed, failed
from seqproc.runs.format.schema import scores_schema
from seqproc.runs.format.tables import Sample, batch_of, samples_of, scores_table

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.models.parameters import ParamMapping
    from seqproc.processor import SequenceProcessor
    from seqproc.runs.run_folder import RunFolder


def score_all(
    processor: SequenceProcessor,
    samples: Sequence[Sample],
    token_columns: Sequence[str],
    *,
    override: ParamMapping | None = None,
) -> tuple[pa.Table, list[Failed]]:
    """Scores of the samples, in their order, and those samples that have none.

    What fails together is tried in halves, down to the samples that fail alone.
    """
    import pyarrow as pa

    if not samples:
        return scores_schema(tuple(token_columns)).empty_table(), []
    try:
        results, diagnostics = processor.teacher_force_logprobs_with_diagnostics(
            batch_of(samples), compute_rb=True, params_override=override
        )
    except (ScoringError, SequenceError) as error:
        if len(samples) == 1:
            none = scores_schema(tuple(token_columns)).empty_table()
            return none, [failed(samples[0].draw, "scoring", error)]
        middle = len(samples) // 2
        halves = [
            score_all(processor, half, token_columns, override=override)
            for half in (samples[:middle], samples[middle:])
        ]
        rows = pa.concat_tables([rows for rows, _ in halves])
        return rows, [one for _, some in halves for one in some]
    draws = [sample.draw.index for sample in samples]
    return scores_table(draws, results, diagnostics, token_columns), []


class ScoringStage:
    """Scores the parts of a run's samples: as they are committed, beside the sampling, or later.

    A context manager; when it is left without an error, every part has its scores.

    Args:
        run: whose samples.
        processor: what scores.
        when: "now", "overlap" or "later".
    """

    def __init__(self, run: RunFolder, processor: SequenceProcessor, when: str) -> None:
        self._run, self._processor, self._when = run, processor, when
        self._thread = ThreadPoolExecutor(1, "seqproc-scoring") if when == "overlap" else None
        self._waiting: list[Future[None]] = []

    def add(self, part: Part) -> None:
        """Take a part that was just committed."""
        if self._when == "now":
            score_part(self._run, self._processor, part)
        elif self._thread is not None:
            self._waiting.append(self._thread.submit(score_part, self._run, self._processor, part))
            for future in [f for f in self._waiting if f.done()]:
                self._waiting.remove(future)
                future.result()  # raises what went wrong

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for future in self._waiting:
                future.result()
            for part in self._run.unscored():
                score_part(self._run, self._processor, part)


def score_part(run: RunFolder, processor: SequenceProcessor, part: Part) -> None:
    """Score a part of the run's samples, and commit the scores."""
    samples = samples_of(run.samples.read(part))
    processor.scorer  # noqa: B018 - the model loads now, outside of the time
    start = time.perf_counter()
    rows, failures = score_all(processor, samples, run.manifest.token_columns)
    seconds = time.perf_counter() - start
    run.add_failed(failures)
    run.add_scores(part, rows, {"scoring": seconds})


def reward_all(
    processor: SequenceProcessor,
    samples: Sequence[Sample],
    witness: Callable[[], Sample | None] = lambda: None,
) -> tuple[list[Sample], list[Failed]]:
    """The samples with their rewards, in their order, and those that have none.

    Args:
        processor: its reward.
        samples: to be rewarded.
        witness: gives a sample that was rewarded before, or None. When all others fail it is
            rewarded once more, to tell samples that are at fault from a reward that is.

    Raises:
        Exception: of a user's reward, when it fails on every sample: the reward is at fault then.
    """
    try:
        return _rewarded(processor, samples), []
    except Exception as error:
        with_reward, failures = _rewarded_alone(processor, samples)
        if not with_reward and not _is_rewarded(processor, witness()):
            error.add_note(f"the reward failed on each of {len(samples)} draws")
            raise
        return with_reward, failures


def _is_rewarded(processor: SequenceProcessor, sample: Sample | None) -> bool:
    """Whether a sample has a reward."""
    return sample is not None and bool(_rewarded_alone(processor, [sample])[0])


def _rewarded_alone(
    processor: SequenceProcessor, samples: Sequence[Sample]
) -> tuple[list[Sample], list[Failed]]:
    """As `reward_all`, one sample after the other."""
    with_reward, failures = [], []
    for sample in samples:
        try:
            with_reward += _rewarded(processor, [sample])
        except Exception as error:
            failures.append(failed(sample.draw, "reward", error))
    return with_reward, failures


def _rewarded(processor: SequenceProcessor, samples: Sequence[Sample]) -> list[Sample]:
    entries = [sample.entry for sample in samples]
    graded = processor.reward is not None or any(entry.answer is not None for entry in entries)
    rewards = processor.compute_rewards(batch_of(samples), entries if graded else None)
    return [
        dataclasses.replace(sample, reward=float(reward))
        for sample, (reward,) in zip(samples, rewards, strict=True)
    ]
