"""Reads everything in a run's folder again, and says what is not as it was written.

Needs no model and no torch. Some rows are in memory at a time, and the bytes of one file. A run
that is not complete is judged as what it is: draws that are still to be made are no fault.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc._util.arguments import require_path
from seqproc.errors import RunError
from seqproc.runs.format.events import EVENTS, EVENTS_FOLDER
from seqproc.runs.format.layout import ASIDE, MANIFEST, REPORT, SAMPLES, SCORES, SHARDS
from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.manifest_file import require_manifest
from seqproc.runs.format.parts import Part, Parts, is_merged_name
from seqproc.runs.format.quarantine import QUARANTINE, Failed, read_quarantine
from seqproc.runs.format.schema import require_pyarrow, samples_schema, scores_schema
from seqproc.runs.format.score_set import read_score_set, score_set_names, set_file, set_table
from seqproc.runs.format.summary import SAMPLE_COLUMNS, SCORE_COLUMNS, accumulator
from seqproc.runs.shards.shard import shard_range
from seqproc.runs.store.folder import LOCK_PREFIX, Folder, open_folder
from seqproc.runs.store.holder import is_alive
from seqproc.runs.store.lock import holder_of
from seqproc.runs.verify.contents import faults_of_samples, faults_of_scores
from seqproc.runs.verify.coverage import Coverage
from seqproc.runs.verify.rereading import in_folder, reread

if TYPE_CHECKING:
    import pyarrow as pa

_SAME_COMMAND = "run the same command again: it sets this aside, and makes its draws again"
_MOVE_PART = "move it and its note out of the folder, and run the same command again"
_MOVE = "move it out of the folder"
_UNDO = "undo the change, or take the file from a copy of the run"
_AGAIN = "the command that made the set"
_COUNT = "run the same command again: it makes what is missing, and counts again"

_PLACES = ("samples/", "scores/", "parts/")  # where every file is the run's
_BESIDE = (LOCK_PREFIX, f"{ASIDE}/", f"{SHARDS}/", f"{EVENTS_FOLDER}/", EVENTS)
_OF_A_PART = re.compile(r".*/(part-\d+|rows-\d+-\d+)\.(json|parquet)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is wrong with a run's folder."""

    file: str  # its name in the folder
    wrong: str  # in words
    mend: str  # what to do about it

    def __str__(self) -> str:
        return f"{self.file}: {self.wrong}. To mend it, {self.mend}"


@dataclass(slots=True, kw_only=True)
class Verification:
    """What was found when a run's folder was read again."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # worth knowing, and not wrong
    num_parts: int = 0  # files of rows
    num_rows: int = 0  # draws that are sampled and scored


def verify_run(path: str | os.PathLike[str]) -> list[Fault]:
    """What is wrong with a run's folder; nothing, where all is as it was written.

    Every file is read whole and compared with its checksum; every row is compared with the plan
    and with itself. A run that is not complete is sound as long as what it has is.

    Args:
        path: the folder, or the URL of one in an object store.

    Raises:
        RunError: there is no run, or the folder cannot be read.
        MissingDependencyError: pyarrow is not installed.
    """
    return examine_run(path).faults


def examine_run(
    path: str | os.PathLike[str], tell: Callable[[str], object] = lambda _: None
) -> Verification:
    """As `verify_run`, with what else was found.

    Args:
        path: the folder.
        tell: is told of each file that was read, in words.
    """
    require_pyarrow()
    require_path("the run's folder", path, RunError)
    folder = open_folder(path)
    found = Verification()
    try:
        manifest = require_manifest(folder)
    except RunError as error:
        if not folder.exists(MANIFEST):
            raise
        wrong = in_folder(error, folder, MANIFEST)
        found.faults.append(Fault(file=MANIFEST, wrong=wrong, mend=_UNDO))
        found.notes.append("nothing else was read: the manifest tells what belongs to the run")
        return found
    _Examination(folder, manifest, found, tell).run()
    return found


class _Examination:
    """Fills a `Verification`."""

    def __init__(
        self,
        folder: Folder,
        manifest: Manifest,
        found: Verification,
        tell: Callable[[str], object],
    ) -> None:
        self._folder, self._manifest, self._found, self._tell = folder, manifest, found, tell
        self._samples = Parts(folder, SAMPLES, manifest.key)
        self._scores = Parts(folder, SCORES, manifest.key)
        self._is_complete = manifest.state == "complete"
        self._belongs = {MANIFEST, QUARANTINE, REPORT}  # names of files
        self._sampled, self._scored = Coverage(), Coverage()
        self._summary = accumulator(manifest.reward)

    def run(self) -> None:
        """Read everything."""
        holder = holder_of(self._folder)
        if holder is not None and is_alive(holder) is not False:
            self._found.notes.append(
                f"{holder.described()} is at work in the folder: what it changes meanwhile may "
                "look like a fault"
            )
        self._parts()
        for name in score_set_names(self._folder):
            self._score_set(name)
        self._draws(self._quarantine())
        self._other_files()
        if self._is_complete and not self._found.faults:
            self._totals()

    # ------------------------------------------------------------------ parts

    def _parts(self) -> None:
        merge = self._manifest.merge
        samples, scores = (set(p.names(merge)) for p in (self._samples, self._scores))
        for name in sorted(samples | scores, key=lambda name: (name.startswith("part-"), name)):
            if self._is_replaced(name):
                self._belongs |= _files(self._samples, name) | _files(self._scores, name)
                self._found.notes.append(f"{name}: merged; the same command removes it")
                continue
            of_samples = self._noted(self._samples, name) if name in samples else None
            of_scores = self._noted(self._scores, name) if name in scores else None
            if name not in samples:
                file = self._scores.file(name)
                self._fault(file, "the samples of these scores are not there", _SAME_COMMAND)
            self._rows(of_samples, of_scores)

    def _is_replaced(self, name: str) -> bool:
        """Whether a part is in a merged one, and was to be removed when the process was killed."""
        if self._is_complete or not self._manifest.merge or not name.startswith("part-"):
            return False
        try:
            return self._sampled.holds(self._samples.read_note(name).draws)
        except RunError:
            return False

    def _noted(self, parts: Parts, name: str) -> Part | None:
        """What a part's note says."""
        self._belongs |= _files(parts, name)
        self._found.num_parts += 1
        try:
            return parts.read_note(name)
        except RunError as error:
            note = parts.note(name)
            self._fault(note, in_folder(error, self._folder, note), _SAME_COMMAND)
            return None

    def _rows(self, samples: Part | None, scores: Part | None) -> None:
        """Read the samples and the scores of one part."""
        rows = more = None
        if samples is not None:
            file = self._samples.file(samples.name)
            self._sampled.add(file, samples.draws)
            self._require_planned(file, samples)
            rows = self._read(
                self._samples, samples, samples_schema(), SAMPLE_COLUMNS, faults_of_samples
            )
        if scores is not None:
            self._scored.add(self._scores.file(scores.name), scores.draws)
            self._found.num_rows += scores.num_rows
            schema = scores_schema(tuple(self._manifest.token_columns))
            more = self._read(
                self._scores, scores, schema, SCORE_COLUMNS, _faults_of_scores_of(rows)
            )
        if samples is not None and scores is not None:
            self._compare(samples, scores, rows, more)

    def _read(
        self, parts: Parts, part: Part, schema: pa.Schema, keep: Any, faults_of: Any
    ) -> pa.Table | None:
        file = parts.file(part.name)
        rows, faults = reread(self._folder, parts, part, schema, keep, faults_of)
        for wrong in faults:
            self._fault(file, wrong, _SAME_COMMAND if rows is None else _MOVE_PART)
        self._tell(f"{file}: {part.num_rows} rows, {'not ' if faults else ''}as written")
        return rows

    def _require_planned(self, file: str, part: Part) -> None:
        """Find a part that has draws which the run was not to make."""
        planned = self._manifest.num_draws
        if self._manifest.kind == "sample" and part.draws and part.draws[-1][1] > planned:
            last = part.draws[-1][1] - 1
            self._fault(file, f"it has draw {last}, and {planned} draws are planned", _MOVE_PART)
        if self._manifest.shard is not None:
            index, count = self._manifest.shard
            strange = part.indices()[part.indices() % count != index]
            if len(strange):
                wrong = f"it has draw {strange[0]}, which is not of shard {index}/{count}"
                self._fault(file, wrong, _MOVE_PART)

    def _score_set(self, name: str) -> None:
        """Read a further set of scores."""
        file = set_file(name)
        self._belongs.add(file)
        try:
            found = read_score_set(self._folder, name)
        except RunError as error:
            self._fault(file, in_folder(error, self._folder, file), _UNDO)
            return
        if found is None:  # a link that leads nowhere, or removed meanwhile
            self._fault(file, "it is not there", _UNDO)
            return
        parts = Parts(self._folder, set_table(name), found.key)
        schema = scores_schema(tuple(found.made_by["token_columns"]))
        scored = Coverage()
        for part_name in parts.names(found.merge):
            if (part := self._noted(parts, part_name)) is None:
                continue
            if not is_merged_name(part_name) and found.is_complete and scored.holds(part.draws):
                self._found.notes.append(f"{parts.file(part_name)}: merged; {_AGAIN} removes it")
                continue
            scored.add(parts.file(part_name), part.draws)
            self._read(parts, part, schema, ("draw",), lambda _: iter(()))
        for part_name in parts.all_names():
            if not _files(parts, part_name) & self._belongs:
                self._belongs |= _files(parts, part_name)
                self._found.notes.append(
                    f"{parts.file(part_name)}: unfinished; {_AGAIN} removes it"
                )
        for draw, one, other in _by_files(scored.twice()):
            self._fault(other, f"draw {draw} is in {one} as well", _SAME_COMMAND)
        if found.is_complete:
            scored.add(file, ((one["draw"], one["draw"] + 1) for one in found.failed))
            if missing := [pair for pair in self._scored.ranges() if not scored.holds([pair])]:
                wrong = f"draws from {missing[0][0]} to {missing[0][1] - 1} are not all in the set"
                self._fault(file, wrong, f"run {_AGAIN}: it scores what is missing")

    def _compare(
        self, samples: Part, scores: Part, rows: pa.Table | None, more: pa.Table | None
    ) -> None:
        """Compare the scores of a part with its samples, and count both."""
        of_samples = Coverage()
        of_samples.add(samples.name, samples.draws)
        if not of_samples.holds(scores.draws):
            file = self._scores.file(scores.name)
            self._fault(file, "it has scores of draws that its samples lack", _SAME_COMMAND)
        elif rows is not None and more is not None:
            self._summary.add(
                rows.filter(np.isin(rows["draw"].to_numpy(), scores.indices())),
                more,
                generation_seconds=samples.seconds.get("generation"),
                scoring_seconds=scores.seconds.get("scoring", 0.0),
            )

    # ------------------------------------------------------------------ draws and counts

    def _quarantine(self) -> list[Failed]:
        try:
            return read_quarantine(self._folder, self._manifest)
        except RunError as error:
            self._fault(QUARANTINE, in_folder(error, self._folder, QUARANTINE), _SAME_COMMAND)
            return []

    def _draws(self, quarantine: list[Failed]) -> None:
        """Compare the draws that are there with those that are planned."""
        for draw, one, other in _by_files(self._sampled.twice()):
            self._fault(other, f"draw {draw} is in {one} as well", _SAME_COMMAND)
        self._scored.add(QUARANTINE, ((one.draw, one.draw + 1) for one in quarantine))
        for draw, one, other in _by_files(self._scored.twice()):
            if QUARANTINE in (one, other):
                self._fault(QUARANTINE, f"draw {draw} has scores as well, in {one}", _UNDO)
        for wrong, mend in self._wrong_counts(quarantine):
            self._fault(MANIFEST, wrong, mend)

    def _wrong_counts(self, quarantine: list[Failed]) -> Iterator[tuple[str, str]]:
        manifest, num_rows = self._manifest, self._found.num_rows
        done = manifest.num_draws_done
        if done > num_rows or (self._is_complete and done != num_rows):
            yield f"it says that {done} draws are done, and {num_rows} are there", _COUNT
        if not self._is_complete:
            return
        if manifest.num_quarantined != len(quarantine):
            said = manifest.num_quarantined
            yield f"it says that {said} draws are in quarantine; {len(quarantine)} are", _UNDO
        if manifest.kind == "sample":
            gaps = self._scored.gaps(manifest.num_draws)
            missing = [shard_range(manifest.shard, stop, start) for start, stop in gaps]
            num_missing = sum(map(len, missing))
            first = next((draws[0] for draws in missing if draws), None)
            which = "" if first is None else f", the first of them draw {first}"
        else:  # the draws of what was given may have gaps
            num_missing, which = manifest.num_draws - num_rows - len(quarantine), ""
        if num_missing > 0:
            yield f"{num_missing} draws are neither scored nor in quarantine{which}", _COUNT

    def _totals(self) -> None:
        """Compute the summary again."""
        expected = dataclasses.asdict(self._summary.result()) if self._found.num_rows else None
        if self._found.num_rows and not _agree(expected, self._manifest.summary):
            self._fault(MANIFEST, "its summary is not that of the rows", _UNDO)

    # ------------------------------------------------------------------ other files

    def _other_files(self) -> None:
        """Find files that belong to nothing."""
        names = [name for name in self._folder.all_names() if not name.startswith(_BESIDE)]
        for name in names:
            if name in self._belongs:
                continue
            if not name.startswith(_PLACES):
                self._found.notes.append(f"{name}: nothing reads it")
            elif not _OF_A_PART.fullmatch(name):
                self._fault(name, "it belongs to nothing", _MOVE)
            elif self._is_complete:
                self._fault(name, "no note commits it to the run", _MOVE)
            else:
                self._found.notes.append(f"{name}: unfinished; the same command makes it again")
        for name in self._folder.unfinished_names():
            self._found.notes.append(f"{name}: being written, or its writer was killed")

    def _fault(self, file: str, wrong: str, mend: str) -> None:
        self._found.faults.append(Fault(file=file, wrong=wrong, mend=mend))


def _files(parts: Parts, name: str) -> set[str]:
    return {parts.file(name), parts.note(name)}


def _faults_of_scores_of(samples: pa.Table | None) -> Callable[[pa.Table], Iterator[str]]:
    """Faults of scores, where the samples are known."""

    def faults(rows: pa.Table) -> Iterator[str]:
        if samples is None:
            return iter(())
        draws, known = rows["draw"].to_numpy(), samples["draw"].to_numpy()
        if not np.isin(draws, known).all():
            return iter(())  # which is a fault of its own
        lengths = samples["gen_len"].to_numpy()[np.searchsorted(known, draws)]
        return faults_of_scores(rows, lengths)

    return faults


def _by_files(twice: Iterator[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The first draw of each two files."""
    first: dict[tuple[str, str], tuple[int, str, str]] = {}
    for draw, one, other in twice:
        first.setdefault((one, other), (draw, one, other))
    return list(first.values())


def _agree(expected: Any, found: Any) -> bool:
    """Whether two summaries are the same but for rounding."""
    if isinstance(expected, Mapping):
        return (
            isinstance(found, Mapping)
            and set(found) == set(expected)
            and all(_agree(value, found[name]) for name, value in expected.items())
        )
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return math.isclose(expected, found, rel_tol=1e-6, abs_tol=1e-6)
    return bool(expected == found)
