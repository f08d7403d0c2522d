"""The product with a head's matrix on a CPU, in tiles of the vocabulary and sums of few terms.

A BLAS that multiplies by the whole matrix at once leaves its caches with every pass over the
logits; in tiles they stay there. And the rounding of a sum grows with the number of its terms and
the size of the sums on the way: so it goes in parts, and the few dimensions that weigh most come
last. That of logits is much of the error of a float32 log-probability (docs/precision.md).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from seqproc.scorers.swapping import Swapped

_TILE = 1024  # tokens of the vocabulary: a few MB of logits
_TERMS = 96  # of a sum that is rounded on its own; with fewer, a product takes longer
_HEAVY = 16  # dimensions that are summed last
_SAMPLED = 1024  # rows of a matrix that tell which dimensions these are

_SUMMED_AS_WIDE = (torch.float32, torch.float64)  # narrower sums would be rounded in between


def tiled_products() -> Swapped:
    """A scope in which `torch.nn.functional.linear` goes in tiles, where that can be done."""
    return Swapped({functional.linear: linear})


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`; on a CPU and without derivatives, in tiles."""
    if not _in_tiles(input, weight):
        return functional.linear(input, weight, bias)
    states = input.reshape(-1, input.shape[-1])
    out = states.new_empty(len(states), len(weight))
    heavy = _heaviest(weight)
    light, last = states.index_fill(1, heavy, 0), states[:, heavy]
    for tile, rows in zip(out.split(_TILE, dim=1), weight.split(_TILE), strict=True):
        _multiply(light, rows, tile)
        tile.addmm_(last, rows[:, heavy].t())
    if bias is not None:
        out += bias
    return out.view(*input.shape[:-1], len(weight))


def _heaviest(weight: Tensor) -> Tensor:
    """The dimensions of largest weights: the states must not decide, for the rounding of one would
    depend on those of its batch.
    """
    some = weight[:: max(1, len(weight) // _SAMPLED)]
    return some.square().mean(0).topk(min(_HEAVY, weight.shape[1])).indices


def _multiply(states: Tensor, rows: Tensor, out: Tensor) -> None:
    """``out = states·rowsᵀ``, few terms at a time."""
    terms = zip(states.split(_TERMS, dim=1), rows.split(_TERMS, dim=1), strict=True)
    for i, (some, same) in enumerate(terms):
        out.addmm_(some, same.t(), beta=min(i, 1))  # 0 overwrites what was in the memory


def _in_tiles(input: Tensor, weight: Tensor) -> bool:
    tensors = (input, weight)
    return (
        all(t.device.type == "cpu" and t.dtype in _SUMMED_AS_WIDE for t in tensors)
        and input.dtype == weight.dtype
        and weight.dim() == 2
        and input.shape[-1:] == weight.shape[1:]
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        and all(forward_ad.unpack_dual(t).tangent is None for t in tensors)
    )
