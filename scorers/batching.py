"""Teacher-forcing batches: true token lists, sorted by length, padded on the right.

Padding comes from lengths alone. On the right it cannot reach a causal model's real positions, so
absolute position ids start at 0 for every sequence and need no correction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqproc.types import BatchedSequences


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """One sequence to score: its prompt and the response whose tokens get scores."""

    prompt_ids: Tensor  # [P] int64, P ≥ 1 unless the response is empty
    response_ids: Tensor  # [T] int64

    @property
    def length(self) -> int:
        """P + T."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch:
    """N sequences padded to one length L."""

    indices: list[int]  # N positions in the caller's list
    input_ids: Tensor  # [N, L] int64
    attention_mask: Tensor  # [N, L] int64, 1 on real tokens
    spans: list[tuple[int, int]]  # N pairs (first, last + 1) of positions that predict responses


def token_sequences(batch: BatchedSequences) -> list[TokenSequence]:
    """Strip the padding of a `BatchedSequences`; B·G sequences in the order [b][g]."""
    return [
        TokenSequence(prompt_ids=batch.prompt_ids(b, g), response_ids=batch.response_ids(b, g))
        for b in range(batch.num_prompts)
        for g in range(batch.num_responses)
    ]


def padded_batches(
    sequences: Sequence[TokenSequence], batch_size: int, device: torch.device
) -> Iterator[PaddedBatch]:
    """Batches of at most ``batch_size``, longest first; sequences without a response are left out.

    Longest first, so that a batch that does not fit in memory fails at once and not at the end.
    """
    wanted = [i for i, s in enumerate(sequences) if len(s.response_ids)]
    wanted.sort(key=lambda i: -sequences[i].length)
    for start in range(0, len(wanted), batch_size):
        yield _pad(sequences, wanted[start : start + batch_size], device)


def _pad(
    sequences: Sequence[TokenSequence], indices: list[int], device: torch.device
) -> PaddedBatch:
    width = max(sequences[i].length for i in indices)
    input_ids = torch.zeros(len(indices), width, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    spans = []
    for row, i in enumerate(indices):
        prompt, response = sequences[i].prompt_ids, sequences[i].response_ids
        input_ids[row, : len(prompt) + len(response)] = torch.cat([prompt, response]).cpu()
        attention_mask[row, : len(prompt) + len(response)] = 1
        spans.append((len(prompt) - 1, len(prompt) + len(response) - 1))
    return PaddedBatch(
        indices=indices,
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        spans=spans,
    )
