"""Scopes in which a forward is not disturbed: by other threads, or by its caller's settings."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

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
