"""Alternatives that temper and cut: another T or nucleus, filters left on, another order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from seqproc.parity.betting.alternatives import Alternative, Case
from seqproc.parity.betting.heads import Tempered, cut_to, first_with, places_in, tempered
from seqproc.parity.positions import LogDistribution
from seqproc.policy import MAX_TEMPERATURE, MIN_TEMPERATURE, SamplingPolicy, log_q
from seqproc.support.top_logits import largest

# Shapes: R rows (steps), V tokens of the vocabulary, M tokens of a head.

TEMPERATURE, TOP_P, TOP_K, MIN_P = "temperature", "top_p", "top_k", "min_p"  # families
TYPICAL_P = "typical_p"
IGNORED = "temperature ignored"  # the member of the first at T = 1
BEFORE = ", before top_p"  # ends the words of a filter that leaves less for the nucleus to cut

TEMPERATURES = (
    *(0.5, 0.67, 0.77, 0.83, 0.87, 0.91, 0.935, 0.95, 0.965, 0.98, 0.99),
    *(1.01, 1.02, 1.035, 1.05, 1.07, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0),
)  # of the policy's
TOP_PS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0)
TOP_KS = (1, 5, 10, 20, 40, 50, 100, 200)
MIN_PS = (0.01, 0.02, 0.05, 0.1, 0.2)
TYPICAL_PS = (0.7, 0.9, 0.95)


def cut_alternatives(policy: SamplingPolicy) -> Iterator[Alternative]:
    """All of this module."""
    yield from _temperatures(policy)
    yield from _top_ps(policy)
    yield from _top_ks(policy)
    yield from _min_ps(policy)
    yield from _typical_ps(policy)
    yield from _orders(policy)


def _temperatures(policy: SamplingPolicy) -> Iterator[Alternative]:
    values = (policy.temperature * factor for factor in TEMPERATURES)
    for value in filter(is_temperature, values):
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
            name=IGNORED,
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


def is_temperature(value: float) -> bool:
    """Whether a policy can have it: of one near the bounds, some neighbours are beyond them."""
    return MIN_TEMPERATURE <= value <= MAX_TEMPERATURE


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
                family=TOP_K,
                name=f"{name}{BEFORE}" if before else name,
                value=float(k),
                log_r=_of_first(partial(_num_first, k), before),
                whole=of_first(k, policy, before),
                in_some_draws=k > 1,  # on draws decoded greedily there are bets of their own
            )


def _min_ps(policy: SamplingPolicy) -> Iterator[Alternative]:
    """As `_top_ks`."""
    for value in MIN_PS:
        gap = math.log(value)
        for before in (False, True) if policy.truncates else (False,):
            yield Alternative(
                family=MIN_P,
                name=f"min_p = {value:g} left on{BEFORE if before else ''}",
                value=value,
                log_r=_of_first(partial(_num_likely, gap), before),
                whole=of_likely(value, policy, before),
            )


def of_first(k: int, policy: SamplingPolicy, before: bool) -> LogDistribution:
    """The policy's q with the k likeliest tokens alone; these also before its nucleus, or after."""
    return _whole_of(policy, partial(_are_first, k), before)


def of_likely(share: float, policy: SamplingPolicy, before: bool) -> LogDistribution:
    """The same with the tokens of at least a share of the likeliest one's probability."""
    return _whole_of(policy, partial(_are_likely, math.log(share)), before)


def _num_first(k: int, case: Case) -> Tensor:
    return torch.full_like(case.heads.places, k)


def _num_likely(gap: float, case: Case) -> Tensor:
    number_R = (case.nominal.log_p >= case.nominal.log_p[:, :1] + gap).sum(-1)
    is_whole_head_R = number_R == case.nominal.log_p.shape[-1]
    return number_R + (is_whole_head_R & (case.heads.moments[:, 0] > 0))  # one more: not known


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


def _typical_ps(policy: SamplingPolicy) -> Iterator[Alternative]:
    """Of what a nucleus leaves, where there is one."""
    for value in TYPICAL_PS:
        yield Alternative(
            family=TYPICAL_P,
            name=f"typical_p = {value:g} left on",
            value=value,
            log_r=_with_typical(value),
            whole=typical(value, policy),
        )


def typical(mass: float, policy: SamplingPolicy) -> LogDistribution:
    """The policy's q with the most typical tokens alone, that have a share of its mass."""
    return partial(_typical_of, mass, policy)


def _typical_of(mass: float, policy: SamplingPolicy, logits_RV: Tensor) -> Tensor:
    log_p_RV = log_q(logits_RV, policy)
    entropy_R1 = torch.special.entr(log_p_RV.exp()).sum(-1, keepdim=True)
    order_RV = (log_p_RV + entropy_R1).abs().argsort(dim=-1, stable=True)
    masses_RV = log_p_RV.exp().gather(-1, order_RV).cumsum(-1)
    first_RV = torch.cat([torch.zeros_like(masses_RV[:, :1]), masses_RV[:, :-1]], -1) < mass
    return _renormalised(log_p_RV, torch.zeros_like(first_RV).scatter(-1, order_RV, first_RV))


def _with_typical(mass: float) -> Callable[[Case], Tensor]:
    def log_r(case: Case) -> Tensor:
        log_q_RM, mass_R, is_known_R = _inside(case)
        entropy_R1 = torch.special.entr(log_q_RM.exp()).sum(-1, keepdim=True)
        order_RM = (log_q_RM + entropy_R1).abs().argsort(dim=-1, stable=True)
        masses_RM = log_q_RM.exp().gather(-1, order_RM).cumsum(-1)
        places_R = places_in(order_RM, case.heads.places)
        rows = Tempered(log_p=log_q_RM, masses=masses_RM, own=case.nominal.own - mass_R.log())
        log_r_R = cut_to(rows, first_with(masses_RM, mass), places_R)
        return torch.where(is_known_R, log_r_R, math.nan)

    return log_r


def _inside(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """log q of the head ``[R, M]``, the mass of the nucleus, and whether it is in the head."""
    log_p_RM, size = case.nominal.log_p, case.nominal.log_p.shape[-1]
    if not case.policy.truncates:
        whole_R = torch.ones_like(case.nominal.own)
        return log_p_RM, whole_R, whole_R.bool()
    kept_R = _kept(case)
    last_R1 = kept_R.clamp(max=size).unsqueeze(-1) - 1
    mass_R = case.nominal.masses.gather(-1, last_R1).squeeze(-1)
    outside_RM = torch.arange(size, device=log_p_RM.device) > last_R1
    log_q_RM = (log_p_RM - mass_R.log().unsqueeze(-1)).masked_fill(outside_RM, -math.inf)
    return log_q_RM, mass_R, kept_R <= size


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
