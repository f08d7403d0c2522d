"""Tokens scored under what an engine is suspected to hold or see, and the bets on it.

Each suspect takes a forward of its own over all tokens. Knows the scorer and answers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from seqproc.errors import ConfigError
from seqproc.models import vocab_size
from seqproc.models.introspection import context_length
from seqproc.models.parameters import ParamMapping
from seqproc.parity.betting.alternatives import Alternative
from seqproc.parity.betting.distances import distances
from seqproc.parity.betting.evidence import gains
from seqproc.parity.betting.suspected import PROMPTS, WEIGHTS, log_ratios_of
from seqproc.parity.draws import Answer, Draws, Floats
from seqproc.parity.scoring import log_rs, of_logits, score
from seqproc.parity.suspects import Case, Suspect, of_policy

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
    logqs, lengths = case.draws.logqs, case.draws.lengths
    more = gains(
        [_alternative(name, one) for name, one in case.suspects.items()],
        _ratios(case, logqs),
        logqs,
        case.draws.ranks,
        lengths,
        reported=case.nominal.engine_logqs,
    )
    if (controls := case.nominal.controls) is not None:
        ratios = _ratios(case, controls.logqs, controls.ids)
        more = replace(more, distances=distances(ratios, lengths, case.policy.truncates))
    return replace(case, nominal=replace(case.nominal, gains=found.beside(more)))


def _ratios(
    case: Case, logqs: Floats, tokens: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """log r/q of every suspect, ``[N, K]``.

    Raises:
        ConfigError: the log-probabilities of a suspect are no numbers.
    """
    columns = []
    for name, one in case.suspects.items():
        log_r_N = log_r(case, one, tokens)
        if np.isnan(log_r_N).any():
            raise ConfigError(
                f"under the suspect {name!r} log p of {int(np.isnan(log_r_N).sum()):,} of "
                f"{len(log_r_N):,} tokens is not a number: its logits overflow. Check its weights"
            )
        columns.append(log_ratios_of(log_r_N, logqs))
    return np.stack(columns, axis=1).astype(np.float32)


def _alternative(name: str, suspect: Suspect) -> Alternative:
    return Alternative(family=PROMPTS if suspect.parameters is None else WEIGHTS, name=name)


def log_r(case: Case, suspect: Suspect, tokens: NDArray[np.int64] | None = None) -> Floats:
    """Log q of all tokens under a suspect, ``[N]``; or of others in their contexts."""
    answers, override = under(case, suspect)
    of = {"r": of_logits(of_policy(case.policy))}
    return log_rs(answers, case.scorer, of, tokens=tokens, override=override)["r"]


def scored_under(case: Case, suspect: Suspect) -> Draws:
    """All tokens, placed in the distributions of a suspect."""
    answers, override = under(case, suspect)
    return score(answers, case.scorer, {"r": of_policy(case.policy)}, override=override)["r"]


def under(case: Case, suspect: Suspect) -> tuple[Sequence[Answer], ParamMapping | None]:
    """The answers as if to the suspect's prompts, and the parameters to score at."""
    answers = case.answers
    if suspect.prompt is not None:
        prompts = {tuple(answer.request.prompt_ids) for answer in answers}
        changed = {ids: _changed(suspect, ids, vocab_size(case.scorer.model)) for ids in prompts}
        answers = [_to(answer, changed) for answer in answers]
        _require_room(answers, case)
    return answers, case.override if suspect.parameters is None else _made(suspect.parameters)


def _made(parameters: Callable[[], ParamMapping]) -> ParamMapping:
    made = parameters()
    if not isinstance(made, Mapping):
        raise ConfigError(
            "the parameters of a suspect must be a function that returns a mapping from names to "
            f"tensors; it returned {_kind(made)}"
        )
    return made


def _changed(suspect: Suspect, prompt: tuple[int, ...], vocabulary: int) -> tuple[int, ...]:
    assert suspect.prompt is not None
    due = (
        f"the prompt of a suspect must return one or more token ids, integers in [0, {vocabulary})"
    )
    made = suspect.prompt(prompt)
    try:
        ids = tuple(map(operator.index, made))
    except TypeError as error:
        raise ConfigError(
            f"{due}; of a prompt of {len(prompt)} tokens it made {_kind(made)} ({error})"
        ) from error
    if not ids or not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ConfigError(
            f"{due}; of a prompt of {len(prompt)} tokens it made {len(ids)}: {ids[:8]}"
        )
    return ids


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _require_room(answers: Sequence[Answer], case: Case) -> None:
    most = context_length(getattr(case.scorer.model, "config", None))
    longest, before = _longest(answers), _longest(case.answers)
    if most is not None and longest > max(most, before):
        raise ConfigError(
            f"with the prompt of a suspect a draw has {longest} tokens, and the model reads "
            f"{most}: let it make shorter prompts, or draw shorter responses"
        )


def _longest(answers: Sequence[Answer]) -> int:
    return max(len(one.request.prompt_ids) + len(one.completion.token_ids) for one in answers)


def _to(answer: Answer, prompts: Mapping[tuple[int, ...], tuple[int, ...]]) -> Answer:
    ids = prompts[tuple(answer.request.prompt_ids)]
    return replace(answer, request=replace(answer.request, prompt_ids=ids))
