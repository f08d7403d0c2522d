"""Puts results together: completions into `BatchedSequences`, scores into `LogprobResults`.

Pure reshaping between flat lists and the nested ``[b][g]`` records; computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from seqproc.engines.base import Completion, Request
from seqproc.policy import TokenScores
from seqproc.scorers.diagnostics import diagnostics_pack
from seqproc.scorers.measure import baseline_features
from seqproc.types import BatchedSequences, DiagnosticsResults, LogprobResults, Provenance

A = TypeVar("A")
R = TypeVar("R")


def nested(flat: Sequence[A], width: int, transform: Callable[[A], R]) -> list[list[R]]:
    """Transform a flat list and fold it into rows of ``width``."""
    values = [transform(item) for item in flat]
    return [values[start : start + width] for start in range(0, len(values), width)]


def batched_sequences(
    requests: Sequence[Request],
    completions: Sequence[Completion],
    num_responses: int,
    pad_id: int,
) -> BatchedSequences:
    """Lay out completions, given in the order of their requests, as one padded batch.

    Args:
        requests: B·G requests, the G of one prompt next to each other.
        completions: their completions, in the same order.
        num_responses: G.
        pad_id: id that fills the padding; never read back, masks come from lengths.
    """
    width = max(len(request.prompt_ids) for request in requests)
    total = width + max(len(completion.token_ids) for completion in completions)
    ids = torch.full((len(requests), total), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (request, completion) in enumerate(zip(requests, completions, strict=True)):
        start, stop = width - len(request.prompt_ids), width + len(completion.token_ids)
        ids[row, start:stop] = torch.tensor(request.prompt_ids + completion.token_ids)
        mask[row, start:stop] = 1
    num_prompts = len(requests) // num_responses
    return BatchedSequences(
        sequences=ids.view(num_prompts, num_responses, total),
        prompt_lens=[width] * num_prompts,
        gen_lens=nested(completions, num_responses, lambda c: len(c.token_ids)),
        attention_masks=mask.view(num_prompts, num_responses, total),
        responses_text=nested(completions, num_responses, lambda c: c.text),
        finish_reasons=nested(completions, num_responses, lambda c: c.finish_reason),
        engine_logqs=nested(completions, num_responses, _engine_logqs),
        seeds=nested(requests, num_responses, lambda r: r.seed),
    )


def _engine_logqs(completion: Completion) -> Tensor | None:
    if completion.logqs is None:
        return None
    return torch.tensor(completion.logqs, dtype=torch.float64)


def logprob_results(
    scores: Sequence[TokenScores],
    sequences: BatchedSequences,
    *,
    compute_rb: bool,
    rb_graph: bool,
    features: bool,
    provenance: Provenance,
) -> LogprobResults:
    """Fold B·G scores into the specification's record.

    Args:
        scores: scores in the order [b][g].
        sequences: what was scored.
        compute_rb: fill ``rb_entropies``; empty arrays otherwise.
        rb_graph: also keep the entropies as tensors with their graph.
        features: also compute the baseline features.
        provenance: recorded with the result.
    """
    width = sequences.num_responses
    nothing = np.zeros(0)
    return LogprobResults(
        logprobs=nested(scores, width, lambda s: s.logprobs),
        entropies=nested(scores, width, lambda s: -_array(s.logprobs)),
        sequence_logprobs=nested(scores, width, lambda s: _total(s.logprobs)),
        rb_entropies=nested(
            scores, width, lambda s: _array(s.stats.rb_entropy) if compute_rb else nothing
        ),
        rewards=[[0.0] * width for _ in range(sequences.num_prompts)],
        rb_entropies_torch=nested(scores, width, lambda s: s.stats.rb_entropy)
        if rb_graph
        else None,
        baseline_feats_torch=nested(scores, width, lambda s: baseline_features(s.stats))
        if features
        else None,
        token_logqs=nested(scores, width, lambda s: s.logqs),
        sequence_logqs=nested(scores, width, lambda s: _total(s.logqs)),
        head_mass=nested(scores, width, lambda s: _array(s.stats.head_mass)),
        out_of_support=nested(scores, width, lambda s: int(s.logqs.isneginf().sum())),
        engine_logqs=sequences.engine_logqs,
        provenance=provenance,
    )


def diagnostics_results(scores: Sequence[TokenScores], num_responses: int) -> DiagnosticsResults:
    """Fold B·G scores into diagnostics packs."""
    return DiagnosticsResults(diagnostics=nested(scores, num_responses, diagnostics_pack))


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _total(values: Tensor) -> float:
    return float(values.detach().double().sum())
