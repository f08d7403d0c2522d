"""Attention that gives a token the same bits whatever is scored beside it.

How PyTorch's fused attention on a CPU rounds the sums of a token depends on where its keys begin,
up to where they are padded, and how many queries there are: a BLAS parts sums of more than so many
terms, vector instructions leave a remainder to others, few rows go another way. Here the keys of
a sequence count from the first that it sees, go so many at a time that no sum is parted, and are
joined in their order; numbers of queries and keys are filled up until nothing is left over.

Query heads that read the same key head are rows of one attention, so that no key is repeated for
them. Knows attention as Hugging Face models call it; nothing of models or batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary

from seqproc._util.kernels import is_on
from seqproc.scorers.chunks import alias
from seqproc.scorers.forward import device_of

_NAME = "seqproc_in_order"  # by which Hugging Face finds it

# Attention as a composition of differentiable operations; fused kernels have no forward
# derivative and no second one.
_COMPOSED_ATTENTION = ("eager", "sdpa")

_KEYS = 192  # at a time: MKL adds up so many in one sum
_MULTIPLE = 16  # of queries and of keys: float32 numbers of AVX-512
_MOST_MASKED = 4096  # elements of masks per query: what they add to memory

_DTYPES = (torch.float32, torch.float64)

# How to go through what a mask shows, by the mask that all layers of a forward are given; gone
# when it is gone.
_PLANS = WeakTensorKeyDictionary()


@contextlib.contextmanager
def attention_in_order(model: nn.Module) -> Iterator[None]:
    """A scope in which a model of PyTorch's scaled dot-product attention rounds as said above.

    On a CPU, where fused kernels are allowed; any other attention stays as it is.
    """
    config: Any = getattr(model, "config", None)
    fused = torch.backends.cuda.flash_sdp_enabled()  # on a CPU too, whatever its name
    of_torch = getattr(config, "_attn_implementation", None) == "sdpa"
    on_a_cpu = device_of(model).type == "cpu"
    if not (on_a_cpu and fused and of_torch and is_on("attention")):
        yield
        return
    _register()
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


@contextlib.contextmanager
def differentiable_attention(model: nn.Module) -> Iterator[None]:
    """Attention that can be differentiated forwards, and twice, for a scope.

    Fused kernels are swapped for the composed form of scaled dot-product attention. A graph made
    within can be differentiated outside.
    """
    config: Any = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    swapped = before is not None and before not in _COMPOSED_ATTENTION
    if swapped:
        config._attn_implementation = "sdpa"
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if swapped:
            config._attn_implementation = before


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _mask)


def _mask(*args: Any, **options: Any) -> Tensor | None:
    """As Hugging Face makes it for "sdpa", but there where causality says it all, too."""
    from transformers.masking_utils import sdpa_mask

    mask: Tensor | None = sdpa_mask(*args, **(options | {"allow_is_causal_skip": False}))
    return mask


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

    if attention_mask is None or not _is_plain(query, key, value, attention_mask, options):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    return _InOrder.apply(query, key, value, attention_mask, scaling), None


def _is_plain(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: dict[str, Any]
) -> bool:
    """Whether a mask says which keys a query sees, and that is all that matters."""
    operands = (query, key, value)
    return (
        all(t.device.type == "cpu" and t.dtype in _DTYPES for t in operands)
        and all(forward_ad.unpack_dual(t).tangent is None for t in operands)
        and query.dtype == key.dtype == value.dtype
        and key.shape == value.shape
        and mask.dtype == torch.bool
        and mask.dim() == 4
        and mask.shape[:2] == (len(query), 1)
        and not any(options.get(name) for name in ("dropout", "output_attentions"))
        and all(options.get(name) is None for name in ("position_bias", "cache"))
    )


class _InOrder(torch.autograd.Function):
    """Attention ``[N, L, heads, width]``; its derivatives are those of PyTorch's, computed anew."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.mask, ctx.scaling = mask.detach(), scaling  # another name: not to keep its course
        in_common = query.shape[1] // key.shape[1]
        together = min(in_common, max(1, _MOST_MASKED // key.shape[2]))
        found = [
            _plan_of(mask, some.shape[2], query.dtype).attend(some, key, value, scaling)
            for some in query.unflatten(1, (-1, in_common)).split(together, dim=2)
        ]
        return torch.cat(found, dim=3).flatten(2, 3).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        twice = torch.is_grad_enabled()  # whoever differentiates wants to do so again
        with torch.autocast("cpu", enabled=False), torch.enable_grad():  # as the forward ran
            operands = [alias(tensor, twice) for tensor in ctx.saved_tensors]
            query, key, value = operands
            out = functional.scaled_dot_product_attention(
                query, key, value, ctx.mask, scale=ctx.scaling, enable_gqa=True
            ).transpose(1, 2)
        wanted = [x for x in operands if x.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=twice))
        return *(next(found) if x.requires_grad else None for x in operands), None, None


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the keys, and the queries from the first one on that sees any of them."""

    keys: slice
    rows: slice
    bias: Tensor  # [N, 1, rows, keys], added to scores


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How the attention of a batch is gone through. K' keys in order, R rows of queries."""

    order: Tensor | None  # [N · K'] which of the N · K keys each is; None: they are in order
    num_rows: int  # R: L queries of each head, and some more
    parts: list[_Part]

    def attend(self, heads: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention ``[N, L, key heads, H, width]`` of heads ``[N, key heads, H, L, width]``."""
        key, value = self._in_order(key), self._in_order(value)
        rows = self._rows(heads)
        out, total = _flash(rows, key, value, self.parts[0], scaling)
        for part in self.parts[1:]:
            new, its_total = _flash(rows, key, value, part, scaling)
            before = total[:, :, part.rows]
            share = (its_total - before).sigmoid_().to(new.dtype)
            out[:, :, part.rows].lerp_(new, share.unsqueeze(-1))
            torch.logaddexp(before, its_total, out=before)
        number, length = heads.shape[2:4]
        return out[:, :, : length * number].unflatten(2, (length, number)).transpose(1, 2)

    def _in_order(self, keys: Tensor) -> Tensor:
        """``[N, key heads, K', width]`` of keys or values ``[N, key heads, K, width]``."""
        if self.order is None:
            return keys
        each = keys.transpose(1, 2).flatten(0, 1)
        return each.index_select(0, self.order).unflatten(0, (len(keys), -1)).transpose(1, 2)

    def _rows(self, heads: Tensor) -> Tensor:
        """``[N, key heads, R, width]``: the heads' first queries, their second ones, …"""
        queries = heads.transpose(2, 3)
        num_queries = queries.shape[2] * queries.shape[3]
        rows = queries.new_empty(*heads.shape[:2], self.num_rows, heads.shape[-1])
        rows[:, :, :num_queries].view(queries.shape).copy_(queries)
        rows[:, :, num_queries:] = 0
        return rows


def _flash(
    rows: Tensor, key: Tensor, value: Tensor, part: _Part, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Attention ``[N, key heads, r, width]`` to a part of the keys, and the logsumexp of scores.

    That in float64: the last bit of a float32 function depends on its place in the tensor.
    """
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows[:, :, part.rows],
        key[:, :, part.keys],
        value[:, :, part.keys],
        attn_mask=part.bias,
        scale=scaling,
    )
    return out, total.double()


def _plan_of(mask: Tensor, heads: int, dtype: torch.dtype) -> AttentionPlan:
    """That of a mask ``[N, 1, L, K]`` and of so many heads a key head; made once for all layers."""
    courses = _PLANS.setdefault(mask, {})
    if (heads, dtype) not in courses:
        courses[heads, dtype] = _new_plan(mask[:, 0], heads, dtype)
    found: AttentionPlan = courses[heads, dtype]
    return found


def _new_plan(mask: Tensor, heads: int, dtype: torch.dtype) -> AttentionPlan:
    (count, length, num_keys), num_rows = mask.shape, _pad_rows(mask.shape[1] * heads)
    begin = mask.any(1).int().argmax(-1, keepdim=True)
    order = (begin + torch.arange(_pad_rows(num_keys))).clamp(max=num_keys)
    seen = functional.pad(mask, (0, 1))  # one more key, which is not seen
    seen = seen.gather(-1, order.unsqueeze(1).expand(-1, length, -1))
    parts = []
    for start in range(0, order.shape[1], _KEYS):
        keys = slice(start, min(start + _KEYS, order.shape[1]))
        rows = seen[:, :, keys].any(-1).any(0)
        if start and not bool(rows.any()):
            continue
        first = int(rows.int().argmax()) // _MULTIPLE * _MULTIPLE if start else 0
        bias = _bias(seen[:, first:, keys], heads, dtype)
        filling = num_rows - heads * first - bias.shape[1]
        bias = functional.pad(bias, (0, 0, 0, filling)).unsqueeze(1)
        parts.append(_Part(keys=keys, rows=slice(heads * first, None), bias=bias))
    if not bool(begin.any()) and order.shape[1] == num_keys:
        return AttentionPlan(order=None, num_rows=num_rows, parts=parts)
    each = torch.arange(count).unsqueeze(-1) * num_keys + order.clamp(max=num_keys - 1)
    return AttentionPlan(order=each.flatten(), num_rows=num_rows, parts=parts)


def _bias(seen: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """``[N, L · heads, K]``, finite, so that a query that sees none of these keys is not NaN."""
    bias = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return bias.repeat_interleave(heads, dim=1)


def _pad_rows(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE
