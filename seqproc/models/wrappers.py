"""Takes off what is wrapped around a model: data parallelism, `torch.compile`, PEFT."""

from __future__ import annotations

from typing import Any

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside data-parallel and `torch.compile` wrappers. PEFT stays: it is the model."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def without_adapters(model: Any) -> Any:
    """The model inside a PEFT wrapper, its adapted layers in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
