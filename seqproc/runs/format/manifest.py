"""The manifest: what a run's folder says about itself, as JSON.

It names everything that the rows depend on, and the key is a digest of just that: a folder is
resumed by whoever asks for a run of the same key. Knows nothing of where it is kept.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic.dataclasses import dataclass

from seqproc import __version__
from seqproc._util import strict_json
from seqproc._util.clock import utc_now
from seqproc._util.printing import Facts, Words
from seqproc.errors import RunError
from seqproc.runs.format.schema import FORMAT_VERSION
from seqproc.runs.shards.shard import Shard, shard_range

Kind = Literal["sample", "score"]
State = Literal["running", "interrupted", "failed", "complete"]
Count = Annotated[int, pydantic.Field(ge=0)]

_ABSENT = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True, config={"extra": "forbid", "strict": True})
class Manifest:
    """What made a run, and how far it is. Mappings are JSON-ready."""

    # What the rows depend on: all of it, and nothing else.
    kind: Kind  # sampled and scored, or only scored
    spec: dict[str, Any]  # fields of `RunSpec`, or where the scored sequences came from
    num_draws: Count  # planned, of all shards together
    prompts: str  # digest of the prompts drawn, as text and as token ids
    model: dict[str, Any]  # name, dtype and a digest of the weights
    policy: dict[str, Any]  # the resolved `SamplingPolicy`
    stopping: dict[str, Any]  # the `StoppingRule`; empty when nothing was sampled
    precision: dict[str, Any]  # the resolved `PrecisionConfig`
    engine: dict[str, Any]  # what samples, as far as rows depend on it; empty when nothing does
    reward: dict[str, Any]  # name and weights
    token_columns: list[str]  # what is kept per token
    versions: dict[str, str]  # of Python and the libraries
    seqproc_version: str = __version__
    format_version: int = FORMAT_VERSION

    # What it was made with and how far it is: rows do not depend on it.
    key: str = ""  # digest of the above
    engine_details: dict[str, Any] = dataclasses.field(default_factory=dict)  # all it says
    state: State = "running"
    num_draws_done: Count = 0  # sampled, scored and on disk
    num_quarantined: Count = 0  # draws that always failed
    merge: Count = 0  # how often parts were merged into few files in the order of the draws
    error: str | None = None  # what ended a failed run
    summary: dict[str, Any] | None = None  # `RunSummary` of the draws done
    created: str = dataclasses.field(default_factory=utc_now)  # ISO 8601, UTC
    updated: str = dataclasses.field(default_factory=utc_now)  # ISO 8601, UTC

    def identity(self) -> dict[str, Any]:
        """What the rows depend on, by field."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names[: names.index("key")]}

    @property
    def shard(self) -> Shard | None:
        """Which shard of its plan the run is; None: it is all of it."""
        shard = self.spec.get("shard") if self.kind == "sample" else None
        return None if shard is None else (shard[0], shard[1])

    @property
    def num_own_draws(self) -> int:
        """Draws that the run itself is to make: those of its shard."""
        return len(shard_range(self.shard, self.num_draws))


def run_facts(manifest: Manifest) -> Facts:
    """What a run prints of its manifest."""
    shard = manifest.shard
    return {
        "draws": manifest.num_own_draws,
        "state": manifest.state,
        "quarantined": manifest.num_quarantined or None,
        "shard": None if shard is None else Words(f"{shard[0]}/{shard[1]}"),
        "model": manifest.model.get("name"),
        "engine": manifest.engine.get("name"),
        "temperature": manifest.policy.get("temperature"),
        "top_p": manifest.policy.get("top_p"),
        "do_sample": manifest.policy.get("do_sample"),
    }


def with_key(manifest: Manifest) -> Manifest:
    """The manifest with the digest of what its rows depend on."""
    return dataclasses.replace(manifest, key=_digest(manifest))


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(strict_json.dumps(manifest.identity()).encode()).hexdigest()[:32]


def to_json(manifest: Manifest) -> str:
    """The manifest as strict JSON, one that any reader takes."""
    return strict_json.dumps(dataclasses.asdict(manifest))


@functools.cache
def _reader() -> pydantic.TypeAdapter[Manifest]:
    return pydantic.TypeAdapter(Manifest)


def from_json(text: str) -> Manifest:
    """Read a manifest back.

    Raises:
        RunError: it is not JSON, of another format version, has a key too many or too few or a
            value of another type, or was changed after it was written.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"the manifest is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise RunError(f"the manifest must be a JSON object, got {type(values).__name__}")
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        raise RunError(
            f"the run has format version {version!r}, and this seqproc ({__version__}) reads "
            f"version {FORMAT_VERSION}: read it with the seqproc that wrote it "
            f"({values.get('seqproc_version', 'unknown')})"
        )
    known = {field.name for field in dataclasses.fields(Manifest)}
    if differing := sorted(known.symmetric_difference(values)):
        raise RunError(f"the manifest lacks or does not know the keys {', '.join(differing)}")
    try:
        manifest = _reader().validate_json(text)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise RunError(
            f"the manifest's {where}: {fault['msg']}, got {fault['input']!r:.60}"
        ) from error
    if _digest(manifest) != manifest.key:
        raise RunError(
            "the manifest was changed after it was written: its key is not that of its content. "
            "Undo the change"
        )
    return manifest


def differences(
    mine: Mapping[str, Any],
    other: Mapping[str, Any],
    *,
    called: tuple[str, str] = ("the folder has", "asked for was"),
) -> list[str]:
    """Where two identities differ, a line each.

    Args:
        mine: of the one.
        other: of the other.
        called: the words before what each has.
    """
    return [
        f"{name}: {called[0]} {_shown(first)}, {called[1]} {_shown(second)}"
        for name, first, second in _differing("", _plain(mine), _plain(other))
    ]


def _plain(identity: Mapping[str, Any]) -> Any:
    """As it reads in a file."""
    return json.loads(strict_json.dumps(identity))


def _differing(name: str, mine: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if not (isinstance(mine, dict) and isinstance(other, dict)):
        if mine != other:
            yield name, mine, other
        return
    for key in [*mine, *(key for key in other if key not in mine)]:
        inner = f"{name}.{key}" if name else key
        yield from _differing(inner, mine.get(key, _ABSENT), other.get(key, _ABSENT))


def _shown(value: Any) -> str:
    return value if value is _ABSENT else f"{json.dumps(value, ensure_ascii=False):.80}"
