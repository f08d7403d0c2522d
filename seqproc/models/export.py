"""Writes a live model as a checkpoint that another engine can load: weights, configuration, LoRA.

The live model is left as it was. Knows transformers and PEFT; nothing about engines.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqproc.errors import EngineError
from seqproc.models.wrappers import without_adapters

_MERGE_FIRST = (
    "merge it into the weights first (model = model.merge_and_unload()), or sample with engine='hf'"
)


def export_model(model: nn.Module, directory: str, dtype: str) -> str | None:
    """Write a transformers model, or PEFT's LoRA wrapper of one, into ``directory``.

    Args:
        model: the live model. Tied weights stay tied.
        directory: an empty directory; the base model goes into it, under its own names.
        dtype: recorded as the checkpoint's own; when "float32", float64 weights are narrowed.

    Returns:
        The directory of the LoRA adapter, inside ``directory``; None when there is none.

    Raises:
        EngineError: when the model is not of this kind, or holds what an adapter cannot express.
    """
    lora_adapter(model)  # refused before anything is written
    export_base(model, directory, dtype)
    return export_adapter(model, directory)


def export_base(model: nn.Module, directory: str, dtype: str) -> None:
    """The part of `export_model` that writes the base model."""
    base: Any = without_adapters(model)
    if not hasattr(base, "save_pretrained"):
        raise EngineError(
            f"cannot write a {type(base).__name__} as a checkpoint: expected a transformers "
            "PreTrainedModel, or PEFT's wrapper of one"
        )
    _save_base(base, directory, getattr(torch, dtype))


def export_adapter(model: nn.Module, directory: str) -> str | None:
    """The part of `export_model` that writes the adapter."""
    name = lora_adapter(model)
    return None if name is None else _save_adapter(model, name, directory)


def plain_name(name: str) -> str:
    """The name that a weight of the base model had before LoRA was put in."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _save_base(base: Any, directory: str, dtype: torch.dtype) -> None:
    from transformers import GenerationConfig

    state = _clean_names(base.state_dict())
    if dtype == torch.float32:
        state = _narrowed(state)
    config = copy.deepcopy(base.config)
    # The checkpoint's sampling defaults play no part here, and saving refuses some of them.
    with (
        _replaced(base, "generation_config", GenerationConfig()),
        _restored(base.config),
        without_progress_bars(),
    ):
        base.save_pretrained(directory, state_dict=state)
    config.architectures = [type(base).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(directory)


def _clean_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base model's weights under the names that they had before LoRA was put in."""
    return {plain_name(name): tensor for name, tensor in state.items() if ".lora_" not in name}


def _narrowed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float64 tensors as float32; what was shared stays shared."""
    cast: dict[tuple[int, torch.Size, tuple[int, ...]], Tensor] = {}

    def narrow(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float64:
            return tensor
        key = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in cast:
            cast[key] = tensor.float()
        return cast[key]

    return {name: narrow(tensor) for name, tensor in state.items()}


def is_peft(model: nn.Module) -> bool:
    """Whether it is PEFT's wrapper of a model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def lora_adapter(model: nn.Module) -> str | None:
    """The name of the active LoRA adapter; None for a model without, or with it switched off."""
    if not is_peft(model):
        if getattr(model, "_hf_peft_config_loaded", False):
            raise EngineError(
                "this model holds adapters that transformers loaded into it: wrap the base model "
                "with peft.PeftModel instead, so that they can be told apart"
            )
        return None
    active = list(model.active_adapters)  # type: ignore[arg-type]
    if len(active) != 1:
        raise EngineError(
            f"exactly one adapter can be exported, but {active} are active; call "
            f"model.set_adapter(name), or {_MERGE_FIRST}"
        )
    _require_plain_lora(model, active[0])
    return None if _is_switched_off(model) else str(active[0])


def _require_plain_lora(model: Any, name: str) -> None:
    config = model.peft_config[name]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        raise EngineError(f"adapter {name!r} is of type {kind}, not LORA: {_MERGE_FIRST}")
    if config.modules_to_save:
        raise EngineError(
            f"adapter {name!r} replaces whole modules (modules_to_save="
            f"{list(config.modules_to_save)}), which a LoRA adapter cannot carry: {_MERGE_FIRST}"
        )
    if getattr(config, "trainable_token_indices", None):
        raise EngineError(
            f"adapter {name!r} trains single rows of the embedding (trainable_token_indices), "
            f"which a LoRA adapter cannot carry: {_MERGE_FIRST}"
        )
    if any(getattr(layer, "merged", False) for layer in model.modules()):
        raise EngineError(
            "the adapter is merged into the weights at present, and would be applied twice: call "
            "model.unmerge_adapter(), or model = model.merge_and_unload() for good"
        )


def _is_switched_off(model: nn.Module) -> bool:
    """Whether `disable_adapter_layers` is in force."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return bool(layers) and all(layer.disable_adapters for layer in layers)


def _save_adapter(model: Any, name: str, directory: str) -> str:
    path = Path(directory, "adapter")
    # The embeddings are in the base checkpoint; PEFT would look on the hub whether to add them.
    model.save_pretrained(path, selected_adapters=[name], save_embedding_layers=False)
    return str(path if name == "default" else path / name)


@contextmanager
def _replaced(holder: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute for a while."""
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


@contextmanager
def _restored(config: Any) -> Iterator[None]:
    """Undo what `save_pretrained` writes into a live model's configuration."""
    dtype, architectures = config.dtype, config.architectures
    try:
        yield
    finally:
        config.dtype, config.architectures = dtype, architectures


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing its bars for a while."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
