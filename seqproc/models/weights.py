"""Replacement weights for a live model: validate, read from disk, apply temporarily.

Weights are mappings of the live model's parameter names to tensors. Files are safetensors; nothing
is ever unpickled. Knows torch, transformers and PEFT; nothing about engines.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqproc._util.optional import require_package
from seqproc.errors import EngineError, OverrideError, SeqprocError
from seqproc.models.export import is_peft, lora_adapter, plain_name, without_progress_bars
from seqproc.models.parameters import check_mapping, own_parameters
from seqproc.models.wrappers import without_adapters

Weights = Mapping[str, Tensor] | str | os.PathLike[str] | None

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What decides how LoRA's tensors are applied, beyond their names and shapes.
_LORA_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora")


# ---------------------------------------------------------------- mappings


def validate_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that differ in storage from the model's, in its names, dtypes and devices.

    Args:
        model: the live model; unchanged.
        weights: some or all of its parameters. Tied ones may come under any of their names.

    Raises:
        EngineError: an unknown name, no tensor, another shape, NaN or infinity, or two tensors
            for parameters that are tied.
    """
    own, names = own_parameters(model)
    try:
        found = check_mapping(weights, own, names, are_values=True)
    except OverrideError as error:
        raise EngineError(f"weights cannot be loaded: {error}") from None
    return {
        name: tensor.detach().to(own[name].device, own[name].dtype).contiguous()
        for name, tensor in found.items()
        if not _is_same(tensor, own[name])
    }


def own_copies(weights: Mapping[str, Tensor], given: Iterable[Tensor]) -> dict[str, Tensor]:
    """The weights, copied where they share storage with a tensor that was given."""
    theirs = {tensor.untyped_storage().data_ptr() for tensor in given}
    return {
        name: tensor.clone() if tensor.untyped_storage().data_ptr() in theirs else tensor
        for name, tensor in weights.items()
    }


@contextmanager
def temporary_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the model compute with other weights, as from `validate_weights`, for a while."""
    own = dict(model.named_parameters())
    before = {name: own[name].data for name in weights}
    try:
        for name, tensor in weights.items():
            own[name].data = tensor
        yield
    finally:
        for name, tensor in before.items():
            own[name].data = tensor


def _is_same(tensor: Tensor, own: Tensor) -> bool:
    """Whether it is the model's own parameter, as where an override does not move it."""
    return (
        tensor.data_ptr() == own.data_ptr()
        and tensor.dtype == own.dtype
        and tensor.stride() == own.stride()
    )


# ---------------------------------------------------------------- directories


def weights_directory(weights: object) -> Path:
    """The directory that was given as weights, with safetensors in it.

    Raises:
        EngineError: when it is no path, not there, or holds no safetensors.
    """
    if not isinstance(weights, (str, os.PathLike)):
        raise EngineError(
            "weights must be a mapping of parameter names to tensors, a directory or None, got "
            f"{type(weights).__name__}"
        )
    path = Path(weights).expanduser()
    if not path.is_dir():
        raise EngineError(
            f"there is no directory {str(path)!r} to load weights from: give one with a "
            "checkpoint in safetensors or a PEFT LoRA adapter"
        )
    wanted = _ADAPTER_WEIGHTS if is_adapter(path) else "*.safetensors"
    if not any(path.glob(wanted)):
        raise EngineError(
            f"{str(path)!r} holds no {wanted}: weights are read from safetensors alone, and "
            "never unpickled; write them with save_pretrained, which uses safetensors"
        )
    return path


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (path / _ADAPTER_CONFIG).is_file()


def read_weights(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """A directory's weights under the names of the live model, which stays as it is.

    Raises:
        EngineError: when they cannot be read, or are not all of this model's.
        MissingDependencyError: it is an adapter, and peft is not installed.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _explained(path), torch.random.fork_rng(devices), without_progress_bars():
        if not is_adapter(path):
            return _read_checkpoint(model, path)
        require_package("peft", extra="peft", purpose="reading an adapter")
        return _read_adapter(model, path) if is_peft(model) else _read_merged(model, path)


def shapes(path: Path) -> dict[str, list[int]]:
    """The shape of every tensor of a directory's safetensors."""
    from safetensors import safe_open

    found: dict[str, list[int]] = {}
    with _explained(path):
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                found |= {n: list(tensors.get_slice(n).get_shape()) for n in tensors.keys()}  # noqa: SIM118
    return found


def raise_for(path: Path, problem: str, names: Iterable[str]) -> None:
    """Refuse a directory for the names that have a problem, if there are any."""
    first, *others = [*sorted(names), None]
    if first is not None:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise EngineError(f"{str(path)!r} {problem} {first}{more}; give weights of this very model")


def _read_checkpoint(model: nn.Module, path: Path) -> dict[str, Tensor]:
    base: Any = without_adapters(model)
    if not hasattr(base, "from_pretrained"):
        raise EngineError(
            f"cannot read a checkpoint for a {type(base).__name__}: expected a transformers "
            "PreTrainedModel; give a mapping of parameter names to tensors"
        )
    # transformers itself knows shards, tied heads and names that changed.
    loaded, report = type(base).from_pretrained(
        path,
        config=copy.deepcopy(base.config),
        dtype=max((p.dtype for p in base.parameters()), key=lambda dtype: dtype.itemsize),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are reported
    )
    raise_for(path, "has another shape for", [name for name, *_ in report["mismatched_keys"]])
    raise_for(path, "lacks", report["missing_keys"])
    raise_for(path, "holds what the model has no place for:", report["unexpected_keys"])
    names = {plain_name(name): name for name, _ in model.named_parameters()}
    found = {name: param.detach() for name, param in loaded.named_parameters()}
    raise_for(path, "holds what the adapter replaces:", set(found) - set(names))
    return {names[name]: tensor for name, tensor in found.items()}


def _read_adapter(model: Any, path: Path) -> dict[str, Tensor]:
    from peft import PeftConfig
    from safetensors.torch import load_file

    active = lora_adapter(model)
    if active is None:
        raise EngineError(
            "the model's adapter is switched off, so another cannot take its place: call "
            "model.enable_adapter_layers()"
        )
    config, own = PeftConfig.from_pretrained(str(path)), model.peft_config[active]
    for field in _LORA_FIELDS:
        expected, found = getattr(own, field, None), getattr(config, field, None)
        if expected != found:
            raise EngineError(
                f"the adapter {str(path)!r} has {field}={found!r}, the model's own has "
                f"{expected!r}: give one of the same structure"
            )
    tensors = load_file(path / _ADAPTER_WEIGHTS)
    names = _adapter_names(model, active)
    raise_for(path, "lacks", set(names) - set(tensors))
    raise_for(path, "holds what the model has no place for:", set(tensors) - set(names))
    return {names[name]: tensor for name, tensor in tensors.items()}


def _adapter_names(model: nn.Module, adapter: str) -> dict[str, str]:
    """The live name of each of an adapter's tensors, by the name in its checkpoint."""
    names: dict[str, str] = {}
    for name, _ in model.named_parameters():
        head, _, tail = name.rpartition(".lora_")
        kind, *rest = tail.split(".")
        if head and rest[0] == adapter:
            names[".".join([f"{head}.lora_{kind}", *rest[1:]])] = name
    return names


def _read_merged(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The parameters that merging the adapter into the weights changes."""
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(str(path))
    config.base_model_name_or_path = None  # PEFT warns of another name
    adapted: Any = get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False)
    with temporary_weights(adapted, validate_weights(adapted, _read_adapter(adapted, path))):
        merged = adapted.merge_and_unload()
    own = dict(model.named_parameters())
    return {
        name: param.detach()
        for name, param in merged.named_parameters()
        if not torch.equal(param, own[name])
    }


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever a library raises while it reads into an `EngineError` of one sentence."""
    try:
        yield
    except SeqprocError:
        raise
    except Exception as error:
        raise EngineError(
            f"cannot read the weights in {str(path)!r} ({type(error).__name__}: {error}); check "
            "that it is complete and of this very model"
        ) from error
