"""Bets as findings of a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import numpy as np

from seqproc.parity.betting.changes import ROUNDING
from seqproc.parity.betting.echoes import PLACE, SAME
from seqproc.parity.betting.evidence import Bet, Evidence
from seqproc.parity.verdict import Finding, Link

_COARSE = 0.05  # nats, which a float16 or bfloat16 engine is allowed
_WEIGHTS = {"known faults": 24.0, "noise": 6.0}  # of the false alarms; each other test has 1


def bet_findings(found: Evidence, logit_error: float) -> list[Finding]:
    """What the bets on other distributions, and on noise used twice, came to.

    Args:
        found: the bets.
        logit_error: by which each logit may be off [nats]; rounded logits are no fault within it.
    """
    allowed = allowed_families(logit_error)
    noise = [bet for bet in found.bets if bet.family in (SAME, PLACE)]
    others = [bet for bet in found.bets if bet.family not in {SAME, PLACE} | allowed]
    return [
        _finding("known faults", Link.POLICY, others),
        _finding("noise", Link.TOKENS, noise),
    ]


def allowed_families(logit_error: float) -> Set[str]:
    """Families of the catalogue that are no fault where logits may be so far off, nats."""
    return {ROUNDING} if logit_error >= _COARSE else frozenset()


def _finding(name: str, link: Link, bets: Sequence[Bet]) -> Finding:
    """The inverse of what bets of mean 1 came to is a p-value."""
    shares = np.logaddexp.reduce([bet.log_share for bet in bets])
    log_e = float(np.logaddexp.reduce([bet.log_e + bet.log_share for bet in bets]) - shares)
    best = bets[0]
    return Finding(
        name=name,
        link=link,
        p_value=min(1.0, math.exp(-min(max(log_e, 0.0), 700.0))),
        statistic=log_e,
        weight=_WEIGHTS[name],
        at_any_time=True,
        detail=f"{len(bets):,} bets came to e^{log_e:.1f}; the best of them was on "
        f"{best.name}{', ' if best.window.name else ''}{best.window.name}",
    )
