"""Twins: draws of one prompt with the same tokens, which chance would hardly give.

Correlations look at neighbours; randomness that comes back further away leaves no trace in them,
but twins. Knows answers and arrays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from seqproc.parity.draws import Answer, Draws, Floats
from seqproc.parity.verdict import Finding, Link


def twins(answers: Sequence[Answer], draws: Draws, most: Floats) -> Finding:
    """How unlikely the least likely response is that a prompt has twice.

    Whatever the first of two independent draws is, the second repeats it with probability q(y). So
    two draws are twins of q(y) ≤ x with probability x at most, and some of M pairs with M·x at
    most: M·min q(y) over all twins is a p-value.

    Args:
        answers: D of them, each with a token.
        draws: they, scored.
        most: ``[N]`` log q of each token at most, for all logits within their error, nats.
    """
    logqs = np.add.reduceat(np.minimum(most, 0.0), draws.starts)
    places: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for n, answer in enumerate(answers):
        places[answer.prompt, answer.completion.token_ids].append(n)
    same = [found for found in places.values() if len(found) > 1]
    num_pairs = _pairs(np.unique(draws.prompts, return_counts=True)[1])
    least = min((float(logqs[found[0]]) for found in same), default=0.0)
    if not num_pairs:
        return _finding(None, None, "too little to decide: no prompt has two draws")
    return _finding(
        min(1.0, num_pairs * float(np.exp(least))),
        least,
        f"{sum(map(len, same)):,} of {len(answers):,} draws are the same as another of their "
        f"prompt; the least likely has a log q of {least:.4g} nats, in {num_pairs:,} pairs",
    )


def _finding(p_value: float | None, statistic: float | None, detail: str) -> Finding:
    return Finding(
        name="twins", link=Link.TOKENS, p_value=p_value, statistic=statistic, detail=detail
    )


def _pairs(counts: Sequence[int] | np.ndarray) -> int:
    return int(sum(int(count) * (int(count) - 1) // 2 for count in counts))
