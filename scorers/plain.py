"""What a score is: one sequence at a time, by the model's own forward, all of its logits at once.

A scorer whose ``precision.kernels`` is empty (``SEQPROC_KERNELS=0``) scores by this. Whatever else
this folder does gives the same numbers, up to rounding, in less time or less memory: batches of
padded sequences, prompts computed once for all their responses, a head taken in chunks, kernels.

Depends on a model's forward and on the policy; knows nothing of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from seqproc._util.memory import is_out_of_memory
from seqproc.models.parameters import ParamMapping
from seqproc.policy import SamplingPolicy, TokenScores, score_tokens
from seqproc.scorers.batching import TokenSequence
from seqproc.scorers.budget import does_not_fit
from seqproc.scorers.finite import Span
from seqproc.scorers.forward import device_of, forward_logits


def score_one_by_one(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    eos_token_ids: Sequence[int],
    mapping: ParamMapping | None,
    *,
    forwarding: Callable[[], AbstractContextManager[None]],
    statistics_dtype: Callable[[torch.dtype, bool], torch.dtype],
) -> Iterator[tuple[list[Span], TokenScores]]:
    """Yield the scores ``[T]`` of each response that is not empty, and whose they are.

    Args:
        model: a causal language model.
        sequences: prompts ``[P]`` and responses ``[T]``.
        policy: the measure q.
        eos_token_ids: see `seqproc.policy.statistics`.
        mapping: every parameter and buffer by name, or None for the live module.
        forwarding: the scope of a forward: evaluation mode and precision.
        statistics_dtype: the dtype of statistics, of logits of some dtype, with a graph or without.

    Raises:
        ScoringError: a sequence does not fit in memory.
    """
    for index, sequence in enumerate(sequences):
        num_response = len(sequence.response_ids)
        if num_response == 0:
            continue
        try:
            with forwarding():
                logits = response_logits(model, sequence, mapping)
            logits = logits.to(statistics_dtype(logits.dtype, torch.is_grad_enabled()))
            tokens = sequence.response_ids.to(logits.device)
            scores = score_tokens(logits, tokens, policy, eos_token_ids)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise does_not_fit(index, sequence.length) from error
            raise
        yield [(index, 0, num_response)], scores


def response_logits(
    model: nn.Module, sequence: TokenSequence, mapping: ParamMapping | None
) -> Tensor:
    """Logits ``[T, V]`` that predict the tokens of the response.

    Teacher forcing: the model reads the prompt and the response, and the logits at each token
    predict the next one. It does not read the last token, whose logits predict nothing.
    """
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])
    read = ids[None, :-1].to(device_of(model))
    logits = forward_logits(model, read, torch.ones_like(read), mapping)[0]
    return logits[len(sequence.prompt_ids) - 1 :]
