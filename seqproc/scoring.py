"""`SequenceScorer`: `BatchedSequences` in, the specification's results out, by teacher forcing.

Joins the scorer's flat lists of token sequences to the nested records; computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from seqproc import assembly
from seqproc.config import GenerationConfig, PrecisionConfig, require_count
from seqproc.engines import ModelSource
from seqproc.errors import SequenceError
from seqproc.policy import TokenScores
from seqproc.scorers import TeacherForcingScorer, token_sequences
from seqproc.scorers.derivatives import TokenDerivatives, jvp
from seqproc.scorers.overrides import ParamMapping
from seqproc.types import BatchedSequences, DiagnosticsResults, LogprobResults, Provenance

Scored = tuple[LogprobResults, DiagnosticsResults]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which optional parts of `LogprobResults` to fill."""

    compute_rb: bool = False
    features: bool = False


class SequenceScorer:
    """Scores sequences with the source's model, which loads when it is first needed.

    Args:
        source: the model and what is known of it.
        config: policy and batch size; read at each call, so changes take effect.
        precision: dtypes; read at each call.
        provenance: what to record with a result.
    """

    def __init__(
        self,
        source: ModelSource,
        config: GenerationConfig,
        precision: PrecisionConfig,
        provenance: Callable[[], Provenance],
    ) -> None:
        self.source = source
        self.config = config
        self.precision = precision
        self._provenance = provenance
        self._teacher: TeacherForcingScorer | None = None

    @property
    def teacher(self) -> TeacherForcingScorer:
        """The scorer of token sequences, on the model loaded now if it was not."""
        if self._teacher is None:
            self._teacher = TeacherForcingScorer(
                self.source.live_model(), self.source.eos_token_ids, self.precision
            )
        return self._teacher

    def score(
        self,
        sequences: BatchedSequences,
        overrides: Iterable[ParamMapping | None],
        buffers: ParamMapping | None,
        batch_size: int | None,
        wanted: Wanted,
        *,
        num_overrides: int = 1,
    ) -> list[Scored]:
        """Score without gradients, once per override, all by one schedule of batches."""
        self._check_ids(sequences)
        items = token_sequences(sequences)
        total = len(items) * num_overrides
        with tqdm(total=total, desc="scoring", unit="seq", disable=None, leave=False) as bar:
            scores = self.teacher.score(
                items,
                self.config.policy,
                overrides=overrides,
                buffers=buffers,
                progress=bar.update,
                **self._limits(batch_size),
            )
        return [self._results(sequences, one, wanted) for one in scores]

    def jvp(
        self, sequences: BatchedSequences, direction: ParamMapping, batch_size: int | None
    ) -> list[list[TokenDerivatives]]:
        """Derivatives of all scores along a direction, ``[b][g]``."""
        self._check_ids(sequences)
        found = jvp(
            self.teacher,
            token_sequences(sequences),
            self.config.policy,
            direction,
            **self._limits(batch_size),
        )
        return assembly.nested(found, sequences.num_responses, lambda one: one)

    def score_with_grad(
        self, sequences: BatchedSequences, batch_size: int | None, wanted: Wanted
    ) -> Scored:
        """Score on the live module, keeping the graph."""
        self._check_ids(sequences)
        scores = self.teacher.score_with_grad(
            token_sequences(sequences),
            self.config.policy,
            **self._limits(batch_size),
        )
        rb_graph = wanted.compute_rb and self.config.rb_requires_grad
        return self._results(sequences, scores, wanted, rb_graph=rb_graph)

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
        wanted: Wanted,
        *,
        rb_graph: bool = False,
    ) -> Scored:
        results = assembly.logprob_results(
            scores,
            sequences,
            compute_rb=wanted.compute_rb,
            rb_graph=rb_graph,
            features=wanted.features,
            provenance=self._provenance(),
        )
        return results, assembly.diagnostics_results(scores, sequences.num_responses)

    def _check_ids(self, sequences: BatchedSequences) -> None:
        require_sequences(sequences)
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
        raise SequenceError(f"sequences must be a BatchedSequences, got {type(sequences).__name__}")
    sequences.check()
