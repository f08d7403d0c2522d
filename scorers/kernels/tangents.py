"""Linear layers, attention and products with their forward derivatives written out.

PyTorch's forward mode multiplies by a tangent of zeros where an operand does not move, adds the
terms of a product in a pass of their own, and has no derivative of fused attention. These
operations are nearly all of a transformer's work; `written_out` swaps them, and only them, for
forms that do the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from seqproc._util.by_device import ByDevice
from seqproc._util.kernels import is_on
from seqproc.scorers.experts import BY_EXPERT
from seqproc.scorers.kernels.products import product
from seqproc.scorers.swapping import Swapped

# Rows of attention at a time: on a CPU, few enough for their scores to stay in a cache. Elsewhere,
# those of as many sequences as have so many scores.
_ROWS = ByDevice(cpu=64, accelerator=1024)
_SCORES = ByDevice(cpu=1, accelerator=1 << 26)


def written_out() -> Swapped:
    """A scope in which dual tensors meet the forms of this module; only without a graph."""
    return Swapped(_WRITTEN_OUT if is_on("tangents") else BY_EXPERT)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`: d(xWᵀ + b) = dx·Wᵀ + x·dWᵀ + db, of what moves."""
    (x, dx), (w, dw), (b, db) = _parts(input), _parts(weight), _parts(bias)
    out = product(x, w, b)
    if dx is None and dw is None and db is None:
        return out
    slope = torch.zeros_like(out) if dx is None else product(dx, w)
    if dw is not None:
        slope += product(x, dw)
    if db is not None:
        slope += db
    return forward_ad.make_dual(out, slope)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As `torch.nn.functional.scaled_dot_product_attention`, for ``[N, heads, length, width]``.

    With P = softmax(S): dP = P∘(dS − Σ P∘dS) and d(PV) = dP·V + P·dV.
    """
    (q, dq), (k, dk), (v, dv) = _parts(query), _parts(key), _parts(value)
    still = dq is None and dk is None and dv is None
    if still or dropout_p or query.dim() != 4 or _parts(attn_mask)[1] is not None:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, dq = q * scale, _or_zeros(dq, q) * scale
    dk, dv = _or_zeros(dk, k), _or_zeros(dv, v)
    (count, heads, length, _), keys = q.shape, k.shape[2]
    if is_causal:
        attn_mask = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril()
    mask = None if attn_mask is None else _whole(attn_mask, count, length, keys)
    out = v.new_empty(count, heads, length, v.shape[-1])
    slope = torch.empty_like(out)
    for n, rows in _blocks((count, heads, length, keys), q.device):
        bias = None if mask is None else _bias(mask[n, :, rows], q.dtype)
        seen = slice(keys if bias is None else bias.shape[-1])
        out[n, :, rows], slope[n, :, rows] = _attend(
            q[n, :, rows],
            dq[n, :, rows],
            k[n, :, seen],
            dk[n, :, seen],
            v[n, :, seen],
            dv[n, :, seen],
            bias,
        )
    return forward_ad.make_dual(out, slope)


def _attend(
    q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """All heads of a group of queries, which has its keys in common, at once."""
    count, groups = len(q), (k.shape[1], q.shape[1] // k.shape[1])
    q, dq = (tensor.unflatten(1, groups).flatten(2, 3).flatten(0, 1) for tensor in (q, dq))
    k, dk, v, dv = (tensor.flatten(0, 1) for tensor in (k, dk, v, dv))
    scores = q @ k.mT
    if bias is not None:
        each = scores.view(count, *groups, -1, scores.shape[-1])
        each += bias.unflatten(1, groups) if bias.shape[1] > 1 else bias.unsqueeze(1)
    p = torch.softmax(scores, dim=-1)
    dp = torch.baddbmm(dq @ k.mT, q, dk.mT)
    dp = dp.sub_(torch.linalg.vecdot(p, dp)[..., None]).mul_(p)
    heads = (p @ v, torch.baddbmm(dp @ v, p, dv))
    out, slope = (
        tensor.unflatten(0, (count, -1)).unflatten(2, (groups[1], -1)).flatten(1, 2)
        for tensor in heads
    )
    return out, slope


def _blocks(
    shape: tuple[int, int, int, int], device: torch.device
) -> Iterator[tuple[slice, slice]]:
    """Sequences and rows of scores ``[N, heads, length, keys]`` to take at a time."""
    count, heads, length, keys = shape
    rows = min(_ROWS.on(device), length)
    together = max(1, _SCORES.on(device) // (heads * rows * keys))
    for n in range(0, count, together):
        for start in range(0, length, rows):
            yield slice(n, n + together), slice(start, min(start + rows, length))


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, up to the last key that any row sees.

    Finite, so that a row that sees nothing is not NaN.
    """
    least = torch.finfo(dtype).min
    hidden = ~mask if mask.dtype == torch.bool else mask <= least
    seen = (~hidden).flatten(0, -2).any(0).nonzero()
    last = int(seen[-1]) + 1 if len(seen) else mask.shape[-1]
    if mask.dtype != torch.bool:
        return mask[..., :last].clamp(min=least)
    hidden = hidden[..., :last]
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, least)


def _whole(mask: Tensor, count: int, length: int, keys: int) -> Tensor:
    """A mask as ``[N, heads or 1, length, keys]``, not copied."""
    return mask[(None,) * (4 - mask.dim())].expand(count, -1, length, keys)


def multiply(input: Any, other: Any, **options: Any) -> Tensor:
    """As `torch.mul`: d(ab) = da·b + a·db, of what moves."""
    (a, da), (b, db) = _parts(input), _parts(other)
    if options or (da is None and db is None):
        return torch.mul(input, other, **options)
    if da is None or db is None:
        slope = a * db if da is None else da * b
    else:
        slope = (da * b).addcmul_(a, db) if a.dtype == b.dtype else da * b + a * db
    return forward_ad.make_dual(a * b, slope)


def _parts(tensor: Any) -> tuple[Any, Tensor | None]:
    """What a tensor, or something else in its place, is, and how it moves."""
    if not isinstance(tensor, Tensor):
        return tensor, None
    primal, tangent = forward_ad.unpack_dual(tensor)
    return primal, tangent


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


_WRITTEN_OUT: Mapping[Callable[..., Any], Callable[..., Any]] = {
    functional.linear: linear,
    functional.scaled_dot_product_attention: attention,
    torch.mul: multiply,
    Tensor.mul: multiply,
    **BY_EXPERT,
}
