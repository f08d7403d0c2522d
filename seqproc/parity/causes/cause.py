"""Causes: what went wrong with an engine, in words. Knows numbers and names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from seqproc.parity.draws import Floats
from seqproc.parity.verdict import Link

_IMPOSSIBLE = -50.0  # nats for a token that a suspect cannot emit, in place of −∞


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A distribution that was taken for true."""

    description: str
    log_odds: float  # of it against the policy by its bets, with their share of all, nats
    interval: tuple[float, float] | None  # as of a `Cause`
    left: tuple[str, ...]  # tests that fail then


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What went wrong, as far as the draws tell."""

    link: Link
    description: str
    explains: bool  # whether all that failed holds when this is taken for true, and of nothing else
    detail: str = ""
    contenders: tuple[str, ...] = ()  # other causes that do about as well
    # The lowest and the highest value of its parameter under which the draws are no less than a
    # twentieth as likely; None where none was fitted.
    interval: tuple[float, float] | None = None
    tried: tuple[Tried, ...] = ()  # the most probable first; empty where nothing was scored again


def possible(logqs: Floats) -> Floats:
    """log q, −∞ and what is absurd replaced by a small one, for sums and means."""
    return np.maximum(logqs, _IMPOSSIBLE)


def log_q_error(logqs: Floats, engine_logqs: Floats | None) -> float:
    """Mean distance of log q from those that the engine reported, nats; NaN without."""
    if engine_logqs is None:
        return math.nan
    told = ~np.isnan(engine_logqs) & ~np.isnan(logqs)
    gaps = possible(engine_logqs[told]) - possible(logqs[told])
    return float(np.abs(gaps).mean())
