"""Draws, responses and scores as Arrow tables, as `schema` describes them, and back. No arithmetic.

A sample is a prompt, a response to it and their reward. A set of scores has a row for each sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc.prompts import PromptEntry
from seqproc.runs.format.schema import AGGREGATES, samples_schema, scores_schema
from seqproc.runs.plan import Draw

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from seqproc.types import BatchedSequences, DiagnosticsResults, FinishReason, LogprobResults


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt and a response to it: what a run draws, or what is given to be scored."""

    draw: Draw
    entry: PromptEntry
    prompt_ids: tuple[int, ...]  # at least one
    response_ids: tuple[int, ...]
    response_text: str
    finish_reason: FinishReason | None = None  # None: unknown
    stop_string: str | None = None  # what ended it, if a stop string did
    engine_logqs: tuple[float, ...] | None = None  # nats, of the engine that sampled it
    reward: float = 0.0


def samples_table(samples: Sequence[Sample]) -> pa.Table:
    """Rows of `samples_schema`, in the order given."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {
        "draw": [s.draw.index for s in samples],
        "prompt_index": [s.draw.prompt_index for s in samples],
        "seed": [s.draw.seed for s in samples],
        "prompt_text": [s.entry.text for s in samples],
        "question": [s.entry.question for s in samples],
        "answer": [s.entry.answer for s in samples],
        "prompt_ids": [s.prompt_ids for s in samples],
        "response_ids": [s.response_ids for s in samples],
        "response_text": [s.response_text for s in samples],
        "finish_reason": [s.finish_reason for s in samples],
        "stop_string": [s.stop_string for s in samples],
        "gen_len": [len(s.response_ids) for s in samples],
        "engine_logqs": [s.engine_logqs for s in samples],
        "reward": [s.reward for s in samples],
    }
    return pa.table(columns, schema=samples_schema())


def samples_of(table: pa.Table) -> list[Sample]:
    """The samples of rows that `samples_table` made."""
    return [sample_of(row) for row in table.to_pylist()]


def sample_of(row: Mapping[str, Any]) -> Sample:
    """The sample of one row."""
    logqs = row["engine_logqs"]
    return Sample(
        draw=Draw(index=row["draw"], prompt_index=row["prompt_index"], seed=row["seed"]),
        entry=PromptEntry(text=row["prompt_text"], question=row["question"], answer=row["answer"]),
        prompt_ids=tuple(row["prompt_ids"]),
        response_ids=tuple(row["response_ids"]),
        response_text=row["response_text"],
        finish_reason=row["finish_reason"],
        stop_string=row["stop_string"],
        engine_logqs=None if logqs is None else tuple(logqs),
        reward=row["reward"],
    )


def batch_of(samples: Sequence[Sample]) -> BatchedSequences:
    """Samples as one batch ``[n, 1, L]``, one response to each prompt."""
    from seqproc.engines.base import Completion, Request
    from seqproc.processor.assembly import batched_sequences

    requests = [
        Request(index=i, prompt_ids=s.prompt_ids, seed=s.draw.seed or 0)
        for i, s in enumerate(samples)
    ]
    completions = [
        Completion(
            index=i,
            token_ids=s.response_ids,
            text=s.response_text,
            finish_reason=s.finish_reason or "length",  # dropped again where unknown
            logqs=s.engine_logqs,
        )
        for i, s in enumerate(samples)
    ]
    batch = batched_sequences(requests, completions, num_responses=1, pad_id=0)
    reasons = [[s.finish_reason] for s in samples if s.finish_reason is not None]
    seeds = [[s.draw.seed] for s in samples if s.draw.seed is not None]
    return replace(
        batch,
        finish_reasons=reasons if len(reasons) == len(samples) else None,
        seeds=seeds if len(seeds) == len(samples) else None,
    )


def scores_table(
    draws: Sequence[int],
    results: LogprobResults,
    diagnostics: DiagnosticsResults,
    token_columns: Sequence[str],
) -> pa.Table:
    """Rows of `scores_schema`, of prompts with one response, scored with ``compute_rb=True``.

    Args:
        draws: the draws' indices, ``[n]``.
        results: scores ``[n][1]``.
        diagnostics: of the same, ``[n][1]``.
        token_columns: what to keep per token, from `schema.TOKEN_COLUMNS`.
    """
    import pyarrow as pa

    assert len(draws) == len(results.logprobs)
    packs = _first(diagnostics.diagnostics)
    per_token = {
        "logprobs": _first(results.logprobs),
        "logqs": _first(results.token_logqs),
        "rb_entropies": _first(results.rb_entropies),
        "head_mass": _first(results.head_mass),
    }
    columns: dict[str, Any] = {"draw": list(draws)}
    for name in token_columns:
        values = per_token.get(name) or [getattr(pack.step, name) for pack in packs]
        columns[name] = _per_token(values)
    columns |= {
        "sequence_logprob": _first(results.sequence_logprobs),
        "sequence_logq": _first(results.sequence_logqs),
        "inside_logq": [_sum_inside(logqs) for logqs in per_token["logqs"]],
        "out_of_support": _first(results.out_of_support),
    }
    columns |= {name: [getattr(pack.seq, name) for pack in packs] for name in AGGREGATES}
    return pa.table(columns, schema=scores_schema(tuple(token_columns)))


def _first(nested: Sequence[Sequence[Any]] | None) -> list[Any]:
    """The one response of each prompt."""
    assert nested is not None
    return [row[0] for row in nested]


def _per_token(values: Iterable[Tensor | np.ndarray | None]) -> list[np.ndarray | None]:
    return [None if v is None else np.asarray(v, dtype=np.float64) for v in values]


def _sum_inside(logqs: Tensor) -> float:
    """Σ log q over the tokens that have one."""
    values = logqs.double()
    return float(values[values.isfinite()].sum())
