"""Results to rows: one Arrow row per draw, as `schema` describes them. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from seqproc.runs.schema import AGGREGATES, rows_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from seqproc.prompts import PromptEntry
    from seqproc.runs.plan import Draw
    from seqproc.types import BatchedSequences, DiagnosticsResults, LogprobResults


def rows_table(
    draws: Sequence[Draw],
    entries: Sequence[PromptEntry],
    sequences: BatchedSequences,
    results: LogprobResults,
    diagnostics: DiagnosticsResults,
) -> pa.Table:
    """Rows of a chunk of draws, one response each (G = 1), scored with ``compute_rb=True``.

    Args:
        draws: n draws.
        entries: their n prompts, as the model read them.
        sequences: ``[n, 1, L]``.
        results: its scores, rewards included.
        diagnostics: its diagnostics.

    Raises:
        MissingDependencyError: pyarrow is not installed.
    """
    assert sequences.num_responses == 1
    assert len(draws) == len(entries) == sequences.num_prompts
    columns = (
        _plan_columns(draws, entries)
        | _sequence_columns(sequences)
        | _score_columns(results)
        | _aggregate_columns(diagnostics)
    )
    schema = rows_schema()
    import pyarrow as pa

    return pa.table(columns, schema=schema)


def _plan_columns(draws: Sequence[Draw], entries: Sequence[PromptEntry]) -> dict[str, list[Any]]:
    return {
        "draw": [draw.index for draw in draws],
        "prompt_index": [draw.prompt_index for draw in draws],
        "seed": [draw.seed for draw in draws],
        "prompt_text": [entry.text for entry in entries],
        "question": [entry.question for entry in entries],
        "answer": [entry.answer for entry in entries],
    }


def _sequence_columns(sequences: BatchedSequences) -> dict[str, list[Any]]:
    rows = range(sequences.num_prompts)
    reasons = sequences.finish_reasons
    return {
        "prompt_ids": [sequences.prompt_ids(b).tolist() for b in rows],
        "response_ids": [sequences.response_ids(b, 0).tolist() for b in rows],
        "response_text": _first(sequences.responses_text),
        "finish_reason": [None for _ in rows] if reasons is None else _first(reasons),
        "gen_len": _first(sequences.gen_lens),
    }


def _score_columns(results: LogprobResults) -> dict[str, list[Any]]:
    engine_logqs = _first(results.engine_logqs or [[None]] * len(results.logprobs))
    return {
        "logprobs": _per_token(_first(results.logprobs)),
        "logqs": _per_token(_first(results.token_logqs)),
        "rb_entropies": _per_token(_first(results.rb_entropies)),
        "head_mass": _per_token(_first(results.head_mass)),
        "engine_logqs": _per_token(engine_logqs),
        "sequence_logprob": _first(results.sequence_logprobs),
        "sequence_logq": _first(results.sequence_logqs),
        "out_of_support": _first(results.out_of_support),
        "reward": _first(results.rewards),
    }


def _aggregate_columns(diagnostics: DiagnosticsResults) -> dict[str, list[Any]]:
    packs = _first(diagnostics.diagnostics)
    return {name: [getattr(pack.seq, name) for pack in packs] for name in AGGREGATES}


def _first(nested: Sequence[Sequence[Any]] | None) -> list[Any]:
    """The one response of each prompt."""
    assert nested is not None
    return [row[0] for row in nested]


def _per_token(values: Iterable[Tensor | np.ndarray | None]) -> list[np.ndarray | None]:
    return [None if v is None else np.asarray(v, dtype=np.float64) for v in values]
