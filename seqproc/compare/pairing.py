"""Which draws of two runs are the same draw: index and prompt. Knows token ids, and no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqproc.report.histograms import Ints
from seqproc.report.rows import per_token
from seqproc.report.text import count

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Whether the draws of two runs are compared one by one."""

    is_paired: bool
    said: str  # a sentence: how they are compared, and why
    draws: Ints  # [P] indices of the draws that are in both; none where they are not paired
    num_draws_a: int
    num_draws_b: int


def paired(a: pa.Table, b: pa.Table) -> Pairing:
    """Pair the draws of two runs, if every index that both have has one prompt in both.

    Args:
        a: columns draw and prompt_ids of A.
        b: those of B.
    """
    draws = np.intersect1d(a["draw"].to_numpy(), b["draw"].to_numpy())
    of_a, of_b = (chosen(rows, draws) for rows in (a, b))
    is_same = np.array(
        [np.array_equal(x, y) for x, y in zip(ids(of_a), ids(of_b), strict=True)], dtype=bool
    )
    num_a, num_b, num_same = a.num_rows, b.num_rows, int(is_same.sum())
    holds = len(draws) > 0 and num_same == len(draws)
    return Pairing(
        is_paired=holds,
        said=_paired(len(draws), num_a, num_b) if holds else _unpaired(len(draws), num_same),
        draws=draws if holds else draws[:0],
        num_draws_a=num_a,
        num_draws_b=num_b,
    )


def chosen(rows: pa.Table, draws: Ints) -> pa.Table:
    """The rows of some draws."""
    return rows.filter(np.isin(rows["draw"].to_numpy(), draws))


def ids(rows: pa.Table, name: str = "prompt_ids") -> list[Ints]:
    """Token ids of each draw."""
    return [one.astype(np.int64) for one in per_token(rows, name).split()] if rows.num_rows else []


def common_prefix(a: Ints, b: Ints) -> int:
    """How many tokens two responses share before they part."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _paired(num: int, num_a: int, num_b: int) -> str:
    left = [
        f"{count(total - num, 'draw')} of {name}"
        for name, total in (("A", num_a), ("B", num_b))
        if total > num
    ]
    alone = f" Left out, since the other run has no such draw: {', '.join(left)}." if left else ""
    return (
        f"Paired: {count(num, 'draw')} with the same index and the same prompt in both, and all "
        f"numbers are over these.{alone}"
    )


def _unpaired(num: int, num_same: int) -> str:
    why = "the runs have no draw of the same index"
    if num:
        why = (
            f"of {count(num, 'draw')} of the same index only {num_same:,} have the same prompt in "
            "both: the runs are of different datasets, seeds, templates or tokenizers"
        )
    return f"Not paired: {why}. The runs are taken to be independent."
