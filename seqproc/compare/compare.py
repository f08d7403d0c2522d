"""`compare_runs`: two runs, draw by draw where their draws are the same, else as two samples."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from seqproc.compare import numbers
from seqproc.compare.equality import ENGINE, differing_columns
from seqproc.compare.numbers import Difference
from seqproc.compare.outliers import Outlier, outliers
from seqproc.compare.pairing import Pairing, chosen, paired
from seqproc.compare.sides import Setting, Side, differing
from seqproc.compare.tokens import (
    COLUMNS,
    Responses,
    TokenGap,
    distributions,
    responses,
    token_gap,
)
from seqproc.errors import ConfigError
from seqproc.report.histograms import Histogram, Ints
from seqproc.runs import Run, open_run

if TYPE_CHECKING:
    import pyarrow as pa

Clusters = Literal["draw", "prompt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """What only paired draws tell."""

    responses: Responses
    differing: tuple[str, ...]  # columns that both have and that are not the same in both
    differences: Mapping[str, Histogram]  # of Δ over draws, by column
    token_gaps: list[TokenGap]  # over the tokens that both share
    most_different: list[Outlier]  # of the same tokens, by |Δ Σ log p|
    first_parted: list[Outlier]  # by the step at which they part


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs side by side. Every difference is A − B."""

    a: Side
    b: Side
    settings: list[Setting]  # those that differ
    num_same_settings: int
    pairing: Pairing
    clusters: Clusters  # what standard errors take to be independent
    numbers: list[Difference]
    paired: Paired | None  # None: the draws are not paired
    notes: list[str]  # how the numbers are to be read

    @property
    def verdict(self) -> str:
        """In a few words, what the responses and the numbers of paired draws have in common."""
        if self.paired is None:
            return "not paired"
        found = self.paired.responses
        if found.num_identical < found.num:
            return f"{found.num - found.num_identical:,} of {found.num:,} responses differ"
        if self.paired.differing == (ENGINE,):
            return "identical but for the engines' own log q"
        return "identical tokens, other scores" if self.paired.differing else "identical"

    def to_dict(self) -> dict[str, Any]:
        """All but the sequences, as it can be written as JSON."""
        return {
            "a": {"run": self.a.run.url, "scores": self.a.scores},
            "b": {"run": self.b.run.url, "scores": self.b.scores},
            "verdict": self.verdict,
            "settings": [dataclasses.asdict(one) for one in self.settings],
            "num_same_settings": self.num_same_settings,
            "is_paired": self.pairing.is_paired,
            "pairing": self.pairing.said,
            "num_draws": [self.pairing.num_draws_a, self.pairing.num_draws_b],
            "num_pairs": len(self.pairing.draws),
            "clusters": self.clusters,
            "notes": self.notes,
            "numbers": [
                {**dataclasses.asdict(one), "z": one.z, "p": one.p} for one in self.numbers
            ],
            "paired": None if self.paired is None else _paired_dict(self.paired),
        }


def compare_runs(
    run_a: Run | str | os.PathLike[str],
    run_b: Run | str | os.PathLike[str],
    *,
    scores_a: str | None = None,
    scores_b: str | None = None,
    clusters: Clusters = "draw",
) -> Comparison:
    """Compare two runs, or two sets of scores of one.

    Draws are paired where every index that both runs have has the same prompt ids in both. Then all
    numbers are over the pairs, and differences and their errors are of pairs; else the runs are
    taken to be independent samples.

    Args:
        run_a: A, a run, its folder or its URL; also one that is not complete.
        run_b: B.
        scores_a: a further set of A's scores, such as those at θ + η·v; None for its own.
        scores_b: likewise of B.
        clusters: what is independent. "draw": every draw, prompts being drawn with replacement;
            "prompt": draws of one prompt may depend on each other.

    Raises:
        RunError: a run or a set of scores cannot be read, is not complete, or has no rows.
        ConfigError: ``clusters`` is none of the two.
    """
    if clusters not in get_args(Clusters):
        raise ConfigError(f"clusters must be 'draw' or 'prompt', got {clusters!r:.60}")
    a, b = Side(run=_opened(run_a), scores=scores_a), Side(run=_opened(run_b), scores=scores_b)
    pairing = paired(a.rows(["prompt_ids"]), b.rows(["prompt_ids"]))
    rows = [side.rows(numbers.COLUMNS) for side in (a, b)]
    if pairing.is_paired:
        rows = [chosen(one, pairing.draws) for one in rows]
    settings, num_same = differing(a, b)
    return Comparison(
        a=a,
        b=b,
        settings=settings,
        num_same_settings=num_same,
        pairing=pairing,
        clusters=clusters,
        numbers=numbers.differences(
            rows[0],
            rows[1],
            is_paired=pairing.is_paired,
            by_prompt=clusters == "prompt",
            all_rewarded=(a.are_all_rewarded, b.are_all_rewarded),
        ),
        paired=_of_pairs((a, b), rows[0], rows[1], pairing, clusters),
        notes=_notes(a, b),
    )


def _of_pairs(
    sides: tuple[Side, Side], a: pa.Table, b: pa.Table, pairing: Pairing, clusters: Clusters
) -> Paired | None:
    if not pairing.is_paired:
        return None
    found = responses(*(chosen(side.rows(["response_ids"]), pairing.draws) for side in sides))
    both = [
        numbers.rewarded(rows, side.are_all_rewarded)
        for rows, side in zip((a, b), sides, strict=True)
    ]
    same, parted = outliers(sides, a, b, found)
    return Paired(
        responses=found,
        differing=differing_columns(sides, pairing.draws),
        differences=distributions(a, b, np.isfinite(both[0] + both[1])),
        token_gaps=_token_gaps(
            sides,
            pairing.draws,
            found,
            a["prompt_index"].to_numpy() if clusters == "prompt" else None,
        ),
        most_different=same,
        first_parted=parted,
    )


def _token_gaps(
    sides: tuple[Side, Side], draws: Ints, found: Responses, clusters: Ints | None
) -> list[TokenGap]:
    """Of every column that both keep, one in memory at a time."""
    kept = [{*side.token_columns(), "engine_logqs"} for side in sides]
    gaps = []
    for column in COLUMNS:
        if column in kept[0] & kept[1]:
            a, b = (chosen(side.rows([column]), draws) for side in sides)
            gaps.append(token_gap(column, a, b, found.prefix, clusters))
    return [gap for gap in gaps if gap is not None]


def _opened(run: Run | str | os.PathLike[str]) -> Run:
    return run if isinstance(run, Run) else open_run(run)


def _notes(a: Side, b: Side) -> list[str]:
    notes = []
    for name, side in (("A", a), ("B", b)):
        if side.run.manifest.state != "complete":
            notes.append(
                f"{name} is not complete ({side.run.manifest.state}): its draws so far are "
                "compared."
            )
        if side.scores is not None:
            notes.append(
                f"{name} is a further set of scores of draws that the run's own policy sampled: "
                "its means are over those draws, without importance weights."
            )
    if a.run.manifest.spec.get("seed") != b.run.manifest.spec.get("seed"):
        notes.append("The runs have different seeds.")
    return notes


def _paired_dict(paired: Paired) -> dict[str, Any]:
    found = paired.responses
    moments = ("num", "mean", "deviation", "least", "median", "most", "left_out")
    return {
        "num_identical": found.num_identical,
        "differing": list(paired.differing),
        "partings": dict(sorted(Counter(found.partings.tolist()).items())),
        "differences": {
            name: {key: getattr(one, key) for key in moments}
            for name, one in paired.differences.items()
        },
        "tokens": [dataclasses.asdict(gap) for gap in paired.token_gaps],
        "most_different": [_outlier_dict(one) for one in paired.most_different],
        "first_parted": [_outlier_dict(one) for one in paired.first_parted],
    }


def _outlier_dict(one: Outlier) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("draw", "parting", "logprob", "reward")}
