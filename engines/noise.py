"""The noise that an engine draws with, where it is a function that anybody can compute again.

An engine that samples y = argmax_S (log q + g) with g a hash of (seed, step, token id) can be
*replayed*: from logits of one's own follows every token that it has to give, and no statistics are
needed to tell whether it does. `Engine.noise` says whether an engine's draws are of this kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from seqproc.engines.gumbel import gumbel_noise_batch

# Shapes: N draws, V tokens of the vocabulary.

# (seeds_N, prompt_lengths_N, steps_N, V) to g_NV in float64. Seeds are those of the requests, as
# from `gumbel.seed_tensor`; steps count generated tokens from 0.
NoiseFunction = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise that can be computed again."""

    name: str  # engines whose noise has one name draw the same tokens from the same seeds
    values: NoiseFunction
    error: float  # by which a key log q + g may be off for the engine's own arithmetic, nats


@dataclass(frozen=True, slots=True)
class NotReplayable:
    """Noise that cannot."""

    reason: str  # a sentence without a full stop


def _coupled(seeds_N: Tensor, prompt_lengths_N: Tensor, steps_N: Tensor, vocab: int) -> Tensor:
    del prompt_lengths_N  # the noise counts generated tokens
    return gumbel_noise_batch(seeds_N, steps_N, vocab)


def _none(seeds_N: Tensor, prompt_lengths_N: Tensor, steps_N: Tensor, vocab: int) -> Tensor:
    del prompt_lengths_N, steps_N
    return torch.zeros(len(seeds_N), vocab, dtype=torch.float64, device=seeds_N.device)


COUPLED = Noise(name="seqproc's SplitMix64", values=_coupled, error=1e-9)
GREEDY = Noise(name="none, greedy", values=_none, error=0.0)
