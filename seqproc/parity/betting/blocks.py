"""Blocks of draws beside the earlier tokens that theirs are held against. Knows arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.pairs import Bools, Ints, Pairs

Floats = NDArray[np.float64]

# Shapes: N tokens of all draws, n draws of a block, T steps of its longest draw, L distances.

_BLOCK = 32  # draws of a block, at most; the first ones are smaller
_MOST_PAIRS = 1_000_000  # of tokens, held at a time
_TOLD = 0.5  # weight of a distance that is named
_LEAST = -60.0  # log q that counts in full, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Tokens of all draws, and where each lies in its distribution; ``[N]``."""

    ids: Ints
    logqs: Floats  # log q(y), nats; −∞ outside the support
    below: Floats  # q of the tokens of smaller id
    before: Floats  # q of the tokens that come before, in order of falling probability
    uniforms: Floats  # transforms of the tokens, in the order of their ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some draws that follow one another, beside the earlier tokens of one kind of pairs."""

    draws: slice  # numbers of its draws
    own: Ints  # [n, T] number of each token; any where the draw has ended
    is_token: Bools  # [n, T] whether the draw has that step
    earlier: Ints  # [n, T, L]
    is_open: Bools  # [n, T, L] whether there is a bet on the pair


def blocks(pairs: Pairs, placed: Placed, lengths: Ints) -> Iterator[Block]:
    """All draws in their order. How many a block has is known before they are drawn."""
    inside, starts = np.isfinite(placed.logqs), np.cumsum(lengths) - lengths
    first = 0
    while first < len(lengths):
        width = pairs.draws.shape[1] * int(lengths[:first].max(initial=1))
        size = max(1, min(first, _BLOCK, _MOST_PAIRS // width))
        last = min(first + size, len(lengths))
        earlier, exists = pairs.tokens(first, last, lengths)
        steps = np.arange(earlier.shape[1])
        is_token = steps < lengths[first:last, None]
        own = np.where(is_token, starts[first:last, None] + steps, 0)
        is_open = exists & inside[earlier] & (is_token & inside[own])[:, :, None]
        yield Block(
            draws=slice(first, last),
            own=own,
            is_token=is_token,
            earlier=earlier,
            is_open=is_open,
        )
        first = last


def told(pairs: Pairs, weights: Floats) -> str:
    """A kind of pairs in words, with the distance that has most of the weight.

    Args:
        pairs: the kind.
        weights: ``[L]`` of each distance, adding up to 1.
    """
    best = int(weights.argmax())
    where = f", {best + 1} {pairs.unit} apart" if weights[best] > _TOLD else ""
    return f"{pairs.name}{where}"


def lifted(block: Block, placed: Placed) -> Floats:
    """[y is the earlier token] / q(y) − 1, ``[n, T, L]``; 0 where there is no bet."""
    same = placed.ids[block.own][:, :, None] == placed.ids[block.earlier]
    inside = np.where(np.isfinite(placed.logqs), placed.logqs, 0.0)
    inverse = np.exp(-np.maximum(inside, _LEAST))[block.own]
    return np.where(block.is_open, same * inverse[:, :, None] - 1, 0.0)
