"""Products with a model's matrices on a CPU: the same bits, less rounding, the faster library.

- Same bits. A BLAS sums fewer than 16 rows in another order, so few rows are padded to 16, and a
  bias is always added last.
- Less rounding of the head, which makes up much of the error of a float32 log-probability
  (docs/precision.md). The rounding of a sum grows with the number of its terms and with the size of
  its partial sums. So the head sums 96 terms at a time, and the few dimensions of largest weights
  last. It goes tile by tile: multiplying by the whole matrix at once would evict the cache on every
  pass over the logits.
- Speed. PyTorch multiplies by MKL, which has AVX-512 kernels for Intel's processors only. On others
  with AVX-512, oneDNN takes half the time. It adds all terms in one sum, so it is given as many at
  a time as MKL takes: 192, or half of them all where that is fewer than 192 and all are more.
"""

from __future__ import annotations

import contextlib
import functools
import math
import platform
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from seqproc._util.kernels import is_on
from seqproc.scorers.swapping import Swapped

_TERMS = 192  # of one sum, at most: as many as MKL adds up

_TILE = 2048  # tokens of the vocabulary: a few MB of logits
_TERMS_OF_HEAD = 96  # fewer would take longer
_HEAVY = 16  # dimensions of largest weights, summed last
_SAMPLED = 1024  # rows of a matrix that are looked at to find these dimensions

# Rows are padded to this: a BLAS sums fewer in another order, and oneDNN is up to 1.6 times slower
# for a head's other numbers of rows.
ROW_MULTIPLE = 16

_MIN_WORK = 1 << 24  # multiplications; with fewer, calling oneDNN costs more than it saves

_SUMMED_AS_WIDE = (torch.float32, torch.float64)  # narrower sums would be rounded in between


def layer_products(device: torch.device) -> AbstractContextManager[Any]:
    """A scope in which `torch.nn.functional.linear` is `product`, on a CPU."""
    return _on_a_cpu(device, product)


def head_products(device: torch.device) -> AbstractContextManager[Any]:
    """A scope in which `torch.nn.functional.linear` goes in tiles, on a CPU."""
    return _on_a_cpu(device, tiled_product)


def _on_a_cpu(device: torch.device, linear: Callable[..., Tensor]) -> AbstractContextManager[Any]:
    here = device.type == "cpu" and is_on("products")
    return Swapped({functional.linear: linear}) if here else contextlib.nullcontext()


def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`; a row has the same bits whatever rows are beside it.

    By the faster library when no graph is kept.
    """
    if not _is_plain(input, weight):
        return functional.linear(input, weight, bias)
    states = input.reshape(-1, input.shape[-1])
    few = 0 < len(states) < ROW_MULTIPLE
    some = _pad_rows(states) if few else states
    if _is_for_onednn(input, weight) and not torch.is_grad_enabled():
        size = _terms_of_mkl(weight.shape[1])
        out = _by_onednn(
            zip(some.contiguous().split(size, dim=1), weight.split(size, dim=1), strict=True)
        )
    else:
        out = functional.linear(some, weight)
    out = out[: len(states)].view(*input.shape[:-1], len(weight))
    if bias is None:
        return out
    # Added last by either library, which a BLAS by itself would begin with.
    return out + bias if torch.is_grad_enabled() else out.add_(bias)


def _terms_of_mkl(number: int) -> int:
    """How many terms MKL adds up before it goes on to the next sum."""
    return math.ceil(number / 2) if _TERMS < number < 2 * _TERMS else _TERMS


def tiled_product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `torch.nn.functional.linear`, tile by tile when no graph is kept."""
    if not _is_plain(input, weight) or torch.is_grad_enabled():
        return functional.linear(input, weight, bias)
    states = _pad_rows(input.reshape(-1, input.shape[-1]))
    out = states.new_empty(len(states), len(weight))
    heavy, onednn = _heaviest(weight), _is_for_onednn(input, weight)
    parts = _heavy_last(states.index_fill(1, heavy, 0), states[:, heavy])
    for tile, rows in zip(out.split(_TILE, dim=1), weight.split(_TILE), strict=True):
        terms = zip(parts, _heavy_last(rows, rows[:, heavy]), strict=True)
        (_by_onednn if onednn else _by_blas)(terms, tile)
    out = out[: math.prod(input.shape[:-1])]
    if bias is not None:
        out += bias
    return out.view(*input.shape[:-1], len(weight))


def _pad_rows(states: Tensor) -> Tensor:
    """Contiguous, with rows of zeros up to a multiple."""
    missing = -len(states) % ROW_MULTIPLE
    return functional.pad(states, (0, 0, 0, missing)) if missing else states.contiguous()


def _heaviest(weight: Tensor) -> Tensor:
    """The dimensions of largest weights: the states must not decide, for the rounding of one would
    depend on those of its batch.
    """
    some = weight[:: max(1, len(weight) // _SAMPLED)]
    return some.square().mean(0).topk(min(_HEAVY, weight.shape[1])).indices


def _heavy_last(matrix: Tensor, heavy: Tensor) -> list[Tensor]:
    """Copies of a few columns of a matrix at a time, with heavy ones at the end of the last."""
    *parts, last = matrix.split(_TERMS_OF_HEAD, dim=1)
    return [*(part.contiguous() for part in parts), torch.cat([last, heavy], dim=1)]


def _by_blas(terms: Iterable[tuple[Tensor, Tensor]], out: Tensor) -> None:
    """``out = Σ states·rowsᵀ``."""
    for i, (states, rows) in enumerate(terms):
        out.addmm_(states, rows.t(), beta=min(i, 1))  # 0 overwrites what was in the memory


def _by_onednn(terms: Iterable[tuple[Tensor, Tensor]], out: Tensor | None = None) -> Tensor:
    """``Σ states·rowsᵀ``, in a given tensor or a new one."""
    *first, last = terms
    total: Tensor | None = None
    for states, rows in first:
        new = _multiplied(states, rows)
        total = new if total is None else total.add_(new)
    new = _multiplied(*last)
    if total is None:
        return new if out is None else out.copy_(new)
    return torch.add(total, new, out=total if out is None else out)


def _multiplied(states: Tensor, rows: Tensor) -> Tensor:
    # Of rows that are not contiguous, oneDNN's product takes thousands of times as long.
    found: Tensor = torch.ops.mkldnn._linear_pointwise(
        states, rows.contiguous(), None, "none", [], ""
    )
    return found


def _is_for_onednn(input: Tensor, weight: Tensor) -> bool:
    return (
        _onednn_is_faster()
        and input.dtype == torch.float32
        and input.numel() * len(weight) >= max(1, _MIN_WORK)
        and bool(torch.backends.mkldnn.enabled)
    )


@functools.cache
def _onednn_is_faster() -> bool:
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _processor()
    )


def _processor() -> str:
    """What the system says of its processor, the maker's name among it."""
    described = Path("/proc/cpuinfo")
    return described.read_text() if described.exists() else platform.processor()


def _is_plain(input: Tensor, weight: Tensor) -> bool:
    """Whether both are matrices, on a CPU, that fit, of sums as wide and without tangents.

    A class of its own, such as a quantised weight's, says itself how it is multiplied.
    """
    tensors = (input, weight)
    return (
        all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and all(t.device.type == "cpu" and t.dtype in _SUMMED_AS_WIDE for t in tensors)
        and input.dtype == weight.dtype
        and weight.dim() == 2
        and input.shape[-1:] == weight.shape[1:]
        and not torch.is_autocast_enabled("cpu")
        and all(forward_ad.unpack_dual(t).tangent is None for t in tensors)
    )
