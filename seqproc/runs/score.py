"""`score_run`: score sequences that are given, and keep them in a folder like any run's.

Everything that a user can get wrong is refused before the model's weights load, and nothing is
left behind then. Memory does not grow with the number of sequences.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from seqproc.config import require_count
from seqproc.engines.base import Completion, Request
from seqproc.processor.assembly import batched_sequences
from seqproc.rewards.rewarder import require_comparable
from seqproc.runs.result import RunResult
from seqproc.runs.rows import rows_table
from seqproc.runs.sources import GivenSequence, open_source
from seqproc.runs.steps import Stopwatch, chunks, describe_run, score_and_reward
from seqproc.runs.summary import SummaryAccumulator
from seqproc.runs.writer import RunWriter, require_free

if TYPE_CHECKING:
    from seqproc.processor import SequenceProcessor
    from seqproc.types import BatchedSequences

CHUNK_SIZE = 256  # sequences scored and committed together


def score_run(
    processor: SequenceProcessor,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    chat: bool = False,
    chunk_size: int = CHUNK_SIZE,
) -> RunResult:
    """Score given sequences under the processor's model, policy and precision.

    Args:
        processor: what scores. Its engine is not started.
        source: another run's folder, or a file of JSON lines (see `seqproc.runs.file_source`).
        out: the new run's folder; must not exist, or be empty.
        chat: wrap the prompts of a file as turns of the model's chat template.
        chunk_size: sequences that are scored and committed together.

    Raises:
        RunError: no such source, a run of another tokenizer, or a folder that is occupied.
        DatasetError: a broken line of a file, naming its number.
        SequenceError: token ids outside the vocabulary, or more than the context holds.
        MissingDependencyError: pyarrow, or what the rewards need, is not installed.
    """
    require_count("chunk_size", chunk_size)
    require_free(out)
    given = open_source(source, processor.source, chat=chat)
    require_comparable((one.entry.answer for one in given), processor.reward)
    manifest = describe_run(processor, "score", given.describe(), given.check())
    summary, watch = SummaryAccumulator(), Stopwatch()
    with RunWriter.create(out, manifest) as run, _progress(manifest.num_draws) as bar:
        for chunk in chunks(given, chunk_size):
            draws, entries = [one.draw for one in chunk], [one.entry for one in chunk]
            sequences = _as_batch(chunk)
            results, diagnostics = score_and_reward(processor, sequences, entries, watch)
            rows = rows_table(draws, entries, sequences, results, diagnostics)
            summary.add(rows, **watch.lap())
            run.commit(rows, summary.result())
            bar.update(len(chunk))
    return RunResult(path=run.path, manifest=run.manifest, summary=summary.result())


def _progress(total: int) -> tqdm[NoReturn]:
    return tqdm(total=total, desc="run", unit="seq", disable=None)


def _as_batch(chunk: Sequence[GivenSequence]) -> BatchedSequences:
    """The chunk as one batch with one response per prompt."""
    batch = batched_sequences(
        [Request(index=i, prompt_ids=one.prompt_ids, seed=0) for i, one in enumerate(chunk)],
        [_completion(i, one) for i, one in enumerate(chunk)],
        num_responses=1,
        pad_id=0,
    )
    reasons = [one.finish_reason for one in chunk]
    known = [[reason] for reason in reasons if reason is not None]
    return dataclasses.replace(
        batch, finish_reasons=known if len(known) == len(reasons) else None, seeds=None
    )


def _completion(index: int, given: GivenSequence) -> Completion:
    return Completion(
        index=index,
        token_ids=given.response_ids,
        text=given.response_text,
        finish_reason=given.finish_reason or "length",  # dropped again where unknown
        logqs=given.engine_logqs,
    )
