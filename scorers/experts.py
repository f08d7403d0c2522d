"""The product of a mixture of experts, expert by expert.

PyTorch's kernel for it knows neither float64 nor forward derivatives; a matrix product per expert
has both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def expert_by_expert(
    input: Tensor, mat2: Tensor, offs: Tensor | None = None, **options: Any
) -> Tensor:
    """As `torch._grouped_mm` of rows ``[S, D]`` sorted by expert and weights ``[E, D, F]``.

    Args:
        input: the rows.
        mat2: a matrix of each expert.
        offs: ``[E]`` integers, where each expert's rows stop. Rows after the last are 0.
        options: others of that function; with any of them it is called itself.
    """
    is_of_experts = offs is not None and input.dim() == 2 and mat2.dim() == 3
    if not is_of_experts or any(value is not None for value in options.values()):
        return torch._grouped_mm(input, mat2, offs=offs, **options)
    assert offs is not None
    found, start = [], 0
    for matrix, stop in zip(mat2, offs.tolist(), strict=True):
        found.append(input[start:stop] @ matrix)
        start = stop
    return torch.cat([*found, input.new_zeros(len(input) - start, mat2.shape[-1])])


# What to swap for what; PyTorch has its kernel since 2.8.
BY_EXPERT: Mapping[Callable[..., Any], Callable[..., Any]] = (
    {torch._grouped_mm: expert_by_expert} if hasattr(torch, "_grouped_mm") else {}
)
