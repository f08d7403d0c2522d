"""Bets that an engine holds the weights, or sees the prompts, that a caller suspects.

Each is an alternative like those of the catalogue, which no logits of the scorer's own tell: its
log r comes from a forward of its own. Knows arrays.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.catalogue import SHARE

WEIGHTS, PROMPTS = "weights", "prompts"  # families

Floats = NDArray[np.float64]


def log_ratios_of(log_r: Floats, logqs: Floats) -> Floats:
    """log r/q of tokens, r being mixed with `SHARE` of q, as `catalogue.log_ratios` has it.

    Args:
        log_r: of the tokens, nats; −∞ where r cannot emit them.
        logqs: of the same tokens under q; any shape.
    """
    inside = np.isfinite(logqs)
    shifted = math.log1p(-SHARE) + log_r - np.where(inside, logqs, 0.0)
    ratio = np.logaddexp(math.log(SHARE), shifted)
    found: Floats = np.where(inside, ratio, np.where(np.isfinite(log_r), 0.0, math.log(SHARE)))
    return found
