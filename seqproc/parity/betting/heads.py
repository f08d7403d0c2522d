"""Rows of logits by their largest: what bets on other distributions are computed from.

A vocabulary is large and most of it has next to no mass. The first M tokens of each row are kept in
order; of the rest the mass is, and how it is spread, so that every bet adds up to 1 over the whole
vocabulary. Pure functions of logits, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seqproc.policy import SamplingPolicy
from seqproc.support.top_logits import largest

# Shapes: R rows (steps), V tokens of the vocabulary, M tokens of a head.

HEAD = 256  # M, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The M most likely tokens of each row, falling, and what is beyond them."""

    ids: Tensor  # [R, M] int64
    raw: Tensor  # [R, M] logits, less the row's largest
    absolute: Tensor  # [R, M] logits as the model gives them: what penalties and rounding see
    temperature: float  # T of the policy: p = softmax(raw / T)
    log_norm: Tensor  # [R] of exp(raw / T), over the whole vocabulary
    reference: Tensor  # [R] the logit / T beyond the head around which the moments are taken
    moments: Tensor  # [R, 3] Σ exp(x) xᵏ beyond the head, x = raw / T − reference, k = 0, 1, 2
    places: Tensor  # [R] int64, place of the row's token y in its head; M when beyond
    own: Tensor  # [R] its raw logit

    @property
    def inverse_temperature(self) -> float:
        """1/T."""
        return 1 / self.temperature


def heads_of(
    logits_RV: Tensor,
    tokens_R: Tensor,
    policy: SamplingPolicy,
    model_logits_RV: Tensor | None = None,
) -> Heads:
    """The heads of rows.

    Args:
        logits_RV: float64.
        tokens_R: int64, sampled.
        policy: its temperature.
        model_logits_RV: float64, as the model gives them; None where these are they.
    """
    size = min(HEAD, logits_RV.shape[-1])
    ids_RM = largest(logits_RV.float(), size) if size < logits_RV.shape[-1] else _all(logits_RV)
    raw_RM, order = logits_RV.gather(-1, ids_RM).sort(dim=-1, descending=True, stable=True)
    ids_RM = ids_RM.gather(-1, order)
    top_R1 = raw_RM[:, :1]
    a_RV = (logits_RV - top_R1) / policy.temperature
    reference_R, moments = _beyond(a_RV, ids_RM)
    raw_RM = raw_RM - top_R1
    inside_R = (raw_RM / policy.temperature).exp().sum(-1)
    return Heads(
        ids=ids_RM,
        raw=raw_RM,
        absolute=(logits_RV if model_logits_RV is None else model_logits_RV).gather(-1, ids_RM),
        temperature=policy.temperature,
        log_norm=(inside_R + reference_R.exp() * moments[:, 0]).log(),
        reference=reference_R,
        moments=moments,
        places=_places(ids_RM, tokens_R),
        own=_own(logits_RV, tokens_R),
    )


def with_tokens(heads: Heads, logits_RV: Tensor, tokens_R: Tensor) -> Heads:
    """The same rows with other tokens y.

    Args:
        heads: of the rows.
        logits_RV: which they are of.
        tokens_R: int64.
    """
    places_R, own_R = _places(heads.ids, tokens_R), _own(logits_RV, tokens_R)
    return replace(heads, places=places_R, own=own_R)


def _places(ids_RM: Tensor, tokens_R: Tensor) -> Tensor:
    is_own = ids_RM == tokens_R.unsqueeze(-1)
    return torch.where(is_own.any(-1), is_own.int().argmax(-1), ids_RM.shape[-1])


def _own(logits_RV: Tensor, tokens_R: Tensor) -> Tensor:
    return logits_RV.gather(-1, tokens_R.unsqueeze(-1)).squeeze(-1) - logits_RV.amax(-1)


def _all(logits_RV: Tensor) -> Tensor:
    return torch.arange(logits_RV.shape[-1], device=logits_RV.device).expand(len(logits_RV), -1)


def _beyond(a_RV: Tensor, ids_RM: Tensor) -> tuple[Tensor, Tensor]:
    """A reference beyond the head, and the moments around it."""
    if ids_RM.shape[-1] == a_RV.shape[-1]:
        nothing = torch.zeros(len(a_RV), 3, dtype=a_RV.dtype, device=a_RV.device)
        return nothing[:, 0], nothing
    beyond_RV = a_RV.scatter(-1, ids_RM, -math.inf)
    weights_RV = beyond_RV.exp()
    mass_R = weights_RV.sum(-1)
    finite_RV = beyond_RV.masked_fill(beyond_RV == -math.inf, 0.0)
    weighted_RV = weights_RV * finite_RV
    first_R, second_R = weighted_RV.sum(-1), (weighted_RV * finite_RV).sum(-1)
    is_some = mass_R > 0
    safe_R = torch.where(is_some, mass_R, 1.0)
    reference_R = torch.where(is_some, first_R / safe_R, 0.0)
    scale_R = (-reference_R).exp()
    moments = torch.stack(
        [
            mass_R,
            torch.zeros_like(mass_R),
            (second_R - mass_R * reference_R**2).clamp(min=0.0),
        ],
        dim=-1,
    )
    return reference_R, moments * scale_R.unsqueeze(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempered:
    """p ∝ exp(b · raw) over the vocabulary: heads, and the token's own."""

    log_p: Tensor  # [R, M]
    masses: Tensor  # [R, M] of each token and all before it
    own: Tensor  # [R] log p(y)


def tempered(heads: Heads, inverse_temperature: float) -> Tempered:
    """softmax(raw · b), b = ``inverse_temperature``.

    Beyond the head exp((b − 1/T)·x) is 1 + z + z²/2 with z = (b/b₀ − 1)·x, which is positive, so
    that it adds up to 1 with the head whatever b is; and it is the exponential near the policy's b.
    """
    change = inverse_temperature * heads.temperature - 1
    scaled_RM = heads.raw * inverse_temperature
    factors = torch.tensor([1.0, change, change**2 / 2], dtype=heads.raw.dtype)
    factors = factors.to(heads.raw.device)
    shift_R = heads.reference * (1 + change)
    beyond_R = shift_R.exp() * (heads.moments @ factors)
    log_norm_R = (scaled_RM.exp().sum(-1) + beyond_R).log()
    log_p_RM = scaled_RM - log_norm_R.unsqueeze(-1)
    x_R = heads.own / heads.temperature - heads.reference
    z_R = change * x_R
    own_beyond_R = shift_R + x_R + torch.log(1 + z_R + z_R**2 / 2)
    in_head = heads.places < heads.raw.shape[-1]
    own_R = torch.where(in_head, heads.own * inverse_temperature, own_beyond_R) - log_norm_R
    return Tempered(log_p=log_p_RM, masses=log_p_RM.exp().cumsum(-1), own=own_R)


def first_with(masses_RM: Tensor, least: float) -> Tensor:
    """How many tokens it takes to reach a mass, ``[R]``; M + 1 where the head does not."""
    return (masses_RM < least).sum(-1) + 1


def cut_to(rows: Tempered, numbers_R: Tensor, places_R: Tensor) -> Tensor:
    """log r(y) of the first tokens of each row, renormalised; −∞ beyond them.

    NaN where more than the head is kept, since neither their mass nor which they are is known.

    Args:
        rows: the distributions.
        numbers_R: how many are kept.
        places_R: of y.
    """
    size = rows.masses.shape[-1]
    last = numbers_R.clamp(1, size).unsqueeze(-1) - 1
    mass_R = rows.masses.gather(-1, last).squeeze(-1)
    cut_R = torch.where(places_R < numbers_R, rows.own - mass_R.log(), -math.inf)
    return torch.where(numbers_R <= size, cut_R, math.nan)


def places_in(order_RM: Tensor, places_R: Tensor) -> Tensor:
    """Where tokens of a head come in another order of it, ``[R]``; M when they are beyond it."""
    is_own = order_RM == places_R.unsqueeze(-1)
    return torch.where(is_own.any(-1), is_own.int().argmax(-1), order_RM.shape[-1])
