"""The catalogue: distributions that engines have been seen to sample from in place of the policy's.

Each is a bet. With r the alternative and q the policy's distribution, the product of r(y)/q(y) over
all tokens is a martingale of mean 1 when the tokens come from q, so it exceeds 1/α with probability
α at most, at whatever time one looks; under r it grows as fast as anything can. An alternative is
mixed with a little of q, lest one token that it cannot emit ends the bet.

Knows heads of rows and policies. An alternative that is left at r with a sum below 1 is a valid
bet as well.

References: Ville (1939); Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting" (2023); Grünwald, de Heide and Koolen, "Safe testing" (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from seqproc.parity.betting.heads import Heads, Tempered, cut_to, first_with, tempered
from seqproc.parity.positions import LogDistribution
from seqproc.policy import SamplingPolicy, log_q
from seqproc.support.top_logits import largest

# Shapes: R rows (steps), M tokens of a head, K alternatives, E ids of EOS.

SHARE = 1e-4  # of q in an alternative

TEMPERATURE, TOP_P = "temperature", "top_p"  # families whose parameter is fitted
ROUNDING = "rounding"  # a family

TEMPERATURES = (
    *(0.5, 0.67, 0.77, 0.83, 0.87, 0.91, 0.935, 0.95, 0.965, 0.98, 0.99),
    *(1.01, 1.02, 1.035, 1.05, 1.07, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0),
)  # of the policy's
TOP_PS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0)
TOP_KS = (1, 5, 10, 20, 40, 50, 100, 200)
MIN_PS = (0.01, 0.02, 0.05, 0.1, 0.2)
TYPICAL = (0.9, 0.95)
REPETITION = (0.95, 1.02, 1.05, 1.1, 1.2)
PRESENCE = (0.1, 0.5, 1.0)
FREQUENCY = (0.1, 0.5, 1.0)
EOS_BIAS = (-math.inf, -1.0, -0.5, -0.2, -0.1, 0.1, 0.2, 0.5, 1.0)
GREEDY = (0.02, 0.05, 0.2, 0.95)  # share of tokens
ROUNDED = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How often the tokens of each head came before, ``[R, M]``."""

    in_prompt: Tensor
    in_response: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows and all that an alternative may depend on."""

    heads: Heads
    nominal: Tempered  # softmax(raw / T)
    policy: SamplingPolicy
    logqs: Tensor  # [R] log q(y), nats; −∞ outside the support
    log_eos: Tensor  # [R] log q of all EOS ids together
    is_eos: Tensor  # [R] bool
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One distribution of the catalogue."""

    family: str
    name: str  # in words, as a cause
    value: float | None = None  # of its parameter; None where there is none
    # [R] log r(y), −∞ where it cannot emit y; None where it does not come from the logits
    log_r: Callable[[Case], Tensor] | None = None
    whole: LogDistribution | None = None  # log r of all tokens; None where the logits do not tell


def catalogue(policy: SamplingPolicy, eos_token_ids: Sequence[int]) -> list[Alternative]:
    """All alternatives to a policy that samples; none to one that does not."""
    if not policy.do_sample:
        return []
    return [
        *_temperatures(policy),
        *_top_ps(policy),
        *_top_ks(policy),
        *_min_ps(policy),
        *_typical(policy),
        *_orders(policy),
        *_penalties(),
        *_eos(policy, eos_token_ids),
        *_greedy(policy),
        *_rounded(policy),
    ]


def log_ratios(alternatives: Sequence[Alternative], case: Case) -> Tensor:
    """log r(y)/q(y) of each alternative, ``[R, K]``; each is mixed with `SHARE` of q.

    A token outside the support is no ground for a bet, as q and the logits' error decide about it;
    it counts against the alternatives that cannot emit it either.
    """
    ratios = []
    inside_R = case.logqs > -math.inf
    finite_R = case.logqs.masked_fill(~inside_R, 0.0)
    for alternative in alternatives:
        assert alternative.log_r is not None
        log_r_R = alternative.log_r(case)
        ratio_R = torch.log(SHARE + (1 - SHARE) * (log_r_R - finite_R).exp())
        outside_R = torch.where(log_r_R > -math.inf, 0.0, math.log(SHARE))
        ratios.append(torch.where(inside_R, ratio_R, outside_R))
    return torch.stack(ratios, dim=-1)


# ---------------------------------------------------------------------- temperature and cuts


def _temperatures(policy: SamplingPolicy) -> Iterator[Alternative]:
    for factor in TEMPERATURES:
        value = policy.temperature * factor
        yield Alternative(
            family=TEMPERATURE,
            name=f"temperature {value:.4g} in place of {policy.temperature:g}",
            value=value,
            log_r=_at(value),
            whole=_of(replace(policy, temperature=value)),
        )
    if policy.temperature != 1:
        yield Alternative(
            family=TEMPERATURE,
            name="temperature ignored",
            value=1.0,
            log_r=_at(1.0),
            whole=_of(replace(policy, temperature=1.0)),
        )
    if policy.temperature != 1 and policy.truncates:
        yield Alternative(
            family="policy",
            name="temperature and top_p ignored",
            log_r=lambda case: tempered(case.heads, 1.0).own,
            whole=_of(SamplingPolicy()),
        )


def _of(policy: SamplingPolicy) -> LogDistribution:
    return lambda logits: log_q(logits, policy)


def _at(temperature: float) -> Callable[[Case], Tensor]:
    return lambda case: _nucleus(tempered(case.heads, 1 / temperature), case)


def _nucleus(rows: Tempered, case: Case) -> Tensor:
    if not case.policy.truncates:
        return rows.own
    return cut_to(rows, first_with(rows.masses, case.policy.top_p), case.heads.places)


def _top_ps(policy: SamplingPolicy) -> Iterator[Alternative]:
    near = [policy.top_p + step for step in (-0.02, -0.01, -0.005, 0.005, 0.01, 0.02)]
    for value in sorted({*TOP_PS, *(round(p, 4) for p in near if 0 < p < 1)} - {policy.top_p}):
        yield Alternative(
            family=TOP_P,
            name="top_p ignored" if value == 1 else f"top_p {value:g} in place of {policy.top_p:g}",
            value=value,
            log_r=_with_top_p(value),
            whole=_of(replace(policy, top_p=value)),
        )


def _with_top_p(top_p: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        if top_p == 1:
            return case.nominal.own
        return cut_to(case.nominal, first_with(case.nominal.masses, top_p), case.heads.places)

    return log_r


def _kept(case: Case) -> Tensor:
    """How many tokens the policy keeps, ``[R]``; M + 1 where it is more than the head."""
    if not case.policy.truncates:
        return torch.full_like(case.heads.places, case.heads.raw.shape[-1] + 1)
    return first_with(case.nominal.masses, case.policy.top_p)


def _top_ks(policy: SamplingPolicy) -> Iterator[Alternative]:
    """Where there is a nucleus, also with top_k before it, of what that leaves."""
    for k in TOP_KS:
        name = f"top_k = {k} left on" if k > 1 else "sampling off (greedy)"
        for before in (False, True) if policy.truncates and k > 1 else (False,):
            yield Alternative(
                family="top_k",
                name=f"{name}, before top_p" if before else name,
                value=float(k),
                log_r=_of_first(partial(_num_first, k), before),
                whole=_whole_of(policy, partial(_are_first, k), before),
            )


def _min_ps(policy: SamplingPolicy) -> Iterator[Alternative]:
    """As `_top_ks`."""
    for value in MIN_PS:
        gap = math.log(value)
        for before in (False, True) if policy.truncates else (False,):
            yield Alternative(
                family="min_p",
                name=f"min_p = {value:g} left on{', before top_p' if before else ''}",
                value=value,
                log_r=_of_first(partial(_num_likely, gap), before),
                whole=_whole_of(policy, partial(_are_likely, gap), before),
            )


def _num_first(k: int, case: Case) -> Tensor:
    return torch.full_like(case.heads.places, k)


def _num_likely(gap: float, case: Case) -> Tensor:
    return (case.nominal.log_p >= case.nominal.log_p[:, :1] + gap).sum(-1)


def _are_likely(gap: float, log_p_RV: Tensor) -> Tensor:
    return log_p_RV >= log_p_RV.amax(-1, True) + gap


def _are_first(k: int, log_p_RV: Tensor) -> Tensor:
    ids_Rk = largest(log_p_RV, min(k, log_p_RV.shape[-1]))
    return log_p_RV >= log_p_RV.gather(-1, ids_Rk).amin(-1, True)


def _of_first(number: Callable[[Case], Tensor], before: bool) -> Callable[[Case], Tensor]:
    """The first tokens of each row alone: after the policy's nucleus, or before it."""

    def log_r(case: Case) -> Tensor:
        numbers_R, masses_RM = number(case), case.nominal.masses
        if before:
            last = numbers_R.clamp(1, masses_RM.shape[-1]).unsqueeze(-1) - 1
            left_RM = masses_RM / masses_RM.gather(-1, last)
            kept_R = torch.minimum(numbers_R, first_with(left_RM, case.policy.top_p))
        else:
            kept_R = torch.minimum(numbers_R, _kept(case))
        return cut_to(case.nominal, kept_R, case.heads.places)

    return log_r


def _whole_of(
    policy: SamplingPolicy, are_kept: Callable[[Tensor], Tensor], before: bool
) -> LogDistribution:
    def whole(logits_RV: Tensor) -> Tensor:
        if before:
            return log_q(
                logits_RV.masked_fill(~are_kept(logits_RV / policy.temperature), -math.inf), policy
            )
        log_q_RV = log_q(logits_RV, policy)
        return _renormalised(log_q_RV, are_kept(log_q_RV))

    return whole


def _renormalised(log_q_RV: Tensor, kept_RV: Tensor) -> Tensor:
    return log_q_RV.masked_fill(~kept_RV, -math.inf).log_softmax(-1)


def _typical(policy: SamplingPolicy) -> Iterator[Alternative]:
    if policy.truncates:
        return
    for value in TYPICAL:
        yield Alternative(
            family="typical_p",
            name=f"typical_p = {value:g} left on",
            value=value,
            log_r=_with_typical(value),
        )


def _with_typical(mass: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        log_p_RM = case.nominal.log_p
        entropy_R1 = -(log_p_RM.exp() * log_p_RM).sum(-1, keepdim=True)
        order_RM = (log_p_RM + entropy_R1).abs().argsort(-1)
        masses_RM = log_p_RM.exp().gather(-1, order_RM).cumsum(-1)
        places_R = _places_in(order_RM, case.heads.places)
        rows = Tempered(log_p=log_p_RM, masses=masses_RM, own=case.nominal.own)
        return cut_to(rows, first_with(masses_RM, mass), places_R)

    return log_r


def _places_in(order_RM: Tensor, places_R: Tensor) -> Tensor:
    is_own = order_RM == places_R.unsqueeze(-1)
    return torch.where(is_own.any(-1), is_own.int().argmax(-1), order_RM.shape[-1])


def _orders(policy: SamplingPolicy) -> Iterator[Alternative]:
    if not policy.truncates:
        return
    yield Alternative(
        family="order",
        name="the token that crosses top_p left out",
        value=None,
        log_r=lambda case: cut_to(case.nominal, (_kept(case) - 1).clamp(min=1), case.heads.places),
        whole=lambda logits: _without_last(log_q(logits, policy)),
    )
    if policy.temperature != 1:
        yield Alternative(
            family="order",
            name="top_p applied before the temperature",
            value=None,
            log_r=_cut_first,
            whole=lambda logits: _renormalised(
                logits / policy.temperature,
                log_q(logits, replace(policy, temperature=1.0)) > -math.inf,
            ),
        )


def _without_last(log_q_RV: Tensor) -> Tensor:
    kept_RV = log_q_RV > -math.inf
    last_R1 = log_q_RV.masked_fill(~kept_RV, math.inf).amin(-1, keepdim=True)
    alone_R1 = kept_RV.sum(-1, keepdim=True) == 1
    return _renormalised(log_q_RV, (log_q_RV > last_R1) | (alone_R1 & kept_RV))


def _cut_first(case: Case) -> Tensor:
    before = tempered(case.heads, 1.0)
    kept_R = first_with(before.masses, case.policy.top_p)
    return cut_to(case.nominal, kept_R, case.heads.places)


# ---------------------------------------------------------------------- changed logits


def _changed(case: Case, raw_RM: Tensor) -> Tensor:
    """log r(y) where the logits of the head are others, which may change its order."""
    heads = case.heads
    inverse = heads.inverse_temperature
    beyond_R = heads.reference.exp() * heads.moments[:, 0]
    log_norm_R = ((raw_RM * inverse).exp().sum(-1) + beyond_R).log()
    log_p_RM = raw_RM * inverse - log_norm_R.unsqueeze(-1)
    last = raw_RM.shape[-1] - 1
    in_head = heads.places <= last
    own_RM = log_p_RM.gather(-1, heads.places.clamp(max=last).unsqueeze(-1)).squeeze(-1)
    own_R = torch.where(in_head, own_RM, heads.own * inverse - log_norm_R)
    if not case.policy.truncates:
        return own_R
    by_id_RM = heads.ids.argsort(-1)  # the order of equal ones
    sorted_RM, order_RM = log_p_RM.gather(-1, by_id_RM).sort(dim=-1, descending=True, stable=True)
    order_RM = by_id_RM.gather(-1, order_RM)
    masses_RM = sorted_RM.exp().cumsum(-1)
    rows = Tempered(log_p=sorted_RM, masses=masses_RM, own=own_R)
    kept_R = first_with(masses_RM, case.policy.top_p)
    return cut_to(rows, kept_R, _places_in(order_RM, heads.places))


def _penalties() -> Iterator[Alternative]:
    for value in REPETITION:
        yield Alternative(
            family="repetition penalty",
            name=f"repetition penalty {value:g} left on",
            value=value,
            log_r=_repetition(value),
        )
    for value in PRESENCE:
        yield Alternative(
            family="presence penalty",
            name=f"presence penalty {value:g} left on",
            value=value,
            log_r=_presence(value),
        )
    for value in FREQUENCY:
        yield Alternative(
            family="frequency penalty",
            name=f"frequency penalty {value:g} left on",
            value=value,
            log_r=_frequency(value),
        )


def _repetition(penalty: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        absolute_RM = case.heads.raw + case.heads.top.unsqueeze(-1)
        punished_RM = torch.where(absolute_RM > 0, absolute_RM / penalty, absolute_RM * penalty)
        is_seen_RM = case.seen.in_prompt + case.seen.in_response > 0
        change_RM = torch.where(is_seen_RM, punished_RM - absolute_RM, 0.0)
        return _changed(case, case.heads.raw + change_RM)

    return log_r


def _presence(penalty: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        return _changed(case, case.heads.raw - penalty * (case.seen.in_response > 0))

    return log_r


def _frequency(penalty: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        return _changed(case, case.heads.raw - penalty * case.seen.in_response)

    return log_r


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
        absolute_RM = case.heads.raw + case.heads.top.unsqueeze(-1)
        rounded_RM = absolute_RM.to(dtype).to(absolute_RM.dtype)
        return _changed(case, rounded_RM - case.heads.top.unsqueeze(-1))

    return log_r


# ---------------------------------------------------------------------- mixtures with q


def _eos(policy: SamplingPolicy, eos_token_ids: Sequence[int]) -> Iterator[Alternative]:
    def whole(bias: float) -> LogDistribution:
        def biased(logits_RV: Tensor) -> Tensor:
            others_RV = logits_RV.clone()
            others_RV[:, list(eos_token_ids)] += bias
            return log_q(others_RV, policy)

        return biased

    for bias in EOS_BIAS:
        yield Alternative(
            family="EOS",
            name="EOS never sampled" if bias == -math.inf else f"EOS with a logit {bias:+g} off",
            value=bias,
            log_r=_with_eos_bias(bias),
            whole=whole(bias),
        )


def _with_eos_bias(bias: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        gain = bias / case.policy.temperature
        log_norm_R = torch.log1p(case.log_eos.exp() * math.expm1(gain))
        log_r_R = torch.where(case.is_eos, case.logqs + gain, case.logqs) - log_norm_R
        # Where nothing but EOS can be sampled there is nothing to bet on.
        return torch.where(log_norm_R > -math.inf, log_r_R, case.logqs)

    return log_r


def _greedy(policy: SamplingPolicy) -> Iterator[Alternative]:
    def whole(share: float) -> LogDistribution:
        def mixed(logits_RV: Tensor) -> Tensor:
            log_q_RV = log_q(logits_RV, policy)
            is_first_RV = log_q_RV == log_q_RV.amax(-1, True)
            greedy_RV = torch.full_like(log_q_RV, -math.inf)
            greedy_RV[is_first_RV] = math.log(share)
            return torch.logaddexp(log_q_RV + math.log1p(-share), greedy_RV).log_softmax(-1)

        return mixed

    for share in GREEDY:
        yield Alternative(
            family="greedy tokens",
            name=f"{share:.0%} of tokens decoded greedily",
            value=share,
            log_r=_with_greedy(share),
            whole=whole(share),
        )


def _with_greedy(share: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        greedy_R = torch.full_like(case.logqs, -math.inf)
        greedy_R[case.heads.places == 0] = math.log(share)
        return torch.logaddexp(case.logqs + math.log1p(-share), greedy_R)

    return log_r
