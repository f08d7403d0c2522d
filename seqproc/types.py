"""The records that travel between engines, scorers and users. They hold data and check shapes.

Legend: B prompts, G responses per prompt, L padded total length, T generated tokens of one
sequence. Nested lists are indexed ``[b][g]``. All log-probabilities and entropies are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from seqproc.errors import SequenceError
from seqproc.policy import SamplingPolicy

FinishReason = Literal["eos", "stop", "length"]


@dataclass(kw_only=True)
class Provenance:
    """What produced a result: enough to say which measure its numbers belong to."""

    policy: SamplingPolicy  # the fully resolved sampling policy
    model: str  # name or path as the user gave it
    engine: dict[str, Any] = field(default_factory=dict)  # the engine's own description
    precision: dict[str, Any] = field(default_factory=dict)  # dtypes of forward and statistics


@dataclass
class BatchedSequences:
    """Prompts and responses, left-padded prompts of one width followed by the responses.

    Raises:
        SequenceError: when lengths, masks and tensor do not fit together.
    """

    sequences: Tensor  # [B, G, L] int64 token ids: left-padded prompt, response, right padding
    prompt_lens: list[int]  # B times the same padded prompt width
    gen_lens: list[list[int]]  # [B][G] generated tokens, EOS and stop string included
    attention_masks: Tensor  # [B, G, L] 1 on real tokens, from true lengths and never from pad ids
    # [B][G] special tokens stripped, stop string kept; empty: not given, decode the ids for it
    responses_text: list[list[str]] = field(default_factory=list)
    finish_reasons: list[list[FinishReason]] | None = None  # [B][G]
    engine_logqs: list[list[Tensor | None]] | None = None  # [B][G] [T] the engine's own log q
    seeds: list[list[int]] | None = None  # [B][G] sampling seed of each draw
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_lengths(self)

    @property
    def num_prompts(self) -> int:
        """B."""
        return int(self.sequences.shape[0])

    @property
    def num_responses(self) -> int:
        """G."""
        return int(self.sequences.shape[1])

    def prompt_ids(self, b: int, g: int = 0) -> Tensor:
        """The prompt's own tokens, without padding: ``[prompt tokens]``."""
        width = self.prompt_lens[b]
        return self.sequences[b, g, :width][self.attention_masks[b, g, :width].bool()]

    def response_ids(self, b: int, g: int) -> Tensor:
        """The generated region: ``[T]``."""
        start = self.prompt_lens[b]
        return self.sequences[b, g, start : start + self.gen_lens[b][g]]


def _check_shapes(batch: BatchedSequences) -> None:
    shape = tuple(batch.sequences.shape)
    if len(shape) != 3:
        raise SequenceError(f"sequences must be [B, G, L], got a tensor of shape {list(shape)}")
    if batch.sequences.is_floating_point():
        raise SequenceError(f"sequences must hold integer ids, got {batch.sequences.dtype}")
    if tuple(batch.attention_masks.shape) != shape:
        raise SequenceError(
            f"attention_masks must have the shape of sequences {list(shape)}, "
            f"got {list(batch.attention_masks.shape)}"
        )
    num_prompts, num_responses, _ = shape
    if len(batch.prompt_lens) != num_prompts:
        raise SequenceError(
            f"prompt_lens must hold one length per prompt ({num_prompts}), "
            f"got {len(batch.prompt_lens)}"
        )
    for name in ("gen_lens", "responses_text", "finish_reasons", "engine_logqs", "seeds"):
        rows = getattr(batch, name)
        is_given = rows is not None and not (name == "responses_text" and len(rows) == 0)
        if is_given and [len(row) for row in rows] != [num_responses] * num_prompts:
            raise SequenceError(
                f"{name} must be nested as [{num_prompts}][{num_responses}], like sequences; "
                f"got {len(rows)} rows of lengths {sorted({len(row) for row in rows})}"
            )


def _check_lengths(batch: BatchedSequences) -> None:
    total = batch.sequences.shape[2]
    masks = batch.attention_masks.bool().cpu().numpy()
    for b, width in enumerate(batch.prompt_lens):
        for g, length in enumerate(batch.gen_lens[b]):
            where = f"sequence [{b}][{g}]"
            if not (width >= 0 and length >= 0 and width + length <= total):
                raise SequenceError(
                    f"{where}: prompt_len {width} + gen_len {length} must fit in "
                    f"the tensor's length {total}"
                )
            prompt = masks[b, g, :width]
            if (np.diff(prompt.astype(np.int8)) < 0).any():
                raise SequenceError(
                    f"{where}: the prompt's attention mask must be left-padded (zeros, then ones)"
                )
            if not masks[b, g, width : width + length].all():
                raise SequenceError(
                    f"{where}: attention_masks must be 1 on all {length} generated tokens; build "
                    "them from lengths, not from `tokens != pad`, which drops real EOS tokens"
                )
            if length and not prompt.any():
                raise SequenceError(f"{where}: a response needs at least one prompt token")


@dataclass
class LogprobResults:
    """Teacher-forced scores of a `BatchedSequences`, nested ``[B][G]``."""

    logprobs: list[list[Tensor]]  # [T] log p_raw(y_t): raw model, T = 1, untruncated
    entropies: list[list[np.ndarray]]  # [T] naive surprisal −log p_raw(y_t)
    sequence_logprobs: list[list[float]]  # Σ_t log p_raw(y_t)
    rb_entropies: list[list[np.ndarray]]  # [T] H(q_t); empty unless compute_rb
    rewards: list[list[float]]  # tag_pref; 0 without a gold answer
    rb_entropies_torch: list[list[Tensor]] | None = None  # [T] differentiable H(q_t)
    baseline_feats_torch: list[list[Tensor]] | None = None  # [T, 7] detached features
    token_logqs: list[list[Tensor]] | None = None  # [T] log q(y_t); −∞ outside the support
    sequence_logqs: list[list[float]] | None = None  # Σ_t log q(y_t)
    head_mass: list[list[np.ndarray]] | None = None  # [T] mass of the support under p
    out_of_support: list[list[int]] | None = None  # tokens with log q = −∞
    engine_logqs: list[list[Tensor | None]] | None = None  # [T] as the engine reported them
    provenance: Provenance | None = None


@dataclass
class TokenStepDiagnostics:
    """Statistics of q at each step of one sequence; arrays ``[T]``, defined in `seqproc.policy`."""

    rb_entropy: np.ndarray
    head_mass: np.ndarray
    tail_mass: np.ndarray
    two_point_entropy: np.ndarray
    top1_prob: np.ndarray
    margin: np.ndarray
    collision: np.ndarray
    renyi2: np.ndarray
    eff_support: np.ndarray
    logit_mean: np.ndarray
    logit_var: np.ndarray
    eos_prob: np.ndarray | None = None
    cut_margin: np.ndarray | None = None


@dataclass
class SequenceDiagnostics:
    """Aggregates over the T steps of one sequence; all 0 when T = 0."""

    T: int
    rb_entropy_sum: float
    rb_entropy_mean: float
    rb_entropy_max: float
    rb_entropy_min: float
    early_rb_entropy_mean: float  # first K = min(16, T) steps
    late_rb_entropy_mean: float  # the rest; the early mean when there is none
    naive_surprisal_sum: float  # Σ −log p_raw(y_t)
    naive_surprisal_mean: float
    margin_mean: float
    margin_sum: float
    top1_prob_mean: float
    collision_mean: float
    renyi2_mean: float
    eff_support_mean: float
    eos_prob_mean: float | None = None


@dataclass
class DiagnosticsPack:
    """Per-step and aggregate diagnostics of one sequence."""

    step: TokenStepDiagnostics
    seq: SequenceDiagnostics


@dataclass
class DiagnosticsResults:
    """Diagnostics of a `BatchedSequences`, nested ``[B][G]``."""

    diagnostics: list[list[DiagnosticsPack]]
