"""Alternatives whose distribution of a token depends on more than its logits, in full.

Penalties look at the tokens before, greedy draws at whether all of these were the likeliest. The
bets know the first tokens of each row; here all are needed, to test what is left under such an
alternative. Knows answers and draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from seqproc.parity.draws import Answer, Draws, Floats, with_tokens
from seqproc.parity.reading import Rows
from seqproc.parity.scoring import RowDistribution
from seqproc.policy import SamplingPolicy, log_q

# Shapes: N tokens of all draws together, R rows (steps), V tokens of the vocabulary.


def penalised(
    family: str, penalty: float, answers: Sequence[Answer], policy: SamplingPolicy
) -> RowDistribution:
    """The policy's q of logits under a penalty.

    Args:
        family: of the catalogue, one of `PENALTIES`.
        penalty: its value.
        answers: those that are scored.
        policy: comes after the penalty.
    """
    change, told = PENALTIES[family], with_tokens(answers)

    def row_distribution(logits_RV: Tensor, rows: Rows) -> Tensor:
        places = list(zip(rows.sequences.tolist(), rows.steps.tolist(), strict=True))
        prompts = [told[n].request.prompt_ids for n, _ in places]
        responses = [told[n].completion.token_ids[:step] for n, step in places]
        in_prompt_RV, in_response_RV = _counts(prompts, logits_RV), _counts(responses, logits_RV)
        return log_q(change(logits_RV, in_prompt_RV, in_response_RV, penalty), policy)

    return row_distribution


def _counts(ids: Sequence[Sequence[int]], logits_RV: Tensor) -> Tensor:
    """How often each token of the vocabulary is among the ids of each row, ``[R, V]``."""
    vocabulary = logits_RV.shape[-1]
    counts = [np.bincount(np.asarray(row, dtype=np.int64), minlength=vocabulary) for row in ids]
    return torch.from_numpy(np.stack(counts)).to(logits_RV)


def _repeated(logits: Tensor, in_prompt: Tensor, in_response: Tensor, penalty: float) -> Tensor:
    punished = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(in_prompt + in_response > 0, punished, logits)


def _present(logits: Tensor, _: Tensor, in_response: Tensor, penalty: float) -> Tensor:
    return logits - penalty * (in_response > 0)


def _frequent(logits: Tensor, _: Tensor, in_response: Tensor, penalty: float) -> Tensor:
    return logits - penalty * in_response


# By family: logits, counts in the prompt, counts in the response [R, V] and the penalty to logits.
PENALTIES: Mapping[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "repetition penalty": _repeated,
    "presence penalty": _present,
    "frequency penalty": _frequent,
}


def with_greedy_draws(share: float, draws: Draws, policy: SamplingPolicy) -> RowDistribution:
    """q where a share of the draws is decoded greedily throughout.

    Given the tokens before, a draw is one of these with a probability that rises as long as each is
    the likeliest, and is 0 after another.

    Args:
        share: of the draws.
        draws: scored under
        policy: q's.
    """
    weights = torch.from_numpy(_greedy_so_far(share, draws))
    starts = torch.from_numpy(draws.starts)

    def row_distribution(logits_RV: Tensor, rows: Rows) -> Tensor:
        log_q_RV = log_q(logits_RV, policy)
        numbers = starts[rows.sequences.cpu()] + rows.steps.cpu()
        weights_R1 = weights[numbers].to(log_q_RV.device).unsqueeze(-1)
        first_R1 = log_q_RV.argmax(-1, keepdim=True)
        greedy_RV = torch.full_like(log_q_RV, -math.inf).scatter(-1, first_R1, 0.0)
        return torch.logaddexp(log_q_RV + torch.log1p(-weights_R1), greedy_RV + weights_R1.log())

    return row_distribution


def _greedy_so_far(share: float, draws: Draws) -> Floats:
    """Probability that a draw is a greedy one, before each of its tokens, ``[N]``."""
    found = np.zeros(len(draws.logqs))
    for start, length in zip(draws.starts, draws.lengths, strict=True):
        own = slice(start, start + length)
        gains = np.where(draws.ranks[own] == 0, -draws.logqs[own], -np.inf)
        before = np.concatenate([[0.0], np.cumsum(gains)[:-1]])
        odds = math.log(share) - math.log1p(-share) + before
        found[own] = 1 / (1 + np.exp(-np.minimum(odds, 700.0)))
    return found
