"""The running summary of a run: counts, means and standard errors, updated row by row.

Memory does not grow with the number of draws. Knows rows; nothing of models or files.

Draws are independent, the tokens of one draw are not, so every standard error is over draws. For a
value v_i per draw (a reward, a summed entropy), with n draws:

    mean = Σ v_i / n        SE² = Σ (v_i − mean)² / (n (n − 1))

For a mean per token, of draws with sums X_i over T_i tokens, the ratio estimator clustered by draw:

    R = Σ X_i / Σ T_i       SE² = n/(n − 1) · Σ (X_i − R·T_i)² / (Σ T_i)²

References: Cochran, "Sampling Techniques" (3rd ed., 1977), chapter 6, for the ratio estimator.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc._util.printing import Facts, Printed, Words
from seqproc.errors import RunError

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN_REASON = "unknown"

# What a summary is made of.
SAMPLE_COLUMNS = ("draw", "gen_len", "finish_reason", "answer", "reward")
SCORE_COLUMNS = ("rb_entropy_sum", "sequence_logprob", "inside_logq", "out_of_support")


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean and its standard error; None where the draws do not determine it."""

    mean: float | None
    standard_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RunSummary(Printed):
    """What `SummaryAccumulator` says of the rows so far. Entropies and log-probabilities: nats."""

    num_draws: int
    num_tokens: int  # generated
    generation_seconds: float | None  # None: nothing was generated
    scoring_seconds: float
    generation_tokens_per_second: float | None
    scoring_tokens_per_second: float | None
    length_mean: float | None  # tokens per response
    length_min: int | None
    length_max: int | None
    finish_reasons: dict[str, int]  # draws by reason
    logprob_per_token: Estimate  # log p of the raw model
    logq_per_token: Estimate  # log q, over the tokens inside the support
    rb_entropy_per_token: Estimate
    rb_entropy_per_sequence: Estimate  # Σ_t H(q_t)
    reward: Estimate  # over the draws that are rewarded: of tag_pref those with a gold answer
    num_rewarded: int
    num_out_of_support: int  # tokens with log q = −∞

    def _facts(self) -> Facts:
        return {
            "draws": self.num_draws,
            "tokens": self.num_tokens,
            "logq_per_token": _in_words(self.logq_per_token),
            "rb_entropy_per_token": _in_words(self.rb_entropy_per_token),
            "reward": _in_words(self.reward),
            "out_of_support": self.num_out_of_support or None,
        }


def _in_words(estimate: Estimate) -> Words | None:
    """Mean ± standard error, as far as they are determined."""
    if estimate.mean is None:
        return None
    error = "undetermined" if estimate.standard_error is None else f"{estimate.standard_error:.2g}"
    return Words(f"{estimate.mean:.6g} ± {error}")


class Moments:
    """Count, mean and centred second moments of d-vectors, streamed batch by batch.

    Batches are merged as in Chan, Golub and LeVeque (1979), which loses no digits to large means.
    """

    def __init__(self, width: int) -> None:
        self.num = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))  # Σ (x − mean)(x − mean)ᵀ

    def add(self, values: np.ndarray) -> None:
        """Take vectors ``[n, d]``."""
        if not len(values):
            return
        mean = values.mean(axis=0)
        centred, shift = values - mean, mean - self.mean
        total = self.num + len(values)
        self.scatter += centred.T @ centred
        self.scatter += np.outer(shift, shift) * (self.num * len(values) / total)
        self.mean += shift * (len(values) / total)
        self.num = total

    def average(self, component: int) -> Estimate:
        """Mean of a component, as at the top of this module."""
        if self.num == 0:
            return Estimate(mean=None, standard_error=None)
        return self._estimate(self.mean[component], self.scatter[component, component], 1.0)

    def ratio(self, numerator: int, denominator: int) -> Estimate:
        """Ratio of the sums of two components, as at the top of this module."""
        scale = self.mean[denominator]
        if self.num == 0 or scale == 0:
            return Estimate(mean=None, standard_error=None)
        ratio = self.mean[numerator] / scale
        direction = np.zeros(len(self.mean))
        direction[numerator], direction[denominator] = 1.0, -ratio
        # The residuals X − R·T sum to 0, so their squares need no centring.
        return self._estimate(ratio, float(direction @ self.scatter @ direction), scale)

    def _estimate(self, mean: float, squares: float, scale: float) -> Estimate:
        if not math.isfinite(mean):
            return Estimate(mean=None, standard_error=None)
        if self.num < 2:
            return Estimate(mean=float(mean), standard_error=None)
        variance = max(float(squares), 0.0) / (self.num * (self.num - 1))
        return Estimate(mean=float(mean), standard_error=math.sqrt(variance) / float(scale))


class SummaryAccumulator:
    """Takes rows chunk by chunk; tells the summary of all of them at any time."""

    def __init__(self, *, all_rewarded: bool = False) -> None:
        self._all_rewarded = all_rewarded
        # Components: tokens, Σ H, Σ log p, Σ log q inside the support, tokens inside the support.
        self._draws = Moments(5)
        self._rewards = Moments(1)
        self._num_tokens = 0
        self._shortest: int | None = None
        self._longest: int | None = None
        self._reasons: Counter[str] = Counter()
        self._num_out_of_support = 0
        self._generation_seconds: float | None = None
        self._scoring_seconds = 0.0

    def add(
        self,
        samples: pa.Table,
        scores: pa.Table,
        *,
        scoring_seconds: float,
        generation_seconds: float | None = None,
    ) -> None:
        """Take samples, their scores row by row, and the time [s] that went into them.

        Args:
            samples: at least `SAMPLE_COLUMNS`.
            scores: at least `SCORE_COLUMNS`.
            scoring_seconds: of these rows.
            generation_seconds: of these rows; None where they were given.
        """
        lengths, outside = _numbers(samples, "gen_len"), _numbers(scores, "out_of_support")
        sums = [_numbers(scores, name) for name in SCORE_COLUMNS[:3]]
        self._draws.add(np.column_stack([lengths, *sums, lengths - outside]))
        is_rewarded = self._all_rewarded | np.array(samples["answer"].is_valid())
        self._rewards.add(_numbers(samples, "reward")[is_rewarded, None])
        self._add_lengths(lengths)
        self._reasons.update(x or UNKNOWN_REASON for x in samples["finish_reason"].to_pylist())
        self._num_out_of_support += int(outside.sum())
        self._scoring_seconds += scoring_seconds
        if generation_seconds is not None:
            self._generation_seconds = (self._generation_seconds or 0.0) + generation_seconds

    def _add_lengths(self, lengths: np.ndarray) -> None:
        self._num_tokens += int(lengths.sum())
        if len(lengths):
            low, high = int(lengths.min()), int(lengths.max())
            self._shortest = low if self._shortest is None else min(low, self._shortest)
            self._longest = high if self._longest is None else max(high, self._longest)

    def result(self) -> RunSummary:
        """The summary of the rows taken so far."""
        return RunSummary(
            num_draws=self._draws.num,
            num_tokens=self._num_tokens,
            generation_seconds=self._generation_seconds,
            scoring_seconds=self._scoring_seconds,
            generation_tokens_per_second=_rate(self._num_tokens, self._generation_seconds),
            scoring_tokens_per_second=_rate(self._num_tokens, self._scoring_seconds),
            length_mean=self._draws.average(0).mean,
            length_min=self._shortest,
            length_max=self._longest,
            finish_reasons=dict(sorted(self._reasons.items())),
            logprob_per_token=self._draws.ratio(2, 0),
            logq_per_token=self._draws.ratio(3, 4),
            rb_entropy_per_token=self._draws.ratio(1, 0),
            rb_entropy_per_sequence=self._draws.average(1),
            reward=self._rewards.average(0),
            num_rewarded=self._rewards.num,
            num_out_of_support=self._num_out_of_support,
        )


def accumulator(reward: Mapping[str, Any]) -> SummaryAccumulator:
    """An accumulator for a run, given the reward of its manifest."""
    return SummaryAccumulator(all_rewarded=reward.get("name") != "tag_pref")


def _numbers(rows: pa.Table, name: str) -> np.ndarray:
    return np.asarray(rows[name].to_numpy(), dtype=np.float64)


def _rate(num_tokens: int, seconds: float | None) -> float | None:
    return num_tokens / seconds if seconds else None


def summary_of(values: Mapping[str, Any]) -> RunSummary:
    """A summary as a manifest holds it.

    Raises:
        RunError: it lacks or does not know a key.
    """
    estimates = {
        name: Estimate(**value)
        for name, value in values.items()
        if isinstance(value, Mapping) and set(value) == {"mean", "standard_error"}
    }
    try:
        return RunSummary(**{**values, **estimates})
    except TypeError as error:
        raise RunError(
            f"the manifest's summary is not one that seqproc writes ({error})"
        ) from error
