"""Coupled sampling on vLLM's model runner V1: requests are followed by their row of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from seqproc.engines.coupling import choose, one_hot_scores
from seqproc.engines.gumbel import seed_tensor
from seqproc.engines.vllm.coupled import CoupledDraw, coupled_draw
from seqproc.policy import SamplingPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    draw: CoupledDraw
    token_ids: list[int]  # vLLM's own list of the request's tokens so far: it grows


class CoupledSamplerV1(LogitsProcessor):
    """Leaves the token that `coupling.choose` chooses; vLLM makes one per worker."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        del vllm_config, is_pin_memory
        self._device = device
        self._rows: dict[int, _Row] = {}  # by row of the batch

    def is_argmax_invariant(self) -> bool:
        """No: it decides the argmax."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they enter, leave and move in the batch."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, token_ids in batch_update.added:
            draw = coupled_draw(params.extra_args)
            self._put(index, None if draw is None else _Row(draw=draw, token_ids=token_ids))
        for source, target, direction in batch_update.moved:
            moving, staying = self._rows.pop(source, None), self._rows.pop(target, None)
            self._put(target, moving)
            if direction == MoveDirectionality.SWAP:
                self._put(source, staying)

    def apply(self, logits: Tensor) -> Tensor:
        """Leave the chosen token of each coupled row; other rows stay as they are."""
        by_policy: dict[SamplingPolicy, list[int]] = {}
        for index, row in self._rows.items():
            by_policy.setdefault(row.draw.policy, []).append(index)
        for policy, indices in by_policy.items():
            rows = [self._rows[index] for index in indices]
            seeds_N = seed_tensor([row.draw.seed for row in rows], self._device)
            steps_N = torch.tensor([len(row.token_ids) for row in rows], device=self._device)
            tokens_N, _ = choose(logits[indices], policy, seeds_N, steps_N)
            logits[indices] = one_hot_scores(tokens_N, logits[indices])
        return logits

    def _put(self, index: int, row: _Row | None) -> None:
        if row is None:
            self._rows.pop(index, None)
        else:
            self._rows[index] = row
