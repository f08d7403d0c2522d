"""Attention that gives a token the same bits whatever is scored beside it.

PyTorch's fused attention on a CPU rounds differently when padding, batch size or the number of
queries change: a BLAS splits long sums, SIMD instructions leave a remainder to other code, and few
rows take another path. Then the importance ratio of a policy to itself is not exactly 1. Here

- every sequence's keys start at the first that it sees, whatever its padding;
- they are processed in blocks of 192, as many as a BLAS adds up in one sum, and merged in order;
- queries and keys are padded to multiples of 16, so that no remainder is left.

An example with blocks of 3 keys, of a row that is padded on the left by two::

    keys            .  .  a  b  c  d         plan: order a b c | d . .
    query b sees          a  b               block 0: rows b, c, d; block 1: row d alone
    query d sees          a  b  c  d         d merges its two blocks by their logsumexp

Query heads that share a key head are rows of one attention, so no key is repeated for them.
Depends on attention as Hugging Face models call it; knows nothing of models or batches.
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

_NAME = "seqproc_in_order"  # as Hugging Face calls it

# Attention as a composition of differentiable operations; fused kernels have no forward
# derivative and no second one.
_COMPOSED_ATTENTION = ("eager", "sdpa")

_KEYS = 192  # of a block: as many as MKL adds up in one sum
_MULTIPLE = 16  # of queries and of keys: float32 numbers of AVX-512
_MOST_MASKED = 4096  # elements of masks per query: what they add to memory

_DTYPES = (torch.float32, torch.float64)

# Plans by mask tensor, of which a forward has one for all its layers; dropped with the mask.
_PLANS: Any = WeakTensorKeyDictionary()


@contextlib.contextmanager
def attention_in_order(model: nn.Module) -> Iterator[None]:
    """Within the scope, a model with PyTorch's scaled dot-product attention uses this module's.

    On a CPU, and where fused kernels are allowed. Any other attention stays as it is.
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
    return _InOrder.apply(query, key, value, attention_mask, scaling), None  # type: ignore[no-untyped-call]


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
        double_backward = torch.is_grad_enabled()  # create_graph=True was asked for
        with torch.autocast("cpu", enabled=False), torch.enable_grad():  # as the forward ran
            operands = [alias(tensor, double_backward) for tensor in ctx.saved_tensors]
            query, key, value = operands
            out = functional.scaled_dot_product_attention(
                query, key, value, ctx.mask, scale=ctx.scaling, enable_gqa=True
            ).transpose(1, 2)
        wanted = [x for x in operands if x.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=double_backward))
        return *(next(found) if x.requires_grad else None for x in operands), None, None


@dataclass(frozen=True, slots=True)
class KeyBlock:
    """A block of keys, and the rows of queries from the first one that sees any of them."""

    keys: slice
    rows: slice
    bias: Tensor  # [N, 1, rows, keys], added to scores


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The key blocks of a batch. K' keys in order, R rows of queries."""

    order: Tensor | None  # [N · K'] index of each key among N · K; None: they are in order
    num_rows: int  # R: L queries of each head, padded
    blocks: list[KeyBlock]

    def attend(self, heads: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
        """Attention ``[N, L, key heads, H, width]`` of heads ``[N, key heads, H, L, width]``."""
        key, value = self._in_order(key), self._in_order(value)
        rows = self._rows(heads)
        out, total = _flash(rows, key, value, self.blocks[0], scaling)
        for block in self.blocks[1:]:
            new, its_total = _flash(rows, key, value, block, scaling)
            before = total[:, :, block.rows]
            share = (its_total - before).sigmoid_().to(new.dtype)
            out[:, :, block.rows].lerp_(new, share.unsqueeze(-1))
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
    rows: Tensor, key: Tensor, value: Tensor, block: KeyBlock, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Attention ``[N, key heads, r, width]`` to a block of keys, and the logsumexp of its scores.

    The logsumexp is float64: the last bit of a float32 function depends on its place in the tensor.
    """
    out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows[:, :, block.rows],
        key[:, :, block.keys],
        value[:, :, block.keys],
        attn_mask=block.bias,
        scale=scaling,
    )
    return out, total.double()


def _plan_of(mask: Tensor, heads: int, dtype: torch.dtype) -> AttentionPlan:
    """The plan for a mask ``[N, 1, L, K]`` and this many query heads per key head, made once."""
    plans = _PLANS.setdefault(mask, {})
    if (heads, dtype) not in plans:
        plans[heads, dtype] = _new_plan(mask[:, 0], heads, dtype)
    plan: AttentionPlan = plans[heads, dtype]
    return plan


def _new_plan(mask: Tensor, heads: int, dtype: torch.dtype) -> AttentionPlan:
    (count, length, num_keys), num_rows = mask.shape, _padded(mask.shape[1] * heads)
    order = _key_order(mask)
    visible = functional.pad(mask, (0, 1))  # one more key, which no query sees
    visible = visible.gather(-1, order.unsqueeze(1).expand(-1, length, -1))
    blocks = [
        block
        for start in range(0, order.shape[1], _KEYS)
        if (block := _key_block(visible, start, heads, num_rows, dtype)) is not None
    ]
    if torch.equal(order, torch.arange(num_keys).expand(count, -1)):
        return AttentionPlan(order=None, num_rows=num_rows, blocks=blocks)
    index = torch.arange(count).unsqueeze(-1) * num_keys + order.clamp(max=num_keys - 1)
    return AttentionPlan(order=index.flatten(), num_rows=num_rows, blocks=blocks)


def _key_order(mask: Tensor) -> Tensor:
    """``[N, K']``: each sequence's keys from the first that it sees; K stands for none."""
    num_keys = mask.shape[-1]
    first = mask.any(1).int().argmax(-1, keepdim=True)
    return (first + torch.arange(_padded(num_keys))).clamp(max=num_keys)


def _key_block(
    visible: Tensor, start: int, heads: int, num_rows: int, dtype: torch.dtype
) -> KeyBlock | None:
    """The block of keys that begins at ``start``; None when no query sees any of them.

    Args:
        visible: ``[N, L, K']``, which keys each query sees, in order.
        start: of the block. The first one is kept in any case, so that there is an output.
        heads: query heads per key head.
        num_rows: R, of all queries and heads.
        dtype: of the bias.
    """
    keys = slice(start, min(start + _KEYS, visible.shape[-1]))
    sees_some = visible[:, :, keys].any(-1).any(0)  # [L]
    if start and not bool(sees_some.any()):
        return None
    first = int(sees_some.int().argmax()) // _MULTIPLE * _MULTIPLE if start else 0
    bias = _bias(visible[:, first:, keys], heads, dtype)
    missing = num_rows - heads * first - bias.shape[1]
    bias = functional.pad(bias, (0, 0, 0, missing)).unsqueeze(1)
    return KeyBlock(keys=keys, rows=slice(heads * first, None), bias=bias)


def _bias(visible: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """``[N, L · heads, K]``, finite, so that a query that sees none of these keys is not NaN."""
    bias = torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
    return bias.repeat_interleave(heads, dim=1)


def _padded(number: int) -> int:
    return -(-number // _MULTIPLE) * _MULTIPLE
