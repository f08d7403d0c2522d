"""Distances between the log-probabilities that an engine reports and the scorer's.

With e the engine's and q the scorer's distribution and Δ = log e(y) − log q(y) on tokens drawn by
the engine:

| metric | of tokens |
|---|---|
| ``kl_k1`` | E[Δ], which estimates KL(e ‖ q) |
| ``kl_k3`` | E[exp(−Δ) − 1 + Δ], the same, never negative and of less variance |
| ``perplexity_ratio`` | exp(E[Δ]): perplexity under q over perplexity under e |
| ``chi2_token`` | E[exp(−2Δ)] − 1, which estimates χ²(q ‖ e) |
| ``chi2_sequence`` | the same of sequences, with the sum of their Δ |
| ``effective_sample_size`` | (Σw)²/Σw² over D, of sequence weights w = exp(−ΣΔ), not clamped |
| ``pearson`` | correlation of log e and log q |

Every metric comes with a standard error from a bootstrap that draws whole prompts: tokens of one
prompt are not independent. Of an extreme, such as the maximum, it says little.

References: Schulman, "Approximating KL divergence" (2020), for k1 and k3; Efron and Tibshirani, "An
Introduction to the Bootstrap" (1993).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqproc.estimators import effective_sample_size
from seqproc.parity.draws import Draws, Floats, NominalScores
from seqproc.parity.logit_error import LogitError, tolerance
from seqproc.parity.verdict import Finding, Link
from seqproc.policy import SamplingPolicy

REPORTED = "reported log q"  # name of the finding
_PERCENTILES = {"p50_abs": 50.0, "p90_abs": 90.0, "p99_abs": 99.0, "p99.9_abs": 99.9}
_RESAMPLES = 200
_ENOUGH_FOR_A_MEAN = 100  # reported log q
_NAMES = (
    *("mean_abs", "max_abs", *_PERCENTILES, "kl_k1", "kl_k3", "perplexity_ratio"),
    *("chi2_token", "chi2_sequence", "effective_sample_size", "pearson"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number and its standard error."""

    value: float
    standard_error: float  # NaN with fewer than two prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gaps:
    """Tokens that both distributions can emit."""

    engine: Floats  # [M] log e(y)
    scorer: Floats  # [M] log q(y)
    draw: NDArray[np.int64]  # [M] number of the draw
    prompt: NDArray[np.int64]  # [M] number of the prompt, from 0 without holes

    def take(self, tokens: NDArray[np.int64], draw: NDArray[np.int64]) -> _Gaps:
        """Some of the tokens, possibly repeated, as parts of the given draws."""
        return _Gaps(
            engine=self.engine[tokens],
            scorer=self.scorer[tokens],
            draw=draw,
            prompt=self.prompt[tokens],
        )

    @property
    def delta(self) -> Floats:
        return self.engine - self.scorer

    @property
    def sums(self) -> Floats:
        """Σ Δ of each draw."""
        sums: Floats = np.bincount(self.draw, self.delta).astype(np.float64)[np.unique(self.draw)]
        return sums


def mismatch(draws: Draws, engine_logqs: Floats) -> dict[str, Metric]:
    """All metrics of the table, with mean, maximum and percentiles of |Δ|.

    Args:
        draws: scored under the policy.
        engine_logqs: ``[N]`` as the engine reported them, nats; NaN where it did not. Tokens that
            the scorer has outside the support are left out; the check of the support counts them.
    """
    gaps = _gaps(draws, engine_logqs)
    values = _metrics(gaps)
    spread = [_metrics(one) for one in _resampled(gaps)]
    return {
        name: Metric(
            value=value,
            standard_error=_spread([one[name] for one in spread]),
        )
        for name, value in values.items()
    }


def _spread(values: list[float]) -> float:
    """Standard deviation of the resamples that have a value; NaN of fewer than two."""
    known = [value for value in values if np.isfinite(value)]
    with np.errstate(over="ignore"):  # of log q that are absurd
        return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQRange:
    """Which log q a right engine may report for each token, nats, ``[N]``."""

    least: Floats
    most: Floats
    is_settled: NDArray[np.bool_]  # whether the support is sure: log q are then within ``allowed``
    allowed: float
    allowed_mean: float = math.inf  # of |Δ| over tokens whose support is sure


def log_q_range(
    draws: Draws, nominal: NominalScores, policy: SamplingPolicy, error: LogitError
) -> LogQRange:
    """What the error of the logits leaves open.

    Where the support is sure, log q may be off by ``allowed``. Elsewhere the engine keeps another
    nucleus S, of a mass from top_p to 1, and log q = log p(y) − log p(S): so it is at least
    log p(y), and at most that less log top_p, both within ``allowed``. Nothing is known of a token
    that the scorer has outside the support.
    """
    allowed = tolerance(error.nats, policy)
    settled, inside = nominal.is_settled, draws.in_support
    logqs, head_mass = np.where(inside, [draws.logqs, nominal.head_mass], [[0.0], [1.0]])
    logps = logqs + np.log(head_mass)
    widest = -np.log(policy.top_p) if policy.do_sample else np.inf
    least = np.where(settled, logqs, logps if policy.do_sample else -np.inf)
    most = np.where(settled, logqs, logps + widest)
    return LogQRange(
        least=np.where(inside, least - allowed, -np.inf),
        most=np.where(inside, most + allowed, np.inf),
        is_settled=settled,
        allowed=allowed,
        allowed_mean=error.mean / policy.temperature,
    )


def reported_log_q(draws: Draws, engine_logqs: Floats | None, due: LogQRange) -> Finding:
    """No reported log q is off by more than a right engine's may be, nor are all on average."""
    if engine_logqs is None:
        return _reported(None, None, "the engine reports no log q")
    judged = draws.in_support & ~np.isnan(engine_logqs)
    if not judged.any():
        return _reported(None, None, "no token in the support has a reported log q")
    wrong = judged & ~((engine_logqs >= due.least) & (engine_logqs <= due.most))
    gaps = settled_gaps(draws, engine_logqs, due.is_settled)
    worst, unsure = float(gaps.max(initial=0.0)), judged & ~due.is_settled
    detail = (
        f"{(wrong & due.is_settled).sum():,} of {len(gaps):,} are off by more than "
        f"{due.allowed:g} nats; the worst by {worst:.2g}"
    )
    if unsure.any():
        detail += f"; {(wrong & unsure).sum():,} of {unsure.sum():,} where no cut is sure fit none"
    mean = float(gaps.mean()) if len(gaps) >= _ENOUGH_FOR_A_MEAN else 0.0
    if mean > due.allowed_mean:
        detail += f"; off by {mean:.2g} nats on average, where {due.allowed_mean:.2g} are allowed"
    is_wrong = bool(wrong.any()) or mean > due.allowed_mean
    return _reported(0.0 if is_wrong else 1.0, worst, detail + _silent(draws, engine_logqs))


def _silent(draws: Draws, engine_logqs: Floats) -> str:
    """How many draws have no log q, if some do."""
    without = int(np.isnan(engine_logqs[draws.starts[draws.lengths > 0]]).sum())
    return f"; {without:,} of {len(draws.lengths):,} draws report none" if without else ""


def _reported(p_value: float | None, statistic: float | None, detail: str) -> Finding:
    return Finding(
        name=REPORTED,
        link=Link.LOG_Q,
        p_value=p_value,
        statistic=statistic,
        is_exact=True,
        detail=detail,
    )


def settled_gaps(draws: Draws, engine_logqs: Floats, is_settled: NDArray[np.bool_]) -> Floats:
    """|log q(engine) − log q(scorer)| of the tokens whose support is sure, nats."""
    clear = is_settled & draws.in_support & ~np.isnan(engine_logqs)
    gaps: Floats = np.abs(engine_logqs[clear] - draws.logqs[clear])
    return gaps


def _gaps(draws: Draws, engine_logqs: Floats) -> _Gaps:
    kept = draws.in_support & np.isfinite(engine_logqs)
    owner = np.repeat(np.arange(len(draws.lengths)), draws.lengths)[kept]
    prompt = np.unique(draws.prompts, return_inverse=True)[1][owner]
    return _Gaps(engine=engine_logqs[kept], scorer=draws.logqs[kept], draw=owner, prompt=prompt)


def _metrics(gaps: _Gaps) -> dict[str, float]:
    """By name; all NaN where no token has a log q of both, infinite what no float holds."""
    with np.errstate(over="ignore", invalid="ignore"):  # of log q that are absurd
        return _values(gaps)


def _values(gaps: _Gaps) -> dict[str, float]:
    delta, sums = gaps.delta, gaps.sums
    if not len(delta):
        return dict.fromkeys(_NAMES, float("nan"))
    size = np.abs(delta)
    values = {
        "mean_abs": size.mean(),
        "max_abs": size.max(),
        **dict(zip(_PERCENTILES, np.percentile(size, list(_PERCENTILES.values())), strict=True)),
        "kl_k1": delta.mean(),
        "kl_k3": (np.expm1(-delta) + delta).mean(),
        "perplexity_ratio": np.exp(delta.mean()),
        "chi2_token": np.expm1(-2 * delta).mean(),
        "chi2_sequence": np.expm1(-2 * sums).mean(),
        "effective_sample_size": effective_sample_size(-sums) / len(sums),
        "pearson": _correlation(gaps.engine, gaps.scorer),
    }
    return {name: float(value) for name, value in values.items()}


def _correlation(x: Floats, y: Floats) -> float:
    """Pearson's; NaN where one of the two does not vary, as under greedy decoding."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale else float("nan")


def _resampled(gaps: _Gaps) -> list[_Gaps]:
    """The tokens of as many prompts, drawn with replacement, many times over."""
    num = int(gaps.prompt.max(initial=-1)) + 1
    if num < 2:
        return []
    own = [np.flatnonzero(gaps.prompt == prompt) for prompt in range(num)]
    chosen = np.random.default_rng(0).integers(num, size=(_RESAMPLES, num))
    copies = int(gaps.draw.max()) + 1  # a prompt drawn twice has draws of its own each time
    return [
        gaps.take(
            np.concatenate([own[p] for p in row]),
            np.concatenate([gaps.draw[own[p]] + n * copies for n, p in enumerate(row)]),
        )
        for row in chosen
    ]
