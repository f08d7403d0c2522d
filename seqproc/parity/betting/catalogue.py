"""The catalogue: distributions that engines have been seen to sample from in place of the policy's.

Each is a bet. With r the alternative and q the policy's distribution, the product of r(y)/q(y) over
all tokens is a martingale of mean 1 when the tokens come from q, so it exceeds 1/α with probability
α at most, at whatever time one looks; under r it grows as fast as anything can. An alternative is
mixed with a little of q, lest one token that it cannot emit ends the bet.

Knows heads of rows and policies.

References: Ville (1939); Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting" (2023); Grünwald, de Heide and Koolen, "Safe testing" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seqproc.parity.betting.alternatives import Alternative, Case
from seqproc.parity.betting.changes import changed_alternatives
from seqproc.parity.betting.coarse import coarse_alternatives
from seqproc.parity.betting.cuts import cut_alternatives
from seqproc.policy import SamplingPolicy

# Shapes: R rows (steps), K alternatives.

SHARE = 1e-4  # of q in an alternative


def catalogue(policy: SamplingPolicy, eos_token_ids: Sequence[int]) -> list[Alternative]:
    """All alternatives to a policy that samples; none to one that does not."""
    if not policy.do_sample:
        return []
    return [
        *cut_alternatives(policy),
        *changed_alternatives(policy, eos_token_ids),
        *coarse_alternatives(policy),
    ]


def log_ratios(alternatives: Sequence[Alternative], case: Case, *, unknown: float = 0.0) -> Tensor:
    """log r(y)/q(y) of each alternative, ``[R, K]``; each is mixed with `SHARE` of q.

    A token outside the support is no ground for a bet, as q and the logits' error decide about it;
    it counts against the alternatives that cannot emit it either. Where an alternative is not known
    the ratio is ``unknown``: as it is, there is no bet.
    """
    ratios = []
    inside_R = case.logqs > -math.inf
    log_share = torch.tensor(math.log(SHARE)).to(case.logqs)
    finite_R = case.logqs.masked_fill(~inside_R, 0.0)
    for alternative in alternatives:
        assert alternative.log_r is not None
        log_r_R = alternative.log_r(case)
        ratio_R = torch.logaddexp(log_share, math.log1p(-SHARE) + log_r_R - finite_R)
        outside_R = torch.where(log_r_R == -math.inf, math.log(SHARE), 0.0)
        ratios.append(torch.where(inside_R, ratio_R, outside_R))
    return torch.stack(ratios, dim=-1).nan_to_num(nan=unknown)
