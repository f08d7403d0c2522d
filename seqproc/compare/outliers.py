"""The pairs of draws that differ most, with their tokens. Texts are untrusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc.compare.pairing import chosen
from seqproc.compare.tokens import Responses, draw_differences
from seqproc.report.histograms import Floats, Ints

if TYPE_CHECKING:
    import pyarrow as pa

    from seqproc.compare.sides import Side

MOST = 20  # of each kind
_COLUMNS = ("prompt_text", "response_text", "response_ids", "finish_reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A response as one of the two runs has it."""

    ids: tuple[int, ...]
    text: str  # special tokens stripped
    finish_reason: str
    logprobs: tuple[float, ...]  # of its tokens; empty where the run does not keep them


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """A pair of draws."""

    draw: int
    parting: int | None  # the first step with another token, from 0; None: all are the same
    logprob: float  # Δ of Σ log p, nats
    reward: float  # Δ
    prompt: str
    a: Response
    b: Response


def outliers(
    sides: tuple[Side, Side], a: pa.Table, b: pa.Table, found: Responses
) -> tuple[list[Outlier], list[Outlier]]:
    """The pairs with the same tokens that differ most in log p, and those that part first.

    The former by |Δ Σ log p|, the latter by the step at which they part, then by |Δ reward|; at
    most `MOST` of each, and of the former none with Δ = 0.

    Args:
        sides: A and B, to read their texts.
        a: columns draw, sequence_logprob and reward of A, one row per pair.
        b: those of B.
        found: where they part.
    """
    logprob = draw_differences(a, b, "sequence_logprob")
    reward = draw_differences(a, b, "reward")
    same, parted = _most(found, np.abs(logprob), np.abs(reward))
    draws = a["draw"].to_numpy()
    rows = [_rows(side, draws[np.concatenate([same, parted])]) for side in sides]

    def outlier(n: int) -> Outlier:
        draw = int(draws[n])
        return Outlier(
            draw=draw,
            parting=None if found.is_identical[n] else int(found.prefix[n]),
            logprob=float(logprob[n]),
            reward=float(reward[n]),
            prompt=rows[0][draw]["prompt_text"],
            a=_response(rows[0][draw]),
            b=_response(rows[1][draw]),
        )

    return [outlier(n) for n in same], [outlier(n) for n in parted]


def _most(found: Responses, logprob: Floats, reward: Floats) -> tuple[Ints, Ints]:
    """The places of the pairs that differ most; NaN counts as the largest of all."""
    with_gap = np.flatnonzero(found.is_identical & (logprob != 0))
    same = with_gap[np.argsort(-np.nan_to_num(logprob[with_gap], nan=np.inf), kind="stable")]
    parted = np.flatnonzero(~found.is_identical)
    by_step = np.lexsort((-np.nan_to_num(reward[parted], nan=np.inf), found.prefix[parted]))
    return same[:MOST], parted[by_step][:MOST]


def _rows(side: Side, draws: Ints) -> dict[int, dict[str, Any]]:
    kept = ["logprobs"] if "logprobs" in side.token_columns() else []
    table = chosen(side.rows([*_COLUMNS, *kept]), draws)
    return {row["draw"]: row for row in table.to_pylist()}


def _response(row: dict[str, Any]) -> Response:
    logprobs: Sequence[float] = row.get("logprobs") or ()
    return Response(
        ids=tuple(row["response_ids"]),
        text=row["response_text"],
        finish_reason=row["finish_reason"] or "unknown",
        logprobs=tuple(logprobs),
    )
