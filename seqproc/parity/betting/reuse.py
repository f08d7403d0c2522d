"""Reuse: a bet that some draws have the noise of an earlier one, from some step on or up to one.

Noise that is used again shows in one of three ways. Where tokens are drawn by inverting the
distribution function, u is known to lie where the earlier token does: so y is drawn from

    r(y) = |I(y) ∩ I'| / |I'|,

I(y) being the part of (0, 1) that belongs to y and I' that of the earlier token, in the order of
ids or of falling probability. Where they are drawn by noise of each token, as Gumbel's, y is the
earlier token more often than by chance.

Which draw has whose noise, and in which way, is the state of a hidden Markov chain; its chance of
every earlier distance follows what the draws before have shown. The bet is on what the chain
predicts, so that every ratio is one of two distributions that are known before the token.

Knows arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.blocks import Block, Floats, Placed, lifted, told
from seqproc.parity.betting.pairs import Pairs

# Shapes: n draws of a block, T steps of its longest draw, L distances, S states: distances and
# ways together.

_MOST = 1e30  # paid on a token, so that float32 holds it: what pays less is a bet as well
_WAYS = 3
_OF_Q = 0.1  # share of q where u is known
_AGAIN = 0.5  # chance that a token is the earlier one again, beyond that by chance
_DRAWS = (0.2, 10.0)  # prior draws that reuse noise, of so many
_DISTANCES = 1.0  # prior draws that are spread over all distances
_BEGINS = 1 / 16  # chance by step that noise is reused from there on, of that by draw
_ENDS = 0.02  # chance by step that it is no longer

Rows = NDArray[np.float32]


class Reuse:
    """The bet on one kind of pairs.

    Args:
        pairs: of tokens.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._num_draws = 0.0
        self._counts = np.zeros(_WAYS * pairs.draws.shape[1])  # [S] draws in each state

    def ratios(self, block: Block, placed: Placed) -> Floats:
        """log r/q of the tokens of a block, ``[n, T]``. Each block is to be asked for once."""
        lifts = _lifts(block, placed)
        chances, begins = self._prior(block)
        state = chances[:, None] * begins
        means = np.ones(block.own.shape, dtype=np.float32)
        time_in = np.zeros_like(state)
        for t in range(block.own.shape[1]):
            lift = lifts[:, t]
            means[:, t] += np.einsum("ns,ns->n", state, lift)
            state += state * lift
            state /= means[:, t, None]
            time_in += state * block.is_token[:, t, None]
            left = np.maximum(1 - state.sum(1), 0)
            state *= 1 - _ENDS
            state += (left * chances * _BEGINS)[:, None] * begins
        self._learn(block, time_in)
        return np.log(means.astype(np.float64))

    def _prior(self, block: Block) -> tuple[Rows, Rows]:
        """The chance that a draw reuses noise, ``[n]``; that of each state then, ``[n, S]``."""
        has_earlier = np.tile(self._pairs.draws[block.draws] >= 0, _WAYS)
        weights = self._counts + _DISTANCES / len(self._counts)
        begins = np.where(has_earlier, weights, 0.0)
        total = begins.sum(1, keepdims=True)
        begins = np.divide(begins, total, out=begins, where=total > 0)
        of_draws = (_DRAWS[0] + self._counts.sum()) / (_DRAWS[1] + self._num_draws)
        chances = np.where(total[:, 0] > 0, of_draws, 0.0)
        return chances.astype(np.float32), begins.astype(np.float32)

    def _learn(self, block: Block, time_in: Rows) -> None:
        """Note how much of its time each draw spent in each state."""
        num_tokens = np.maximum(block.is_token.sum(1), 1)
        self._counts += (time_in / num_tokens[:, None]).sum(0)
        self._num_draws += float((self._pairs.draws[block.draws] >= 0).any(1).sum())

    @property
    def name(self) -> str:
        """What it bet on, in words."""
        by_distance = self._counts.reshape(_WAYS, -1).sum(0)
        weights = by_distance / max(float(by_distance.sum()), 1.0)
        return f"the same noise again: {told(self._pairs, weights)}"


def _lifts(block: Block, placed: Placed) -> Rows:
    """r(y)/q(y) − 1 in every state, ``[n, T, S]``; 0 where there is no bet."""
    by_id = _overlap(block, placed, placed.below) - 1
    by_probability = _overlap(block, placed, placed.before) - 1
    again = lifted(block, placed)
    ways = ((1 - _OF_Q) * by_id, (1 - _OF_Q) * by_probability, _AGAIN * again)
    is_open = block.is_open
    paid = [np.where(is_open, np.minimum(way, _MOST), 0.0).astype(np.float32) for way in ways]
    return np.concatenate(paid, axis=-1)


def _overlap(block: Block, placed: Placed, starts: Floats) -> Floats:
    """|I ∩ I'| / (|I| |I'|), ``[n, T, L]``; the parts begin at ``starts``, ``[N]``."""
    sizes = np.exp(placed.logqs)
    own, size = starts[block.own][:, :, None], sizes[block.own][:, :, None]
    theirs, their_size = starts[block.earlier], sizes[block.earlier]
    common = np.minimum(own + size, theirs + their_size) - np.maximum(own, theirs)
    least = np.minimum(size, their_size)
    product = size * their_size
    return np.divide(
        np.clip(common, 0, least), product, out=np.ones_like(product), where=product > 0
    )
