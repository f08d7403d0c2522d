"""Coupled sampling on vLLM's model runner V2, the one that GPUs use.

A request keeps its slot while it runs. What a draw needs lies in vLLM's own kind of buffers, one
value a slot, so that a step reads it where the logits are: nothing is copied from the device or
waited for, and vLLM can prepare the next step meanwhile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor
from vllm.v1.worker.gpu.sample.logits_processor import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

from seqproc.engines.coupling import choose, one_hot_scores
from seqproc.engines.gumbel import signed64
from seqproc.engines.vllm.coupled import coupled_draw
from seqproc.policy import SamplingPolicy

_NOT_OURS = -1  # in place of a policy's number


class CoupledSamplerV2(LogitsProcessor):
    """Leaves the token that `coupling.choose` chooses; vLLM makes one per worker."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        super().__init__(vllm_config, req_states)
        self._prompt_lengths = req_states.prompt_len
        self._policies: list[SamplingPolicy] = []  # every policy met so far, by its number
        self._seeds = UvaBackedTensor(req_states.max_num_reqs, dtype=torch.int64)
        self._numbers = UvaBackedTensor(req_states.max_num_reqs, dtype=torch.int32)
        self._numbers.np.fill(_NOT_OURS)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Note the draw of the request that takes a slot; whether it is one of ours."""
        draw = coupled_draw(sampling_params.extra_args)
        if draw is None:
            self._numbers.np[req_idx] = _NOT_OURS
            return False
        if draw.policy not in self._policies:
            self._policies.append(draw.policy)
        self._numbers.np[req_idx] = self._policies.index(draw.policy)
        self._seeds.np[req_idx] = signed64(draw.seed)
        return True

    def apply_staged_writes(self) -> None:
        """Let the device see what `add_request` noted; vLLM calls it before each forward."""
        self._seeds.copy_to_uva()
        self._numbers.copy_to_uva()

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        """Leave the chosen token of each coupled row; other rows stay as they are."""
        slots_N = ctx.expanded_idx_mapping
        # A row's logits are those of the token after its position.
        steps_N = ctx.pos.long() + 1 - self._prompt_lengths.gpu[slots_N]
        seeds_N, numbers_N = self._seeds.gpu[slots_N], self._numbers.gpu[slots_N]
        in_batch = set(self._numbers.np[ctx.idx_mapping_np].tolist())
        for number in sorted(in_batch - {_NOT_OURS}):
            tokens_N, _ = choose(logits, self._policies[number], seeds_N, steps_N)
            is_mine_N1 = (numbers_N == number).unsqueeze(-1)
            logits = torch.where(is_mine_N1, one_hot_scores(tokens_N, logits), logits)
        return logits
