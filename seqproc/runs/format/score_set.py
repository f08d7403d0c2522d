"""A further set of scores of a run: what made it, and where it is. Needs no torch.

It is kept beside the samples, in ``scores/NAME/``, with ``set.json`` that says what made it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seqproc._util import strict_json
from seqproc._util.clock import utc_now
from seqproc.errors import RunError
from seqproc.runs.format.parts import Part, Parts, is_merged_name
from seqproc.runs.store.folder import Folder

SET = "set.json"

# Of what it says.
_KINDS = {
    "made_by": dict,
    "key": str,
    "merge": int,
    "num_draws_done": int,
    "failed": list,
    "updated": str,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSet:
    """What made a set of scores, and how far it is."""

    made_by: Mapping[str, Any]  # all that its scores depend on, JSON-ready
    key: str  # digest of that
    merge: int = 0  # as a manifest's
    num_draws_done: int = 0
    failed: Sequence[Mapping[str, Any]] = ()  # draws that cannot be scored so, and why
    updated: str = dataclasses.field(default_factory=utc_now)

    @property
    def is_complete(self) -> bool:
        """Whether every draw of the run is scored, or has failed."""
        return self.merge > 0


def score_set_names(folder: Folder) -> list[str]:
    """The names of a run's further sets of scores."""
    found = [name.split("/") for name in folder.all_names()]
    return [
        parts[1] for parts in found if len(parts) == 3 and parts[0] == "scores" and parts[2] == SET
    ]


def set_table(name: str) -> str:
    """The table of a set's scores, as `Parts` calls it."""
    return f"scores/{name}"


def set_file(name: str) -> str:
    """The file that says what made a set."""
    return f"{set_table(name)}/{SET}"


def read_score_set(folder: Folder, name: str) -> ScoreSet | None:
    """What a folder says of a set; None where there is no such set.

    Raises:
        RunError: its file cannot be read.
    """
    file = set_file(name)
    if not folder.exists(file):
        return None
    try:
        found = _score_set(json.loads(folder.read(file)))
    except (ValueError, RecursionError) as error:
        raise RunError(f"{folder.url}/{file} is not what was written ({error})") from error
    if found.key != digest(found.made_by):
        raise RunError(f"{folder.url}/{file} was changed after it was written")
    return found


def _score_set(values: Any) -> ScoreSet:
    known = {field.name for field in dataclasses.fields(ScoreSet)}
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError(f"expected the keys {', '.join(sorted(known))}")
    for name, kind in _KINDS.items():
        if type(values[name]) is not kind or (kind is int and values[name] < 0):
            raise ValueError(f"{name} is {values[name]!r:.60}")
    if not all(isinstance(one, dict) and type(one.get("draw")) is int for one in values["failed"]):
        raise ValueError("its failed draws are not indices")
    return ScoreSet(**values)


def committed_parts(parts: Parts, merge: int) -> list[Part]:
    """The parts of a set, without those that were merged and not removed yet.

    Raises:
        RunError: a note cannot be read.
    """
    found = [parts.read_note(name) for name in parts.names(merge)]
    merged = [part for part in found if is_merged_name(part.name)]
    draws = np.concatenate([np.zeros(0, np.int64), *(part.indices() for part in merged)])
    others = [part for part in found if not is_merged_name(part.name)]
    return merged + [part for part in others if not np.isin(part.indices(), draws).any()]


def digest(made_by: Mapping[str, Any]) -> str:
    """What tells a set from those that were made by something else."""
    return hashlib.sha256(strict_json.dumps(made_by).encode()).hexdigest()[:32]
