"""The figures of a run's page, one function each: plotly figures, to show or to change.

    from seqproc import plot
    from seqproc.runs import open_run

    plot.entropy_by_position(open_run("runs/first")).show()

Each takes a `seqproc.runs.Run`, and raises `RunError` where the run does not hold what it shows.
Figures hold counts and means, never single draws, so that their size does not grow with a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

__all__ = [
    "cut_margin",
    "engine_gap",
    "entropies",
    "entropies_per_token",
    "entropy_by_position",
    "entropy_comparison",
    "finish_reasons",
    "head_mass",
    "importance_weights",
    "lengths",
    "logprobs",
    "logprobs_per_token",
    "logq_by_position",
    "rewards",
]

if TYPE_CHECKING:
    from seqproc.plot.of_runs import (
        cut_margin,
        engine_gap,
        entropies,
        entropies_per_token,
        entropy_by_position,
        entropy_comparison,
        finish_reasons,
        head_mass,
        importance_weights,
        lengths,
        logprobs,
        logprobs_per_token,
        logq_by_position,
        rewards,
    )

__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, ".of_runs"))
