"""`score_run`: score sequences that are given, and keep them in a folder like any run's.

Everything that a user can get wrong is refused before the model's weights load, and nothing is
left behind then. Called again with the same arguments it goes on where the folder stands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from seqproc._util import strict_json
from seqproc._util.interruption import raising_on_termination
from seqproc.config import require_count, require_flag
from seqproc.rewards.rewarder import require_comparable
from seqproc.runs.describe import planned_run, with_weights
from seqproc.runs.format.manifest_file import read_manifest
from seqproc.runs.format.schema import DEFAULT_TOKEN_COLUMNS, check_token_columns
from seqproc.runs.format.tables import Sample, samples_table
from seqproc.runs.going_on import going_on
from seqproc.runs.merging import merge_parts
from seqproc.runs.opening import open_for_writing, require_apart, require_ready, require_same
from seqproc.runs.result import RunResult
from seqproc.runs.run_folder import RunFolder
from seqproc.runs.scoring import ScoringStage, reward_all
from seqproc.runs.sources import SequenceSource, is_folder, open_source
from seqproc.runs.store.folder import open_folder
from seqproc.runs.store.lock import RunLock
from seqproc.runs.watch.progress import Progress

if TYPE_CHECKING:
    from seqproc.processor import SequenceProcessor

CHUNK_SIZE = 256  # sequences scored and committed together


def score_run(
    processor: SequenceProcessor,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    chat: bool = False,
    chunk_size: int = CHUNK_SIZE,
    token_columns: Sequence[str] = DEFAULT_TOKEN_COLUMNS,
    fresh: bool = False,
) -> RunResult:
    """Score given sequences under the processor's model, policy and precision.

    Args:
        processor: what scores. Its engine is not started.
        source: another run's folder, or a file of JSON lines (see `seqproc.runs.file_source`).
        out: the new run's folder: new, empty or of the same run.
        chat: wrap the prompts of a file as turns of the model's chat template.
        chunk_size: sequences that are scored and committed together.
        token_columns: see `sample_run`.
        fresh: see `sample_run`.

    Raises:
        RunMismatchError: the folder holds another run; the error says how it differs.
        RunError: no such source, a run of another tokenizer, or a folder that holds no run.
        DatasetError: a broken line of a file, naming its number.
        SequenceError: token ids outside the vocabulary, or more than the context holds.
        MissingDependencyError: pyarrow, or what the rewards need, is not installed.
    """
    require_count("chunk_size", chunk_size)
    require_flag("fresh", fresh)
    columns = check_token_columns(token_columns)
    if is_folder(source):
        require_apart(open_folder(out), open_folder(source))
    folder = require_ready(out)
    given = open_source(source, processor.source, chat=chat)
    require_comparable((one.entry.answer for one in given), processor.reward)
    num_draws, digest = given.check(), _digest(given)
    planned = planned_run(processor, "score", given.describe(), num_draws, digest, columns)
    if not fresh and (existing := read_manifest(folder)) is not None:
        require_same(existing, planned, folder, leave_out=("model",))
    manifest = with_weights(planned, processor)
    with raising_on_termination(), RunLock(folder) as lock:
        run = open_for_writing(folder, manifest, lock, fresh=fresh)
        if not run.is_done or run.manifest.state != "complete":
            with going_on(run):
                _score(run, processor, given, chunk_size)
    return RunResult.of(run)


def _score(
    run: RunFolder, processor: SequenceProcessor, given: SequenceSource, chunk_size: int
) -> None:
    with Progress(run, unit="seq") as progress, ScoringStage(run, processor, "now") as scoring:
        left = (one for one in given if not run.has(one.draw.index))
        for samples in _chunks(left, chunk_size):
            rows, failures = reward_all(processor, samples, run.first_sample)
            run.add_failed(failures)
            scoring.add(run.add_samples(samples_table(rows), {}))
            progress.advance(len(samples), sum(len(one.response_ids) for one in samples))
    merge_parts(run)


def _chunks(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Lists of at most ``size`` samples, each by rising draw."""
    while some := list(islice(samples, min(size, sys.maxsize))):
        yield sorted(some, key=lambda one: one.draw.index)


def _digest(given: SequenceSource) -> str:
    """Of everything that is to be scored."""
    hashed = hashlib.sha256()
    for one in given:
        hashed.update(strict_json.dumps(dataclasses.asdict(one)).encode())
    return hashed.hexdigest()[:32]
