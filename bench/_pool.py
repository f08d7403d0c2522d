"""Many draws of one engine, sampled and scored once, and cut into runs that are judged alone.

Bets that a draw echoes an earlier one look at all draws before it, so those of the first draws of a
run also at the end of the run before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from _gallery import PER_PROMPT, STOPPING, Range, requests_of
from numpy.typing import NDArray
from torch import Tensor

from seqproc.engines import Engine
from seqproc.parity import Answer, Draws, Finding, NominalScores, sample, score_nominal
from seqproc.parity.betting.bans import Bans
from seqproc.parity.logit_error import LOGIT_ERRORS, LogitError
from seqproc.parity.reading import Rows, read_columns
from seqproc.parity.subject import all_findings
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TokenSequence

ERROR = LOGIT_ERRORS["float32"]
REPORTED = "reported log q"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Draws of an engine, and what the scorer says of them."""

    small: Range
    policy: SamplingPolicy
    answers: list[Answer]  # each with a token
    draws: Draws
    nominal: NominalScores
    bans: NDArray[np.float64]  # [D, V] of each draw what the bets that an id is banned came to

    def findings(self, first: int, last: int) -> list[Finding]:
        """All tests of some of the draws."""
        return all_findings(
            self.answers[first:last],
            self.draws.some(first, last),
            self._nominal(first, last),
            self.small.tokenizer,
            STOPPING,
            self.policy,
            LogitError(nats=ERROR),
        )

    def runs(self, num_draws: int, at_most: int) -> Iterator[list[Finding]]:
        """Findings of runs of whole prompts, evenly spread over the pool; many draws overlap."""
        last = (len(self.answers) - num_draws) // PER_PROMPT
        for first in np.unique(np.linspace(0, last, min(at_most, last + 1)).astype(int)):
            yield self.findings(first * PER_PROMPT, first * PER_PROMPT + num_draws)

    def _nominal(self, first: int, last: int) -> NominalScores:
        ends = np.concatenate([[0], np.cumsum(self.draws.lengths)])
        tokens = slice(ends[first], ends[last])
        cut: dict[str, Any] = {}
        for field in fields(NominalScores):
            value = getattr(self.nominal, field.name)
            cut[field.name] = value[tokens] if isinstance(value, np.ndarray) else value
        bans = self.bans[first:last].sum(0)
        cut["gains"] = replace(cut["gains"].some(first, last), bans=bans)
        return NominalScores(**cut)


def pool_of(
    engine: Engine, small: Range, policy: SamplingPolicy, num_draws: int, seed: int = 0
) -> Pool:
    """Sample and score."""
    requests, owners = requests_of(num_draws, PER_PROMPT, seed)
    answers = sample(engine, requests, owners, policy, STOPPING)
    draws, nominal = score_nominal(answers, small.scorer, policy, ERROR, seed=seed)
    return Pool(
        small=small,
        policy=policy,
        answers=answers,
        draws=draws,
        nominal=nominal,
        bans=_bans(answers, small, policy),
    )


def _bans(answers: list[Answer], small: Range, policy: SamplingPolicy) -> NDArray[np.float64]:
    """`Gains` has the bans of all draws together, so those of each are read again."""
    of_draws = [Bans() for _ in answers]

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        log_qs = log_q(logits.double(), policy)
        for draw in rows.sequences.unique().tolist():
            its = rows.sequences == draw
            of_draws[draw].note(log_qs[its], rows.tokens[its])
        return {"tokens": rows.tokens}

    sequences = [
        TokenSequence(
            prompt_ids=torch.tensor(answer.request.prompt_ids),
            response_ids=torch.tensor(answer.completion.token_ids),
        )
        for answer in answers
    ]
    read_columns(small.scorer, sequences, reading)
    return np.stack([bans.log_e for bans in of_draws if bans.log_e is not None])
