"""The worst tokens of an engine that failed, with what stands before them.

Which are the worst goes by what failed, the first of these:

| failed | the worst are those |
|---|---|
| `support` | of the largest mass before them, among those outside the support |
| `replay` | of the largest margin, among those that nothing explains |
| `reported log q` | whose log q lies farthest from what a right engine may report |
| a finding by place | least likely, among those of the place that is named |
| any other test of the policy | least likely |

How likely a token is goes by the mass of it and all that are less likely: the probability that a
right engine does as badly at that step. Other failures have no worst token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqproc.engines.answers import batch_size_of
from seqproc.models.tokenization import Tokenizer
from seqproc.parity.draws import Draws, Floats, with_tokens
from seqproc.parity.findings.places import PLACES, tokens_of
from seqproc.parity.findings.replay import REPLAY, Replay
from seqproc.parity.findings.structure import SUPPORT
from seqproc.parity.metrics import REPORTED, log_q_range
from seqproc.parity.suspects import Case
from seqproc.parity.verdict import Finding, Link

_NUM_TOKENS = 5
_CONTEXT = 12  # tokens that are shown before one

# Shape: N tokens of all draws together.


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstToken:
    """A token, and what stands before it. The texts are a model's, and not to be trusted."""

    why: str  # it is among the worst, in words
    index: int  # of the request
    prompt: int  # number of the prompt
    step: int
    context: str  # the tokens before it, of the prompt as well
    token_id: int
    text: str
    first_id: int  # the most likely token
    first_text: str
    log_q: float  # nats; −∞ outside the support
    mass_before: float  # q of all more likely tokens
    engine_log_q: float | None  # nats; None when the engine reports none


def worst_tokens(
    case: Case, failed: Sequence[Finding], tokenizer: Tokenizer, replayed: Replay | None
) -> tuple[WorstToken, ...]:
    """The worst tokens first, five at most; none when no token can be named.

    Args:
        case: the draws.
        failed: findings that were rejected.
        tokenizer: the model's, which makes text of tokens.
        replayed: what a replay found; None without.
    """
    why, badness = _badness(case, failed, replayed)
    order = np.argsort(-badness, kind="stable")[:_NUM_TOKENS]
    return tuple(_record(case, tokenizer, int(n), why) for n in order if badness[n] > -np.inf)


def _badness(case: Case, failed: Sequence[Finding], replayed: Replay | None) -> tuple[str, Floats]:
    """In words, and how bad each token is by it, ``[N]``; −∞ where it is not."""
    draws, nominal = case.draws, case.nominal
    names = [finding.name for finding in failed]
    if SUPPORT in names:
        wrong = ~draws.in_support & ~nominal.is_reachable
        return "outside the support", np.where(wrong, nominal.mass_before, -np.inf)
    if REPLAY in names and replayed is not None:
        return "not the token that was due", _margins(case, replayed)
    if REPORTED in names:
        return "reported log q", _excess(case)
    found = [finding for finding in failed if finding.name in PLACES]
    if found:
        name = min(found, key=lambda finding: finding.p_value or 0.0).name
        here = tokens_of(name, draws, case.stopping.max_new_tokens, batch_size_of(case.engine))
        return f"unlikely, {name}", np.where(here, _unlikeliness(draws), -np.inf)
    if any(finding.link is Link.POLICY for finding in failed):
        return "unlikely", _unlikeliness(draws)
    return "", np.full(len(draws.logqs), -np.inf)


def _unlikeliness(draws: Draws) -> Floats:
    """−log of the mass of each token and all less likely ones, nats."""
    with np.errstate(divide="ignore"):  # no mass is left, as far as a float tells
        left = np.log(np.maximum(1.0 - draws.mass_before, 0.0))
    return np.where(draws.in_support, -np.maximum(left, draws.logqs), -np.inf)


def _margins(case: Case, replayed: Replay) -> Floats:
    """By how much the tokens listed as wrong are behind those that were due, nats."""
    margins, answers = np.full(len(case.draws.logqs), -np.inf), with_tokens(case.answers)
    starts = {a.request.index: n for a, n in zip(answers, case.draws.starts, strict=True)}
    for token in replayed.wrong:
        margins[starts[token.index] + token.step] = token.margin
    return margins


def _excess(case: Case) -> Floats:
    """By how much reported log q lie outside what a right engine may report, nats."""
    reported = case.nominal.engine_logqs
    assert reported is not None  # or they could not be wrong
    due = log_q_range(case.draws, case.nominal, case.policy, case.error)
    judged = case.draws.in_support & ~np.isnan(reported)
    with np.errstate(invalid="ignore"):  # of tokens that nothing is known of
        outside = np.maximum(due.least - reported, reported - due.most)
    return np.where(judged & (outside > 0), outside, -np.inf)


def _record(case: Case, tokenizer: Tokenizer, n: int, why: str) -> WorstToken:
    draws, reported = case.draws, case.nominal.engine_logqs
    answer, step = with_tokens(case.answers)[draws.owners[n]], int(draws.steps[n])
    ids = [*answer.request.prompt_ids, *answer.completion.token_ids[:step]]
    token_id, first_id = answer.completion.token_ids[step], int(draws.first_ids[n])
    told = None if reported is None or np.isnan(reported[n]) else float(reported[n])
    return WorstToken(
        why=why,
        index=answer.request.index,
        prompt=answer.prompt,
        step=step,
        context=tokenizer.decode(ids[-_CONTEXT:]),
        token_id=token_id,
        text=tokenizer.decode([token_id]),
        first_id=first_id,
        first_text=tokenizer.decode([first_id]),
        log_q=float(draws.logqs[n]),
        mass_before=float(draws.mass_before[n]),
        engine_log_q=told,
    )
