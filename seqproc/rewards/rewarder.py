"""Rewards of a batch of responses: a user's function, or `tag_pref` with configured weights.

Knows sequences, prompts' entries and a tokenizer; not where responses come from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from seqproc._util.optional import is_installed
from seqproc.engines.stopping import response_text
from seqproc.errors import ConfigError, SequenceError
from seqproc.models.tokenization import Tokenizer
from seqproc.prompts import PromptEntry
from seqproc.rewards import Reward, rewards_of, tag_pref_batch
from seqproc.rewards.math_judge import require_math_verify
from seqproc.types import BatchedSequences


class Rewarder:
    """Rewards responses.

    Args:
        tokenizer: of the model, for responses that come without text.
        reward: a function of the texts of one prompt's responses and the prompt's entry, or None
            for `tag_pref`.
        logger: where missing gold answers are told of.

    Raises:
        ConfigError: a reward that cannot be called.
    """

    def __init__(self, tokenizer: Tokenizer, reward: Reward | None, logger: logging.Logger) -> None:
        if reward is not None and not callable(reward):
            raise ConfigError(
                "reward must be a function (texts, entry) -> one number per text, or None, got "
                f"{type(reward).__name__}; other weights of tag_pref are config's reward_weights"
            )
        self.reward = reward
        self._tokenizer, self._logger = tokenizer, logger
        self._told_of_missing_answers = False

    def rewards(
        self,
        sequences: BatchedSequences,
        examples: Sequence[PromptEntry] | None,
        weights: tuple[float, float],
    ) -> list[list[float]]:
        """``[B][G]``, by the prompts' entries; of `tag_pref` 0 where there is no gold answer."""
        golds = gold_answers(examples, sequences.num_prompts)
        texts = self._texts(sequences)
        if self.reward is not None:
            entries = [None] * len(golds) if examples is None else examples
            pairs = zip(texts, entries, strict=True)
            return [rewards_of(self.reward, some, entry) for some, entry in pairs]
        if examples is not None:
            self._tell_of_missing(golds)
        return [
            tag_pref_batch(some, gold, weights) for some, gold in zip(texts, golds, strict=True)
        ]

    def describe(self, weights: tuple[float, float]) -> dict[str, Any]:
        """What rewards are, for the record."""
        if self.reward is None:
            return {"name": "tag_pref", "tag": weights[0], "answer": weights[1]}
        kind = self.reward if hasattr(self.reward, "__qualname__") else type(self.reward)
        return {"name": f"{kind.__module__}.{kind.__qualname__}"}

    def _tell_of_missing(self, golds: list[str | None]) -> None:
        if None in golds and not self._told_of_missing_answers:
            self._told_of_missing_answers = True  # once: a run asks for each chunk
            self._logger.warning(
                "%d of %d prompts have no gold answer: their rewards are 0",
                golds.count(None),
                len(golds),
            )

    def _texts(self, sequences: BatchedSequences) -> list[list[str]]:
        """The responses' texts ``[B][G]``, decoded where they were not given."""
        if len(sequences.responses_text):
            return sequences.responses_text
        return [
            [
                response_text(self._tokenizer, sequences.response_ids(b, g).tolist())
                for g in range(sequences.num_responses)
            ]
            for b in range(sequences.num_prompts)
        ]


def gold_answers(examples: object, num_prompts: int) -> list[str | None]:
    """The gold answer of each prompt; None where there is none.

    Raises:
        SequenceError: when there are not as many entries as prompts, or they are none.
    """
    if examples is None:
        return [None] * num_prompts
    if not isinstance(examples, Sequence):
        raise SequenceError(
            f"examples must be a list of PromptEntry, got {type(examples).__name__}"
        )
    strangers = [type(entry).__name__ for entry in examples if not hasattr(entry, "answer")]
    if strangers:
        raise SequenceError(f"examples must be a list of PromptEntry, got a {strangers[0]} in it")
    if len(examples) != num_prompts:
        raise SequenceError(
            f"examples must hold one entry per prompt ({num_prompts}), got {len(examples)}"
        )
    return [entry.answer for entry in examples]


def require_comparable(golds: Iterable[str | None], reward: Reward | None) -> None:
    """Refuse gold answers that could not be compared, before anything is sampled for nothing.

    Args:
        golds: the gold answers; read only where math-verify is missing.
        reward: as of `Rewarder`; a user's own needs no math-verify.

    Raises:
        MissingDependencyError: `tag_pref` is to compare answers, and math-verify is missing.
    """
    if reward is not None or is_installed("math_verify"):
        return
    if any(gold is not None for gold in golds):
        require_math_verify()
