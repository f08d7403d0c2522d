"""Draws from made-up logits, without a model: as many as a statistical test may want, at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqproc.parity import Draws
from seqproc.parity.positions import Placement, place
from seqproc.policy import SamplingPolicy, log_q

LogQ = Callable[[Tensor, SamplingPolicy], Tensor]
Uniforms = Callable[[np.random.Generator, int, int], NDArray[np.float64]]  # [D] at a step

EOS = 0
POLICY = SamplingPolicy(temperature=0.8, top_p=0.9)


def independent(rng: np.random.Generator, num_draws: int, step: int) -> NDArray[np.float64]:
    """What a right engine draws with."""
    return rng.random(num_draws)


def synthetic(
    seed: int,
    *,
    policy: SamplingPolicy = POLICY,
    draws_from: LogQ = log_q,
    uniforms: Uniforms = independent,
    num_prompts: int = 40,
    per_prompt: int = 4,
    limit: int = 16,
    vocabulary: int = 60,
) -> Draws:
    """Draws that sample by inverse distribution function from ``draws_from``, placed in q.

    Logits depend on the prompt, the step and what was sampled last.
    """
    rng = np.random.default_rng(seed)
    num_draws = num_prompts * per_prompt
    table = torch.from_numpy(rng.normal(size=(97, vocabulary)) * 1.5)
    prompts = np.repeat(np.arange(num_prompts), per_prompt)
    last, alive = np.zeros(num_draws, dtype=np.int64), np.ones(num_draws, dtype=bool)
    placed: list[Placement] = []
    lengths = np.zeros(num_draws, dtype=np.int64)
    ended = np.zeros(num_draws, dtype=bool)
    for step in range(limit):
        logits = table[(31 * prompts + 7 * step + 13 * last) % 97]
        masses = draws_from(logits, policy).exp().cumsum(-1).numpy()
        points = uniforms(rng, num_draws, step) * masses[:, -1]
        last = (masses <= points[:, None]).sum(1).clip(max=vocabulary - 1)
        placed.append(place(log_q(logits, policy), torch.from_numpy(last), (EOS,)))
        lengths += alive
        ended |= alive & (last == EOS)
        alive &= last != EOS
    names = (f.name for f in fields(Placement))
    columns: dict[str, Any] = {name: _in_order(placed, name, lengths) for name in names}
    return Draws(
        prompts=prompts,
        lengths=lengths,
        ended_by_eos=ended,
        randomiser=np.random.default_rng(seed + 1_000_003).random(int(lengths.sum())),
        **columns,
    )


def _in_order(
    placed: list[Placement], name: str, lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Draw by draw, and within a draw step by step."""
    steps = np.stack([getattr(one, name).numpy() for one in placed], axis=1)
    return np.concatenate([row[:length] for row, length in zip(steps, lengths, strict=True)])
