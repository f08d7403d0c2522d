"""Tokens scored under what an engine is suspected to hold or see, and the bets on it.

Each suspect takes a forward of its own over all tokens. Knows the scorer and answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from seqproc.errors import ConfigError
from seqproc.models import vocab_size
from seqproc.models.parameters import ParamMapping
from seqproc.parity.betting.alternatives import Alternative
from seqproc.parity.betting.evidence import gains
from seqproc.parity.betting.suspected import PROMPTS, WEIGHTS, log_ratios_of
from seqproc.parity.draws import Answer, Draws, Floats, score, token_columns
from seqproc.parity.reading import Rows
from seqproc.parity.suspects import Case, Suspect, of_policy
from seqproc.policy import log_q

# Shapes: N tokens of all draws together, R rows (steps), V tokens of the vocabulary.


def with_bets(case: Case) -> Case:
    """Draws with bets on the caller's suspects beside those on the catalogue.

    Raises:
        ConfigError: a suspect makes something of a prompt that is none.
        OverrideError: its parameters are not those of the scorer's model.
    """
    found = case.nominal.gains
    if found is None or not case.suspects:
        return case
    logqs = case.draws.logqs
    ratios = [log_ratios_of(log_r(case, one), logqs) for one in case.suspects.values()]
    more = gains(
        [_alternative(name, one) for name, one in case.suspects.items()],
        np.stack(ratios, axis=1).astype(np.float32),
        logqs,
        case.draws.ranks,
        case.draws.lengths,
        reported=case.nominal.engine_logqs,
    )
    return replace(case, nominal=replace(case.nominal, gains=found.beside(more)))


def _alternative(name: str, suspect: Suspect) -> Alternative:
    return Alternative(family=PROMPTS if suspect.parameters is None else WEIGHTS, name=name)


def log_r(case: Case, suspect: Suspect) -> Floats:
    """Log q of all tokens under a suspect, ``[N]``."""

    def reading(logits_RV: Tensor, rows: Rows) -> dict[str, Tensor]:
        log_r_RV = log_q(logits_RV.double(), case.policy)
        return {"log_r": log_r_RV.gather(-1, rows.tokens.unsqueeze(-1)).squeeze(-1)}

    answers, override = _under(case, suspect)
    found: Floats = token_columns(answers, case.scorer, reading, override)["log_r"]
    return found


def scored_under(case: Case, suspect: Suspect) -> Draws:
    """All tokens, placed in the distributions of a suspect."""
    answers, override = _under(case, suspect)
    return score(answers, case.scorer, {"r": of_policy(case.policy)}, override=override)["r"]


def _under(case: Case, suspect: Suspect) -> tuple[Sequence[Answer], ParamMapping | None]:
    """The answers as if to the suspect's prompts, and the parameters to score at."""
    answers = case.answers
    if suspect.prompt is not None:
        prompts = {tuple(answer.request.prompt_ids) for answer in answers}
        changed = {ids: _changed(suspect, ids, vocab_size(case.scorer.model)) for ids in prompts}
        answers = [_to(answer, changed) for answer in answers]
    return answers, case.override if suspect.parameters is None else suspect.parameters()


def _changed(suspect: Suspect, prompt: tuple[int, ...], vocabulary: int) -> tuple[int, ...]:
    assert suspect.prompt is not None
    ids = tuple(map(int, suspect.prompt(prompt)))
    if not ids or not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ConfigError(
            "the prompt of a suspect must be one or more token ids in "
            f"[0, {vocabulary}); of a prompt of {len(prompt)} tokens it made {len(ids)}: {ids[:8]}"
        )
    return ids


def _to(answer: Answer, prompts: Mapping[tuple[int, ...], tuple[int, ...]]) -> Answer:
    ids = prompts[tuple(answer.request.prompt_ids)]
    return replace(answer, request=replace(answer.request, prompt_ids=ids))
