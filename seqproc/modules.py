"""What wraps a model without being part of it, and whose turn it is to compute with one.

Knows torch's wrappers; nothing of models.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_TURN = threading.RLock()


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """A scope that one thread at a time is in; also a decorator.

    A forward at other parameters puts them in the place of the module's own, where another
    thread would read them; and how PyTorch computes is set for the whole process: the kernels of
    attention, the precision of products, the level of forward mode.

    Never to be held around a backward pass: on a GPU that runs in a thread of its own, where parts
    of a forward are computed again and take a turn.
    """
    with _TURN:
        yield


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """A scope without the caller's autocast and inference mode, which change numbers and gradients.

    Whether gradients are recorded stays as it is.
    """
    records = torch.is_grad_enabled()  # leaving inference mode would switch it on
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(records),
        torch.autocast(device.type, enabled=False),
    ):
        yield


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
