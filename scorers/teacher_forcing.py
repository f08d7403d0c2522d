"""Teacher forcing: re-read given tokens and score each one exactly.

Knows models, parameter mappings and batches of token ids; not prompts, engines or files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from seqproc.config import PrecisionConfig, torch_dtype
from seqproc.errors import ScoringError
from seqproc.modules import unwrap
from seqproc.policy import SamplingPolicy, TokenScores
from seqproc.scorers import precision as precisions
from seqproc.scorers.batching import PaddedBatch, TokenSequence, padded_batches
from seqproc.scorers.forward import device_of, evaluating, forward_logits
from seqproc.scorers.measure import empty_scores, measure
from seqproc.scorers.overrides import ParamMapping, cast_up, resolve_mapping, widest

Progress = Callable[[int], None]  # called with the number of sequences just scored


class TeacherForcingScorer:
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
        self.model = unwrap(model)
        self.eos_token_ids = tuple(eos_token_ids)
        self.precision = precision or PrecisionConfig()

    @property
    def device(self) -> torch.device:
        """Where the forward passes run."""
        return device_of(self.model)

    def score(
        self,
        sequences: Sequence[TokenSequence],
        policy: SamplingPolicy,
        *,
        batch_size: int,
        overrides: Sequence[ParamMapping | None] = (None,),
        buffers: ParamMapping | None = None,
        progress: Progress | None = None,
    ) -> list[list[TokenScores]]:
        """Score without gradients, once per override, through `torch.func.functional_call`.

        Args:
            sequences: what to score.
            policy: the measure q.
            batch_size: sequences per forward.
            overrides: parameter mappings, possibly partial; None stands for the model's own θ. All
                share one schedule of batches.
            buffers: overriding buffers, for all overrides.
            progress: told how many sequences each batch finished.

        Returns:
            ``[override][sequence]`` scores on the CPU, in the order given.

        Raises:
            OverrideError: an override that does not fit the model.
            ScoringError: a log-probability that is not a number.
        """
        mappings = [
            resolve_mapping(self.model, override, buffers, self._least_dtypes())
            for override in overrides
        ]
        results = [self._empty(sequences, width) for _, width in mappings]
        with torch.no_grad():
            for batch in padded_batches(sequences, batch_size, self.device):
                for result, (mapping, width) in zip(results, mappings, strict=True):
                    with self._forwarding(width):
                        logits = self._batch_logits(batch, mapping)
                    dtype = self._statistics_dtype(logits.dtype)
                    for i, scores in self._read(logits, dtype, batch, sequences, policy):
                        result[i] = _checked(scores.map(_to_cpu), i)
                if progress is not None:
                    progress(len(batch.indices))
        return results

    def score_with_grad(
        self, sequences: Sequence[TokenSequence], policy: SamplingPolicy, *, batch_size: int
    ) -> list[TokenScores]:
        """Score on the live module, keeping the graph from its parameters to every score.

        The module runs as it is unless the profile asks for a wider dtype; then its parameters are
        cast inside the graph, so that gradients reach them all the same.
        """
        profile = self.precision.tf_withgrad
        dtype = torch_dtype(profile.dtype)
        autocast = dtype if profile.autocast else None
        mapping, width = self._live_mapping(None if profile.autocast else dtype)
        results = self._empty(sequences, width)
        with torch.enable_grad():
            for batch in padded_batches(sequences, batch_size, self.device):
                with self._forwarding(width, autocast):
                    logits = self._batch_logits(batch, mapping)
                dtype = self._statistics_dtype(logits.dtype, with_grad=True)
                for i, scores in self._read(logits, dtype, batch, sequences, policy):
                    results[i] = _checked(scores, i)
        return results

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, mapping: ParamMapping | None = None
    ) -> Tensor:
        """Logits ``[N, L, V]`` of one forward without gradients, autocast or cache."""
        state, width = resolve_mapping(self.model, mapping, None, self._least_dtypes())
        with torch.no_grad(), self._forwarding(width):
            return forward_logits(self.model, input_ids, attention_mask, state)

    def _least_dtypes(self) -> list[torch.dtype]:
        override, no_grad = self.precision.func_override, self.precision.tf_nograd
        names = [no_grad.dtype, *([override.dtype] if override.cast_params else [])]
        return [torch_dtype(name) for name in names]

    def _live_mapping(
        self, least: torch.dtype | None
    ) -> tuple[dict[str, Tensor] | None, torch.dtype]:
        """None when the module is wide enough, else its own tensors cast inside the graph."""
        own = widest(p.dtype for p in self.model.parameters())
        width = own if least is None else torch.promote_types(own, least)
        if width == own:
            return None, width
        state: dict[str, Tensor] = dict(self.model.named_parameters())
        state |= dict(self.model.named_buffers())
        return {name: cast_up(tensor, width) for name, tensor in state.items()}, width

    @contextlib.contextmanager
    def _forwarding(
        self, width: torch.dtype, autocast: torch.dtype | None = None
    ) -> Iterator[None]:
        """Evaluation mode and the configured precision, around one forward."""
        with (
            evaluating(self.model),
            precisions.matmul_mode(
                allow_tf32=self.precision.allow_tf32, precision=self.precision.matmul_precision
            ),
            precisions.autocast(self.device, autocast),
            precisions.exact_forward(width),
        ):
            yield

    def _batch_logits(self, batch: PaddedBatch, mapping: ParamMapping | None) -> Tensor:
        return forward_logits(self.model, batch.input_ids, batch.attention_mask, mapping)

    def _read(
        self,
        logits: Tensor,
        dtype: torch.dtype,
        batch: PaddedBatch,
        sequences: Sequence[TokenSequence],
        policy: SamplingPolicy,
    ) -> Iterator[tuple[int, TokenScores]]:
        """Logits at i − 1 score the token at i: yield the scores of each sequence of a batch."""
        for row, (i, (start, stop)) in enumerate(zip(batch.indices, batch.spans, strict=True)):
            tokens = sequences[i].response_ids.to(logits.device)
            read = logits[row, start:stop].to(dtype)
            yield i, measure(read, tokens, policy, self.eos_token_ids)

    def _statistics_dtype(self, forward: torch.dtype, with_grad: bool = False) -> torch.dtype:
        if self.precision.entropy_fp64:
            return torch.float64
        profile = self.precision.tf_withgrad if with_grad else self.precision.tf_nograd
        return torch.promote_types(forward, torch.float32) if profile.cast_logits_fp32 else forward

    def _empty(self, sequences: Sequence[TokenSequence], width: torch.dtype) -> list[TokenScores]:
        dtype = self._statistics_dtype(width)
        return [empty_scores(dtype, self.eos_token_ids)] * len(sequences)


def _to_cpu(values: Tensor) -> Tensor:
    return values.detach().cpu()


def _checked(scores: TokenScores, index: int) -> TokenScores:
    broken = scores.logprobs.isnan() | scores.logqs.isnan()
    if bool(broken.any()):
        at = int(broken.nonzero()[0, 0])
        raise ScoringError(
            f"sequence {index}: the log-probability of generated token {at} is not a number. The "
            "model's logits are NaN or infinite there: check its weights, or score in a wider dtype"
        )
    return scores
