"""Diagnostics packs: the policy's statistics as numpy arrays per step, and their aggregates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqproc._util.tensor_arguments import token_ids
from seqproc.policy import SamplingPolicy, TokenScores
from seqproc.scorers.measure import measure
from seqproc.types import DiagnosticsPack, SequenceDiagnostics, TokenStepDiagnostics

EARLY_STEPS = 16  # K of the early window


class DistributionDiagnostics:
    """Step and sequence diagnostics under one sampling policy.

    Args:
        top_p: nucleus mass in (0, 1].
        temperature: T > 0.
        eos_token_id: one id, several, or None for no ``eos_prob``.
        do_sample: False for the greedy point mass.

    Raises:
        ConfigError: when the policy is not valid.
    """

    def __init__(
        self,
        top_p: float = 1.0,
        temperature: float = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        *,
        do_sample: bool = True,
    ) -> None:
        self.policy = SamplingPolicy(temperature=temperature, top_p=top_p, do_sample=do_sample)
        if eos_token_id is None:
            self.eos_token_ids: tuple[int, ...] = ()
        else:
            ids = [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
            self.eos_token_ids = token_ids("eos_token_id", ids)

    @torch.no_grad()
    def compute_from_logits(self, gen_logits: Tensor, realized_tokens: Tensor) -> DiagnosticsPack:
        """Diagnose logits ``[T, V]`` that predicted the tokens ``[T]``."""
        return diagnostics_pack(
            measure(gen_logits, realized_tokens, self.policy, self.eos_token_ids)
        )


def diagnostics_pack(scores: TokenScores) -> DiagnosticsPack:
    """The pack of one scored response; float arrays ``[T]`` in the scores' dtype."""
    values: dict[str, Any] = {
        f.name: getattr(scores.stats, f.name) for f in fields(TokenStepDiagnostics)
    }
    arrays: dict[str, Any] = {k: None if v is None else _array(v) for k, v in values.items()}
    step = TokenStepDiagnostics(**arrays)
    return DiagnosticsPack(step=step, seq=aggregate(step, -_array(scores.logprobs)))


def aggregate(step: TokenStepDiagnostics, surprisal: np.ndarray) -> SequenceDiagnostics:
    """Aggregates over the T steps; surprisal is −log p_raw(y_t), ``[T]``. All 0 when T = 0."""
    entropy = step.rb_entropy.astype(np.float64)
    early = _mean(entropy[:EARLY_STEPS])
    return SequenceDiagnostics(
        T=len(entropy),
        rb_entropy_sum=float(entropy.sum()),
        rb_entropy_mean=_mean(entropy),
        rb_entropy_max=float(entropy.max(initial=0.0)),
        rb_entropy_min=float(entropy.min()) if len(entropy) else 0.0,
        early_rb_entropy_mean=early,
        late_rb_entropy_mean=_mean(entropy[EARLY_STEPS:]) if len(entropy) > EARLY_STEPS else early,
        naive_surprisal_sum=float(surprisal.sum(dtype=np.float64)),
        naive_surprisal_mean=_mean(surprisal),
        margin_mean=_mean(step.margin),
        margin_sum=float(step.margin.sum(dtype=np.float64)),
        top1_prob_mean=_mean(step.top1_prob),
        collision_mean=_mean(step.collision),
        renyi2_mean=_mean(step.renyi2),
        eff_support_mean=_mean(step.eff_support),
        eos_prob_mean=None if step.eos_prob is None else _mean(step.eos_prob),
    )


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0
