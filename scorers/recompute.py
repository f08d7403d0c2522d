"""Scores of a chunk without their graph: the backward pass computes the chunk again.

`torch.utils.checkpoint` would keep what it recomputes for as long as any score of the chunk is
alive, even one that no loss uses; here it is gone when the chunk's backward pass returns.
Knows tensors only; what is computed is given as a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from seqproc.policy import PolicyStatistics, TokenScores

_STATISTICS = [f.name for f in fields(PolicyStatistics)]


def recomputed(compute: Callable[..., TokenScores], *tensors: Tensor) -> TokenScores:
    """``compute(*tensors)``, differentiable in all of them, twice if need be.

    Args:
        compute: a pure function of the tensors; it runs once more in every backward pass.
        tensors: all that gradients must reach.
    """
    flat = _Recomputed.apply(lambda *inputs: _flat(compute(*inputs)), *tensors)
    statistics: dict[str, Any] = dict(zip(_STATISTICS, flat[2:], strict=False))
    return TokenScores(logprobs=flat[0], logqs=flat[1], stats=PolicyStatistics(**statistics))


def _flat(scores: TokenScores) -> list[Tensor]:
    """log p, log q and the statistics; ``eos_prob``, the last of them, where there is one."""
    values = [getattr(scores.stats, name) for name in _STATISTICS]
    return [scores.logprobs, scores.logqs, *(value for value in values if value is not None)]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Callable[..., list[Tensor]], *tensors: Tensor) -> Any:
        ctx.compute = compute
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(compute(*tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        twice = torch.is_grad_enabled()  # whoever differentiates wants to do so again
        with torch.enable_grad():
            # Aliases, so that what leads from one input to another is not followed here: a tied
            # head is also behind the states.
            inputs = [
                (x if twice else x.detach()).view_as(x).requires_grad_(x.requires_grad)
                for x in ctx.saved_tensors
            ]
            outputs = ctx.compute(*inputs)
        used = [
            (output, gradient)
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and output.requires_grad
        ]
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in used],
                wanted,
                [gradient for _, gradient in used],
                create_graph=twice,
                allow_unused=True,
            )
        )
        return None, *(next(found) if x.requires_grad else None for x in inputs)
