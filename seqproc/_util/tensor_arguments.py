"""Checks of tensors among the arguments of public functions; an error names the argument.

Knows tensors; nothing of what the functions compute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqproc.errors import ConfigError, SequenceError


def require_dense(
    name: str, tensor: object, *, dims: int | None = None, may_be_meta: bool = False
) -> None:
    """Raise unless this is an ordinary tensor of integers or floats that is somewhere."""
    if not isinstance(tensor, Tensor):
        mend = ": torch.tensor of a tokenizer's input_ids is one" if name.endswith("_ids") else ""
        raise SequenceError(f"{name} must be a tensor, got {type(tensor).__name__}{mend}")
    is_nowhere = tensor.is_meta and not may_be_meta
    if tensor.layout != torch.strided or is_nowhere or tensor.is_complex():
        kind = "on the meta device" if tensor.is_meta else f"{tensor.layout} of {tensor.dtype}"
        raise SequenceError(f"{name} must be a dense tensor of numbers, got one {kind}")
    if dims is not None and tensor.dim() != dims:
        raise SequenceError(
            f"{name} must have {dims} dimension(s), got a tensor of shape {list(tensor.shape)}"
        )


def require_logits(logits: object, *, may_be_meta: bool = False) -> None:
    """Raise unless these are logits ``[..., V]``, floating, V ≥ 1."""
    require_dense("logits", logits, may_be_meta=may_be_meta)
    assert isinstance(logits, Tensor)
    if not logits.is_floating_point():
        raise SequenceError(f"logits must be a floating tensor, got {logits.dtype}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise SequenceError(f"logits must be [..., V], got shape {list(logits.shape)}")


def require_tokens(tokens: object, logits: Tensor) -> None:
    """Raise unless these are ids ``[...]`` below V, one for each row of logits ``[..., V]``."""
    require_ids("tokens", tokens)
    assert isinstance(tokens, Tensor)
    if tokens.shape != logits.shape[:-1]:
        raise SequenceError(
            f"tokens must be {list(logits.shape[:-1])}, one for each row of logits "
            f"{list(logits.shape)}, got {list(tokens.shape)}"
        )
    require_ids_below("tokens", tokens, logits.shape[-1])


def require_ids(name: str, ids: object, *, dims: int | None = None) -> None:
    """Raise unless this is a tensor of integers; an empty one may be of any numbers."""
    require_dense(name, ids, dims=dims)
    assert isinstance(ids, Tensor)
    if ids.numel() and (ids.is_floating_point() or ids.dtype == torch.bool):
        raise SequenceError(f"{name} must hold integer ids, got {ids.dtype}")


def require_ids_below(name: str, ids: Tensor, vocabulary: int | None) -> None:
    """Raise unless ids are at least 0, and below V where V is known.

    Looked at on a CPU alone: elsewhere the host would wait.
    """
    if ids.device.type != "cpu" or not ids.numel():
        return
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or (vocabulary is not None and most >= vocabulary):
        bound = "∞" if vocabulary is None else vocabulary
        raise SequenceError(f"{name} must lie in [0, {bound}), got {least} to {most}")


def token_ids(name: str, ids: object, vocabulary: int | None = None) -> tuple[int, ...]:
    """Ids of tokens, each once, as a tuple of integers; below V where V is known."""
    if not isinstance(ids, Iterable) or isinstance(ids, (str, bytes)):
        raise ConfigError(f"{name} must be a list of token ids, got {type(ids).__name__}")
    if isinstance(ids, Tensor):
        require_dense(name, ids)
    found: list[Any] = ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else list(ids)
    for one in found if isinstance(found, list) else [found]:
        is_id = isinstance(one, (int, np.integer)) and not isinstance(one, bool) and one >= 0
        if not is_id or (vocabulary is not None and one >= vocabulary):
            bound = "" if vocabulary is None else f" below {vocabulary}"
            raise ConfigError(f"{name} must hold token ids{bound}, got {one!r:.60}")
    return tuple(dict.fromkeys(map(int, found)))


def require_dtype(name: str, dtype: object) -> None:
    """Raise unless this is None or a dtype that a model can be cast to."""
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    is_dtype = isinstance(dtype, torch.dtype) and dtype in kinds
    if dtype is not None and not is_dtype:
        known = ", ".join(map(str, kinds))
        raise ConfigError(f"{name} must be None or one of {known}, got {dtype!r:.60}")
