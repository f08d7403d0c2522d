"""Paired responses: where they part, and how far the numbers of the tokens they share are apart.

Tokens are shared up to where two responses part: the same token after the same tokens. Log
probabilities in nats; Δ is A minus B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqproc import estimators as est
from seqproc.compare.pairing import common_prefix, ids
from seqproc.report.histograms import Floats, Histogram, Ints, histogram
from seqproc.report.rows import Ragged, per_draw, per_token

if TYPE_CHECKING:
    import pyarrow as pa

# Per-token columns that are compared, and in words; those that are log-probabilities have a k3.
COLUMNS = {
    "logprobs": "log p",
    "logqs": "log q",
    "engine_logqs": "log q as the engines reported it",
    "rb_entropies": "H(q)",
}
_LOGS = ("logprobs", "logqs", "engine_logqs")
# What has one number per draw and whose differences are shown as a distribution.
OF_DRAWS = {
    "gen_len": ("length", "tokens"),
    "sequence_logprob": ("Σ log p", "nats per response"),
    "sequence_logq": ("Σ log q", "nats per response"),
    "rb_entropy_sum": ("Σ H(q)", "nats per response"),
    "reward": ("reward", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """Where P pairs of responses part."""

    prefix: Ints  # [P] tokens that both begin with
    is_identical: np.ndarray  # [P] whether all tokens are the same

    @property
    def num(self) -> int:
        """Pairs."""
        return len(self.prefix)

    @property
    def num_identical(self) -> int:
        """Pairs whose tokens are all the same."""
        return int(self.is_identical.sum())

    @property
    def partings(self) -> Ints:
        """Of those that part, the step (from 0) at which they do."""
        return self.prefix[~self.is_identical]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGap:
    """Δ of one number over the tokens that two runs share."""

    column: str
    name: str  # in words
    num_tokens: int  # shared, and finite in both
    mean: est.Estimate  # Σ Δ / tokens
    mean_absolute: est.Estimate  # Σ |Δ| / tokens
    largest: float  # the largest |Δ|
    largest_draw: int  # and where it is
    largest_position: int  # from 0
    k3: est.Estimate | None  # Σ (r − 1 − log r) / tokens, r = exp(−Δ); None: no log-probability
    num_left_out: int  # tokens where a number is not finite


def responses(a: pa.Table, b: pa.Table) -> Responses:
    """Compare response_ids, row by row."""
    pairs = list(zip(ids(a, "response_ids"), ids(b, "response_ids"), strict=True))
    prefix = np.array([common_prefix(x, y) for x, y in pairs], dtype=np.int64)
    longest = np.array([max(len(x), len(y)) for x, y in pairs], dtype=np.int64)
    return Responses(prefix=prefix, is_identical=prefix == longest)


def token_gap(
    column: str, a: pa.Table, b: pa.Table, prefix: Ints, clusters: Ints | None
) -> TokenGap | None:
    """Δ of a per-token column over shared tokens.

    Args:
        column: one of `COLUMNS`.
        a: columns draw and ``column`` of A, one row per pair.
        b: those of B.
        prefix: ``[P]`` tokens that are shared.
        clusters: ``[P]`` ids; None: every draw is its own.

    Returns:
        The differences; None where no shared token has a number in both.
    """
    of_a, of_b = per_token(a, column), per_token(b, column)
    shared = np.minimum(prefix, np.minimum(of_a.lengths, of_b.lengths))
    x, y = _first(of_a, shared), _first(of_b, shared)
    is_finite = np.isfinite(x) & np.isfinite(y)
    if not is_finite.any():
        return None
    kept = Ragged(values=x, lengths=shared)
    owners, positions = kept.owners[is_finite], kept.positions[is_finite]
    gaps = x[is_finite] - y[is_finite]
    at = int(np.abs(gaps).argmax())

    def per_shared_token(values: Floats) -> est.Estimate:
        sums = np.bincount(owners, values, len(shared))
        return est.ratio(sums, np.bincount(owners, minlength=len(shared)), clusters=clusters)

    return TokenGap(
        column=column,
        name=COLUMNS[column],
        num_tokens=len(gaps),
        mean=per_shared_token(gaps),
        mean_absolute=per_shared_token(np.abs(gaps)),
        largest=float(abs(gaps[at])),
        largest_draw=int(a["draw"][int(owners[at])].as_py()),
        largest_position=int(positions[at]),
        k3=per_shared_token(k3(gaps)) if column in _LOGS else None,
        num_left_out=int((~is_finite).sum()),
    )


def k3(gaps: Floats) -> Floats:
    """r − 1 − log r with log r = −Δ: never negative, and of mean KL(A‖B) where A drew the tokens.

    References: Schulman, "Approximating KL Divergence" (2020).
    """
    with np.errstate(over="ignore"):
        return np.minimum(np.expm1(-gaps) + gaps, _LARGEST)


_LARGEST = 1e150  # above it squares overflow: a mean of it says "beyond all measure" as well


def _first(tokens: Ragged, num: Ints) -> Floats:
    """The first ``num[i]`` values of each draw."""
    return tokens.values[tokens.positions < num[tokens.owners]]


def draw_differences(a: pa.Table, b: pa.Table, column: str) -> Floats:
    """``[P]`` Δ of a column of one number per draw; NaN where both are infinite."""
    with np.errstate(invalid="ignore"):
        return per_draw(a, column) - per_draw(b, column)


def distributions(a: pa.Table, b: pa.Table, is_rewarded: np.ndarray) -> dict[str, Histogram]:
    """How Δ is distributed over pairs, by the columns of `OF_DRAWS`.

    Args:
        a: those columns of A, one row per pair.
        b: those of B.
        is_rewarded: ``[P]`` whether the reward of both counts; of others it is left away.
    """
    found = {name: draw_differences(a, b, name) for name in OF_DRAWS}
    found["reward"] = found["reward"][is_rewarded]
    return {name: histogram(values, whole=name == "gen_len") for name, values in found.items()}
