"""Scores computed in chunks of rows, with a graph that keeps none of what a chunk computed.

The backward pass computes each chunk again and lets go of it before the next. That is
`torch.utils.checkpoint` but for two things: what a chunk recomputes does not live on with scores
that no loss uses, and gradients of tensors that all chunks read are summed in one place.
Knows tensors and scores; what is computed of them is given as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from seqproc.policy import PolicyStatistics, TokenScores

_STATISTICS = [f.name for f in fields(PolicyStatistics)]

Compute = Callable[..., TokenScores]


def in_chunks(
    compute: Compute, num_rows: int, values: Tensor, tokens: Tensor, *shared: Tensor
) -> TokenScores:
    """``compute(values, tokens, *shared)``, ``num_rows`` rows of the first two at a time.

    Differentiable in ``values`` and ``shared``, also twice, and by forward mode.

    Args:
        compute: a pure function, row by row; with gradients it runs once more in a backward pass.
        num_rows: rows of a chunk, ≥ 1.
        values: ``[R, …]``.
        tokens: ``[R]``.
        shared: tensors that every chunk reads whole.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (values, *shared)):
        return _unflat(_InChunks.apply(compute, num_rows, values, tokens, *shared))  # type: ignore[no-untyped-call]
    chunks = zip(values.split(num_rows), tokens.split(num_rows), strict=True)
    return TokenScores.concatenate([compute(some, ids, *shared) for some, ids in chunks])


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Compute, num_rows: int, values: Tensor, tokens: Tensor, *shared: Tensor
    ) -> Any:
        ctx.compute, ctx.num_rows, ctx.tokens = compute, num_rows, tokens
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(values, *shared)
        return tuple(_flat(in_chunks(compute, num_rows, values, tokens, *shared)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        double_backward = torch.is_grad_enabled()  # create_graph=True was asked for
        device = ctx.saved_tensors[0].device.type
        with torch.autocast(device, enabled=False), torch.enable_grad():  # as `compute` sets them
            values, *shared = (alias(x, double_backward) for x in ctx.saved_tensors)
            of_shared = [torch.zeros_like(x) if x.requires_grad else None for x in shared]
            of_values: list[Any] = []
            for start in range(0, len(values), ctx.num_rows):
                rows = slice(start, start + ctx.num_rows)
                of_values.append(
                    _add_chunk(ctx, values, shared, of_shared, gradients, rows, double_backward)
                )
        return None, None, torch.cat(of_values), None, *of_shared


def _add_chunk(
    ctx: Any,
    values: Tensor,
    shared: list[Tensor],
    of_shared: list[Tensor | None],
    gradients: Sequence[Tensor | None],
    rows: slice,
    double_backward: bool,
) -> Tensor | None:
    """Compute a chunk again, add what it gives to the gradients of shared tensors, return its own.

    All that a chunk computed is gone when this function returns, before the next chunk.
    """
    some = alias(values[rows], double_backward)
    scores = _flat(ctx.compute(some, ctx.tokens[rows], *shared))
    weights = [None if g is None else g[rows] for g in gradients]
    own, *others = _pull_back(scores, weights, [some, *shared], double_backward)
    for i, gradient in enumerate(others):
        of_shared[i] = _sum(of_shared[i], gradient, double_backward)
    return torch.zeros_like(some) if own is None else own


def alias(tensor: Tensor, double_backward: bool) -> Tensor:
    """The same numbers under another name, so that gradients end here.

    Were it the tensor itself, what leads from one input to another would be followed as well: a
    tied head is also behind the hidden states.
    """
    return (
        (tensor if double_backward else tensor.detach())
        .view_as(tensor)
        .requires_grad_(tensor.requires_grad)
    )


def _pull_back(
    outputs: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    inputs: list[Tensor],
    double_backward: bool,
) -> list[Tensor | None]:
    """Σ weights · d outputs/d inputs; None for an input that needs none, or has none."""
    pairs = [(y, g) for y, g in zip(outputs, weights, strict=True) if g is not None]
    used = [(y, g) for y, g in pairs if y.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    if not used:  # constants, such as the head mass without truncation
        return [None] * len(inputs)
    found = iter(
        torch.autograd.grad(
            [y for y, _ in used],
            wanted,
            [g for _, g in used],
            create_graph=double_backward,
            allow_unused=True,
        )
    )
    return [next(found) if x.requires_grad else None for x in inputs]


def _sum(total: Tensor | None, new: Tensor | None, double_backward: bool) -> Tensor | None:
    if total is None or new is None:
        return total
    return total + new if double_backward else total.add_(new)


def _flat(scores: TokenScores) -> list[Tensor]:
    """log p, log q and the statistics; ``eos_prob``, the last of them, where there is one."""
    values = [getattr(scores.stats, name) for name in _STATISTICS]
    return [scores.logprobs, scores.logqs, *(value for value in values if value is not None)]


def _unflat(flat: Sequence[Tensor]) -> TokenScores:
    statistics: dict[str, Any] = dict(zip(_STATISTICS, flat[2:], strict=False))
    return TokenScores(logprobs=flat[0], logqs=flat[1], stats=PolicyStatistics(**statistics))
