"""Whether rows agree with themselves: lengths with lists, sums with what they are sums of.

Knows tables as `seqproc.runs.format.schema` describes them; nothing of the files they are from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seqproc.runs.format.schema import TOKEN_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

# Sums are of the same float64 numbers, perhaps in another order.
_ROUNDING = 1e-9

# Sums in a column, of the numbers in another one, and their sign.
_SUMS = (
    ("sequence_logprob", "logprobs", 1),
    ("naive_surprisal_sum", "logprobs", -1),
    ("sequence_logq", "logqs", 1),
    ("rb_entropy_sum", "rb_entropies", 1),
    ("margin_sum", "margin", 1),
)


def faults_of_samples(rows: pa.Table) -> Iterator[str]:
    """What is wrong with samples, in words."""
    draws, lengths = rows["draw"].to_numpy(), rows["gen_len"].to_numpy()
    yield from _unequal_lengths(rows, "response_ids", draws, lengths)
    yield from _unequal_lengths(rows, "engine_logqs", draws, lengths)
    no_prompt = _list_lengths(rows, "prompt_ids") == 0
    yield from _said(draws, no_prompt, lambda _: "prompt_ids is empty")


def faults_of_scores(rows: pa.Table, lengths: NDArray[np.int64]) -> Iterator[str]:
    """What is wrong with scores, in words.

    Args:
        rows: the scores.
        lengths: ``gen_len`` of their samples, row by row.
    """
    draws = rows["draw"].to_numpy()
    columns = [name for name in TOKEN_COLUMNS if name in rows.column_names]
    unequal = [fault for name in columns for fault in _unequal_lengths(rows, name, draws, lengths)]
    if unequal:
        yield from unequal
        return
    for total, name, sign in _SUMS:
        if name in columns:
            of_tokens, size = _sums(rows, name, lengths)
            yield from _unequal_sums(rows, total, name, sign * of_tokens, size)
    if "logqs" in columns:
        yield from _wrong_support(rows, lengths)


def _wrong_support(rows: pa.Table, lengths: NDArray[np.int64]) -> Iterator[str]:
    """What is wrong with the columns that tell tokens inside the support from those outside."""
    logqs = _flat(rows, "logqs")
    outside = _by_row(np.isneginf(logqs), lengths)
    stored = rows["out_of_support"].to_numpy()
    yield from _said(
        rows["draw"].to_numpy(),
        outside != stored,
        lambda i: f"out_of_support is {stored[i]}, and {outside[i]:.0f} of logqs are -inf",
    )
    inside, size = _by_row(_finite(logqs), lengths), _by_row(abs(_finite(logqs)), lengths)
    yield from _unequal_sums(rows, "inside_logq", "logqs inside the support", inside, size)


def _unequal_lengths(
    rows: pa.Table, name: str, draws: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Iterator[str]:
    found = _list_lengths(rows, name)
    is_there = rows[name].is_valid().to_numpy()
    yield from _said(
        draws,
        is_there & (found != lengths),
        lambda i: f"gen_len is {lengths[i]}, and {name} holds {found[i]}",
    )


def _unequal_sums(
    rows: pa.Table, total: str, name: str, computed: NDArray[np.float64], size: NDArray[np.float64]
) -> Iterator[str]:
    stored = rows[total].to_numpy()
    allowed = _ROUNDING * (1 + size)
    agrees = np.isclose(stored, computed, rtol=0, atol=allowed, equal_nan=True)
    yield from _said(
        rows["draw"].to_numpy(),
        ~agrees,
        lambda i: f"{total} is {stored[i]:.9g}, and {name} make {computed[i]:.9g}",
    )


def _said(
    draws: NDArray[np.int64], is_wrong: NDArray[np.bool_], say: Callable[[int], str]
) -> Iterator[str]:
    """What is wrong with the first of these rows, and how many others there are."""
    wrong = np.flatnonzero(is_wrong)
    if not len(wrong):
        return
    others = f" (and {len(wrong) - 1} other draws)" if len(wrong) > 1 else ""
    yield f"draw {draws[wrong[0]]}{others}: {say(wrong[0])}"


def _sums(
    rows: pa.Table, name: str, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each row, the sum of a list and that of its finite members' sizes."""
    values = _flat(rows, name)
    return _by_row(values, lengths), _by_row(abs(_finite(values)), lengths)


def _by_row(values: NDArray[np.generic], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of the values of each row, given how many are of each."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(row, weights=values, minlength=len(lengths)).astype(np.float64)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, 0.0)


def _flat(rows: pa.Table, name: str) -> NDArray[np.float64]:
    values = rows[name].combine_chunks().flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def _list_lengths(rows: pa.Table, name: str) -> NDArray[np.int64]:
    """Of each row; 0 for one that has no list."""
    import pyarrow.compute as pc

    lengths = pc.call_function("list_value_length", [rows[name]]).fill_null(0)
    return np.asarray(lengths.to_numpy(), dtype=np.int64)
