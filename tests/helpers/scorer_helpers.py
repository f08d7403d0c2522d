"""Random token sequences in every form, and the comparison of two lists of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from helpers.gpt2_oracle import gpt2_logits
from helpers.llama_oracle import llama_logits
from seqproc.config import PrecisionConfig
from seqproc.policy import TokenScores
from seqproc.scorers import TokenSequence
from seqproc.types import BatchedSequences

# (prompt tokens, response tokens): short and long, a response of one token, an empty one.
LENGTHS = ((3, 5), (1, 9), (7, 1), (2, 0), (5, 4), (4, 7), (1, 2), (6, 6), (2, 3))

# Prompt length, and the lengths of its responses: several lengths in a batch, one with no tokens,
# prompts and responses of one token, prompts with one response only.
FAMILIES = ((9, (5, 1, 8, 12)), (1, (3, 1, 7)), (14, (4, 0, 6)), (3, (9, 9)), (5, (6,)), (2, (1,)))


def random_sequences(
    vocab_size: int, lengths: Sequence[tuple[int, int]] = LENGTHS, seed: int = 0
) -> list[TokenSequence]:
    """Sequences of uniform random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> torch.Tensor:
        return torch.randint(vocab_size, (size,), generator=generator)

    return [TokenSequence(prompt_ids=draw(p), response_ids=draw(t)) for p, t in lengths]


# Where it is known that rounding does not depend on what is beside a row: how a BLAS parts its
# sums is its own affair.
same_bits = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"),
    reason="the order of sums is known of MKL with AVX-512",
)


def families(
    vocab_size: int, shapes: Sequence[tuple[int, Sequence[int]]] = FAMILIES, seed: int = 0
) -> list[TokenSequence]:
    """Random sequences; those of one entry have their prompt in common."""
    found = []
    for n, (prompt, responses) in enumerate(shapes):
        drawn = random_sequences(vocab_size, [(prompt, t) for t in responses], seed=1000 * seed + n)
        found += [
            TokenSequence(prompt_ids=drawn[0].prompt_ids, response_ids=s.response_ids)
            for s in drawn
        ]
    return found


def read(scores: TokenScores, name: str) -> torch.Tensor:
    """A field of the scores or of their statistics."""
    return getattr(scores, name) if hasattr(scores, name) else getattr(scores.stats, name)


def distance(
    left: Sequence[TokenScores],
    right: Sequence[TokenScores],
    names: Sequence[str] = ("logprobs", "logqs", "rb_entropy"),
) -> float:
    """Largest absolute difference of these fields; infinities must coincide."""
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        for name in names:
            a, b = read(one, name).detach().double(), read(other, name).detach().double()
            assert a.shape == b.shape
            unequal = a != b
            if unequal.any():
                worst = max(worst, float((a - b)[unequal].abs().max()))
    return worst


def float64_profiles() -> PrecisionConfig:
    """True float64 everywhere."""
    precision = PrecisionConfig()
    for profile in (precision.func_override, precision.tf_nograd, precision.tf_withgrad):
        profile.dtype = "float64"
    return precision


def oracle_logits(model: Any, sequence: TokenSequence) -> np.ndarray:
    """Logits ``[T, V]`` that predict the response, by the numpy forward of the model's family."""
    forward = gpt2_logits if model.config.model_type == "gpt2" else llama_logits
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids]).tolist()
    return forward(model, ids)[len(sequence.prompt_ids) - 1 : -1]


def as_batch(
    sequences: Sequence[TokenSequence], *, left: int = 0, right: int = 0, pad: int = 0
) -> BatchedSequences:
    """The sequences as one prompt each, with ``left`` and ``right`` columns of needless padding."""
    width = max(len(s.prompt_ids) for s in sequences) + left
    total = width + max(len(s.response_ids) for s in sequences) + right
    ids = torch.full((len(sequences), 1, total), pad)
    mask = torch.zeros_like(ids)
    for row, s in enumerate(sequences):
        real = slice(width - len(s.prompt_ids), width + len(s.response_ids))
        ids[row, 0, real] = torch.cat([s.prompt_ids, s.response_ids])
        mask[row, 0, real] = 1
    return BatchedSequences(
        sequences=ids,
        prompt_lens=[width] * len(sequences),
        gen_lens=[[len(s.response_ids)] for s in sequences],
        attention_masks=mask,
        responses_text=[[""] for _ in sequences],
    )
