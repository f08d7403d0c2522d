"""The numbers that a page shows of a run, computed from its rows. Needs no torch.

Log-probabilities and entropies in nats. D draws are independent; the tokens of one draw are not, so
every standard error is over draws.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqproc import estimators as est
from seqproc.report.histograms import Floats, Histogram, Ints, histogram
from seqproc.report.rows import NotKeptError, Ragged, draws_of, per_draw, per_token, require_columns
from seqproc.runs.format.summary import (
    SAMPLE_COLUMNS,
    SCORE_COLUMNS,
    UNKNOWN_REASON,
    RunSummary,
    accumulator,
)

if TYPE_CHECKING:
    from seqproc.runs import Run

# What has one number per draw and is shown as a histogram: columns, and what is made of them.
OF_DRAWS: dict[str, tuple[tuple[str, ...], Callable[..., Floats]]] = {
    "length": (("gen_len",), lambda n: n),
    "reward": (("reward",), lambda x: x),
    "logprob": (("sequence_logprob",), lambda x: x),
    "logprob_per_token": (("sequence_logprob", "gen_len"), lambda x, n: _quotients(x, n)),
    "entropy": (("rb_entropy_sum",), lambda x: x),
    "entropy_per_token": (("rb_entropy_sum", "gen_len"), lambda x, n: _quotients(x, n)),
}


def summary_of_rows(run: Run) -> RunSummary:
    """The summary of the rows that are there, by the one definition of `runs.format.summary`.

    It says nothing of times, which rows do not hold.

    Raises:
        NotKeptError: there are no rows.
    """
    rows = draws_of(run, [*SAMPLE_COLUMNS, *SCORE_COLUMNS])
    totals = accumulator(run.manifest.reward)
    totals.add(rows, rows, scoring_seconds=0.0)
    return totals.result()


def of_draws(run: Run, name: str) -> Histogram:
    """The distribution over draws of one quantity, by its name in `OF_DRAWS`.

    Raises:
        NotKeptError: there are no rows.
    """
    columns, made = OF_DRAWS[name]
    rows = draws_of(run, columns)
    values = made(*(per_draw(rows, column) for column in columns))
    return histogram(values, whole=name == "length")


def of_tokens(run: Run, name: str) -> Histogram:
    """The distribution over all tokens of a per-token column.

    Raises:
        NotKeptError: the run does not keep it, or has no rows.
    """
    require_columns(run, [name])
    return histogram(per_token(draws_of(run, [name]), name).values)


def finish_reasons(run: Run) -> dict[str, int]:
    """How many draws ended for which reason, the most frequent first."""
    reasons = draws_of(run, ["finish_reason"])["finish_reason"].to_pylist()
    names, counts = np.unique([reason or UNKNOWN_REASON for reason in reasons], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {str(names[n]): int(counts[n]) for n in order}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByPosition:
    """Means over the draws that reach a position, for T positions from the first on."""

    mean: Floats  # [T]; NaN where no draw has a finite number
    standard_error: Floats  # [T]; NaN where fewer than two have
    num: Ints  # [T] draws that reach it with a finite number
    num_reaching: Ints  # [T] draws that reach it

    @property
    def num_left_out(self) -> int:
        """Tokens that are −∞, ∞ or NaN, and in no mean."""
        return int((self.num_reaching - self.num).sum())


def by_position(run: Run, name: str) -> ByPosition:
    """A per-token column by the position of the token.

    Raises:
        NotKeptError: the run does not keep it, has no rows, or no draw has a token.
    """
    require_columns(run, [name])
    tokens = per_token(draws_of(run, [name]), name)
    if not len(tokens.values):
        raise NotKeptError("no draw of the run has a token")
    return _by_position(tokens)


def _by_position(tokens: Ragged) -> ByPosition:
    positions = tokens.positions
    size = int(tokens.lengths.max())
    is_finite = np.isfinite(tokens.values)
    kept, where = tokens.values[is_finite], positions[is_finite]
    num = np.bincount(where, minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(where, kept, minlength=size) / num
        squares = np.bincount(where, (kept - mean[where]) ** 2, minlength=size)
        error = np.sqrt(squares / (num - 1) / num)
    return ByPosition(
        mean=mean,
        standard_error=np.where(num > 1, error, math.nan),
        num=num,
        num_reaching=np.bincount(positions, minlength=size),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyComparison:
    """The entropy of a sequence by Rao-Blackwell and by the surprisal, from the same draws."""

    gain: est.RaoBlackwellGain
    variance_ratio_error: float  # standard error of gain.variance_ratio; NaN where undetermined
    rao_blackwell: Histogram  # of Σ H(q_t), nats per sequence
    naive: Histogram  # of −Σ log q(y_t), in the same bins
    num_left_out: int  # draws with a token outside the support


def entropy_comparison(run: Run) -> EntropyComparison:
    """Both estimates, over the draws whose tokens all lie inside the support.

    Raises:
        NotKeptError: there are no such draws.
    """
    rows = draws_of(run, ["rb_entropy_sum", "sequence_logq"])
    rb, naive = per_draw(rows, "rb_entropy_sum"), -per_draw(rows, "sequence_logq")
    kept = np.isfinite(rb) & np.isfinite(naive)
    if not kept.any():
        raise NotKeptError("every draw has a token outside the support, where −log q is infinite")
    both = histogram(np.concatenate([rb[kept], naive[kept]]))
    return EntropyComparison(
        gain=est.rao_blackwell_gain(rb[kept], naive[kept]),
        variance_ratio_error=variance_ratio_error(naive[kept], rb[kept]),
        rao_blackwell=_in_bins(rb[kept], both.edges),
        naive=_in_bins(naive[kept], both.edges),
        num_left_out=int((~kept).sum()),
    )


def variance_ratio_error(numerators: Floats, denominators: Floats) -> float:
    """Standard error of Var(x) / Var(y) of paired draws, by the delete-one jackknife.

    With r_i the ratio without draw i and r̄ their mean, SE² = (D − 1) / D · Σ (r_i − r̄)².

    Args:
        numerators: ``[D]`` x.
        denominators: ``[D]`` y.

    Returns:
        The standard error; NaN of fewer than three draws, or where y does not vary without one.

    References: Efron, "The Jackknife, the Bootstrap and Other Resampling Plans" (1982).
    """
    num = len(numerators)
    if num < 3:
        return math.nan
    above, below = (_squares_without(x) for x in (numerators, denominators))
    if not (below > 0).all():
        return math.nan
    ratios = above / below
    return math.sqrt((num - 1) / num * float(((ratios - ratios.mean()) ** 2).sum()))


def _squares_without(values: Floats) -> Floats:
    """``[D]`` the sum of squares about the mean, without each draw in turn."""
    centred = values - values.mean()
    num = len(values)
    left = centred @ centred - num / (num - 1) * centred**2
    return np.where(left > 1e-12 * (centred @ centred), left, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGap:
    """Δ = log q as the engine reported it − log q of the scorer, token by token, nats."""

    gaps: Histogram  # over the tokens where both are finite
    mean: est.Estimate  # Σ Δ / tokens, clustered by draw
    mean_absolute: est.Estimate  # Σ |Δ| / tokens, clustered by draw
    largest: float  # the largest |Δ|
    largest_draw: int  # and where it is
    largest_position: int  # from 0
    num_left_out: int  # tokens where one of the two is not finite
    num_silent: int  # draws of which the engine reported nothing


def engine_gap(run: Run) -> EngineGap:
    """How far the engine's own log q lie from the scorer's.

    Raises:
        NotKeptError: the engine reported none, or the run keeps no log q per token.
    """
    require_columns(run, ["logqs"])
    rows = draws_of(run, ["draw", "engine_logqs", "logqs"])
    told = rows.filter(rows["engine_logqs"].is_valid())
    if not told.num_rows:
        raise NotKeptError("the engine reported no log q of its own")
    reported, scored = per_token(told, "engine_logqs"), per_token(told, "logqs")
    is_finite = np.isfinite(reported.values) & np.isfinite(scored.values)
    if not is_finite.any():
        raise NotKeptError("no token has a finite log q both by the engine and by the scorer")
    gaps = reported.values[is_finite] - scored.values[is_finite]
    owners = scored.owners[is_finite]
    at = int(np.abs(gaps).argmax())
    sums = [np.bincount(owners, x, told.num_rows) for x in (gaps, np.abs(gaps))]
    counts = np.bincount(owners, minlength=told.num_rows)
    return EngineGap(
        gaps=histogram(gaps),
        mean=est.ratio(sums[0], counts),
        mean_absolute=est.ratio(sums[1], counts),
        largest=float(abs(gaps[at])),
        largest_draw=int(told["draw"][int(owners[at])].as_py()),
        largest_position=int(scored.positions[is_finite][at]),
        num_left_out=int((~is_finite).sum()),
        num_silent=rows.num_rows - told.num_rows,
    )


def _in_bins(values: Floats, edges: Floats) -> Histogram:
    """A histogram in bins that are given."""
    counts, _ = np.histogram(values, bins=edges)
    return dataclasses.replace(histogram(values), edges=edges, counts=counts.astype(np.int64))


def _quotients(sums: Floats, lengths: Floats) -> Floats:
    """``[D]`` per token; NaN of a draw without one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(lengths > 0, sums / lengths, math.nan)
