"""A run's folder while it is written, by the one process that holds its lock.

Each file appears whole. What is committed is never changed, only moved together at the end.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from seqproc._util.clock import utc_now
from seqproc.errors import RunError
from seqproc.runs.format.events import Events
from seqproc.runs.format.layout import SAMPLES, SCORES, set_aside
from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.manifest_file import write_manifest
from seqproc.runs.format.parts import Part, Parts, is_merged_name, part_number
from seqproc.runs.format.quarantine import QUARANTINE, Failed, Quarantine
from seqproc.runs.format.summary import SAMPLE_COLUMNS, SCORE_COLUMNS, accumulator
from seqproc.runs.format.tables import Sample, samples_of
from seqproc.runs.shards.shard import shard_draws
from seqproc.runs.store.folder import Folder
from seqproc.runs.store.lock import RunLock

if TYPE_CHECKING:
    import pyarrow as pa

EndState = Literal["interrupted", "failed", "complete"]

_LOGGER = logging.getLogger("seqproc")


class RunFolder:
    """Made by `seqproc.runs.opening.open_for_writing`.

    Args:
        folder: where.
        manifest: as it stands there.
        lock: held by this process; looked at before each commit.
    """

    def __init__(self, folder: Folder, manifest: Manifest, lock: RunLock) -> None:
        self.folder = folder
        self.manifest = manifest
        self._lock = lock
        self.samples = Parts(folder, SAMPLES, manifest.key)
        self.scores = Parts(folder, SCORES, manifest.key)
        self.events = Events(folder)
        self.quarantine = self._open_quarantine()
        self._next = 0
        self._mutex = threading.RLock()  # scoring may go on in a thread of its own
        self._know_nothing()
        self._take_in()

    def _open_quarantine(self) -> Quarantine:
        """The draws that always failed; where they cannot be told, they are tried again."""
        try:
            return Quarantine(self.folder, self.manifest)
        except RunError as error:
            _LOGGER.warning("%s; set aside, and its draws are tried again", error)
            set_aside(self.folder, [QUARANTINE])
            self.events.tell("set_aside", table="quarantine", part=QUARANTINE, reason=str(error))
            return Quarantine(self.folder, self.manifest)

    def _know_nothing(self) -> None:
        self.is_sampled = np.zeros(self.manifest.num_draws, dtype=bool)  # by draw
        self.sampled: list[Part] = []
        self.scored: dict[str, Part] = {}  # by the name of the samples' part
        self.summary = accumulator(self.manifest.reward)

    # ------------------------------------------------------------------ what is there

    def _take_in(self) -> None:
        """Read every note, and every file once; set aside what is not as it was written."""
        for name in self.samples.names(self.manifest.merge):
            # One number stays free: a holder elsewhere that was taken for dead, and is not, may
            # still be writing one part, and must not write over one of ours.
            self._next = max(self._next, part_number(name) + 2)
            part = self._sound(self.samples, name)
            if part is None:
                continue
            if self._is_merged(part):
                self._drop(name)
            elif self._repeats(part):
                self._set_aside(self.samples, name, "its draws are in another part already")
            else:
                self._mark(part)
        known = {part.name: part for part in self.sampled}
        for name in self.scores.names(self.manifest.merge):
            part = self._sound(self.scores, name)
            if part is None:
                continue
            if name in known and np.isin(part.indices(), known[name].indices()).all():
                self._count(known[name], part)
            elif self._is_merged(part):
                self.scores.drop(name)
            else:
                self._set_aside(self.scores, name, f"the samples of {name}'s scores are not there")

    def _sound(self, parts: Parts, name: str) -> Part | None:
        """The part, if its file is the one that was committed."""
        try:
            part = parts.read_note(name)
            parts.check(part)
        except RunError as error:
            self._set_aside(parts, name, str(error))
            return None
        return part

    def _is_merged(self, part: Part) -> bool:
        """Whether a part was merged by a process that was stopped before it removed the part."""
        draws = part.indices()
        if not self.manifest.merge or not len(draws) or draws[-1] >= len(self.is_sampled):
            return False
        return bool(self.is_sampled[draws].all())

    def _drop(self, name: str) -> None:
        for parts in (self.scores, self.samples):
            parts.drop(name)

    def _repeats(self, part: Part) -> bool:
        draws = part.indices()
        return bool(self.is_sampled[draws[draws < len(self.is_sampled)]].any())

    def _mark(self, part: Part) -> None:
        draws = part.indices()
        if len(draws) and draws[-1] >= len(self.is_sampled):  # of a source with gaps
            self.is_sampled = np.pad(self.is_sampled, (0, draws[-1] + 1 - len(self.is_sampled)))
        self.is_sampled[draws] = True
        self.sampled.append(part)

    def _count(self, samples: Part, scores: Part) -> None:
        """Take a part's scores into the summary."""
        rows = self.samples.read(samples, SAMPLE_COLUMNS)
        if scores.num_rows < samples.num_rows:
            rows = rows.filter(np.isin(rows["draw"].to_numpy(), scores.indices()))
        self.summary.add(
            rows,
            self.scores.read(scores, SCORE_COLUMNS),
            generation_seconds=samples.seconds.get("generation"),
            scoring_seconds=scores.seconds.get("scoring", 0.0),
        )
        self.scored[samples.name] = scores

    @property
    def num_done(self) -> int:
        """Draws that are sampled and scored."""
        return sum(part.num_rows for part in self.scored.values())

    def _set_aside(self, parts: Parts, name: str, reason: str) -> None:
        _LOGGER.warning("%s; set aside, and its draws are made again", reason)
        set_aside(self.folder, [parts.note(name), parts.file(name)])
        self.events.tell("set_aside", table=parts.table, part=name, reason=reason)

    def has(self, draw: int) -> bool:
        """Whether a draw is sampled or in quarantine."""
        return self._is_sampled(draw) or draw in self.quarantine

    def _is_sampled(self, draw: int) -> bool:
        return draw < len(self.is_sampled) and bool(self.is_sampled[draw])

    def todo(self) -> np.ndarray:
        """Draws of the shard that are neither sampled nor in quarantine, rising."""
        draws = shard_draws(self.manifest.shard, self.manifest.num_draws)
        is_left = ~self.is_sampled
        is_left[[one.draw for one in self.quarantine]] = False
        return draws[is_left[draws]]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be sampled, scored or merged."""
        num_failed = sum(not self._is_sampled(one.draw) for one in self.quarantine)
        is_left = int(self.is_sampled.sum()) + num_failed < self.manifest.num_own_draws
        is_merged = all(is_merged_name(part.name) for part in self.sampled)
        return not (is_left or self.unscored()) and is_merged and self.manifest.merge > 0

    def unscored(self) -> list[Part]:
        """Samples that have no scores yet, in the order they were committed."""
        return [part for part in self.sampled if part.name not in self.scored]

    def first_sampled(self) -> list[int]:
        """The first draw that is sampled; none where there is none."""
        return np.flatnonzero(self.is_sampled)[:1].tolist()

    def first_sample(self) -> Sample | None:
        """A sample that is kept, and so was rewarded; None where there is none."""
        for part in self.sampled:
            if part.num_rows:
                return samples_of(self.samples.read_draws(part, part.indices()[:1]))[0]
        return None

    # ------------------------------------------------------------------ what is added

    def add_samples(self, rows: pa.Table, seconds: Mapping[str, float]) -> Part:
        """Commit samples, by rising draw."""
        with self._mutex:
            self._lock.check()
            part = self.samples.write(f"part-{self._next:06d}", [rows], seconds)
            self._next += 1
            self._mark(part)
            tokens = int(rows["gen_len"].to_numpy().sum())
            self.events.tell("committed", part=part.name, rows=part.num_rows, tokens=tokens)
            return part

    def add_scores(self, part: Part, rows: pa.Table, seconds: Mapping[str, float]) -> None:
        """Commit the scores of a part of the samples; draws that failed have none."""
        with self._mutex:
            self._lock.check()
            self._count(part, self.scores.write(part.name, [rows], seconds))
            self.update()
            self.events.tell("scored", part=part.name, rows=rows.num_rows)

    def add_failed(self, some: Iterable[Failed]) -> None:
        """Commit draws that always fail."""
        with self._mutex:
            self._lock.check()
            added = list(some)
            self.quarantine.add(added)
            for one in added:
                self.events.tell("quarantined", draw=one.draw, step=one.step, reason=one.reason)

    def replace_parts(self, samples: Sequence[Part], scores: Sequence[Part], merge: int) -> None:
        """Let merged parts, which are written, take the place of all that were there.

        Args:
            samples: the merged samples.
            scores: their scores, part by part of the same draws.
            merge: the number of the merge.
        """
        with self._mutex:
            self._know_nothing()
            for part, scored in zip(samples, scores, strict=True):
                self._mark(part)
                self._count(part, scored)
            self.update(merge=merge)
            self.events.tell("merged", rows=self.num_done)

    def retry_quarantined(self) -> None:
        """Take the draws in quarantine for draws to be made, or scored where they are sampled."""
        released = np.array([one.draw for one in self.quarantine], dtype=np.int64)
        if not len(released):
            return
        with self._mutex:
            self._lock.check()
            for part in self.sampled:
                if np.isin(released, part.indices()).any():
                    self._drop_scores(part)
            self.quarantine.clear()
            self.update(state="running")
            self.events.tell("retried", draws=len(released))

    def _drop_scores(self, samples: Part) -> None:
        """Remove the scores of a part, so that all of it is scored again."""
        self.scores.drop(samples.name)
        others = {part.name: part for part in self.sampled if part is not samples}
        scored, self.scored = self.scored, {}
        self.summary = accumulator(self.manifest.reward)
        for name, scores in scored.items():
            if name in others:
                self._count(others[name], scores)

    def update(self, **changes: Any) -> None:
        """Say in the manifest how far the run is, and what else has changed."""
        with self._mutex:
            self._lock.check()
            now: dict[str, Any] = {
                "num_draws_done": self.num_done,
                "num_quarantined": len(self.quarantine),
                "summary": dataclasses.asdict(self.summary.result()) if self.scored else None,
                "updated": utc_now(),
            }
            self.manifest = dataclasses.replace(self.manifest, **{**now, **changes})
            write_manifest(self.folder, self.manifest)

    def end(self, state: EndState, error: str | None = None) -> None:
        """Say that the run has ended, and how."""
        self.update(state=state, error=error)
        self.events.tell(state, **({} if error is None else {"error": error}))
