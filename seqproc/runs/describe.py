"""What a run's rows depend on: the manifest of a run that is about to start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seqproc._util.versions import library_versions
from seqproc.runs.format.manifest import Kind, Manifest

if TYPE_CHECKING:
    from seqproc.processor import SequenceProcessor

# Of what an engine says of itself, what only changes how fast it is or where things lie.
_NOT_IN_ROWS = ("notes", "platform", "max_num_seqs", "max_model_len")
_OPTIONS_NOT_IN_ROWS = (
    "batch_size",
    "disable_log_stats",
    "enable_sleep_mode",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "model",
    "use_tqdm_on_load",
)


def planned_run(
    processor: SequenceProcessor,
    kind: Kind,
    spec: Mapping[str, Any],
    num_draws: int,
    prompts: str,
    token_columns: Sequence[str],
) -> Manifest:
    """The manifest as far as it is known before an engine starts or weights load."""
    return Manifest(
        kind=kind,
        spec=dict(spec),
        num_draws=num_draws,
        prompts=prompts,
        model={"name": processor.source.name, "dtype": processor.source.dtype},
        policy=dataclasses.asdict(processor.policy),
        stopping=dataclasses.asdict(processor.stopping) if kind == "sample" else {},
        precision=dataclasses.asdict(processor.precision),
        engine={},
        reward=dict(processor.provenance().reward),
        token_columns=list(token_columns),
        versions=library_versions(),
    )


def with_engine(planned: Manifest, processor: SequenceProcessor) -> Manifest:
    """The manifest with what samples; the engine starts now."""
    description = processor.engine.describe()
    return dataclasses.replace(
        planned, engine=_in_rows(description), engine_details=dict(description)
    )


def with_weights(planned: Manifest, processor: SequenceProcessor) -> Manifest:
    """The manifest with a digest of the scorer's weights, which load now."""
    from seqproc.models.fingerprint import fingerprint

    digest = fingerprint(processor.model.named_parameters())
    return dataclasses.replace(planned, model={**planned.model, "weights": digest})


def _in_rows(description: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in description.items() if k not in _NOT_IN_ROWS}
    if isinstance(options := kept.get("options"), Mapping):
        kept["options"] = {k: v for k, v in options.items() if k not in _OPTIONS_NOT_IN_ROWS}
    return kept
