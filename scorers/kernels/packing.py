"""Items in falling order of length, cut into runs so that padding and forwards cost least.

A run is padded to its longest item, so many short runs waste little; but each is a forward of its
own, and that costs something too. Knows numbers of tokens; nothing of sequences or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqproc._util.by_device import ByDevice
from seqproc._util.kernels import is_on

# What a forward costs beside its tokens, in tokens. On a CPU it reads all weights once: estimated
# from times of SmolLM2-135M. On an accelerator it launches kernels, which takes as long for layers
# of any width: 1,500 tokens of SmolLM2-135M on an H100, fewer of a larger model.
FORWARD_COST = ByDevice(cpu=64, accelerator=1_024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What stays together: a sequence, or a prompt and some of its responses."""

    first: int  # tokens that come once: a whole sequence, or a prompt
    rows: int = 1  # sequences
    longest: int = 0  # tokens of its longest row beside `first`
    total: int = 0  # those of all its rows


def cheapest_runs(
    items: Sequence[Item],
    tokens: float = np.inf,
    rows: float = np.inf,
    forward_cost: int = FORWARD_COST.cpu,
) -> list[slice]:
    """Cut items into consecutive runs at the least cost: what is padded counts, and every run.

    Within a run `first` is padded to that of its first item. The rows count as they are, for they
    can be cut into runs again; but a limit holds as if they were padded to the longest.

    Switched off, a run is as full as the limits allow.

    Args:
        items: in falling order of `first`.
        tokens: most tokens of a run, padding included; an item alone is always a run.
        rows: most rows of a run.
        forward_cost: what a run costs beside its tokens, in tokens.
    """
    if not is_on("packing"):
        return _fullest_runs(items, tokens, rows)
    first, longest = (np.array([getattr(i, n) for i in items]) for n in ("first", "longest"))
    rows_before, total_before = (
        np.cumsum([0, *(getattr(i, n) for i in items)]) for n in ("rows", "total")
    )
    cost = np.zeros(len(items) + 1)  # of the items before each
    start = np.zeros(len(items) + 1, dtype=int)  # of the last run before each
    low = 0  # no run that fits starts before
    for stop in range(1, len(items) + 1):
        run = np.arange(low, stop)
        padded = first[run] * (stop - run)
        number = rows_before[stop] - rows_before[run]
        widest = np.maximum.accumulate(longest[run][::-1])[::-1]
        fits = (padded + number * widest <= tokens) & (number <= rows)
        fits[-1] = True
        low += int(fits.argmax())
        whole = cost[run] + padded + total_before[stop] - total_before[run] + forward_cost
        whole[~fits] = np.inf
        start[stop] = stop - 1 - int(whole[::-1].argmin())  # ties: the shortest last run
        cost[stop] = whole[start[stop] - run[0]]
    return _slices(start)


def _fullest_runs(items: Sequence[Item], tokens: float, rows: float) -> list[slice]:
    if not items:
        return []
    starts = [0]
    for stop in range(1, len(items) + 1):
        run = items[starts[-1] : stop]
        number = sum(item.rows for item in run)
        padded = run[0].first * len(run) + number * max(item.longest for item in run)
        if len(run) > 1 and (padded > tokens or number > rows):
            starts.append(stop - 1)
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(items)], strict=True)]


def _slices(start: np.ndarray) -> list[slice]:
    stop, runs = len(start) - 1, []
    while stop:
        runs.append(slice(int(start[stop]), stop))
        stop = int(start[stop])
    return runs[::-1]
