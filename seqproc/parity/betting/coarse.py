"""Alternatives whose u is coarse: a random number of few bits, or one rounded to a short dtype.

An engine that inverts the distribution function draws the token y whose part of (0, 1), laid out in
some order of the tokens, holds u. Where u takes a few values alone, tokens whose part holds none of
them are never sampled: those of less than 1 in 256, most of the time, when u is made in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from seqproc.parity.betting.alternatives import Alternative, Case
from seqproc.policy import SamplingPolicy, log_q

# Shapes: R rows (steps), V tokens of the vocabulary.

COARSE = "coarse noise"  # family
_ERROR = 1e-12  # of a sum of masses, at most

# x, elementwise, to the probability that u lies below x.
Distribution = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """How the tokens are laid out on (0, 1)."""

    name: str
    mass: Callable[[Case], Tensor]  # [R] q of the tokens before y
    ids: Callable[[Tensor], Tensor]  # log q [R, V] to the ids in this order, [R, V]


def coarse_alternatives(policy: SamplingPolicy) -> Iterator[Alternative]:
    """Each kind of u, with the tokens in either order."""
    for order in _ORDERS:
        for kind, below in _KINDS.items():
            yield _alternative(kind, below, order, policy)


def coarse_like(name: str, policy: SamplingPolicy) -> Iterator[Alternative]:
    """Those of other numbers of bits, with the tokens in the order of the alternative of a name."""
    (order,) = (one for one in _ORDERS if name.endswith(one.name))
    for bits in _BITS:
        for offset in _OFFSETS:
            yield _alternative(*_kind_of_bits(bits, offset), order, policy)


def _alternative(
    kind: str, below: Distribution, order: _Order, policy: SamplingPolicy
) -> Alternative:
    return Alternative(
        family=COARSE,
        name=f"random numbers {kind}, tokens in order of {order.name}",
        log_r=partial(_log_r, order, below),
        whole=partial(_whole, order, below, policy),
    )


def _of_bits(bits: int, offset: float, x: Tensor) -> Tensor:
    """u = (k + offset)/2^bits, each of the 2^bits as probable."""
    return (x * 2**bits - offset).ceil() / 2**bits


def _rounded(bits: int, x: Tensor) -> Tensor:
    """u to the nearest number of so many significant bits.

    It comes to lie below x when it is below the middle of two of them that follow one another, of
    which the upper one is the smallest that is not below x.
    """
    significand, exponent = torch.frexp(x)
    above = (significand * 2**bits).ceil()
    is_power = above == 2 ** (bits - 1)  # before it these numbers lie closer
    middle = above - torch.where(is_power, 0.25, 0.5).to(above)
    return torch.where(x > 0, torch.ldexp(middle, exponent - bits), 0.0)


def _kind_of_bits(bits: int, offset: float) -> tuple[str, Distribution]:
    return f"of {bits} bits{_OFFSETS[offset]}", partial(_of_bits, bits, offset)


_OFFSETS = {0.0: "", 0.5: ", from half a step on"}
_BITS = range(4, 17)  # that are looked at when a cause is sought
_KINDS: dict[str, Distribution] = dict(
    [
        _kind_of_bits(8, 0.0),  # torch.rand in bfloat16
        _kind_of_bits(8, 0.5),
        _kind_of_bits(11, 0.0),  # in float16
        _kind_of_bits(11, 0.5),
        _kind_of_bits(16, 0.0),
        ("rounded to bfloat16", partial(_rounded, 8)),
        ("rounded to float16", partial(_rounded, 11)),
    ]
)


def _falling(log_q_RV: Tensor) -> Tensor:
    return log_q_RV.argsort(dim=-1, descending=True, stable=True)


def _by_id(log_q_RV: Tensor) -> Tensor:
    ids_V = torch.arange(log_q_RV.shape[-1], device=log_q_RV.device)
    return ids_V.expand_as(log_q_RV)


_ORDERS = (
    _Order(name="id", mass=lambda case: case.mass_below, ids=_by_id),
    _Order(name="falling probability", mass=lambda case: case.mass_before, ids=_falling),
)


def _log_r(order: _Order, below: Distribution, case: Case) -> Tensor:
    first_R = order.mass(case)
    return _log_between(below, first_R, first_R + case.logqs.exp())


def _whole(order: _Order, below: Distribution, policy: SamplingPolicy, logits_RV: Tensor) -> Tensor:
    log_q_RV = log_q(logits_RV, policy)
    ids_RV = order.ids(log_q_RV)
    q_RV = log_q_RV.exp().gather(-1, ids_RV)
    last_RV = q_RV.cumsum(-1)
    log_r_RV = _log_between(below, last_RV - q_RV, last_RV)
    return torch.empty_like(log_r_RV).scatter(-1, ids_RV, log_r_RV)


def _log_between(below: Distribution, first: Tensor, last: Tensor) -> Tensor:
    """log of the probability that u lies in [first, last).

    Where equal tokens share a power of 1/2, their ends are values of u, but for the errors of sums.
    No such end may lie on one side for the token before it, and on the other for the one behind.
    """
    upto_first, upto_last = (
        torch.where(x > 1 - _ERROR, 1.0, below(x - _ERROR).clamp(0.0, 1.0)) for x in (first, last)
    )
    return torch.where(last > first, upto_last - upto_first, 0.0).log()
