"""Draws that come to the same context: whether they are drawn from one distribution after all.

What an engine of other weights samples from differs from q in another way in each context. Taken
over many contexts that looks like a temperature. Where several draws of a prompt have begun with
the same tokens, what the earlier ones went on with tells: other weights make the same tokens likely
each time.

Knows answers and arrays.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from seqproc.parity.draws import Answer, Draws, Floats
from seqproc.parity.verdict import Finding, Link

_STRENGTHS = (10.0, 30.0, 100.0, 300.0)  # tokens that the scored distribution counts as


def same_contexts(answers: Sequence[Answer], draws: Draws) -> Finding:
    """Bets that tokens of a context come again more often than by their distribution r.

    With n earlier draws at a context, n(y) of which went on with y, a bet is placed on
    (s·r(y) + n(y)) / (s + n): Pólya's urn, for several s in equal parts. Its ratio to r(y) has mean
    1 given all draws before, so that the inverse of what the bets came to is a p-value.

    Args:
        answers: D of them, each with a token.
        draws: they, scored under r.
    """
    gains_KN = _gains(answers, draws.logqs)
    log_e = float(np.logaddexp.reduce(gains_KN.sum(1)) - math.log(len(_STRENGTHS)))
    return Finding(
        name="same contexts",
        link=Link.LOGITS,
        p_value=math.exp(-min(max(log_e, 0.0), 700.0)),
        statistic=log_e,
        detail=f"bets that what came in a context comes in it again came to e^{log_e:.1f}, over "
        f"{int((gains_KN[0] != 0).sum()):,} tokens",
    )


def _gains(answers: Sequence[Answer], logqs: Floats) -> Floats:
    """Of each strength and token, nats, ``[K, N]``; 0 outside the support, or in a new context."""
    strengths, found = np.array(_STRENGTHS), np.zeros((len(_STRENGTHS), len(logqs)))
    seen: dict[tuple[int, int], Counter[int]] = {}
    context_of: dict[tuple[int, int], int] = {}  # a context and its next token, to the next one
    number = 0
    for answer in answers:
        context = 0
        for token in answer.completion.token_ids:
            before = seen.setdefault((answer.prompt, context), Counter())
            n, logq = before.total(), logqs[number]
            if n and math.isfinite(logq):
                again = math.log(before[token]) - logq if before[token] else -math.inf
                found[:, number] = np.logaddexp(np.log(strengths), again) - np.log(strengths + n)
            before[token] += 1
            number += 1
            context = context_of.setdefault((context, token), len(context_of) + 1)
    return found
