"""The specification's underscore names: thin aliases of public pieces, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from seqproc.config import NoGradProfile, OverrideProfile, PrecisionConfig
from seqproc.models.parameters import ParamMapping
from seqproc.models.wrappers import unwrap
from seqproc.policy import SamplingPolicy, rb_entropy, token_log_q
from seqproc.scorers import TeacherForcingScorer, overrides

if TYPE_CHECKING:
    from seqproc.prompts import PromptEntry
    from seqproc.types import BatchedSequences


class _Processor(Protocol):
    """What the aliases stand for."""

    default_examples: Sequence[PromptEntry] | None

    @property
    def model(self) -> nn.Module: ...

    @property
    def precision(self) -> PrecisionConfig: ...

    @property
    def scorer(self) -> TeacherForcingScorer: ...

    def build_params_override(
        self, v_named: ParamMapping | None, eta: float
    ) -> dict[str, Tensor]: ...

    def compute_rewards(
        self, sequences: BatchedSequences, examples: Sequence[PromptEntry] | None
    ) -> list[list[float]]: ...


class SpecificationAliases:
    """Mixed into `SequenceProcessor`; probes written for the specification call these."""

    def _build_params_override(
        self: _Processor, v_named: ParamMapping | None, eta: float
    ) -> dict[str, Tensor]:
        return self.build_params_override(v_named, eta)

    def _build_state_override(
        self: _Processor,
        v_named: ParamMapping | None,
        eta: float,
        *,
        param_dtype: torch.dtype | None = None,
        include_buffers: bool = False,
        buffer_dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        return overrides.build_state_override(
            self.model,
            v_named,
            eta,
            param_dtype=param_dtype,
            include_buffers=include_buffers,
            buffer_dtype=buffer_dtype,
        )

    def _fc_logits_noautocast(
        self: _Processor, input_ids: Tensor, attention_mask: Tensor, params_mapping: ParamMapping
    ) -> Tensor:
        return self.scorer.logits(input_ids, attention_mask, params_mapping)

    @staticmethod
    def _rb_entropies_top_p(gen_logits: Tensor, top_p: float, temperature: float) -> Tensor:
        return rb_entropy(gen_logits, SamplingPolicy(top_p=top_p, temperature=temperature))

    @staticmethod
    def _compute_logq_top_p(
        gen_logits: Tensor, gen_tokens: Tensor, top_p: float, temperature: float
    ) -> Tensor:
        policy = SamplingPolicy(top_p=top_p, temperature=temperature)
        return token_log_q(gen_logits, gen_tokens, policy)

    def _compute_rewards(
        self: _Processor,
        prompts: Sequence[str],  # noqa: ARG002 - the specification's signature
        sequences: BatchedSequences,
        examples: Sequence[PromptEntry] | None = None,
    ) -> list[list[float]]:
        return self.compute_rewards(sequences, examples)

    @property
    def _mdl_target(self: _Processor) -> nn.Module:
        return self.model

    @property
    def _params_zero(self: _Processor) -> dict[str, Tensor]:
        return self.build_params_override({}, 0.0)

    @property
    def _fo_cfg(self: _Processor) -> OverrideProfile:
        return self.precision.func_override

    @property
    def _tf_cfg(self: _Processor) -> NoGradProfile:
        return self.precision.tf_nograd

    @property
    def _entropy_fp64(self: _Processor) -> bool:
        return self.precision.entropy_fp64

    @_entropy_fp64.setter
    def _entropy_fp64(self: _Processor, value: bool) -> None:
        self.precision.entropy_fp64 = value

    @property
    def _temp_examples(self: _Processor) -> Sequence[PromptEntry] | None:
        return self.default_examples

    @_temp_examples.setter
    def _temp_examples(self: _Processor, examples: Sequence[PromptEntry] | None) -> None:
        self.default_examples = examples

    @staticmethod
    def _unwrap(model: nn.Module) -> nn.Module:
        return unwrap(model)
