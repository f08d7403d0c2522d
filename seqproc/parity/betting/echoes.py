"""Echoes: bets that a token is drawn with randomness that an earlier one was drawn with.

At which distance is not known before. So a bet is a mixture over all distances, whose weights are
those that the tokens before have given to each; what it comes to is a martingale of mean 1 as long
as no weight depends on the token that is bet on. Of every kind of pairs there are three bets:

- some draws, from some step on or up to one, have the noise of an earlier one (`reuse`);
- every token is, a little more often than by chance, the earlier one again;
- every token lies at a place in its distribution that is a little like, or unlike, the earlier's.

Knows arrays.

References: Herbster and Warmuth, "Tracking the best expert" (1998), for weights that switch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.alternatives import Alternative
from seqproc.parity.betting.blocks import Block, Floats, Placed, blocks, lifted, told
from seqproc.parity.betting.pairs import Ints, Pairs
from seqproc.parity.betting.reuse import Reuse

SAME, PLACE = "noise drawn again", "noise at like places"  # families
AGAIN = (0.03, 0.2)  # share of tokens that are the earlier one again
SLOPES = (-0.3, -0.1, 0.1, 0.3)  # of the density of the place, in units of its correlation

# Shapes: N tokens of all draws, n draws of a block, T steps of its longest draw, L distances,
# S strengths.


def echo_ratios(
    pairs: Sequence[Pairs], placed: Placed, lengths: Ints
) -> tuple[list[Alternative], NDArray[np.float32]]:
    """All bets, K of them, and log r/q of each, ``[N, K]``.

    Args:
        pairs: of the same draws.
        placed: their tokens.
        lengths: ``[D]`` tokens of each draw.
    """
    bets: list[Alternative] = []
    ratios = np.zeros((len(placed.ids), 3 * len(pairs)), dtype=np.float32)
    for p, one in enumerate(pairs):
        reuse, weak = Reuse(one), (_Weak(one, SAME), _Weak(one, PLACE))
        bettors: tuple[Reuse | _Weak, ...] = (reuse, *weak)
        for block in blocks(one, placed, lengths):
            for k, bettor in enumerate(bettors, 3 * p):
                ratios[block.own[block.is_token], k] = bettor.ratios(block, placed)[block.is_token]
        bets += [Alternative(family=SAME, name=reuse.name), *(one.bet() for one in weak)]
    return bets, ratios


class _Weak:
    """The bet that all tokens depend a little on the earlier one, at some distance.

    A mixture over distances and strengths; the weights are what each of them came to.

    Args:
        pairs: of tokens.
        family: how they depend.
    """

    def __init__(self, pairs: Pairs, family: str) -> None:
        self._pairs, self._family = pairs, family
        self._strengths = np.array(AGAIN if family == SAME else SLOPES)
        self._log_es = np.zeros((len(self._strengths), pairs.draws.shape[1]))  # [S, L]

    def ratios(self, block: Block, placed: Placed) -> Floats:
        """log r/q of the tokens of a block, ``[n, T]``. Each block is to be asked for once."""
        lift = lifted(block, placed) if self._family == SAME else _product(block, placed)
        ratios = np.zeros(block.own.shape)
        log_es = np.zeros_like(self._log_es)
        for s, (strength, weights) in enumerate(zip(self._strengths, self._weights, strict=True)):
            gains = 1 + strength * lift
            ratios += gains @ weights
            log_es[s] = np.log(gains).sum((0, 1))
        self._log_es += log_es
        return np.log(ratios)

    @property
    def _weights(self) -> Floats:
        weights = np.exp(self._log_es - self._log_es.max())
        return np.asarray(weights / weights.sum())

    def bet(self) -> Alternative:
        """What it bet on, in words."""
        weights = self._weights
        strength = float(self._strengths[int(weights.sum(1).argmax())])
        kind = "the same token again" if self._family == SAME else "like places"
        kind = "opposite places" if strength < 0 else kind
        where = told(self._pairs, weights.sum(0))
        return Alternative(family=self._family, name=f"{kind}: {where}", value=strength)


def _product(block: Block, placed: Placed) -> Floats:
    """12 (u − ½)(u' − ½), ``[n, T, L]``; 0 where there is no bet."""
    centred = placed.uniforms - 0.5
    products = 12 * centred[block.own][:, :, None] * centred[block.earlier]
    return np.where(block.is_open, products, 0.0)
