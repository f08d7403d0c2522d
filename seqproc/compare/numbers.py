"""The headline numbers of two runs, and their differences with standard errors. Nats.

A mean is a ratio Σ h / Σ t with t = 1. With u_i its influences (see `seqproc.estimators`), paired
draws give the difference of two ratios the standard error

    SE² = C / (C − 1) · Σ_c (Σ_{i ∈ c} (u_i^A − u_i^B))²

over clusters c, which are draws or prompts. Runs that are not paired are independent:
SE² = SE_A² + SE_B².
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqproc import estimators as est
from seqproc.report.histograms import Floats, Ints
from seqproc.report.rows import per_draw

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = (
    "prompt_index",
    "gen_len",
    "finish_reason",
    "answer",
    "reward",
    "sequence_logprob",
    "sequence_logq",
    "inside_logq",
    "out_of_support",
    "rb_entropy_sum",
)
REWARD = "reward"

Ratio = Callable[["pa.Table"], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A number of both runs, and how far apart they are."""

    name: str
    unit: str
    a: est.Estimate | None  # None: no draw has it
    b: est.Estimate | None
    difference: float  # A − B; NaN where one of them is None
    standard_error: float  # of it; NaN where undetermined
    num_left_out: int  # pairs, or draws of both, without it: not rewarded, or not finite

    @property
    def z(self) -> float:
        """The difference in its standard errors; NaN where nothing differs and nothing varies."""
        if self.standard_error == 0:
            return math.copysign(math.inf, self.difference) if self.difference else math.nan
        return self.difference / self.standard_error

    @property
    def p(self) -> float:
        """P(|Z| ≥ |z|) of a normal Z, two-sided."""
        return math.erfc(abs(self.z) / math.sqrt(2))


def _per_draw(name: str) -> Ratio:
    def of(rows: pa.Table) -> tuple[Floats, Floats]:
        values = per_draw(rows, name)
        return values, np.ones_like(values)

    return of


def _per_token(name: str) -> Ratio:
    return lambda rows: (per_draw(rows, name), per_draw(rows, "gen_len"))


def _inside(rows: pa.Table) -> tuple[Floats, Floats]:
    return per_draw(rows, "inside_logq"), per_draw(rows, "gen_len") - per_draw(
        rows, "out_of_support"
    )


def _cut_off(rows: pa.Table) -> tuple[Floats, Floats]:
    ends = np.array([reason == "length" for reason in rows["finish_reason"].to_pylist()])
    return ends.astype(np.float64), np.ones(len(ends))


# What is compared: name, unit, and numerators and denominators of each draw.
QUANTITIES: tuple[tuple[str, str, Ratio], ...] = (
    ("length", "tokens per response", _per_draw("gen_len")),
    ("cut off at the longest length", "share of responses", _cut_off),
    ("log p", "nats per token", _per_token("sequence_logprob")),
    ("log q, inside the support", "nats per token", _inside),
    ("Rao-Blackwell entropy", "nats per token", _per_token("rb_entropy_sum")),
    ("Rao-Blackwell entropy per response", "nats per response", _per_draw("rb_entropy_sum")),
    ("out of support", "share of tokens", _per_token("out_of_support")),
    (REWARD, "per rewarded response", _per_draw("reward")),
)


def rewarded(rows: pa.Table, all_rewarded: bool) -> Floats:
    """``[D]`` 1 where the reward of a draw counts; NaN where it has no gold answer to go by."""
    counts = np.asarray(rows["answer"].is_valid()) | all_rewarded
    return np.where(counts, 1.0, math.nan)


def differences(
    a: pa.Table,
    b: pa.Table,
    *,
    is_paired: bool,
    by_prompt: bool,
    all_rewarded: tuple[bool, bool],
) -> list[Difference]:
    """Every quantity of both runs.

    Args:
        a: `COLUMNS` of A.
        b: `COLUMNS` of B, of the same draws in the same order where ``is_paired``.
        is_paired: whether row i of both is one draw.
        by_prompt: clusters are prompts, not draws.
        all_rewarded: of A and B, whether draws without a gold answer have a reward.
    """
    made = []
    for name, unit, ratio in QUANTITIES:
        sides = [ratio(a), ratio(b)]
        if name == REWARD:
            counts = [
                rewarded(rows, every) for rows, every in zip((a, b), all_rewarded, strict=True)
            ]
            sides = [(h * n, t) for (h, t), n in zip(sides, counts, strict=True)]
        clusters = [rows["prompt_index"].to_numpy() if by_prompt else None for rows in (a, b)]
        made.append(_difference(name, unit, sides, clusters, is_paired))
    return made


def _difference(
    name: str,
    unit: str,
    sides: list[tuple[Floats, Floats]],
    clusters: list[Ints | None],
    is_paired: bool,
) -> Difference:
    kept = [np.isfinite(h) & np.isfinite(t) for h, t in sides]
    if is_paired:
        kept = [kept[0] & kept[1]] * 2
    (h_a, t_a), (h_b, t_b) = [(h[keep], t[keep]) for (h, t), keep in zip(sides, kept, strict=True)]
    of_a, of_b = [None if c is None else c[keep] for c, keep in zip(clusters, kept, strict=True)]
    a, b = _estimate(h_a, t_a, of_a), _estimate(h_b, t_b, of_b)
    value = error = math.nan
    if a is not None and b is not None:
        if is_paired:
            value, error = paired_difference((h_a, t_a), (h_b, t_b), of_a)
        else:
            value, error = a.value - b.value, math.hypot(a.standard_error, b.standard_error)
    return Difference(
        name=name,
        unit=unit,
        a=a,
        b=b,
        difference=value,
        standard_error=error,
        num_left_out=int(sum((~keep).sum() for keep in kept[: 1 if is_paired else 2])),
    )


def _estimate(h: Floats, t: Floats, clusters: Ints | None) -> est.Estimate | None:
    return est.ratio(h, t, clusters=clusters) if t.sum() > 0 else None


def paired_difference(
    a: tuple[Floats, Floats], b: tuple[Floats, Floats], clusters: Ints | None
) -> tuple[float, float]:
    """Σ h_A / Σ t_A − Σ h_B / Σ t_B of the same draws, and its standard error.

    The value is taken as (Σ (h_A − h_B) − R_B Σ (t_A − t_B)) / Σ t_A, which is the same and keeps
    its digits where the runs are nearly equal.

    Args:
        a: numerators and denominators ``[D]`` of A.
        b: those of B.
        clusters: ``[D]`` ids; None: every draw is its own.
    """
    (h_a, t_a), (h_b, t_b) = a, b
    ratio_b = h_b.sum() / t_b.sum()
    value = float(((h_a - h_b).sum() - ratio_b * (t_a - t_b).sum()) / t_a.sum())
    influences = _influences(h_a, t_a) - _influences(h_b, t_b)
    # The mean of D·u, whose influences are u: the one rule of `estimators` gives the error.
    spread = est.mean(len(influences) * influences, clusters=clusters)
    return value, spread.standard_error


def _influences(h: Floats, t: Floats) -> Floats:
    return (h - h.sum() / t.sum() * t) / t.sum()
