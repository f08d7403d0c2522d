"""Alternatives that change logits or mix the policy with something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from seqproc.parity.betting.alternatives import Alternative, Case
from seqproc.parity.betting.heads import Tempered, cut_to, first_with
from seqproc.parity.positions import LogDistribution
from seqproc.policy import SamplingPolicy, log_q

# Shapes: R rows (steps), V tokens of the vocabulary, M tokens of a head.

ROUNDING, EOS, GREEDY_TOKENS = "rounding", "EOS", "greedy tokens"  # families

EOS_BIAS = (-math.inf, -1.0, -0.5, -0.2, -0.1, 0.1, 0.2, 0.5, 1.0)
GREEDY = (0.02, 0.05, 0.2, 0.95)  # share of tokens
ROUNDED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def changed_alternatives(
    policy: SamplingPolicy, eos_token_ids: Sequence[int]
) -> Iterator[Alternative]:
    """All of this module."""
    yield from _penalties()
    yield from _eos(policy, eos_token_ids)
    yield from _greedy(policy)
    yield from _rounded(policy)


def _changed(case: Case, raw_RM: Tensor) -> Tensor:
    """log r(y) where the logits of the head are others, which may change its order."""
    heads = case.heads
    inverse = heads.inverse_temperature
    log_beyond_R = heads.reference + heads.moments[:, 0].log()
    log_norm_R = torch.logaddexp((raw_RM * inverse).logsumexp(-1), log_beyond_R)
    log_p_RM = raw_RM * inverse - log_norm_R.unsqueeze(-1)
    last = raw_RM.shape[-1] - 1
    in_head = heads.places <= last
    own_RM = log_p_RM.gather(-1, heads.places.clamp(max=last).unsqueeze(-1)).squeeze(-1)
    own_R = torch.where(in_head, own_RM, heads.own * inverse - log_norm_R)
    if not case.policy.truncates:
        return own_R
    masses_RM = _falling(log_p_RM).exp().cumsum(-1)
    rows = Tempered(log_p=log_p_RM, masses=masses_RM, own=own_R)
    kept_R = first_with(masses_RM, case.policy.top_p)
    return cut_to(rows, kept_R, _places(case, log_p_RM))


def _places(case: Case, log_p_RM: Tensor) -> Tensor:
    """How many tokens of the head come before y, ``[R]``; M when it is beyond."""
    heads, size = case.heads, log_p_RM.shape[-1]
    place_R1 = heads.places.clamp(max=size - 1).unsqueeze(-1)
    own_R1, id_R1 = log_p_RM.gather(-1, place_R1), heads.ids.gather(-1, place_R1)
    before_RM = (log_p_RM > own_R1) | ((log_p_RM == own_R1) & (heads.ids < id_R1))
    return torch.where(heads.places < size, before_RM.sum(-1), size)


def _falling(values_RM: Tensor) -> Tensor:
    """Sorted. On a CPU numpy takes a seventh of the time, since it does not return the order."""
    if values_RM.device.type != "cpu":
        return values_RM.sort(dim=-1, descending=True).values
    return torch.from_numpy(-np.sort(-values_RM.numpy(), axis=-1))


def _penalties() -> Iterator[Alternative]:
    for name, (values, changed) in _PENALTIES.items():
        for value in values:
            yield Alternative(
                family=name,
                name=f"{name} {value:g} left on",
                value=value,
                log_r=partial(_punished, changed, value),
            )


def _punished(changed: Callable[[Case, float], Tensor], penalty: float, case: Case) -> Tensor:
    return _changed(case, changed(case, penalty))


def _repeated(case: Case, penalty: float) -> Tensor:
    absolute_RM = case.heads.absolute
    punished_RM = torch.where(absolute_RM > 0, absolute_RM / penalty, absolute_RM * penalty)
    is_seen_RM = case.seen.in_prompt + case.seen.in_response > 0
    return case.heads.raw + torch.where(is_seen_RM, punished_RM - absolute_RM, 0.0)


def _present(case: Case, penalty: float) -> Tensor:
    return case.heads.raw - penalty * (case.seen.in_response > 0)


def _frequent(case: Case, penalty: float) -> Tensor:
    return case.heads.raw - penalty * case.seen.in_response


# Values, and the head's logits under one of them.
_PENALTIES: dict[str, tuple[tuple[float, ...], Callable[[Case, float], Tensor]]] = {
    "repetition penalty": ((0.95, 1.02, 1.05, 1.1, 1.2), _repeated),
    "presence penalty": ((0.1, 0.2, 0.3, 0.5, 1.0), _present),
    "frequency penalty": ((0.05, 0.1, 0.2, 0.5, 1.0), _frequent),
}


def _rounded(policy: SamplingPolicy) -> Iterator[Alternative]:
    def whole(dtype: torch.dtype) -> LogDistribution:
        return lambda logits: log_q(logits.to(dtype).double(), policy)

    for name, dtype in ROUNDED.items():
        yield Alternative(
            family=ROUNDING,
            name=f"logits rounded to {name}",
            value=None,
            log_r=_with_rounding(dtype),
            whole=whole(dtype),
        )


def _with_rounding(dtype: torch.dtype) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        absolute_RM = case.heads.absolute
        error_RM = absolute_RM.to(dtype).to(absolute_RM.dtype) - absolute_RM
        return _changed(case, case.heads.raw + error_RM)

    return log_r


# ---------------------------------------------------------------------- mixtures with q


def _eos(policy: SamplingPolicy, eos_token_ids: Sequence[int]) -> Iterator[Alternative]:
    for bias in EOS_BIAS:
        yield Alternative(
            family=EOS,
            name="EOS never sampled" if bias == -math.inf else f"EOS with a logit {bias:+g} off",
            value=bias,
            log_r=_with_eos_bias(bias, eos_token_ids),
            whole=eos_biased(bias, eos_token_ids, policy),
        )


def eos_biased(
    bias: float, eos_token_ids: Sequence[int], policy: SamplingPolicy
) -> LogDistribution:
    """The policy's q of logits of which those of EOS are off by ``bias``."""

    def whole(logits_RV: Tensor) -> Tensor:
        others_RV = logits_RV.clone()
        others_RV[:, list(eos_token_ids)] += bias
        return log_q(others_RV, policy)

    return whole


def _with_eos_bias(bias: float, eos_token_ids: Sequence[int]) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        if case.policy.truncates:
            ids_E = torch.tensor(eos_token_ids, device=case.heads.ids.device)
            raw_RM = case.heads.raw.clone()
            raw_RM[torch.isin(case.heads.ids, ids_E)] += bias
            return _changed(case, raw_RM)
        gain = bias / case.policy.temperature
        log_norm_R = torch.logaddexp(torch.log1p(-case.log_eos.exp()), case.log_eos + gain)
        log_r_R = torch.where(case.is_eos, case.logqs + gain, case.logqs) - log_norm_R
        # Where nothing but EOS can be sampled there is nothing to bet on.
        return torch.where(log_norm_R > -math.inf, log_r_R, case.logqs)

    return log_r


def _greedy(policy: SamplingPolicy) -> Iterator[Alternative]:
    for share in GREEDY:
        yield Alternative(
            family=GREEDY_TOKENS,
            name=f"{share:.0%} of tokens decoded greedily",
            value=share,
            log_r=_with_greedy(share),
            whole=greedy_mixture(share, policy),
        )


def greedy_mixture(share: float, policy: SamplingPolicy) -> LogDistribution:
    """The policy's q, of which a share goes to the likeliest token."""

    def whole(logits_RV: Tensor) -> Tensor:
        log_q_RV = log_q(logits_RV, policy)
        is_first_RV = log_q_RV == log_q_RV.amax(-1, True)
        greedy_RV = torch.full_like(log_q_RV, -math.inf)
        greedy_RV[is_first_RV] = math.log(share)
        return torch.logaddexp(log_q_RV + math.log1p(-share), greedy_RV).log_softmax(-1)

    return whole


def _with_greedy(share: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        greedy_R = torch.full_like(case.logqs, -math.inf)
        greedy_R[case.heads.places == 0] = math.log(share)
        return torch.logaddexp(case.logqs + math.log1p(-share), greedy_R)

    return log_r
