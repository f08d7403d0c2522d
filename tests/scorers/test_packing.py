"""Runs of items at the least cost, against every way there is to cut them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence

import pytest

from seqproc.scorers.kernels.packing import Item, cheapest_runs

LIMITS = [(math.inf, math.inf), (60, math.inf), (25, math.inf), (math.inf, 3), (40, 2), (1, 1)]


def every_cut(items: Sequence[Item]) -> Iterator[list[slice]]:
    inner = range(1, len(items))
    for number in range(len(items)):
        for cuts in itertools.combinations(inner, number):
            yield [slice(a, b) for a, b in itertools.pairwise([0, *cuts, len(items)])]


def cost(items: Sequence[Item], runs: Sequence[slice], forward_cost: int) -> int:
    """By the definition, item by item."""
    found = 0
    for run in runs:
        some = items[run]
        found += forward_cost + len(some) * max(item.first for item in some)
        found += sum(item.total for item in some)
    return found


def allowed(items: Sequence[Item], runs: Sequence[slice], tokens: float, rows: float) -> bool:
    def fits(some: Sequence[Item]) -> bool:
        number = sum(item.rows for item in some)
        padded = len(some) * some[0].first + number * max(item.longest for item in some)
        return len(some) == 1 or (padded <= tokens and number <= rows)

    return all(fits(items[run]) for run in runs)


def sequences(seed: int, number: int = 9) -> list[Item]:
    draw = random.Random(seed)
    return [Item(first=n) for n in sorted(draw.choices(range(30), k=number), reverse=True)]


def families(seed: int, number: int = 8) -> list[Item]:
    draw, found = random.Random(seed), []
    for first in sorted(draw.choices(range(1, 12), k=number), reverse=True):
        rests = [draw.randrange(9) for _ in range(draw.randint(1, 3))]
        found.append(Item(first=first, rows=len(rests), longest=max(rests), total=sum(rests)))
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("drawn", [sequences, families])
@pytest.mark.parametrize(("tokens", "rows"), LIMITS)
@pytest.mark.parametrize("forward_cost", [0, 4, 20, 1000])
def test_no_allowed_cut_costs_less(forward_cost, tokens, rows, drawn, seed):
    items = drawn(seed)
    found = cheapest_runs(items, tokens, rows, forward_cost)
    assert [i for run in found for i in range(len(items))[run]] == list(range(len(items)))
    assert allowed(items, found, tokens, rows)
    costs = [
        cost(items, runs, forward_cost)
        for runs in every_cut(items)
        if allowed(items, runs, tokens, rows)
    ]
    assert cost(items, found, forward_cost) == min(costs)


def test_limits_and_costs_decide():
    """That the test above could fail: the cheapest cuts differ."""
    items = sequences(0)
    found = {
        (limits, forward_cost): str(cheapest_runs(items, *limits, forward_cost))
        for limits in LIMITS
        for forward_cost in (4, 1000)
    }
    assert len(set(found.values())) > 5


def test_of_equals_the_first_run_is_the_fullest():
    items = [Item(first=6)] * 18
    assert [r.stop - r.start for r in cheapest_runs(items, tokens=30)] == [5, 5, 5, 3]


def test_an_item_over_every_limit_is_a_run():
    items = [Item(first=50), Item(first=40, rows=9, longest=3, total=20), Item(first=2)]
    assert cheapest_runs(items, tokens=30, rows=4) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_nothing_gives_no_run():
    assert cheapest_runs([]) == []


def test_many_equal_items_fill_their_runs():
    items = [Item(first=100)] * 20_000
    assert cheapest_runs(items, tokens=4_096) == [slice(n, n + 40) for n in range(0, 20_000, 40)]
