"""Importance weights from a run's draws to each further set of scores that it has.

log w = Σ_t (log q' − log q), with q the run's own policy, which sampled the draws, and q' what the
set was scored under. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc import estimators as est
from seqproc.errors import SequenceError
from seqproc.report.histograms import Floats, Histogram, histogram
from seqproc.report.rows import NotKeptError, draws_of, per_draw, per_token
from seqproc.report.text import shifted

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.runs import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What draws are worth under another set of scores."""

    name: str  # of the set
    made_by: Mapping[str, Any]  # model, override, policy and precision of the set
    log_weights: Histogram  # of those that are not −∞, nats
    num_draws: int  # that have a weight, 0 included
    num_left_out: int  # draws without scores, or with a token that the run's own policy cannot emit
    mean: est.Estimate  # plain mean of w: 1 where the two have one support
    effective_sample_size: float  # (Σw)² / Σw²
    pareto_k: float  # NaN where it is not determined

    @property
    def largest_trusted_k(self) -> float:
        """min(1 − 1/log₁₀ N, 0.7): what N draws suffice for (Vehtari et al., 2024).

        NaN of ten draws and fewer, which suffice for nothing.
        """
        return min(1 - 1 / math.log10(self.num_draws), 0.7) if self.num_draws > 10 else math.nan


def importance_weights(run: Run, name: str) -> Weights:
    """The weights from a run's own policy to a further set of scores.

    Raises:
        NotKeptError: no draw has a weight, or weights are no numbers.
        RunError: there is no such set, or it is not complete.
    """
    scores, made_by = run.scores(name), run.score_set(name).made_by
    try:
        log_weights, num_left_out = log_weights_of(run, scores)
        return Weights(
            name=name,
            made_by=made_by,
            log_weights=histogram(log_weights),
            num_draws=len(log_weights),
            num_left_out=num_left_out,
            mean=est.mean(_exp(log_weights)),
            effective_sample_size=est.effective_sample_size(log_weights),
            pareto_k=est.pareto_k(log_weights),
        )
    except SequenceError as error:
        raise NotKeptError(f"the draws have no weights under {name!r}: {error}") from error


def log_weights_of(run: Run, scores: pa.Table) -> tuple[Floats, int]:
    """``[N]`` log w of the draws that have one, and how many have none.

    Token by token where both keep log q per token, which keeps the digits of a small difference;
    else from the sums.
    """
    per_token_too = "logqs" in run.columns and "logqs" in scores.column_names
    names = ["draw", "sequence_logq", *(["logqs"] if per_token_too else [])]
    own = draws_of(run, names)
    draws, others = own["draw"].to_numpy(), scores["draw"].to_numpy()
    kept = np.isin(draws, others) & np.isfinite(per_draw(own, "sequence_logq"))
    ours = own.filter(kept)
    theirs = scores.filter(np.isin(others, ours["draw"].to_numpy()))
    if per_token_too:
        of_each = per_token(theirs, "logqs").split(), per_token(ours, "logqs").split()
        log_weights = est.sequence_log_weights(*of_each)
    else:
        log_weights = per_draw(theirs, "sequence_logq") - per_draw(ours, "sequence_logq")
    return log_weights, int((~kept).sum())


def _exp(log_weights: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.exp(log_weights)


def score_sets(run: Run) -> list[str]:
    """The names of a run's further sets of scores.

    Raises:
        NotKeptError: it has none.
    """
    if not run.score_sets:
        raise NotKeptError(
            "the run has no further sets of scores: `seqproc score RUN --name NAME` adds one"
        )
    return run.score_sets


def scored_at(made_by: Mapping[str, Any]) -> str:
    """In words, what a set was scored with: the override and the policy."""
    override, policy = made_by.get("override"), made_by.get("policy")
    where = "the parameters of the model"
    if isinstance(override, Mapping):
        digest = str(override.get("sha256"))[:12]
        eta = override.get("eta")
        where = f"parameters {digest}" if eta is None else f"{shifted(eta)}, v {digest}"
    if not isinstance(policy, Mapping):
        return where
    if policy.get("do_sample") is False:
        return f"{where}, greedy"
    return f"{where}, T = {policy.get('temperature')}, top_p = {policy.get('top_p')}"
