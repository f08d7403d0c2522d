"""One function for each figure of a run's page. Their numbers are those of `seqproc.report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc.plot import figures
from seqproc.report import numbers, weights

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from seqproc.runs import Run

# The axis of each, with its unit.
TITLES = {
    "length": "tokens of a response",
    "reward": "reward of a draw",
    "logprob": "log p of a response, nats",
    "logprob_per_token": "log p per token of a response, nats",
    "entropy": "Σ H(q) of a response, nats",
    "entropy_per_token": "H(q) per token of a response, nats",
    "head_mass": "head mass at a step",
    "cut_margin": "cut margin at a step, scaled logits",
    "rb_entropies": "H(q), nats",
    "logqs": "log q, nats",
    "entropies": "entropy of a response, nats",
    "gap": "log q, engine − scorer, nats",
    "log_weight": "log w of a draw, nats",
    "finish_reason": "why a response ended",
}
ESTIMATORS = ("Rao-Blackwell: Σ H(q)", "naive: −Σ log q")


def lengths(run: Run) -> Figure:
    """The distribution of response lengths, tokens."""
    return _of_draws(run, "length")


def rewards(run: Run) -> Figure:
    """The distribution of rewards."""
    return _of_draws(run, "reward")


def logprobs(run: Run) -> Figure:
    """The distribution of Σ log p of responses, nats."""
    return _of_draws(run, "logprob")


def logprobs_per_token(run: Run) -> Figure:
    """The distribution of Σ log p over the length of each response, nats per token."""
    return _of_draws(run, "logprob_per_token")


def entropies(run: Run) -> Figure:
    """The distribution of Σ H(q) of responses, nats."""
    return _of_draws(run, "entropy")


def entropies_per_token(run: Run) -> Figure:
    """The distribution of Σ H(q) over the length of each response, nats per token."""
    return _of_draws(run, "entropy_per_token")


def entropy_comparison(run: Run) -> Figure:
    """Σ H(q) and −Σ log q of the same draws, nats: the two that estimate the entropy."""
    return of_comparison(numbers.entropy_comparison(run))


def entropy_by_position(run: Run) -> Figure:
    """Mean H(q) by position with a band of ± 1.96 standard errors, nats."""
    return figures.of_positions(numbers.by_position(run, "rb_entropies"), TITLES["rb_entropies"])


def logq_by_position(run: Run) -> Figure:
    """Mean log q by position over the tokens inside the support, with such a band, nats."""
    return figures.of_positions(numbers.by_position(run, "logqs"), TITLES["logqs"])


def finish_reasons(run: Run) -> Figure:
    """How many draws ended for which reason."""
    return figures.of_counts(numbers.finish_reasons(run), TITLES["finish_reason"])


def head_mass(run: Run) -> Figure:
    """The distribution of the head mass over all tokens."""
    return figures.of_histogram(numbers.of_tokens(run, "head_mass"), TITLES["head_mass"])


def cut_margin(run: Run) -> Figure:
    """The distribution of the cut margin over the tokens where something is cut off."""
    return figures.of_histogram(numbers.of_tokens(run, "cut_margin"), TITLES["cut_margin"])


def engine_gap(run: Run) -> Figure:
    """The distribution of log q as the engine reported it less the scorer's, nats."""
    return figures.of_histogram(numbers.engine_gap(run).gaps, TITLES["gap"])


def importance_weights(run: Run, name: str) -> Figure:
    """The distribution of log w from the run's own policy to a further set of scores, nats.

    Args:
        run: the run.
        name: of the set; `Run.score_sets` has all.
    """
    found = weights.importance_weights(run, name)
    return figures.of_histogram(found.log_weights, TITLES["log_weight"])


def of_comparison(found: numbers.EntropyComparison) -> Figure:
    """The two estimators of an entropy, as histograms of the same bins."""
    return figures.of_two_histograms(
        found.rao_blackwell, found.naive, ESTIMATORS, TITLES["entropies"]
    )


def _of_draws(run: Run, name: str) -> Figure:
    return figures.of_histogram(numbers.of_draws(run, name), TITLES[name])
