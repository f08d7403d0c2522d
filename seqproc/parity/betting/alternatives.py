"""Alternatives to the policy's distribution, and what they may depend on. Records alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from seqproc.parity.betting.heads import Heads, Tempered
from seqproc.parity.positions import LogDistribution
from seqproc.policy import SamplingPolicy

# Shapes: R rows (steps), M tokens of a head.


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
    mass_below: Tensor  # [R] q of the tokens of smaller id than y
    mass_before: Tensor  # [R] q of the tokens that come before y, in order of falling probability
    log_eos: Tensor  # [R] log q of all EOS ids together
    is_eos: Tensor  # [R] bool
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One distribution of the catalogue."""

    family: str
    name: str  # in words, as a cause
    value: float | None = None  # of its parameter; None where there is none
    # [R] log r(y): −∞ where it cannot emit y, NaN where r is not known. None where it does not
    # come from the logits.
    log_r: Callable[[Case], Tensor] | None = None
    whole: LogDistribution | None = None  # log r of all tokens; None where the logits do not tell
    in_some_draws: bool = True  # whether there are bets that some draws alone are from it
