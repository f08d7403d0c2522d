"""Further scores of a run that is complete: under another policy, model or override.

Samples and other sets of scores are never touched. What was stopped goes on, as a run does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc._util import strict_json
from seqproc._util.arguments import require_path
from seqproc._util.clock import utc_now
from seqproc._util.interruption import raising_on_termination
from seqproc._util.versions import library_versions
from seqproc.config import require_count
from seqproc.errors import ConfigError, OverrideError, RunError, RunMismatchError
from seqproc.runs.format.layout import set_aside
from seqproc.runs.format.manifest import Manifest, differences
from seqproc.runs.format.parts import Part, Parts, part_number
from seqproc.runs.format.quarantine import Failed
from seqproc.runs.format.schema import DEFAULT_TOKEN_COLUMNS, check_token_columns, scores_schema
from seqproc.runs.format.score_set import ScoreSet, digest, read_score_set, set_file, set_table
from seqproc.runs.format.tables import samples_of
from seqproc.runs.merging import merge_table
from seqproc.runs.reader import Run, open_run
from seqproc.runs.scoring import score_all
from seqproc.runs.store.folder import Folder, open_folder
from seqproc.runs.store.lock import RunLock

if TYPE_CHECKING:
    from torch import Tensor

    from seqproc.processor import SequenceProcessor

CHUNK_SIZE = 256  # draws scored and committed together

_LOGGER = logging.getLogger("seqproc")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}")
_OWN = "policy"  # the set that a run has from the start


def add_scores(
    processor: SequenceProcessor,
    path: str | os.PathLike[str],
    name: str,
    *,
    override: str | os.PathLike[str] | None = None,
    eta: float | None = None,
    token_columns: Sequence[str] = DEFAULT_TOKEN_COLUMNS,
    chunk_size: int = CHUNK_SIZE,
) -> ScoreSet:
    """Score a complete run's samples once more, and keep the scores beside them.

    Args:
        processor: the model, policy and precision to score with.
        path: the run's folder, or its URL.
        name: of the new set, or of one that was stopped.
        override: a safetensors file: with ``eta`` a direction v, and the scores are those at
            θ + η·v; without it parameters to put in the place of the model's own.
        eta: the step η.
        token_columns: see `sample_run`.
        chunk_size: draws that are scored and committed together.

    Raises:
        RunMismatchError: there is a set of this name that was made by something else.
        RunError: no complete run, a name that cannot be a folder's, or the run's own set.
        OverrideError: no such file, or one that does not fit the model.
    """
    columns = check_token_columns(token_columns)
    require_count("chunk_size", chunk_size)
    _require_name(name)
    run = _complete_run(path)
    folder = open_folder(path)
    mapping, described = _override(processor, override, eta)
    made_by = _made_by(processor, run.manifest, described, columns)
    with raising_on_termination(), RunLock(folder) as lock:
        scoring = _Scoring(folder, name, made_by, lock)
        if not scoring.is_done(run):
            for samples in scoring.left(run, chunk_size):
                rows, failures = score_all(processor, samples, columns, override=mapping)
                scoring.commit(rows, failures)
            scoring.merge(columns)
        scoring.tidy()
    return scoring.set


class _Scoring:
    """A set of scores while it is made."""

    def __init__(
        self, folder: Folder, name: str, made_by: Mapping[str, Any], lock: RunLock
    ) -> None:
        self._folder, self._name, self._lock = folder, name, lock
        new = ScoreSet(made_by=made_by, key=digest(made_by))
        self.set = read_score_set(folder, name) or new
        if lines := differences(self.set.made_by, made_by):
            raise RunMismatchError(
                f"{folder.url} has scores of the name {name!r} that were made by something else: "
                "choose another name. They differ in:",
                lines,
            )
        folder.remove_unfinished()
        self._parts = Parts(folder, set_table(name), new.key)
        self._done: list[Part] = []
        self._take_in()
        self._write()

    def _take_in(self) -> None:
        """Read every note, and every file once; set aside what is not as it was written.

        A part whose draws are there already was merged by a process that was killed before it
        removed the part: `tidy` does.
        """
        self._next = 1 + max(map(part_number, self._parts.all_names()), default=-1)
        scored = np.zeros(0, dtype=np.int64)
        for part_name in self._parts.names(self.set.merge):
            try:
                part = self._parts.read_note(part_name)
                self._parts.check(part)
            except RunError as error:
                _LOGGER.warning("%s; set aside, and its draws are scored again", error)
                names = [self._parts.note(part_name), self._parts.file(part_name)]
                set_aside(self._folder, names)
                continue
            if not np.isin(part.indices(), scored).any():
                self._done.append(part)
                scored = np.concatenate([scored, part.indices()])

    def tidy(self) -> None:
        """Remove the parts that a merge has replaced, and what an unfinished merge left."""
        self._lock.check()
        kept = {part.name for part in self._done}
        for name in self._parts.all_names():
            if name not in kept:
                self._parts.drop(name)

    def is_done(self, run: Run) -> bool:
        """Whether nothing is left."""
        return self.set.is_complete and not len(self._left(run))

    def _left(self, run: Run) -> np.ndarray:
        draws = run.rows(["draw"])["draw"].to_numpy()
        done = [part.indices() for part in self._done]
        failed = np.array([one["draw"] for one in self.set.failed], dtype=np.int64)
        return np.setdiff1d(draws, np.concatenate([*done, failed]))

    def left(self, run: Run, size: int) -> Iterator[list[Any]]:
        """Samples that are not scored yet, some at a time."""
        left = self._left(run)
        for batch in run.sample_batches(batch_size=size):
            wanted = batch.filter(np.isin(batch["draw"].to_numpy(), left))
            if wanted.num_rows:
                yield samples_of(wanted)

    def commit(self, rows: Any, failures: Sequence[Failed]) -> None:
        """Keep scores, and those draws that have none."""
        self._lock.check()
        failed = [*self.set.failed, *({"draw": f.draw, "reason": f.reason} for f in failures)]
        if rows.num_rows:
            self._done.append(self._parts.write(f"part-{self._next:06d}", [rows]))
            self._next += 1
        self.set = dataclasses.replace(self.set, failed=failed)
        self._write()

    def merge(self, columns: Sequence[str]) -> None:
        """Put the scores in the order of the draws."""
        self._lock.check()
        merge = self.set.merge + 1
        self._done = merge_table(self._parts, self._done, scores_schema(tuple(columns)), merge)
        self.set = dataclasses.replace(self.set, merge=merge)
        self._write()

    def _write(self) -> None:
        done = sum(part.num_rows for part in self._done)
        self.set = dataclasses.replace(self.set, num_draws_done=done, updated=utc_now())
        content = strict_json.dumps(dataclasses.asdict(self.set)).encode()
        self._folder.write(set_file(self._name), lambda file: file.write(content))


def _require_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RunError(
            "the name of a set of scores must be letters, digits and ._+=-, such as 'eta-1e-6', "
            f"got {name!r:.60}"
        )
    if name == _OWN:
        raise RunError(f"{_OWN!r} are the run's own scores: choose another name")


def _complete_run(path: str | os.PathLike[str]) -> Run:
    run = open_run(path)
    if run.manifest.state != "complete":
        raise RunError(
            f"the run in {run.url} is {run.manifest.state}: complete it first, with the command "
            "that began it"
        )
    return run


def _override(
    processor: SequenceProcessor, file: str | os.PathLike[str] | None, eta: float | None
) -> tuple[dict[str, Tensor] | None, dict[str, Any] | None]:
    """The parameters to score at, and what to record of them."""
    from seqproc.scorers.overrides import resolve_mapping

    if file is None:
        if eta is not None:
            raise ConfigError("eta is a step along a direction: give its file as override, too")
        return None, None
    tensors, digest = _read_tensors(file)
    described = {"sha256": digest, "eta": eta}
    if eta is None:
        resolve_mapping(processor.model, tensors, None, [])  # refuses what does not fit the model
        return tensors, described
    return processor.build_params_override(tensors, eta), described


def _read_tensors(file: str | os.PathLike[str]) -> tuple[dict[str, Tensor], str]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    require_path("override", file, OverrideError)
    try:
        content = Path(file).read_bytes()
        return load(content), hashlib.sha256(content).hexdigest()
    except (OSError, SafetensorError) as error:
        raise OverrideError(
            f"cannot read {os.fspath(file)} as safetensors: {error}. Write it with "
            "safetensors.torch.save_file"
        ) from error


def _made_by(
    processor: SequenceProcessor,
    manifest: Manifest,
    override: Mapping[str, Any] | None,
    columns: Sequence[str],
) -> dict[str, Any]:
    from seqproc.models.fingerprint import fingerprint

    return {
        "run": manifest.key,
        "model": {
            "name": processor.source.name,
            "dtype": processor.source.dtype,
            "weights": fingerprint(processor.model.named_parameters()),
        },
        "override": override,
        "policy": dataclasses.asdict(processor.policy),
        "precision": json.loads(strict_json.dumps(dataclasses.asdict(processor.precision))),
        "token_columns": list(columns),
        "versions": library_versions(),
    }
