"""Teacher forcing: re-read given tokens and score each one exactly.

Knows models, parameter mappings and batches of token ids; not prompts, engines or files.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from seqproc._util.arguments import require, require_all
from seqproc._util.by_device import ByDevice
from seqproc._util.isolation import in_turn, undisturbed
from seqproc._util.kernels import kernels_on
from seqproc._util.memory import is_out_of_memory
from seqproc._util.printing import Facts, Printed, Words
from seqproc._util.tensor_arguments import require_dense, require_ids, require_ids_below, token_ids
from seqproc.config import PrecisionConfig, require_flag, torch_dtype
from seqproc.errors import (
    ConfigError,
    ModelError,
    OverrideError,
    ScoringError,
    SeqprocError,
    SequenceError,
)
from seqproc.models.introspection import num_embedded
from seqproc.models.parameters import ParamMapping
from seqproc.models.wrappers import unwrap
from seqproc.policy import SamplingPolicy, TokenScores, require_policy, score_tokens
from seqproc.scorers import precision as precisions
from seqproc.scorers.batching import Batch, Limits, TokenSequence
from seqproc.scorers.budget import Schedule, default_logits, default_tokens
from seqproc.scorers.chunks import in_chunks
from seqproc.scorers.examination import examine
from seqproc.scorers.finite import Span, require_numbers
from seqproc.scorers.forward import (
    device_of,
    evaluating,
    forward_logits,
    whole_embedding_gradients,
)
from seqproc.scorers.kernels.attention import differentiable_attention
from seqproc.scorers.kernels.packing import FORWARD_COST
from seqproc.scorers.kernels.products import ROW_MULTIPLE
from seqproc.scorers.measure import empty_scores, measure
from seqproc.scorers.overrides import cast_up, resolve_mapping, widest
from seqproc.scorers.plain import score_one_by_one

# Logits of one chunk of the head: 132 MB in float32 on a CPU, a little less than the largest blocks
# that `keep_freed_memory` keeps. With smaller chunks a CPU packs the matrix more often.
_HEAD_ELEMENTS = ByDevice(cpu=33_000_000, accelerator=1 << 27)
# Fewer with gradients: a backward pass holds several tensors of this size.
_HEAD_ELEMENTS_WITH_GRAD = ByDevice(cpu=1 << 22, accelerator=1 << 26)

ScoreBatch = Callable[..., TokenScores]  # of a Batch; further options as of `score_batch`
Progress = Callable[[int], object]  # called with the number of sequences just scored


class TeacherForcingScorer(Printed):
    """Scores token sequences under a model and a sampling policy.

    Args:
        model: a causal language model. Data-parallel wrappers are taken off, PEFT is kept.
        eos_token_ids: ids whose joint probability is the statistic ``eos_prob``.
        precision: dtypes of forward passes and statistics; may be changed between calls.
    """

    def __init__(
        self,
        model: nn.Module,
        eos_token_ids: Sequence[int] = (),
        precision: PrecisionConfig | None = None,
    ) -> None:
        require("model", model, nn.Module, "a causal language model in torch", ModelError)
        require("precision", precision, (PrecisionConfig, type(None)), "a PrecisionConfig or None")
        self.model = unwrap(model)
        self.eos_token_ids = token_ids("eos_token_ids", eos_token_ids)
        self.precision = precision or PrecisionConfig()
        self.parts, self.shortcuts = examine(self.model)
        self._differentiates_attention = False

    def _facts(self) -> Facts:
        return {
            "model": type(self.model).__name__,
            "device": str(self.device),
            "dtype": Words(self.precision.tf_nograd.dtype),
        }

    @property
    def device(self) -> torch.device:
        """Where the forward passes run."""
        return device_of(self.model)

    def score(
        self,
        sequences: Sequence[TokenSequence],
        policy: SamplingPolicy,
        *,
        batch_size: int | None = None,
        token_budget: int | None = None,
        share_prompts: bool = True,
        overrides: Iterable[ParamMapping | None] = (None,),
        buffers: ParamMapping | None = None,
        progress: Progress | None = None,
    ) -> list[list[TokenScores]]:
        """Score without gradients, once per override, through `torch.func.functional_call`.

        Args:
            sequences: what to score.
            policy: the measure q.
            batch_size: most sequences per forward; None: as many as the budget allows.
            token_budget: most tokens per forward, padding included; None: from free memory. When
                memory runs out all the same, the budget is halved and work goes on.
            share_prompts: compute a prompt that several sequences have in common once per batch.
            overrides: parameter mappings, possibly partial; None stands for the model's own θ.
                Taken one after another, so that a generator never has two in memory. All share
                one schedule of batches.
            buffers: overriding buffers, for all overrides.
            progress: told how many sequences each batch finished.

        Returns:
            ``[override][sequence]`` scores on the CPU, in the order given.

        Raises:
            OverrideError: an override that does not fit the model.
            ConfigError: a limit that is not a whole number ≥ 1.
            ScoringError: a score that is not a number, what the model's own code raises, or one
                sequence alone that does not fit in memory.
        """
        require_policy(policy)
        if progress is not None and not callable(progress):
            raise ConfigError(
                f"progress must be a function of a number of sequences, got {progress!r:.60}"
            )
        if not isinstance(overrides, Iterable) or isinstance(overrides, (Tensor, str)):
            raise OverrideError(
                f"overrides must be mappings or None, in a list, got {type(overrides).__name__}"
            )
        schedule = self.schedule(sequences, batch_size, token_budget, share_prompts)
        report = progress or _report_nothing
        return [
            self._score_at(override, buffers, policy, schedule, report) for override in overrides
        ]

    @torch.no_grad()
    def _score_at(
        self,
        override: ParamMapping | None,
        buffers: ParamMapping | None,
        policy: SamplingPolicy,
        schedule: Schedule,
        report: Progress,
    ) -> list[TokenScores]:
        """The scores of every sequence at one override, on the CPU."""
        mapping, width = resolve_mapping(self.model, override, buffers, self.minimum_dtypes())
        results = [self.empty_scores(width)] * len(schedule.sequences)
        with kernels_on(self.precision.kernels):
            for spans, scores in self._scored(schedule, policy, mapping, width):
                _place(results, spans, scores.map(_to_cpu))
                report(len(spans))
        return results

    def _scored(
        self,
        schedule: Schedule,
        policy: SamplingPolicy,
        mapping: ParamMapping | None,
        width: torch.dtype,
        autocast: torch.dtype | None = None,
    ) -> Iterator[tuple[list[Span], TokenScores]]:
        """Yield scores of some sequences, and where among them each one's are, until all are done.

        Batch by batch, or without any kernel as scores are defined; see `score_batch`.
        """
        if not self.precision.kernels:
            yield from score_one_by_one(
                self.model,
                schedule.sequences,
                policy,
                self.eos_token_ids,
                mapping,
                forwarding=functools.partial(self.forwarding, width, autocast),
                statistics_dtype=self._statistics_dtype,
            )
            return
        work = functools.partial(
            self.score_batch, policy=policy, mapping=mapping, width=width, autocast=autocast
        )
        for batch, scores in schedule.map(work):
            yield list(batch.spans()), scores

    def score_with_grad(
        self,
        sequences: Sequence[TokenSequence],
        policy: SamplingPolicy,
        *,
        batch_size: int | None = None,
        token_budget: int | None = None,
        share_prompts: bool = True,
    ) -> list[TokenScores]:
        """Score on the live module, keeping the graph from its parameters to every score.

        The module runs as it is unless the profile asks for a wider dtype; then its parameters are
        cast inside the graph, so that gradients reach them all the same. Logits are not kept: the
        backward pass computes them again, chunk by chunk, from the hidden states.
        """
        require_all("sequences", sequences, TokenSequence, "TokenSequence", SequenceError)
        require_policy(policy)
        results = [self.empty_scores(self._with_grad_width())] * len(sequences)
        self._require_trainable()
        with (
            undisturbed(self.device),
            torch.enable_grad(),
            kernels_on(self.precision.kernels),
        ):
            schedule = self.schedule(sequences, batch_size, token_budget, share_prompts)
            for spans, scores in self._scored(schedule, policy, **self._with_graph()):
                _place(results, spans, scores)
        return results

    def graphed(self, policy: SamplingPolicy) -> ScoreBatch:
        """A function from batches to their scores, by the profile for gradients.

        To be made and called where gradients are enabled; see `score_with_grad`.
        """
        require_policy(policy)
        return functools.partial(self.score_batch, policy=policy, **self._with_graph())

    def _with_graph(self) -> dict[str, Any]:
        """Parameters and dtypes of a forward with gradients."""
        profile, width = self.precision.tf_withgrad, self._with_grad_width()
        autocast = torch_dtype(profile.dtype) if profile.autocast else None
        return {"mapping": self._live_mapping(width), "width": width, "autocast": autocast}

    def with_differentiable_attention(self) -> TeacherForcingScorer:
        """The same scorer, whose attention can be differentiated forwards, and twice."""
        scorer = copy.copy(self)
        scorer._differentiates_attention = True
        return scorer

    def schedule(
        self,
        sequences: Sequence[TokenSequence],
        batch_size: int | None = None,
        token_budget: int | None = None,
        share_prompts: bool = True,
    ) -> Schedule:
        """The batches that `score` runs through; see there."""
        require_all("sequences", sequences, TokenSequence, "TokenSequence", SequenceError)
        vocabulary = num_embedded(self.model)
        for i, sequence in enumerate(sequences):
            require_ids_below(f"prompt_ids of sequence {i}", sequence.prompt_ids, vocabulary)
            require_ids_below(f"response_ids of sequence {i}", sequence.response_ids, vocabulary)
        limits = Limits(
            tokens=default_tokens(self.model, self.device)
            if token_budget is None
            else token_budget,
            sequences=batch_size if self.shortcuts.batches else 1,
            share_prompts=require_flag("share_prompts", share_prompts)
            and self.parts.can_share_prompts,
            forward_cost=FORWARD_COST.on(self.device),
        )
        with kernels_on(self.precision.kernels):
            return Schedule(sequences, limits)

    @in_turn()
    def score_batch(
        self,
        batch: Batch,
        policy: SamplingPolicy,
        mapping: ParamMapping | None,
        width: torch.dtype,
        autocast: torch.dtype | None = None,
        *,
        keep_logits: bool = False,
    ) -> TokenScores:
        """Scores ``[R]`` of all targets of a batch, the head taken in chunks.

        Args:
            batch: from `schedule`.
            policy: the measure q.
            mapping: every parameter and buffer by name, or None for the live module.
            width: dtype of the forward, as from `resolve_mapping`.
            autocast: dtype of autocast, if on.
            keep_logits: whether a graph holds all logits and what is made of them, instead of
                computing them once more in a backward pass: sooner, and for few tokens.
        """
        batch, with_grad = batch.to(self.device), torch.is_grad_enabled()
        with self.forwarding(width, autocast):
            states = self.parts.hidden_states(batch, mapping)
        head = self.parts.head_tensors(mapping)

        def score_states(states: Tensor, tokens: Tensor, *tensors: Tensor) -> TokenScores:
            with self.forwarding(width, autocast):  # once more in a backward pass
                logits = self.parts.logits(states, dict(zip(head, tensors, strict=True)))
            dtype = self._statistics_dtype(logits.dtype, with_grad)
            read = score_tokens if keep_logits else measure
            with kernels_on(self.precision.kernels):
                return read(logits.to(dtype), tokens, policy, self.eos_token_ids)

        if keep_logits or not self.parts.has_head:
            return score_states(states, batch.targets, *head.values())
        num_rows = self._head_rows(with_grad)
        return in_chunks(score_states, num_rows, states, batch.targets, *head.values())

    def _head_rows(self, with_grad: bool) -> int:
        elements = (_HEAD_ELEMENTS_WITH_GRAD if with_grad else _HEAD_ELEMENTS).on(self.device)
        rows = max(1, default_logits(elements, self.device) // self.parts.vocab_size)
        return rows - rows % ROW_MULTIPLE if rows > ROW_MULTIPLE else rows

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, mapping: ParamMapping | None = None
    ) -> Tensor:
        """Logits ``[N, L, V]`` of one forward without gradients, autocast or cache."""
        require_ids("input_ids", input_ids, dims=2)
        require_dense("attention_mask", attention_mask, dims=2)
        state, width = resolve_mapping(self.model, mapping, None, self.minimum_dtypes())
        with torch.no_grad(), self.forwarding(width):
            return forward_logits(self.model, input_ids, attention_mask, state)

    def minimum_dtypes(self) -> list[torch.dtype]:
        """Lower bounds on the dtype of a forward without gradients."""
        override, no_grad = self.precision.func_override, self.precision.tf_nograd
        names = [no_grad.dtype, *([override.dtype] if override.cast_params else [])]
        return [torch_dtype(name) for name in names]

    @in_turn()
    def _require_trainable(self) -> None:
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ModelError(
                "no parameter of the model requires a gradient, so that there is none to keep: "
                "unfreeze some (requires_grad_(True)), or score without gradients"
            )

    def _with_grad_width(self) -> torch.dtype:
        """Dtype of a forward with gradients: at least the model's own."""
        profile = self.precision.tf_withgrad
        asked = [] if profile.autocast else [torch_dtype(profile.dtype)]
        return widest([self._own_width(), *asked])

    @in_turn()
    def _own_width(self) -> torch.dtype:
        return widest(p.dtype for p in self.model.parameters())

    @in_turn()
    def _live_mapping(self, width: torch.dtype) -> dict[str, Tensor] | None:
        """None when the module is wide enough, else its own tensors cast inside the graph."""
        if width == self._own_width():
            return None
        state: dict[str, Tensor] = dict(self.model.named_parameters())
        state |= dict(self.model.named_buffers())
        return {name: cast_up(tensor, width) for name, tensor in state.items()}

    @contextlib.contextmanager
    def forwarding(self, width: torch.dtype, autocast: torch.dtype | None = None) -> Iterator[None]:
        """The context of every forward: evaluation mode, precision, and the kernels that are on."""
        with (
            in_turn(),
            kernels_on(self.precision.kernels),
            _explained(self.model, autocast or width),
            evaluating(self.model),
            precisions.matmul_mode(
                allow_tf32=self.precision.allow_tf32, precision=self.precision.matmul_precision
            ),
            precisions.autocast(self.device, autocast),
            precisions.exact_forward(width),
            differentiable_attention(self.model)
            if self._differentiates_attention
            else contextlib.nullcontext(),
            self._kernels_of_forward(),
            whole_embedding_gradients(),
        ):
            yield

    def _kernels_of_forward(self) -> AbstractContextManager[None]:
        is_plain = not self.precision.kernels
        return contextlib.nullcontext() if is_plain else self.shortcuts.scope(self.model)

    def _statistics_dtype(self, forward: torch.dtype, with_grad: bool = False) -> torch.dtype:
        if self.precision.entropy_fp64:
            return torch.float64
        profile = self.precision.tf_withgrad if with_grad else self.precision.tf_nograd
        return torch.promote_types(forward, torch.float32) if profile.cast_logits_fp32 else forward

    def empty_scores(self, width: torch.dtype) -> TokenScores:
        """Scores of a response without tokens, of a forward of this dtype."""
        return empty_scores(self._statistics_dtype(width), self.eos_token_ids)


@contextlib.contextmanager
def _explained(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Turn whatever a model's own code raises into a `ScoringError` that says what can be done."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SeqprocError) or is_out_of_memory(error):
            raise
        name, width = type(model).__name__, str(dtype).removeprefix("torch.")
        raise ScoringError(
            f"the forward of a {name} in {width} raised "
            f"{type(error).__name__}: {error}. The model's own code may not support this dtype, "
            "these sequences or forward derivatives: try another dtype of the profile in precision"
        ) from error


def _report_nothing(num_sequences: int) -> None:
    """Progress that nobody asked for."""


def _to_cpu(values: Tensor) -> Tensor:
    return values.detach().cpu()


def _place(results: list[TokenScores], spans: Sequence[Span], scores: TokenScores) -> None:
    """Cut scores up into each sequence's, if all of them are numbers."""
    require_numbers(scores, spans)
    for index, start, stop in spans:
        results[index] = scores.rows(start, stop)
