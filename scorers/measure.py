"""Reads log p, log q and the policy's statistics off the logits of one sequence.

Pure functions of ``[T, V]`` logits, evaluated in chunks of rows so that the working memory does
not grow with T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqproc._util.by_device import ByDevice
from seqproc._util.tensor_arguments import require_logits, require_tokens
from seqproc.policy import PolicyStatistics, SamplingPolicy, TokenScores, score_tokens
from seqproc.scorers.chunks import in_chunks

# Logits per chunk. What reads them whole goes in smaller parts itself; but a backward pass holds
# several tensors of this size.
_CHUNK_ELEMENTS = ByDevice(cpu=1 << 25, accelerator=1 << 27)
_CHUNK_ELEMENTS_WITH_GRAD = ByDevice(cpu=1 << 20, accelerator=1 << 26)


def measure(
    logits: Tensor, tokens: Tensor, policy: SamplingPolicy, eos_token_ids: Sequence[int] = ()
) -> TokenScores:
    """Score tokens ``[T]`` under logits ``[T, V]``; differentiable in the logits.

    A backward pass computes the statistics again, part by part, and keeps none of them.
    """
    require_logits(logits)
    require_tokens(tokens, logits)

    def score(part: Tensor, ids: Tensor) -> TokenScores:
        return score_tokens(part, ids, policy, eos_token_ids)

    with_grad = torch.is_grad_enabled() and logits.requires_grad
    elements = (_CHUNK_ELEMENTS_WITH_GRAD if with_grad else _CHUNK_ELEMENTS).on(logits.device)
    return in_chunks(score, max(1, elements // logits.shape[-1]), logits, tokens)


def empty_scores(dtype: torch.dtype, eos_token_ids: Sequence[int] = ()) -> TokenScores:
    """Scores of a response without tokens: every field ``[0]``."""
    logits = torch.zeros(0, max(eos_token_ids, default=0) + 1, dtype=dtype)
    tokens = torch.zeros(0, dtype=torch.int64)
    return score_tokens(logits, tokens, SamplingPolicy(), eos_token_ids)


def baseline_features(stats: PolicyStatistics) -> Tensor:
    """φ ``[T, 7]``, detached: H, top-1, margin, head mass, two-point entropy, Var_q[a], j/T."""
    steps = len(stats.rb_entropy)
    position = torch.arange(steps, device=stats.rb_entropy.device) / max(steps, 1)
    columns = [
        stats.rb_entropy,
        stats.top1_prob,
        stats.margin,
        stats.head_mass,
        stats.two_point_entropy,
        stats.logit_var,
        position.to(stats.rb_entropy.dtype),
    ]
    return torch.stack([column.detach() for column in columns], dim=-1)
