"""Estimators that probes rebuild every time: importance-weighted means, ratios and changes.

Sample N sequences under θ, score them at θ and at θ + η·v, and estimate expectations at either
point, or their difference, from the same draws. Knows arrays alone: whatever `numpy.asarray` reads,
computed in float64. Nothing here knows models, tokenizers or torch.

Legend: N draws (sequences), C clusters, T_i tokens of draw i, w_i its weight (1 without weights).
Entropies and log-probabilities in nats.

Every estimator is a value and N influences u_i, so that error ≈ Σ_i u_i to first order. All are
made of the ratio R = Σ w h / Σ w t (a mean has t = 1), for which u_i = w_i (h_i − R t_i) / Σ w t.
One rule turns influences into a standard error; without clusters each draw is its own, C = N:

    SE² = C / (C − 1) · Σ_c (Σ_{i ∈ c} u_i)²

It is NaN where one draw or one cluster has all the weight, as it has when N = 1 or C = 1: there
is no spread to see. Where a few have most of it, it is too small: see `effective_sample_size`.

References: Owen, "Monte Carlo theory, methods and examples" (2013), for self-normalised importance
sampling and the delta method; Liang and Zeger, "Longitudinal data analysis using generalized linear
models" (1986), and Cameron and Miller, "A Practitioner's Guide to Cluster-Robust Inference" (2015),
for clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seqproc._util.pareto import tail_shape
from seqproc.errors import ConfigError, SequenceError

Array = NDArray[np.float64]
Clusters = Sequence[Hashable] | ArrayLike

_SIGN_SLACK = 1e-3  # nats by which rounding may push a log q above 0, or an entropy below it


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value, its standard error, and what stands behind them."""

    value: float
    standard_error: float  # NaN where there is no spread to see, as at the top of the module
    num_draws: int  # N
    num_clusters: int | None  # C; None: every draw is independent
    effective_sample_size: float  # of the weights; N when there are none

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal confidence interval, value ∓ z·SE with z = Φ⁻¹((1 + level) / 2).

        Raises:
            ConfigError: when ``level`` is not in (0, 1).
        """
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise ConfigError(f"level must lie in (0, 1), got {level!r}; 0.95 stands for 95 %")
        reach = NormalDist().inv_cdf((1 + level) / 2) * self.standard_error
        return self.value - reach, self.value + reach

    def __str__(self) -> str:
        behind = f"N = {self.num_draws:,}"
        if self.num_clusters is not None:
            behind += f", C = {self.num_clusters:,}"
        if self.effective_sample_size != self.num_draws:
            behind += f", ESS = {self.effective_sample_size:,.1f}"
        return f"{_plus_minus(self.value, self.standard_error)} ({behind})"


def sequence_log_weights(logqs_to: Iterable[ArrayLike], logqs_from: Iterable[ArrayLike]) -> Array:
    """Log importance weights log w_i = Σ_t (log q_to(y_t) − log q_from(y_t)), never clamped.

    The difference is taken token by token, and so keeps its digits when the two points are close.
    A token that q_to cannot emit gives −∞, a weight of 0. What q_to can emit and q_from cannot is
    never drawn: where the support grows (a nucleus), weights average less than 1, and what they
    estimate is q_to restricted to the sequences that q_from can emit.

    Args:
        logqs_to: N arrays ``[T_i]``, log q at θ + η·v of the sampled tokens.
        logqs_from: N arrays ``[T_i]``, log q at θ, under the policy that sampled them.

    Returns:
        ``[N]`` float64, nats.

    Raises:
        SequenceError: when the two do not have the same sequences and lengths, when a value is
            NaN or > 0, or when q_from cannot emit a token that it is said to have emitted.
    """
    for name, given in (("logqs_to", logqs_to), ("logqs_from", logqs_from)):
        is_one = isinstance(given, (str, bytes)) or getattr(given, "ndim", 1) == 0
        if is_one or not isinstance(given, Iterable):
            raise SequenceError(
                f"{name} must hold one array per sequence, got {type(given).__name__}"
            )
    to, source = list(logqs_to), list(logqs_from)
    if not to or len(to) != len(source):
        raise SequenceError(
            "logqs_to and logqs_from must hold one array per sequence, the same sequences in the "
            f"same order and at least one; got {len(to)} and {len(source)}"
        )
    return np.array([_log_weight(i, *pair) for i, pair in enumerate(zip(to, source, strict=True))])


def effective_sample_size(log_weights: ArrayLike) -> float:
    """Kish's (Σw)² / Σw² in [1, N], of unclamped weights; a common shift of log w changes nothing.

    Args:
        log_weights: ``[N]``, nats; −∞ is a weight of 0.

    Raises:
        SequenceError: when there are none, all are −∞, or one is NaN or +∞.

    References: Kish, "Survey Sampling" (1965).
    """
    return _kish(_relative_weights(log_weights))


def pareto_k(log_weights: ArrayLike) -> float:
    """k̂, the shape of a generalised Pareto tail fitted to the largest weights.

    Moments of the weights below the order 1/k are finite: up to 0.7 an estimate can be trusted,
    with N > 10^(1/(1 − k)) draws; beyond it, a few draws decide however many there are; from 1 on
    even the mean does not exist. A common shift of log w changes nothing.

    Args:
        log_weights: ``[N]``, nats; −∞ is a weight of 0.

    Returns:
        k̂; NaN where fewer than 5 weights are larger than the rest, as when all are equal.

    Raises:
        SequenceError: as `effective_sample_size`.

    References: see `seqproc._util.pareto`.
    """
    _relative_weights(log_weights)  # refuses what are no weights
    return tail_shape(_array("log_weights", log_weights))


def mean(
    values: ArrayLike, log_weights: ArrayLike | None = None, clusters: Clusters | None = None
) -> Estimate:
    """E[X] as Σ w x / Σ w: plain without weights, else self-normalised importance sampling.

    Self-normalising costs a bias of O(1/N), which is small beside the standard error.

    Args:
        values: ``[N]``, finite; not read where the weight is 0.
        log_weights: ``[N]`` from `sequence_log_weights`, up to a common constant.
        clusters: ``[N]`` ids; draws of one id may depend on each other (responses to one prompt).

    Raises:
        SequenceError: when shapes do not fit, or a number that is needed is not finite.
    """
    weights = _weights("values", values, log_weights)
    x = _column("values", values, weights)
    return _estimate(_ratio(x, np.ones_like(x), weights), weights, clusters)


def ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    log_weights: ArrayLike | None = None,
    clusters: Clusters | None = None,
) -> Estimate:
    """E[H] / E[T] as Σ w h / Σ w t, such as entropy per token; the mean of H_i/T_i is another.

    Arguments and errors are those of `mean`; ``denominators`` ``[N]`` are counts, such as tokens:
    finite, ≥ 0 and not all 0.
    """
    weights = _weights("numerators", numerators, log_weights)
    h, t = _column("numerators", numerators, weights), _denominators(denominators, weights)
    return _estimate(_ratio(h, t, weights), weights, clusters)


def change(
    values_to: ArrayLike,
    values_from: ArrayLike,
    log_weights: ArrayLike,
    clusters: Clusters | None = None,
) -> Estimate:
    """E_{θ+ηv}[X_to] − E_θ[X_from] from the same draws: Σ w x_to / Σ w − Σ x_from / N.

    It holds both what X itself changes by and what the measure does; divide by η for a slope.
    Influences are paired draw by draw, and values taken about a common centre, so that value and
    error keep their digits when η is tiny.

    Args:
        values_to: ``[N]`` X at θ + η·v; not read where the weight is 0.
        values_from: ``[N]`` X at θ, of the same draws in the same order.
        log_weights: ``[N]`` from θ, where the draws come from, to θ + η·v.
        clusters: as for `mean`, and so are the errors raised.
    """
    weights = _relative_weights(log_weights)
    ones = np.ones_like(weights)
    source = _column("values_from", values_from, ones)
    to = _column("values_to", values_to, weights)
    return _estimate(_change(to, source, ones, weights), weights, clusters)


def change_of_ratio(
    numerators_to: ArrayLike,
    numerators_from: ArrayLike,
    denominators: ArrayLike,
    log_weights: ArrayLike,
    clusters: Clusters | None = None,
) -> Estimate:
    """E_{θ+ηv}[H_to] / E_{θ+ηv}[T] − E_θ[H_from] / E_θ[T]: the `change` of a `ratio`.

    Arguments and errors are theirs; the tokens are the same at both ends, and so is their number.
    """
    weights = _relative_weights(log_weights)
    source = _column("numerators_from", numerators_from, np.ones_like(weights))
    to = _column("numerators_to", numerators_to, weights)
    linear = _change(to, source, _denominators(denominators, weights), weights)
    return _estimate(linear, weights, clusters)


@dataclass(frozen=True, slots=True, kw_only=True)
class RaoBlackwellGain:
    """Two estimates of one entropy from the same draws; nats per sequence."""

    rao_blackwell: Estimate  # mean of Σ_t H(q_t)
    naive: Estimate  # mean of Σ_t −log q(y_t)
    difference: Estimate  # naive − Rao-Blackwell, paired

    @property
    def variance_ratio(self) -> float:
        """Var(naive) / Var(RB): how many times fewer draws RB needs. NaN where neither varies."""
        errors = _quotient(self.naive.standard_error, self.rao_blackwell.standard_error)
        return errors * errors

    @property
    def z_score(self) -> float:
        """The difference in its standard errors; NaN where it is always 0: nothing is tested."""
        return _quotient(self.difference.value, self.difference.standard_error)


def rao_blackwell_gain(
    rb_sums: ArrayLike,
    naive_sums: ArrayLike,
    log_weights: ArrayLike | None = None,
    clusters: Clusters | None = None,
) -> RaoBlackwellGain:
    """What H(q_t) in place of the surprisal −log q(y_t) gains, and whether the two agree.

    Given y_<t a surprisal has mean H(q_t), so under the policy both sums have one expectation: |z|
    beyond 4 or so says that the draws do not come from the q that scored them. A step's variance
    can only fall, that of a sum may rise: where a surprising token tends to be followed by certain
    ones, surprisals even out within a sequence. So a ratio below 1 is no error.

    Args:
        rb_sums: ``[N]`` Σ_t H(q_t), nats.
        naive_sums: ``[N]`` −Σ_t log q(y_t), nats: of q, not of the raw model's log p.
        log_weights: as for `mean`, both sums being scored at the point weighted to.
        clusters: as for `mean`, and so are the errors raised; a sum must not be negative.

    References: Casella and Robert, "Rao-Blackwellisation of sampling schemes" (1996).
    """
    weights = _weights("rb_sums", rb_sums, log_weights)
    rb = _column("rb_sums", rb_sums, weights)
    naive = _column("naive_sums", naive_sums, weights)
    for name, sums in (("rb_sums", rb), ("naive_sums", naive)):
        rule = "an entropy or a surprisal is ≥ 0; a sum of log q needs its sign changed"
        _forbid(sums < -_SIGN_SLACK, name, sums, rule)
    of_rb, of_naive, of_difference = (
        mean(x, log_weights, clusters) for x in (rb, naive, naive - rb)
    )
    return RaoBlackwellGain(rao_blackwell=of_rb, naive=of_naive, difference=of_difference)


def _ratio(h: Array, t: Array, weights: Array) -> tuple[float, Array]:
    """Value and influences ``[N]`` of Σ w h / Σ w t."""
    scale = weights @ t
    with np.errstate(over="ignore", invalid="ignore"):  # told by `_estimate`
        value = float(weights @ h / scale)
        return value, weights * (h - value * t) / scale


def _change(to: Array, source: Array, t: Array, weights: Array) -> tuple[float, Array]:
    """Value and influences ``[N]`` of Σ w h_to / Σ w t − Σ h_from / Σ t."""
    centre, influences = _ratio(source, t, np.ones_like(t))
    value, moved = _ratio(to - centre * t, t, weights)
    # Influences sum to 0 but for the rounding of the centre, which the value has in it too.
    return value - float(influences.sum()), moved - influences


def _estimate(linear: tuple[float, Array], weights: Array, clusters: Clusters | None) -> Estimate:
    """The one rule from influences to a standard error, as at the top of the module."""
    value, influences = linear
    with np.errstate(over="ignore"):
        square = float(influences @ influences)
    if not math.isfinite(value) or not math.isfinite(square):
        raise SequenceError(
            "values are too large for their squares to be summed in float64: divide them by a "
            "constant, and multiply the estimate and its standard error by it"
        )
    codes = np.arange(len(weights)) if clusters is None else _codes(clusters, len(weights))
    sums, shares = np.bincount(codes, influences), np.bincount(codes, weights)
    num = len(sums)
    lonely = shares.max() > (1 - 1e-12) * shares.sum()  # num = 1 among others
    return Estimate(
        value=value,
        standard_error=math.nan if lonely else math.sqrt(num / (num - 1) * (sums @ sums)),
        num_draws=len(weights),
        num_clusters=None if clusters is None else num,
        effective_sample_size=_kish(weights),
    )


def _column(name: str, values: ArrayLike, weights: Array) -> Array:
    """``[N]`` finite numbers, 0 in place of those without weight."""
    column = _array(name, values)
    if not 0 < len(column) == len(weights):
        expected = f"one number for each of {len(weights)} draws" if len(weights) else "some draws"
        raise SequenceError(f"{name} must hold {expected}, got {len(column)}")
    column[weights == 0] = 0.0
    _forbid(~np.isfinite(column), name, column, "a draw that has weight needs a finite number")
    return column


def _denominators(values: ArrayLike, weights: Array) -> Array:
    t = _column("denominators", values, np.ones_like(weights))
    _forbid(t < 0, "denominators", t, "denominators are counts, such as tokens, and ≥ 0")
    if not weights @ t > 0:
        raise SequenceError("denominators are 0 on every draw that has weight; the ratio is x/0")
    return t


def _codes(clusters: Any, num_draws: int) -> NDArray[np.intp]:
    """Ids numbered in order of appearance. Scalars of numpy and torch count by their value."""
    seen: dict[Hashable, int] = {}
    if isinstance(clusters, (str, bytes, Mapping, Set)):
        raise SequenceError(
            f"clusters must be a list of one id per draw, got a {type(clusters).__name__}"
        )
    try:
        ids = [x.item() if hasattr(x, "item") else x for x in clusters]
        codes = np.array([seen.setdefault(x, len(seen)) for x in ids], np.intp)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SequenceError(
            f"clusters must be one hashable id per draw, such as its prompt's index ({error})"
        ) from error
    if len(codes) != num_draws:
        raise SequenceError(
            f"clusters must hold one id for each of {num_draws} draws, got {len(codes)}"
        )
    if any(x != x for x in seen):
        raise SequenceError("clusters holds NaN, which equals nothing; give such draws an id")
    return codes


def _kish(weights: Array) -> float:
    return float(weights.sum() ** 2 / (weights @ weights))


def _weights(name: str, values: ArrayLike, log_weights: ArrayLike | None) -> Array:
    """Weights ``[N]`` up to a factor; without log weights, 1 for each of ``values``."""
    if log_weights is None:
        return np.ones(len(_array(name, values)))
    return _relative_weights(log_weights)


def _relative_weights(log_weights: ArrayLike) -> Array:
    """Weights ``[N]`` over their largest, so that nothing overflows."""
    logs = _array("log_weights", log_weights)
    bad = np.isnan(logs) | np.isposinf(logs)
    _forbid(bad, "log_weights", logs, "a log weight is finite, or -inf for a weight of 0")
    if np.isneginf(logs).all():
        raise SequenceError(
            f"log_weights leave no draw of {len(logs)} any weight: sample nearer to the target, or "
            "check that both ends are scored with one temperature and top_p"
        )
    return np.exp(logs - logs.max())


def _log_weight(index: int, logqs_to: ArrayLike, logqs_from: ArrayLike) -> float:
    name_to, name_from = f"logqs_to[{index}]", f"logqs_from[{index}]"
    to, source = _array(name_to, logqs_to), _array(name_from, logqs_from)
    if len(to) != len(source):
        raise SequenceError(
            f"{name_to} and {name_from} must score the same tokens, got {len(to)} and {len(source)}"
        )
    for name, logqs in ((name_to, to), (name_from, source)):
        bad = np.isnan(logqs) | (logqs > _SIGN_SLACK)
        _forbid(bad, name, logqs, "a log-probability is ≤ 0; a surprisal is its negative")
    rule = "a token that the proposal cannot emit; score the draws under the policy that made them"
    _forbid(np.isneginf(source), name_from, source, rule)
    return float((to - source).sum())


def _array(name: str, values: ArrayLike) -> Array:
    """A new float64 array of one dimension."""
    if isinstance(values, np.ma.MaskedArray):
        raise SequenceError(f"{name} is a masked array: leave masked values out (.compressed())")
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SequenceError(
            f"{name} cannot be read as an array ({error}); of a torch tensor x, pass "
            "x.detach().cpu().double()"
        ) from error
    if array.dtype == object and array.ndim == 0:
        raise SequenceError(
            f"{name} must be an array or a list of numbers, got {type(values).__name__}"
        )
    if array.ndim != 1:
        raise SequenceError(
            f"{name} must have one dimension, got shape {list(array.shape)}; "
            "results nested [b][g] are flattened by [x for row in nested for x in row]"
        )
    if array.dtype.kind not in "fiub":
        raise SequenceError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array.astype(np.float64)


def _forbid(bad: NDArray[np.bool_], name: str, values: Array, rule: str) -> None:
    if bad.any():
        at = int(bad.argmax())
        raise SequenceError(f"{name}[{at}] is {values[at]:g} ({bad.sum()} such): {rule}")


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else numerator * math.inf  # 0/0 is NaN


def _plus_minus(value: float, error: float) -> str:
    """Two digits of the error, and the value to the same place."""
    if not (math.isfinite(error) and error > 0):
        return f"{value:.6g} ± {error:g}"
    places = 1 - math.floor(math.log10(error))
    if places <= 8:
        return f"{value:,.{max(places, 0)}f} ± {error:,.{max(places, 0)}f}"
    digits = places + math.floor(math.log10(abs(value) or error))
    return f"{value:.{max(digits, 0)}e} ± {error:.1e}"
