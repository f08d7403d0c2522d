"""Shards as they are read, to be merged: that they are of one plan, all there, whole and complete.

Changes nothing in their folders, and takes no lock: what is complete is not changed any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seqproc.errors import RunError, RunMismatchError
from seqproc.runs.format.layout import MANIFEST, SAMPLES, SCORES
from seqproc.runs.format.manifest import Manifest, differences
from seqproc.runs.format.manifest_file import read_manifest
from seqproc.runs.format.parts import Part, Parts
from seqproc.runs.format.quarantine import read_quarantine
from seqproc.runs.shards.shard import Shard, shard_draws, shown
from seqproc.runs.store.folder import Folder

_MOST_SHOWN = 10  # shards or draws that an error names


class ShardSource:
    """A complete shard, for reading.

    Args:
        folder: its own.
        manifest: as it stands there.

    Raises:
        RunError: a note or the quarantine cannot be read.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        assert manifest.shard is not None
        self.folder, self.manifest, self.shard = folder, manifest, manifest.shard
        self.samples = Parts(folder, SAMPLES, manifest.key)
        self.scores = Parts(folder, SCORES, manifest.key)
        names = self.samples.names(manifest.merge), self.scores.names(manifest.merge)
        self.sampled = [self.samples.read_note(name) for name in names[0]]
        self.scored = [self.scores.read_note(name) for name in names[1]]
        self.quarantined = read_quarantine(folder, manifest)

    def check(self) -> None:
        """Read every file whole.

        Raises:
            RunError: draws are missing, or a file is not as it was written.
        """
        planned = shard_draws(self.shard, self.manifest.num_draws)
        expected = planned[~np.isin(planned, [one.draw for one in self.quarantined])]
        for parts, table in ((self.sampled, "samples"), (self.scored, "scores")):
            draws = _draws(parts)
            if not np.array_equal(draws, expected):
                wrong = np.setxor1d(draws, expected)[:_MOST_SHOWN].tolist()
                raise RunError(
                    f"{self._name()} says that it is complete, but its {table} are not those of "
                    f"its draws: {', '.join(map(str, wrong)) or 'their order'}; files were lost "
                    "or added. Bring them back, or make the shard anew with --fresh"
                )
        try:
            for part in self.sampled:
                self.samples.check(part)
            for part in self.scored:
                self.scores.check(part)
        except RunError as error:
            raise RunError(
                f"{self._name()} is damaged: {error}. Bring the file back, or make the shard anew "
                "with --fresh"
            ) from error

    def _name(self) -> str:
        return f"shard {shown(self.shard)} in {self.folder.url}"


def open_shards(folders: Sequence[Folder]) -> list[ShardSource]:
    """The shards in folders, shard 0 first.

    Raises:
        RunMismatchError: they are not of one plan.
        RunError: a folder holds no shard, or one that is not complete; one is missing, or given
            twice.
    """
    manifests = [_shard_manifest(folder) for folder in folders]
    for folder, manifest in zip(folders, manifests, strict=True):
        _require_one_plan(folders[0], manifests[0], folder, manifest)
    by_shard: dict[Shard, list[int]] = defaultdict(list)
    for number, manifest in enumerate(manifests):
        assert manifest.shard is not None
        by_shard[manifest.shard].append(number)
    _require_each_once({shard: [folders[i] for i in some] for shard, some in by_shard.items()})
    order = [numbers[0] for _, numbers in sorted(by_shard.items())]
    _require_complete([(folders[i], manifests[i]) for i in order])
    return [ShardSource(folders[i], manifests[i]) for i in order]


def _shard_manifest(folder: Folder) -> Manifest:
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"there is no run in {folder.url}: it has no {MANIFEST}")
    if manifest.shard is None:
        raise RunError(
            f"the run in {folder.url} is no shard: only runs of `seqproc sample --shard` are merged"
        )
    return manifest


def _require_one_plan(first: Folder, expected: Manifest, folder: Folder, given: Manifest) -> None:
    called = ("the first has", "this one")
    if lines := differences(plan_of(expected), plan_of(given), called=called):
        raise RunMismatchError(
            f"the shards are not of one plan: {first.url} is the first, and {folder.url} differs "
            "from it in:",
            lines,
        )


def plan_of(manifest: Manifest) -> dict[str, Any]:
    """What the rows of all shards together depend on: not which shard, but of how many."""
    identity = manifest.identity()
    shard = manifest.shard
    spec = {**manifest.spec, "shard": None if shard is None else f"one of {shard[1]}"}
    return {**identity, "spec": spec}


def _require_each_once(folders: Mapping[Shard, Sequence[Folder]]) -> None:
    for shard, some in folders.items():
        if len(some) > 1:
            raise RunError(
                f"shard {shown(shard)} is given twice, as {some[0].url} and {some[1].url}: name "
                "each shard once"
            )
    count = next(iter(folders))[1]
    if missing := [(i, count) for i in range(count) if (i, count) not in folders]:
        raise RunError(
            f"{len(missing)} of {count} shards are not among the folders: "
            f"{_listed([shown(shard) for shard in missing])}. Name all, once they are made"
        )


def _require_complete(shards: Sequence[tuple[Folder, Manifest]]) -> None:
    lines = [
        f"shard {shown(manifest.shard)} in {folder.url} is {manifest.state!r}, with "
        f"{manifest.num_draws_done} of {manifest.num_own_draws} draws done"
        for folder, manifest in shards
        if manifest.state != "complete" and manifest.shard is not None
    ]
    if lines:
        raise RunError(
            f"{len(lines)} of {len(shards)} shards are not complete: {_listed(lines)}. Wait for "
            "them, or run their commands again, which go on from there"
        )


def _listed(words: Sequence[str]) -> str:
    more = len(words) - _MOST_SHOWN
    return "; ".join(words[:_MOST_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _draws(parts: Sequence[Part]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *(part.indices() for part in parts)])
