"""The records that travel between engines, scorers and users. They hold data; sequences check it.

Legend: B prompts, G responses per prompt, L padded total length, T generated tokens of one
sequence. Nested lists are indexed ``[b][g]``. All log-probabilities and entropies are in nats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from seqproc._util import sequence_checks as checks
from seqproc._util.printing import Facts, Printed, Words, name_of_dtype, spread
from seqproc.policy import SamplingPolicy

FinishReason = Literal["eos", "stop", "length"]


@dataclass(kw_only=True, repr=False)
class Provenance(Printed):
    """What produced a result: enough to say which measure its numbers belong to."""

    policy: SamplingPolicy  # the fully resolved sampling policy
    model: str  # name or path as the user gave it
    engine: dict[str, Any] = field(default_factory=dict)  # the engine's own description
    precision: dict[str, Any] = field(default_factory=dict)  # dtypes of forward and statistics
    reward: dict[str, Any] = field(default_factory=dict)  # its name and weights

    def _facts(self) -> Facts:
        return {
            "model": self.model,
            "policy": self.policy,
            "engine": self.engine.get("name"),
            "sampler": self.engine.get("sampler"),
            "reward": self.reward.get("name"),
        }


@dataclass(repr=False)
class BatchedSequences(Printed):
    """Prompts and responses, both padded, at columns that lengths say and masks confirm.

    A row is a prompt region of ``prompt_lens`` columns, then ``gen_lens`` generated tokens, then
    padding. The prompt's own tokens are those that the mask marks, all in a row: padded on the
    left, as engines give them, on the right, or not at all. What is scored is the prompt's tokens
    directly followed by the response.

    Arrays and nested lists become tensors, and lengths and seeds may be arrays or tensors. Fields
    may be changed afterwards; scoring calls `check` again.

    Raises:
        SequenceError: when a field holds what it may not, or lengths and masks differ.
    """

    sequences: Tensor  # [B, G, L] int64 token ids: padded prompt, response, right padding
    prompt_lens: list[int] | list[list[int]]  # [B] or [B][G] width of the padded prompt region
    gen_lens: list[list[int]]  # [B][G] generated tokens, EOS and stop string included
    attention_masks: Tensor  # [B, G, L] 1 on real tokens, from true lengths and never from pad ids
    # [B][G] special tokens stripped, stop string kept; empty: not given, decode the ids for it
    responses_text: list[list[str]] = field(default_factory=list)
    finish_reasons: list[list[FinishReason]] | None = None  # [B][G]
    engine_logqs: list[list[Tensor | None]] | None = None  # [B][G] [T] the engine's own log q
    seeds: list[list[int]] | None = None  # [B][G] sampling seed of each draw
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        self.check()

    def _facts(self) -> Facts:
        flat = [length for row in self.gen_lens for length in row]
        return {
            "shape": Words(list(self.sequences.shape)),
            "device": str(self.sequences.device),
            "generated": spread(flat),
            "finished": _counted(self.finish_reasons),
            "also": _there(self, ("responses_text", "engine_logqs", "seeds")),
            **_measure(self.provenance),
        }

    def check(self) -> None:
        """Take in what a tensor or a list can be made of, and refuse what does not fit."""
        self.sequences = checks.as_ids(self.sequences)
        shape = self.num_prompts, self.num_responses, self.sequences.shape[2]
        self.attention_masks = checks.as_masks(self.attention_masks, shape)
        self.prompt_lens = checks.as_prompt_lens(self.prompt_lens, shape)
        self.gen_lens = checks.nested("gen_lens", self.gen_lens, shape, checks.as_length)
        self._check_optional(shape)
        widths = [[self.prompt_width(b, g) for g in range(shape[1])] for b in range(shape[0])]
        checks.check_lengths(self.attention_masks, np.array(widths), np.array(self.gen_lens))

    def _check_optional(self, shape: tuple[int, int, int]) -> None:
        for name, read in _OPTIONAL.items():
            value = getattr(self, name)
            if name == "responses_text" and (value is None or _is_empty(value)):
                self.responses_text = []
            elif value is not None:
                setattr(self, name, checks.nested(name, value, shape, read))
        if not isinstance(self.provenance, Provenance | None):
            raise checks.fault("provenance", "a Provenance or None", self.provenance)
        if self.engine_logqs is not None:
            checks.check_logq_lengths(self.engine_logqs, self.gen_lens)

    @property
    def num_prompts(self) -> int:
        """B."""
        return int(self.sequences.shape[0])

    @property
    def num_responses(self) -> int:
        """G."""
        return int(self.sequences.shape[1])

    def prompt_width(self, b: int, g: int = 0) -> int:
        """Columns of the prompt region, padding included: where the response begins."""
        width = self.prompt_lens[b]
        return width[g] if isinstance(width, list) else width

    def prompt_ids(self, b: int, g: int = 0) -> Tensor:
        """The prompt's own tokens, without padding: ``[prompt tokens]``."""
        width = self.prompt_width(b, g)
        return self.sequences[b, g, :width][self.attention_masks[b, g, :width].bool()]

    def response_ids(self, b: int, g: int) -> Tensor:
        """The generated region: ``[T]``."""
        start = self.prompt_width(b, g)
        return self.sequences[b, g, start : start + self.gen_lens[b][g]]


_OPTIONAL: dict[str, Callable[[str, Any], Any]] = {
    "responses_text": checks.as_text,
    "finish_reasons": checks.one_of(get_args(FinishReason)),
    "engine_logqs": checks.as_logqs,
    "seeds": checks.as_seed,
}


def _is_empty(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 0


@dataclass(repr=False)
class LogprobResults(Printed):
    """Teacher-forced scores of a `BatchedSequences`, nested ``[B][G]``."""

    logprobs: list[list[Tensor]]  # [T] log p_raw(y_t): raw model, T = 1, untruncated
    entropies: list[list[np.ndarray]]  # [T] naive surprisal −log p_raw(y_t)
    sequence_logprobs: list[list[float]]  # Σ_t log p_raw(y_t)
    rb_entropies: list[list[np.ndarray]]  # [T] H(q_t); empty unless compute_rb
    rewards: list[list[float]]  # the processor's reward; of tag_pref 0 without a gold answer
    rb_entropies_torch: list[list[Tensor]] | None = None  # [T] differentiable H(q_t)
    baseline_feats_torch: list[list[Tensor]] | None = None  # [T, 7] detached features
    token_logqs: list[list[Tensor]] | None = None  # [T] log q(y_t); −∞ outside the support
    sequence_logqs: list[list[float]] | None = None  # Σ_t log q(y_t)
    head_mass: list[list[np.ndarray]] | None = None  # [T] mass of the support under p
    out_of_support: list[list[int]] | None = None  # tokens with log q = −∞
    engine_logqs: list[list[Tensor | None]] | None = None  # [T] as the engine reported them
    provenance: Provenance | None = None

    def _facts(self) -> Facts:
        scores = [one for row in self.logprobs for one in row]
        outside = self.out_of_support
        return {
            **_nesting(self.logprobs),
            "tokens": spread([len(one) for one in scores]),
            "dtype": name_of_dtype(scores[0].dtype) if scores else None,
            "requires_grad": any(one.requires_grad for one in scores) or None,
            "out_of_support": None if outside is None else sum(map(sum, outside)),
            "also": _there(self, _SOMETIMES_SCORED),
            **_measure(self.provenance),
        }


_SOMETIMES_SCORED = (
    "rb_entropies_torch",
    "baseline_feats_torch",
    "token_logqs",
    "sequence_logqs",
    "head_mass",
    "engine_logqs",
)


@dataclass(repr=False)
class TokenStepDiagnostics(Printed):
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

    def _facts(self) -> Facts:
        return {
            "tokens": len(self.rb_entropy),
            "dtype": name_of_dtype(self.rb_entropy.dtype),
            "statistics": sum(getattr(self, one.name) is not None for one in fields(self)),
        }


@dataclass(repr=False)
class SequenceDiagnostics(Printed):
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

    def _facts(self) -> Facts:
        names = (
            "T",
            "rb_entropy_sum",
            "rb_entropy_mean",
            "naive_surprisal_sum",
            "naive_surprisal_mean",
            "top1_prob_mean",
            "eff_support_mean",
            "eos_prob_mean",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(repr=False)
class DiagnosticsPack(Printed):
    """Per-step and aggregate diagnostics of one sequence."""

    step: TokenStepDiagnostics
    seq: SequenceDiagnostics

    def _facts(self) -> Facts:
        return {
            "tokens": self.seq.T,
            "dtype": name_of_dtype(self.step.rb_entropy.dtype),
            "rb_entropy_mean": self.seq.rb_entropy_mean,
            "naive_surprisal_mean": self.seq.naive_surprisal_mean,
        }


@dataclass(repr=False)
class DiagnosticsResults(Printed):
    """Diagnostics of a `BatchedSequences`, nested ``[B][G]``."""

    diagnostics: list[list[DiagnosticsPack]]

    def _facts(self) -> Facts:
        packs = [pack for row in self.diagnostics for pack in row]
        return {
            **_nesting(self.diagnostics),
            "tokens": spread([pack.seq.T for pack in packs]),
            "dtype": name_of_dtype(packs[0].step.rb_entropy.dtype) if packs else None,
        }


# ------------------------------------------------------------------ what records print


def _nesting(nested: list[list[Any]]) -> Facts:
    """B and G."""
    return {"prompts": len(nested), "responses": spread([len(row) for row in nested])}


def _there(record: object, names: tuple[str, ...]) -> Words:
    """Which of a record's optional fields are filled."""
    nested = {name: getattr(record, name) or [] for name in names}
    filled = [name for name, rows in nested.items() if _holds_any(rows)]
    return Words(" + ".join(filled))


def _holds_any(rows: list[list[Any]]) -> bool:
    return any(one is not None for row in rows for one in row)


def _counted(reasons: list[list[FinishReason]] | None) -> Words:
    """How many responses ended for each reason."""
    counts = Counter(reason for row in reasons or [] for reason in row)
    return Words(" + ".join(f"{num} {reason}" for reason, num in sorted(counts.items())))


def _measure(provenance: Provenance | None) -> Facts:
    """The policy and the model that made a result."""
    return {} if provenance is None else {"policy": provenance.policy, "model": provenance.model}
