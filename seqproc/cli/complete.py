"""Names that a shell completes. Quick: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable


def models(incomplete: str) -> list[str]:
    """Embedded models. Folders are completed by the shell."""
    from seqproc.models.embedded import EMBEDDED_MODELS

    return _starting(incomplete, EMBEDDED_MODELS)


def dataset_specs(incomplete: str) -> list[str]:
    """Datasets by name."""
    from seqproc.prompts import dataset_names

    return _starting(incomplete, dataset_names())


def engines(incomplete: str) -> list[str]:
    """The two that sample, and what installed packages announce."""
    from importlib import metadata

    announced = (point.name for point in metadata.entry_points(group="seqproc.engines"))
    return _starting(incomplete, {"hf", "vllm", *announced})


def engine_lists(incomplete: str) -> list[str]:
    """Engines with commas between them: the last of them is completed."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in engines(last) if name not in taken]


def dtypes(incomplete: str) -> list[str]:
    """Dtypes of weights."""
    return _starting(incomplete, ("float32", "float64", "bfloat16", "float16"))


def executors(incomplete: str) -> list[str]:
    """What makes the draws of a run."""
    return _starting(incomplete, ("local", "ray"))


def when_scored(incomplete: str) -> list[str]:
    """When draws are scored."""
    return _starting(incomplete, ("auto", "now", "later", "overlap"))


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
