"""The largest logits of each row.

Most logits are never sorted: each group of them is represented by its maximum, and only the top
groups are opened. On a CPU of few cores numpy selects among the rest: it sorts integers made of a
logit and its id, in a tenth of the time that PyTorch's `topk` takes on one core. `topk` is faster
on many cores, on accelerators, and where few logits are selected.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from seqproc._util.by_device import ByDevice

# Logits; with smaller groups a detour through their largest does not pay.
_MIN_GROUP = ByDevice(cpu=4, accelerator=64)
_MIN_ADJACENT = 64  # from here on a CPU finds the largest of adjacent logits soonest

# With at most this many threads of PyTorch, numpy's one selects faster; extrapolated from two.
_FEW_THREADS = 8
_MIN_NUMBER = 64  # logits; PyTorch selects fewer faster

_ID = (1 << 32) - 1  # the lower half of an int64
_MAGNITUDE = (1 << 31) - 1  # all bits of an int32 but the sign


def largest(logits: Tensor, number: int) -> Tensor:
    """Ids of the largest logits of each row, falling: ``[N, number]``, int64.

    Which of equal ones are taken at the end, and their order, is left open, and so is the place of
    NaN.

    In a large vocabulary only the ``number`` groups of largest maximum are looked into: each of
    them holds a logit at least as large as all in the groups left out. Their size makes the two
    searches about equally long. Group g of G holds the ids g, g + G, g + 2G, …, or, when it is
    large, ids that follow one another.

    Args:
        logits: ``[N, V]``, any floating dtype.
        number: between 1 and V.
    """
    rows, vocabulary = logits.detach(), logits.shape[-1]
    size = math.isqrt(vocabulary // number)
    if size < _MIN_GROUP.on(rows.device):
        return _top(rows, number)
    if adjacent := size >= _MIN_ADJACENT:
        size -= size % _MIN_ADJACENT
    num_groups = vocabulary // size
    grouped = rows[:, : num_groups * size]
    if adjacent:
        peaks = grouped.unflatten(-1, (num_groups, size)).amax(-1)
    else:
        peaks = grouped.unflatten(-1, (size, num_groups)).amax(1)
    chosen = _top(peaks, number, falling=False).unsqueeze(1)
    members = torch.arange(size, device=rows.device).unsqueeze(-1)
    ids = chosen * size + members if adjacent else chosen + members * num_groups
    rest = torch.arange(num_groups * size, vocabulary, device=rows.device)
    ids = torch.cat([ids.flatten(1), rest.expand(len(rows), -1)], dim=-1)
    return ids.gather(-1, _top(rows.gather(-1, ids), number))


def _top(rows: Tensor, number: int, *, falling: bool = True) -> Tensor:
    keys = _keys(rows) if number >= _MIN_NUMBER and _is_for_numpy(rows) else None
    if keys is None:
        return rows.topk(number, dim=-1, sorted=falling).indices
    keys.partition(-number, axis=-1)
    chosen = np.ascontiguousarray(keys[:, -number:])
    if falling:
        chosen.sort(axis=-1)
    ids = torch.from_numpy(chosen).bitwise_and_(_ID)
    return ids.flip(-1) if falling else ids


def _is_for_numpy(rows: Tensor) -> bool:
    few = torch.get_num_threads() <= _FEW_THREADS
    return few and rows.device.type == "cpu" and rows.dtype == torch.float32


def _keys(rows: Tensor) -> np.ndarray | None:
    """Integers in the order of the rows' numbers.

    A number's bits, flipped where it is negative, and its id in the lower half.
    """
    bits = rows.view(torch.int32)
    upper = (bits >> 31).bitwise_and_(_MAGNITUDE).bitwise_xor_(bits)
    ids = torch.arange(rows.shape[-1])
    keys = upper.long().bitwise_left_shift_(32).bitwise_or_(ids)
    try:
        return keys.numpy()
    except RuntimeError:  # within a transform of torch.func, whose tensors have no memory
        return None
