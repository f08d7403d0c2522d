"""Bans: bets, one for each token id, that it is never sampled.

With s the share of q in an alternative, the bet on id i comes to Π (1 − s·q(i)) / (1 − q(i)) over
the tokens that are others, times s for each that is i: its mean is 1 when the tokens come from q.
So it bets that the id is left out after the policy's cuts.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqproc.parity.betting.catalogue import SHARE
from seqproc.parity.positions import LogDistribution
from seqproc.policy import SamplingPolicy, log_q

# Shapes: R rows (steps), V tokens of the vocabulary.

_RARELY = 1e-6  # probability of an id, up to which q²/2 is nothing
_CERTAIN = 1 - 1e-12  # probability of an id that leaves nothing to bet on


class Bans:
    """What the bets on all ids have come to, row by row."""

    def __init__(self) -> None:
        self._log_e_V: Tensor | None = None

    def note(self, log_q_RV: Tensor, tokens_R: Tensor) -> None:
        """Rows of log q, and the tokens that were sampled."""
        q_RV = log_q_RV.exp().clamp_(max=_CERTAIN)
        gains_RV = (1 - SHARE) * q_RV  # less by q²/2 than the gain, of ids that hardly have any
        likely = torch.nonzero(q_RV > _RARELY, as_tuple=True)
        gains_RV[likely] = torch.log1p(-SHARE * q_RV[likely]) - torch.log1p(-q_RV[likely])
        gains_RV.scatter_(-1, tokens_R.unsqueeze(-1), math.log(SHARE))
        log_e_V = gains_RV.sum(0)
        self._log_e_V = log_e_V if self._log_e_V is None else self._log_e_V + log_e_V

    @property
    def log_e(self) -> NDArray[np.float64] | None:
        """Of each id, nats: ``[V]``; None before there was a row."""
        return None if self._log_e_V is None else self._log_e_V.cpu().numpy()


def without(token: int, policy: SamplingPolicy) -> LogDistribution:
    """The policy's q of logits without an id, which gives way to others before any cut."""

    def whole(logits_RV: Tensor) -> Tensor:
        others_RV = logits_RV.clone()
        others_RV[:, token] = -math.inf
        return log_q(others_RV, policy)

    return whole
