"""`SequenceScorer`: `BatchedSequences` in, the specification's results out, by teacher forcing.

Joins the scorer's flat lists of token sequences to the nested records; computes nothing itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from seqproc._util.progress import progress_bar
from seqproc.config import GenerationConfig, PrecisionConfig, require_count
from seqproc.engines import ModelSource
from seqproc.errors import ScoringError, SequenceError
from seqproc.models.introspection import has_position_table
from seqproc.models.parameters import ParamMapping
from seqproc.policy import TokenScores
from seqproc.processor import assembly
from seqproc.scorers import (
    TeacherForcingScorer,
    TokenSequence,
    gradient_gram,
    projected_gradients,
    sequence_gradients,
    token_sequences,
    weighted_gradient,
)
from seqproc.scorers.derivatives import TokenDerivatives, jvp
from seqproc.scorers.gradients import Gradient, OfScores
from seqproc.types import BatchedSequences, DiagnosticsResults, LogprobResults, Provenance

Scored = tuple[LogprobResults, DiagnosticsResults]


class SequenceScorer:
    """Scores sequences with the source's model, which loads when it is first needed.

    Args:
        source: the model and what is known of it.
        config: policy and batch size; read at each call, so changes take effect.
        precision: dtypes; read at each call.
        provenance: what to record with a result.
        logger: where warnings go; by default the logger ``seqproc``.
    """

    def __init__(
        self,
        source: ModelSource,
        config: GenerationConfig,
        precision: PrecisionConfig,
        provenance: Callable[[], Provenance],
        logger: logging.Logger | None = None,
    ) -> None:
        self.source = source
        self.config = config
        self.precision = precision
        self._provenance = provenance
        self._logger = logger or logging.getLogger("seqproc")
        self._told_of_context = False
        self._teacher: TeacherForcingScorer | None = None

    @property
    def teacher(self) -> TeacherForcingScorer:
        """The scorer of token sequences, on the model loaded now if it was not."""
        if self._teacher is None:
            self._teacher = TeacherForcingScorer(
                self.source.live_model(), self.source.eos_token_ids, self.precision
            )
        return self._teacher

    def use(self, precision: PrecisionConfig) -> None:
        """Score with other dtypes from now on."""
        self.precision = precision
        if self._teacher is not None:
            self._teacher.precision = precision

    def score(
        self,
        sequences: BatchedSequences,
        overrides: Iterable[ParamMapping | None],
        buffers: ParamMapping | None,
        batch_size: int | None,
        *,
        compute_rb: bool,
        baseline_features: bool = False,
        num_overrides: int = 1,
    ) -> list[Scored]:
        """Score without gradients, once per override, all by one schedule of batches."""
        items = self._items(sequences)
        total = len(items) * num_overrides
        with (
            progress_bar(total, "scoring", unit="seq") as bar,
            self._naming_length(items),
        ):
            scores = self.teacher.score(
                items,
                self.config.policy,
                overrides=overrides,
                buffers=buffers,
                progress=bar.update,
                **self._limits(batch_size),
            )
        return [
            self._results(sequences, one, compute_rb, baseline_features=baseline_features)
            for one in scores
        ]

    def jvp(
        self, sequences: BatchedSequences, direction: ParamMapping, batch_size: int | None
    ) -> list[list[TokenDerivatives]]:
        """Derivatives of all scores along a direction, ``[b][g]``."""
        items, limits = self._items(sequences), self._limits(batch_size)
        with self._naming_length(items):
            derivatives = jvp(self.teacher, items, self.config.policy, direction, **limits)
        return assembly.nested(derivatives, sequences.num_responses, lambda one: one)

    def gradients(self, sequences: BatchedSequences, of: OfScores) -> Iterator[Gradient]:
        """A gradient per sequence, in the order [b][g]."""
        items = self._items(sequences)
        return sequence_gradients(self.teacher, items, self.config.policy, of)

    def projected(
        self, sequences: BatchedSequences, directions: Sequence[ParamMapping], of: OfScores
    ) -> Tensor:
        """Their products with K directions, ``[B, G, K]``."""
        items, policy = self._items(sequences), self.config.policy
        products = projected_gradients(self.teacher, items, policy, directions, of)
        return products.unflatten(0, (sequences.num_prompts, sequences.num_responses))

    def weighted_gradient(
        self, sequences: BatchedSequences, weights: Tensor, of: OfScores
    ) -> Gradient:
        """Their sum, by weights ``[B, G]``."""
        items, policy = self._items(sequences), self.config.policy
        shape = (sequences.num_prompts, sequences.num_responses)
        try:
            weights = torch.as_tensor(weights, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SequenceError(
                f"weights must be {list(shape)}, numbers like sequences' rows, got "
                f"{type(weights).__name__} ({error})"
            ) from error
        if weights.shape != shape:
            raise SequenceError(
                f"weights must be {list(shape)}, like sequences, got {list(weights.shape)}"
            )
        size = self.config.tf_batch_size
        return weighted_gradient(
            self.teacher, items, policy, weights.flatten(), of, batch_size=size
        )

    def gradient_gram(self, sequences: BatchedSequences, of: OfScores) -> Tensor:
        """Their Gram matrix, ``[B·G, B·G]``."""
        return gradient_gram(self.teacher, self._items(sequences), self.config.policy, of)

    def score_with_grad(
        self,
        sequences: BatchedSequences,
        batch_size: int | None,
        *,
        compute_rb: bool,
        baseline_features: bool = False,
    ) -> Scored:
        """Score on the live module, keeping the graph."""
        items, limits = self._items(sequences), self._limits(batch_size)
        with self._naming_length(items):
            scores = self.teacher.score_with_grad(items, self.config.policy, **limits)
        return self._results(
            sequences,
            scores,
            compute_rb,
            baseline_features=baseline_features,
            rb_graph=compute_rb and self.config.rb_requires_grad,
        )

    def _limits(self, batch_size: int | None) -> dict[str, Any]:
        size = self.config.tf_batch_size if batch_size is None else batch_size
        return {
            "batch_size": require_count("tf_batch_size", size),
            "token_budget": self.config.tf_token_budget,
            "share_prompts": self.config.tf_share_prompts,
        }

    def _results(
        self,
        sequences: BatchedSequences,
        scores: Sequence[TokenScores],
        compute_rb: bool,
        *,
        baseline_features: bool,
        rb_graph: bool = False,
    ) -> Scored:
        results = assembly.logprob_results(
            scores,
            sequences,
            compute_rb=compute_rb,
            rb_graph=rb_graph,
            features=baseline_features,
            provenance=self._provenance(),
        )
        return results, assembly.diagnostics_results(scores, sequences.num_responses)

    def _items(self, sequences: BatchedSequences) -> list[TokenSequence]:
        """The B·G sequences, checked: that they fit together, the vocabulary and the context."""
        require_sequences(sequences)
        self._check_ids(sequences)
        items = token_sequences(sequences)
        self._check_context(items)
        return items

    def _check_context(self, items: Sequence[TokenSequence]) -> None:
        """Refuse what a table of positions cannot hold; elsewhere warn of it, once."""
        context, longest = self.source.max_context, _longest(items)
        if context is None or longest <= context:
            return
        if _num_read(longest) > context and has_position_table(self.source.live_model(), context):
            raise _beyond(longest, f"positions only for {context}")
        if not self._told_of_context:
            self._told_of_context = True
            self._logger.warning(
                "sequences of up to %d tokens are longer than the model's context of %d: they are "
                "scored at positions that it was not made for",
                longest,
                context,
            )

    @contextlib.contextmanager
    def _naming_length(self, items: Sequence[TokenSequence]) -> Iterator[None]:
        """Tell of the length where the model's own code could not read so far, in whatever way."""
        try:
            yield
        except ScoringError as error:
            if (told := self._told_by(error.__cause__, _longest(items))) is not None:
                raise told from error.__cause__
            raise

    def _told_by(self, cause: BaseException | None, longest: int) -> SequenceError | None:
        context = self.source.max_context
        if context is None and isinstance(cause, IndexError):
            return _beyond(longest, "positions for fewer, it seems, than that many")
        if context is not None and _num_read(longest) > context and cause is not None:
            return _beyond(longest, f"a context of {context}")
        return None

    def _check_ids(self, sequences: BatchedSequences) -> None:
        vocabulary = self.source.vocab_size
        real = sequences.sequences[sequences.attention_masks.bool()]
        if len(real) and not 0 <= int(real.min()) <= int(real.max()) < vocabulary:
            raise SequenceError(
                f"sequences hold token ids from {int(real.min())} to {int(real.max())}, but the "
                f"model's vocabulary has {vocabulary}: were they made with another tokenizer?"
            )


def require_sequences(sequences: object) -> None:
    """Refuse what is no `BatchedSequences`, or one whose fields, as they are now, do not fit."""
    if not isinstance(sequences, BatchedSequences):
        raise SequenceError(
            f"sequences must be a BatchedSequences, got {type(sequences).__name__}: "
            "generate_batched makes one. `seqproc score FILE.jsonl` scores texts, and "
            "TeacherForcingScorer.score token ids, as TokenSequence"
        )
    sequences.check()


def _longest(items: Sequence[TokenSequence]) -> int:
    """Tokens of the longest sequence that is read: one without a response is not."""
    return max((item.length for item in items if len(item.response_ids)), default=0)


def _num_read(length: int) -> int:
    """Tokens that a model reads of a sequence: nothing reads what the last one predicts."""
    return length - 1


def _beyond(longest: int, has: str) -> SequenceError:
    return SequenceError(
        f"sequences of up to {longest} tokens cannot be scored: the model has {has} tokens. "
        "Leave the longer ones out, or cut their prompts from the left"
    )
