"""Attention of short responses, with the query heads of a key head as rows of one attention.

PyTorch's fused attention on a CPU takes few queries at a time when a sequence has few, and Hugging
Face repeats every key head for the query heads that read it. Query heads that have a key head in
common can be rows of one: more queries at a time, and nothing is repeated. The outcome is the same.
Knows attention as Hugging Face models call it; nothing of models or batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

_NAME = "seqproc_grouped"  # by which Hugging Face finds it

_MOST_QUERIES = 192  # fused attention takes 64 and more of so many at a time by itself
_MOST_MASKED = 4096  # elements of a mask per query: what it adds to memory

# Masks of the rows, by the mask that all layers of a forward are given; gone when it is gone.
_MASKS = WeakTensorKeyDictionary()


@contextlib.contextmanager
def grouped_attention(model: nn.Module) -> Iterator[None]:
    """A scope in which a model of PyTorch's scaled dot-product attention takes heads together.

    Without gradients; any other model, and any attention that would not gain, stays as it is.
    """
    config: Any = getattr(model, "config", None)
    if torch.is_grad_enabled() or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    _register()
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention ``[N, L, heads, width]`` as Hugging Face's function for "sdpa" has it.

    Args:
        module: the layer.
        query: ``[N, heads, L, width]``.
        key: ``[N, key heads, K, width]``.
        value: ``[N, key heads, K, width]``.
        attention_mask: ``[N or 1, 1 or heads, L, K]``, bool or what is added to scores.
        scaling: factor of the scores.
        options: whatever else a model says.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or not _gains(query, key, attention_mask, options):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    heads, length = key.shape[1], query.shape[2]
    rows = query.unflatten(1, (heads, -1)).flatten(2, 3)
    mask = _mask_of_rows(attention_mask, rows.shape[2] // length, query.dtype)
    out = functional.scaled_dot_product_attention(rows, key, value, mask, scale=scaling)
    return out.unflatten(2, (-1, length)).flatten(1, 2).transpose(1, 2).contiguous(), None


def _gains(query: Tensor, key: Tensor, mask: Tensor, options: dict[str, Any]) -> bool:
    in_common = query.shape[1] // key.shape[1]
    return (
        query.device.type == "cpu"
        and in_common > 1
        and query.shape[2] < _MOST_QUERIES
        and in_common * key.shape[2] <= _MOST_MASKED
        and mask.dim() == 4
        and mask.shape[1] == 1
        and not any(options.get(name) for name in ("dropout", "output_attentions"))
        and all(options.get(name) is None for name in ("position_bias", "cache"))
    )


def _mask_of_rows(mask: Tensor, in_common: int, dtype: torch.dtype) -> Tensor:
    """``[N or 1, 1, heads in common · L, K]``, added to scores; made once for all layers."""
    if mask not in _MASKS:
        if mask.dtype == torch.bool:
            added = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
        else:
            added = mask
        _MASKS[mask] = added.repeat(1, 1, in_common, 1)
    found: Tensor = _MASKS[mask]
    return found
