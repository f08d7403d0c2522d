"""A key-value cache of prompts that responses continue.

Knows the layers of a cache as Hugging Face models call them; nothing of models or batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def continued(prompts: DynamicCache, owners: Tensor) -> DynamicCache:
    """A cache for rows that continue some of another one's, which stays as it is.

    Args:
        prompts: of M prompts.
        owners: ``[N]`` int64, which of the M prompts each row continues.
    """
    layers: list[Any] = [_PromptLayer(layer, owners) for layer in prompts.layers]
    cache = DynamicCache()
    cache.layers = layers
    return cache


class _PromptLayer(DynamicLayer):
    """Keys and values of prompts, each of them once.

    A prompt is repeated for its responses only while their attention is computed. Were that kept,
    as a cache does that has further tokens to come, all layers together would take more memory
    than anything else in a forward pass.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, prompts: Any, owners: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(prompts.keys, prompts.values)
        self.keys, self.values, self._owners = prompts.keys, prompts.values, owners

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values ``[N, heads, P + L, width]`` of prompts and responses; none is kept."""
        return self._follow(self.keys, key_states), self._follow(self.values, value_states)

    def _follow(self, prompts: Tensor, responses: Tensor) -> Tensor:
        # Of a position's heads together, which is how a model's layers lay them out.
        some = prompts.transpose(1, 2).index_select(0, self._owners)
        return torch.cat([some, responses.transpose(1, 2)], dim=1).transpose(1, 2)
