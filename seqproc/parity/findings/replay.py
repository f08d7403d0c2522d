"""Replay: every token of an engine whose noise can be computed again, against the one due.

An engine that samples y = argmax_S (log q + g), with g known, leaves no room for chance: from the
scorer's logits follows each token. One that differs is a near-tie, where the two logits' error
decides; or the nucleus ends so near to a token that their error decides whether it was in the race;
or the engine is wrong. Every token is looked at, so no statistics are involved.

Knows logits, noise and arrays; neither engines nor scorers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqproc.parity.positions import cut
from seqproc.parity.verdict import Finding, Link
from seqproc.policy import SamplingPolicy, support

REPLAY = "replay"  # name of the finding
_LISTED = 100  # tokens of a kind that a report holds

# Shapes: R rows (steps), V tokens of the vocabulary, N tokens of all draws together.


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedRows:
    """Tokens beside those that are due, step by step."""

    due: Tensor  # [R] int64, the argmax of log q + g by the scorer
    margins: Tensor  # [R] float64, log q + g of the token that is due, less that of the sampled one
    is_possible: Tensor  # [R] bool: logits within the stated error could have the sampled one due


def replay_rows(
    logits_RV: Tensor,
    noise_RV: Tensor,
    tokens_R: Tensor,
    policy: SamplingPolicy,
    logit_error: float,
    noise_error: float,
) -> ReplayedRows:
    """Replay one step of each row.

    Keys a + g with a = ℓ/T stand for log q + g: they differ by a constant of the row, and a token
    outside the support has one, too. A sampled token is possible when it may be in the support, and
    no token that is surely in it has a key that is larger by more than the error.
    """
    a_RV = logits_RV.double() / policy.temperature
    keys_RV, kept_RV = a_RV + noise_RV, support(logits_RV, policy)
    best = keys_RV.masked_fill(~kept_RV, -math.inf).max(-1)
    own_R = keys_RV.gather(-1, tokens_R.unsqueeze(-1)).squeeze(-1)
    allowed = 2 * logit_error / policy.temperature + noise_error
    rivals_RV = kept_RV & (keys_RV > (own_R + allowed).unsqueeze(-1))
    # Of all rivals the one of largest logit is the most surely in the support.
    strongest_R = a_RV.masked_fill(~rivals_RV, -math.inf).argmax(-1)
    all_may_drop_R = _may_drop(a_RV, strongest_R, policy, logit_error)
    reachable_R = cut(logits_RV, tokens_R, policy, logit_error).is_reachable
    return ReplayedRows(
        due=best.indices,
        margins=best.values - own_R,
        is_possible=reachable_R & (~rivals_RV.any(-1) | all_may_drop_R),
    )


def _may_drop(a_RV: Tensor, tokens_R: Tensor, policy: SamplingPolicy, logit_error: float) -> Tensor:
    """Whether logits within the error could have a token of the support outside it: bool ``[R]``.

    The counterpart of `Cut.is_reachable`, whose docstring says how far logits move a mass.
    """
    if not policy.truncates:
        return torch.zeros_like(tokens_R, dtype=torch.bool)
    error = logit_error / policy.temperature
    own_R1 = a_RV.gather(-1, tokens_R.unsqueeze(-1))
    p_RV = a_RV.softmax(-1)
    upto_R = (p_RV * (a_RV >= own_R1 - 2 * error)).sum(-1)
    before_R = upto_R - p_RV.gather(-1, tokens_R.unsqueeze(-1)).squeeze(-1)
    top_p = policy.top_p if policy.do_sample else 0.0
    return before_R + error / 2 >= top_p


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedTokens:
    """`ReplayedRows` of all draws, draw by draw; arrays ``[N]``."""

    due: NDArray[np.int64]
    margins: NDArray[np.float64]
    is_possible: NDArray[np.bool_]

    @staticmethod
    def concatenate(parts: Sequence[ReplayedTokens]) -> ReplayedTokens:
        """Those of all tokens of several."""
        names = ReplayedTokens.names()
        return ReplayedTokens(**{n: np.concatenate([getattr(p, n) for p in parts]) for n in names})

    @staticmethod
    def names() -> list[str]:
        """Of the fields."""
        return [field.name for field in fields(ReplayedTokens)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedToken:
    """A token other than the one that was due."""

    index: int  # of the request
    step: int
    sampled: int
    due: int
    margin: float  # of log q + g between the two by the scorer, nats; negative beyond the nucleus


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay found."""

    noise: str  # name of the noise
    num_tokens: int
    num_equal: int  # tokens that are the ones due
    allowed: float  # margin up to which two candidates nearly tie, nats
    num_near_ties: int  # other tokens, which the logits' error explains
    num_wrong: int  # tokens that nothing explains
    near_ties: tuple[ReplayedToken, ...]  # the first of them
    wrong: tuple[ReplayedToken, ...]  # the first of them


def replay(
    noise: str,
    found: ReplayedTokens,
    *,
    sampled: NDArray[np.int64],
    indices: NDArray[np.int64],
    steps: NDArray[np.int64],
    is_settled: NDArray[np.bool_],
    allowed: float,
) -> Replay:
    """Sort tokens into those that are due, near-ties, and wrong ones.

    Args:
        noise: its name.
        found: N tokens replayed.
        sampled: ``[N]`` the tokens.
        indices: ``[N]`` of their requests.
        steps: ``[N]`` in their responses.
        is_settled: ``[N]`` whether the support is the same for all logits within their error; there
            two candidates can change places only when their margin is within ``allowed``.
        allowed: by how much a gap of two log q may be off, nats.
    """
    is_equal = found.due == sampled
    is_tied = ~is_equal & found.is_possible & (~is_settled | (found.margins <= allowed))
    is_wrong = ~is_equal & ~is_tied

    def some(which: NDArray[np.bool_]) -> tuple[ReplayedToken, ...]:
        return tuple(
            ReplayedToken(
                index=int(indices[n]),
                step=int(steps[n]),
                sampled=int(sampled[n]),
                due=int(found.due[n]),
                margin=float(found.margins[n]),
            )
            for n in np.flatnonzero(which)[:_LISTED]
        )

    return Replay(
        noise=noise,
        num_tokens=len(sampled),
        num_equal=int(is_equal.sum()),
        allowed=allowed,
        num_near_ties=int(is_tied.sum()),
        num_wrong=int(is_wrong.sum()),
        near_ties=some(is_tied),
        wrong=some(is_wrong),
    )


def replay_finding(result: Replay | None, reason: str = "") -> Finding:
    """The check that no token is wrong; not applicable, for a reason, without a replay."""
    if result is None:
        return Finding(
            name=REPLAY, link=Link.TOKENS, p_value=None, detail=f"not applicable: {reason}"
        )
    detail = (
        f"{result.num_wrong:,} of {result.num_tokens:,}: tokens that neither the noise "
        f"({result.noise}) nor a near-tie explains; {result.num_near_ties:,} near-ties within "
        f"{result.allowed:.2g} nats"
    )
    if result.wrong:
        first = result.wrong[0]
        detail += (
            f"; the first in draw {first.index} at step {first.step}, where {first.due} was due "
            f"and {first.sampled} came, {first.margin:.3g} nats behind"
        )
    return Finding(
        name=REPLAY,
        link=Link.TOKENS,
        p_value=0.0 if result.num_wrong else 1.0,
        statistic=float(result.num_wrong),
        is_exact=True,
        detail=detail,
    )
