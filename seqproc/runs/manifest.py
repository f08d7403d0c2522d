"""The manifest: what a run's folder says about itself, as JSON.

It names everything that the rows depend on. Knows nothing of where it is kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from seqproc import __version__
from seqproc._util import strict_json
from seqproc.errors import RunError
from seqproc.runs.schema import FORMAT_VERSION

Kind = Literal["sample", "score"]
State = Literal["running", "complete", "failed"]


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made a run, and how far it is. Mappings are JSON-ready."""

    kind: Kind  # sampled and scored, or only scored
    spec: Mapping[str, Any]  # fields of `RunSpec`, or where the scored sequences came from
    model: Mapping[str, Any]  # name and dtype
    policy: Mapping[str, Any]  # the resolved `SamplingPolicy`
    stopping: Mapping[str, Any]  # the `StoppingRule`; empty when nothing was sampled
    precision: Mapping[str, Any]  # the resolved `PrecisionConfig`
    engine: Mapping[str, Any]  # the engine's own description; empty when nothing was sampled
    versions: Mapping[str, str]  # of Python and the libraries
    num_draws: int  # planned
    reward: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name and weights
    num_draws_done: int = 0  # committed: their rows are on disk
    state: State = "running"
    error: str | None = None  # what ended a failed run
    summary: Mapping[str, Any] | None = None  # `RunSummary` of the draws done
    created: str = dataclasses.field(default_factory=utc_now)  # ISO 8601, UTC
    updated: str = dataclasses.field(default_factory=utc_now)  # ISO 8601, UTC
    seqproc_version: str = __version__
    format_version: int = FORMAT_VERSION


def to_json(manifest: Manifest) -> str:
    """The manifest as strict JSON, one that any reader takes."""
    return strict_json.dumps(dataclasses.asdict(manifest))


def from_json(text: str) -> Manifest:
    """Read a manifest back.

    Raises:
        RunError: it is not JSON, of another format version, or lacks or adds a key.
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
    values.setdefault("reward", {})  # not said when there was but one
    known = {field.name for field in dataclasses.fields(Manifest)}
    if differing := sorted(known.symmetric_difference(values)):
        raise RunError(f"the manifest lacks or does not know the keys {', '.join(differing)}")
    return _checked(Manifest(**values))


def _checked(manifest: Manifest) -> Manifest:
    """Refuse the values that readers decide by when they make no sense."""
    if manifest.state not in get_args(State) or manifest.kind not in get_args(Kind):
        raise RunError(
            f"the manifest has state {manifest.state!r} and kind {manifest.kind!r}; expected one "
            f"of {', '.join(get_args(State))} and one of {', '.join(get_args(Kind))}"
        )
    counts = (manifest.num_draws, manifest.num_draws_done)
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise RunError(f"the manifest's counts of draws must be integers >= 0, got {counts}")
    mappings = [f.name for f in dataclasses.fields(Manifest) if str(f.type).startswith("Mapping")]
    for name in mappings:
        value = getattr(manifest, name)
        if not isinstance(value, dict) and not (name == "summary" and value is None):
            raise RunError(f"the manifest's {name!r} must be an object")
    return manifest
