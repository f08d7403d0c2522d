"""The sampling policy: the one distribution that engines sample from and scorers evaluate.

Given the logits ℓ of a step, a temperature T > 0 and a nucleus mass ``top_p`` in (0, 1]:

1. a = ℓ / T and p = softmax(a);
2. the support S holds the tokens in order of falling p (ties: smaller id first) whose mass
   strictly before them is < ``top_p``, so that the token which crosses the threshold is kept;
3. q = p on S, renormalised by the head mass s = Σ_S p.

``do_sample=False`` is the point mass on the argmax: S holds that token alone.

Everything here is a pure function of a logits tensor with any leading shape. Nothing knows about
models, tokenizers or batches. Probabilities are natural, entropies and log-probabilities in nats.

Shapes: ``...`` any leading shape, ``V`` the vocabulary. Statistics are computed in the dtype of the
logits, but never below float32; the support is always decided in float64, so that it is the same
whatever the precision of the statistics.

References: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), for the nucleus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from seqproc.errors import ConfigError

_NEG_INF = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPolicy:
    """Temperature, nucleus, or greedy: all that shapes the distribution of a token.

    Raises:
        ConfigError: when ``temperature`` is not a finite number > 0 or ``top_p`` not in (0, 1].
    """

    temperature: float = 1.0  # T > 0, divides the logits
    top_p: float = 1.0  # nucleus mass in (0, 1]; 1 keeps the whole vocabulary
    do_sample: bool = True  # False: the point mass on the argmax

    def __post_init__(self) -> None:
        _require_number("temperature", self.temperature)
        _require_number("top_p", self.top_p)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(
                f"temperature must be a finite number > 0, got {self.temperature!r}; "
                "for greedy decoding use do_sample=False"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p must lie in (0, 1], got {self.top_p!r}; 1.0 keeps the whole vocabulary"
            )

    @property
    def truncates(self) -> bool:
        """Whether some tokens of finite logit can fall outside the support."""
        return not self.do_sample or self.top_p < 1


def _require_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number, got {value!r} ({type(value).__name__})")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStatistics:
    """Statistics of q at each step, every field of shape ``[...]``; nats where a unit applies."""

    rb_entropy: Tensor  # H(q) = logsumexp_S(a) − Σ q·a
    head_mass: Tensor  # s = Σ_S p
    tail_mass: Tensor  # 1 − s, summed outside S and not by subtraction
    two_point_entropy: Tensor  # −s log s − (1−s) log(1−s)
    top1_prob: Tensor  # max q
    margin: Tensor  # a₍₁₎ − a₍₂₎ over S; 0 when |S| = 1
    collision: Tensor  # Σ q²
    renyi2: Tensor  # −log Σ q²
    eff_support: Tensor  # exp H
    logit_mean: Tensor  # E_q[a]
    logit_var: Tensor  # Var_q[a]
    cut_margin: Tensor  # last kept a − first dropped a; +∞ when nothing is dropped
    eos_prob: Tensor | None = None  # q(EOS) over all EOS ids; None when none are given

    def map(self, transform: Callable[[Tensor], Tensor]) -> PolicyStatistics:
        """Apply ``transform`` to every tensor that is there."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {k: None if v is None else transform(v) for k, v in values.items()}
        return PolicyStatistics(**mapped)


def support(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    """Which tokens the policy can sample.

    A token of logit −∞ has no mass and is never in the support.

    Args:
        logits: ``[..., V]``, floating.
        policy: the sampling policy.

    Returns:
        Boolean mask ``[..., V]``, decided in float64.
    """
    a = _wide(logits.detach()) / policy.temperature
    if not policy.do_sample:
        return torch.zeros_like(a, dtype=torch.bool).scatter(-1, a.argmax(-1, keepdim=True), True)
    possible = a > _NEG_INF
    return possible & _nucleus(a, policy.top_p) if policy.truncates else possible


def _nucleus(a: Tensor, top_p: float) -> Tensor:
    """Tokens whose mass strictly before them, in order of falling a, is < ``top_p``."""
    falling, order = a.sort(dim=-1, descending=True, stable=True)  # stable: smaller id first
    mass = falling.softmax(-1).cumsum(-1)
    before = torch.cat([torch.zeros_like(mass[..., :1]), mass[..., :-1]], dim=-1)
    return torch.zeros_like(a, dtype=torch.bool).scatter(-1, order, before < top_p)


def log_q(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    """log q of the whole vocabulary: ``[..., V]``, −∞ outside the support. Differentiable."""
    return _restrict(logits, policy).log_q


def token_log_q(logits: Tensor, tokens: Tensor, policy: SamplingPolicy) -> Tensor:
    """log q(y) of given tokens; −∞, never clipped, where y is outside the support.

    Args:
        logits: ``[..., V]``, floating.
        tokens: ``[...]``, int64 ids in [0, V).
        policy: the sampling policy.

    Returns:
        ``[...]``, nats, differentiable in the logits.
    """
    return _gather(log_q(logits, policy), tokens)


def token_log_p(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p_raw(y) = log_softmax(ℓ)[y]: the raw model, T = 1, no truncation. ``[...]``, nats."""
    logits = _at_least_fp32(logits)
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    return _gather(shifted, tokens) - shifted.logsumexp(-1)


def _gather(values: Tensor, tokens: Tensor) -> Tensor:
    return values.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def rb_entropy(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    """Rao-Blackwell entropy H(q) = logsumexp_S(a) − Σ_S q·a. ``[...]``, nats, differentiable.

    The support is held fixed when differentiating: the derivative is that of H on either side of
    a change of support, which `PolicyStatistics.cut_margin` tells how near it is.
    """
    restricted = _restrict(logits, policy)
    return restricted.log_mass - restricted.mean


def statistics(
    logits: Tensor, policy: SamplingPolicy, eos_token_ids: Sequence[int] = ()
) -> PolicyStatistics:
    """Every statistic of q that seqproc reports, in one pass over the logits.

    Args:
        logits: ``[..., V]``, floating.
        policy: the sampling policy.
        eos_token_ids: ids whose joint probability is ``eos_prob``; none: ``eos_prob`` is None.

    Returns:
        `PolicyStatistics`, each field ``[...]`` in the dtype of the logits (float32 at least).
    """
    return _statistics(_restrict(logits, policy), policy, eos_token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScores:
    """Scores of realised tokens, every field of shape ``[...]``; nats."""

    logprobs: Tensor  # log p_raw(y)
    logqs: Tensor  # log q(y), −∞ outside the support
    stats: PolicyStatistics

    def map(self, transform: Callable[[Tensor], Tensor]) -> TokenScores:
        """Apply ``transform`` to every tensor."""
        return TokenScores(
            logprobs=transform(self.logprobs),
            logqs=transform(self.logqs),
            stats=self.stats.map(transform),
        )


def score_tokens(
    logits: Tensor, tokens: Tensor, policy: SamplingPolicy, eos_token_ids: Sequence[int] = ()
) -> TokenScores:
    """`token_log_p`, `token_log_q` and `statistics` of the same logits, the support found once."""
    restricted = _restrict(logits, policy)
    return TokenScores(
        logprobs=token_log_p(logits, tokens),
        logqs=_gather(restricted.log_q, tokens),
        stats=_statistics(restricted, policy, eos_token_ids),
    )


def _statistics(
    r: _Restricted, policy: SamplingPolicy, eos_token_ids: Sequence[int]
) -> PolicyStatistics:
    q = r.log_q.exp()
    entropy = r.log_mass - r.mean
    head = (r.log_mass - r.shifted.logsumexp(-1)).exp()
    tail = _tail_mass(r, policy)
    renyi2 = 2 * r.log_mass - (2 * r.inside).logsumexp(-1)
    return PolicyStatistics(
        rb_entropy=entropy,
        head_mass=head,
        tail_mass=tail,
        two_point_entropy=torch.special.entr(head) + _entr(tail),
        top1_prob=(-r.log_mass).exp(),
        margin=_margin(r),
        collision=(-renyi2).exp(),
        renyi2=renyi2,
        eff_support=entropy.exp(),
        logit_mean=r.mean + r.peak.squeeze(-1),
        logit_var=(q * (r.finite - r.mean.unsqueeze(-1)).square()).sum(-1),
        cut_margin=_cut_margin(r),
        eos_prob=q[..., list(eos_token_ids)].sum(-1) if eos_token_ids else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Restricted:
    """Scaled logits, shifted so that their maximum is 0, and their restriction to the support.

    The shift costs nothing and keeps logsumexp_S(a) − Σ q·a free of cancellation in float32. Nor is
    `torch.softmax` used there: over 49,152 tokens its float32 sum on a CPU is off by 1e-5 and more,
    that of `logsumexp` by 1e-7.
    """

    peak: Tensor  # [..., 1] max a, detached
    shifted: Tensor  # [..., V] a − peak
    keep: Tensor  # [..., V] bool, the support
    inside: Tensor  # [..., V] shifted on S, −∞ outside
    finite: Tensor  # [..., V] shifted on S, 0 outside
    log_mass: Tensor  # [...] logsumexp_S(shifted)
    mean: Tensor  # [...] Σ_S q·shifted

    @property
    def log_q(self) -> Tensor:
        return self.inside - self.log_mass.unsqueeze(-1)


def _restrict(logits: Tensor, policy: SamplingPolicy) -> _Restricted:
    a = _at_least_fp32(logits) / policy.temperature
    keep = support(logits, policy)
    peak = a.detach().amax(-1, keepdim=True)
    shifted = a - peak
    inside = shifted.masked_fill(~keep, _NEG_INF)
    finite = shifted.masked_fill(~keep, 0.0)
    log_mass = inside.logsumexp(-1)
    return _Restricted(
        peak=peak,
        shifted=shifted,
        keep=keep,
        inside=inside,
        finite=finite,
        log_mass=log_mass,
        mean=((inside - log_mass.unsqueeze(-1)).exp() * finite).sum(-1),
    )


def _tail_mass(r: _Restricted, policy: SamplingPolicy) -> Tensor:
    if not policy.truncates:
        return torch.zeros_like(r.log_mass)
    log_p = r.shifted - r.shifted.logsumexp(-1, keepdim=True)
    return log_p.exp().masked_fill(r.keep, 0.0).sum(-1)


def _entr(mass: Tensor) -> Tensor:
    """−x log x, with derivative 0 and not ∞ at x = 0, where ∞ · 0 would make gradients NaN."""
    empty = mass == 0
    return torch.special.entr(mass.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


def _margin(r: _Restricted) -> Tensor:
    if r.inside.shape[-1] < 2:
        return torch.zeros_like(r.log_mass)
    first, second = r.inside.topk(2, dim=-1).values.unbind(-1)
    return torch.where(second > _NEG_INF, first - second, torch.zeros_like(first))


def _cut_margin(r: _Restricted) -> Tensor:
    last_kept = r.shifted.masked_fill(~r.keep, float("inf")).amin(-1)
    first_dropped = r.shifted.masked_fill(r.keep, _NEG_INF).amax(-1)
    return last_kept - first_dropped


def _at_least_fp32(logits: Tensor) -> Tensor:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be a floating tensor, got {logits.dtype}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _wide(logits: Tensor) -> Tensor:
    """Float64 where the device has it (Apple's MPS has not)."""
    checked = _at_least_fp32(logits)
    return checked if logits.device.type == "mps" else checked.double()
