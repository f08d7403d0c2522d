"""What may stand beside a cause: the bets of the whole catalogue, placed on top of it.

A cause r is taken for true, and each change of the catalogue is made to r as it would be made to
the policy's q: another temperature, a filter, a penalty, an id left out. So a second fault shows,
also one that tells less than the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from seqproc.models.parameters import ParamMapping
from seqproc.parity.betting.cuts import TEMPERATURE, TOP_P
from seqproc.parity.betting.evidence import Bet, Evidence, Window, evidence
from seqproc.parity.draws import Answer, Draws, with_tokens
from seqproc.parity.positions import place
from seqproc.parity.reading import Rows
from seqproc.parity.scoring import RowDistribution, book_of, gains_of, token_columns
from seqproc.parity.suspects import Case
from seqproc.policy import SamplingPolicy, log_q

# Shapes: R rows (steps), V tokens of the vocabulary.


def bets_beside(
    cause: RowDistribution,
    window: Window,
    draws: Draws,
    answers: Sequence[Answer],
    override: ParamMapping | None,
    case: Case,
) -> Evidence:
    """The bets of the catalogue against a cause, which take a forward of their own.

    Args:
        cause: r of the logits.
        window: in it, r is what is sampled from; it is of known draws.
        draws: they, scored under the cause.
        answers: they, after the prompts that the cause is about.
        override: parameters that it is about; None for the model's own.
        case: the draws under the policy.
    """
    # What comes out of r is cut already: a policy that has it for its logits cuts no more.
    policy = replace(case.policy, top_p=1.0)
    answers, eos = with_tokens(answers), case.scorer.eos_token_ids
    book = book_of(answers, policy, eos)

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        wide = logits.double()
        log_r_RV = _mixed(cause, window, wide, rows, case)
        placed = place(log_r_RV, rows.tokens, eos)
        return book.columns(log_r_RV * policy.temperature, log_r_RV, placed, rows, wide)

    columns = token_columns(answers, case.scorer, reading, override)
    return evidence(gains_of(book, columns, draws, reported=None))


def in_words(bet: Bet, policy: SamplingPolicy) -> str:
    """A bet that was placed on top of a cause.

    Args:
        bet: its temperature or top_p is one of what the cause leaves.
        policy: of the draws.
    """
    words = bet.name
    if bet.family == TEMPERATURE and bet.value is not None:
        words = f"its temperature times {bet.value / policy.temperature:.3g}"
    elif bet.family == TOP_P:
        words = f"top_p {bet.value:g} of what it leaves"
    return f"{words}, {bet.window.name}" if bet.window.name else words


def _mixed(
    cause: RowDistribution, window: Window, logits_RV: Tensor, rows: Rows, case: Case
) -> Tensor:
    """log r in the window, log q elsewhere."""
    inside = window.holds(rows.steps.cpu().numpy(), rows.sequences.cpu().numpy())
    is_inside_R1 = torch.from_numpy(inside).to(logits_RV.device).unsqueeze(-1)
    return torch.where(is_inside_R1, cause(logits_RV, rows), log_q(logits_RV, case.policy))
