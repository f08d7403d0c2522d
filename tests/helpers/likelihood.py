"""How much the draws of a faulty engine tell against q: log r(y)/q(y), and the best test there is.

By the lemma of Neyman and Pearson no test of q at level α is more likely to see draws from r than
the one that rejects where Σ log r(y)/q(y) is large.

References: Neyman and Pearson (1933); Wald (1945) for log(1/α)/KL, the draws that a test takes on
average which may stop at any time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from helpers.broken import Fault
from helpers.parity_range import STOPPING, Range
from seqproc.parity import Answer, Draws, NominalScores
from seqproc.parity.draws import Floats
from seqproc.policy import SamplingPolicy

_GROWTH, _NUMBERS = 1.01, 2_000  # of draws that are tried, up to 4e8


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """Σ log r(y)/q(y) of whole draws, nats."""

    under_r: Floats  # [D] of the engine's; +∞ where q cannot emit a token
    under_q: Floats  # [D'] of a right engine's; −∞ where r cannot emit a token

    @property
    def divergence(self) -> float:
        """KL(r‖q) of a draw, nats."""
        return self.moments_under_r[1] if np.isfinite(self.under_r).all() else math.inf

    @property
    def moments_under_r(self) -> tuple[float, float, float]:
        """Share of the finite sums, their mean and their standard deviation."""
        return _moments(self.under_r, -1, _share(self.under_q))

    @property
    def moments_under_q(self) -> tuple[float, float, float]:
        """As of r."""
        return _moments(self.under_q, 1, _share(self.under_r))


def own_ratios(draws: Draws, nominal: NominalScores) -> Floats:
    """Σ log r/q of an engine's own draws, ``[D]``; it reports log r.

    A token that only the error of the logits puts outside the support counts as nothing.
    """
    log_r = nominal.engine_logqs
    assert log_r is not None
    reachable = np.where(nominal.is_reachable, log_r, -np.inf)
    sums: Floats = np.add.reduceat(
        log_r - np.where(draws.in_support, draws.logqs, reachable), draws.starts
    )
    return sums


def right_ratios(
    fault: Fault, small: Range, right: Sequence[Answer], policy: SamplingPolicy
) -> Floats:
    """Σ log r/q of the draws of a right engine that reports its log q, ``[D]``."""
    tokens = {answer.request.index: answer.completion.token_ids for answer in right}
    engine = fault.build(small.model, small.tokenizer, forced=tokens)
    requests = [answer.request for answer in right]
    log_r = {
        one.index: math.fsum(one.logqs or ()) for one in engine.generate(requests, policy, STOPPING)
    }
    return np.array([log_r[a.request.index] - math.fsum(a.completion.logqs or ()) for a in right])


def least_draws(ratios: Ratios, false_alarms: float, power: float) -> float:
    """Draws that the best test needs, by the normal approximation of its sums; ∞ beyond 4e8.

    A draw that q cannot emit is proof. Where r cannot emit some of q's, the test holds q as soon as
    one of them is drawn, so that the others may be judged at a level that rises.
    """
    n = _GROWTH ** np.arange(_NUMBERS)
    share_r, mean_r, deviation_r = ratios.moments_under_r
    share_q, mean_q, deviation_q = ratios.moments_under_q
    with np.errstate(divide="ignore"):
        level = np.exp(np.minimum(math.log(false_alarms) - n * np.log(share_q), 0.0))
    bar = n * mean_q + np.sqrt(n) * deviation_q * norm.isf(level)
    missed = share_r**n * norm.cdf((bar - n * mean_r) / (np.sqrt(n) * deviation_r))
    enough = n[missed <= 1 - power]
    return float(enough[0]) if len(enough) else math.inf


def _share(sums: Floats) -> float:
    return float(np.isfinite(sums).mean())


def _moments(sums: Floats, sign: int, other_share: float) -> tuple[float, float, float]:
    """Share of the finite sums, their mean and their standard deviation.

    What both can emit has a mass under either: so exp(sign·L) over the finite sums L has the mean
    ``other_share`` / share, and how far it is off tells how far the mean of L is.
    """
    finite, share = sums[np.isfinite(sums)], _share(sums)
    if len(finite) < 2:
        return 0.0, 0.0, 1.0
    control = np.exp(sign * finite)
    slope = np.cov(finite, control)[0, 1] / max(float(control.var()), 1e-30)
    mean = float(finite.mean() - slope * (control.mean() - other_share / share))
    return share, mean, max(float(finite.std()), 1e-12)
