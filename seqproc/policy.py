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
whatever the precision of the statistics. Logits may be −∞, and as large as their dtype holds: what
has no mass adds nothing, also to derivatives. A value beyond the dtype's range is an infinity.

References: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020), for the nucleus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqproc._util.arguments import require
from seqproc._util.printing import Facts, Printed, Words, name_of_dtype
from seqproc._util.tensor_arguments import require_logits, require_tokens, token_ids
from seqproc.errors import ConfigError
from seqproc.support.nucleus import (
    Nuclei,
    blocks,
    exponential,
    nuclei,
    nuclei_by_sorting,
    scaled,
    sums,
    wide,
)
from seqproc.support.sums import Restricted, over_nuclei, over_vocabulary

_NEG_INF = float("-inf")

# Float32 divides by anything between, and by little else.
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SamplingPolicy(Printed):
    """Temperature, nucleus, or greedy: all that shapes the distribution of a token.

    Raises:
        ConfigError: when ``temperature`` is not in [1e-6, 1e6] or ``top_p`` not in (0, 1].
    """

    temperature: float = 1.0  # T in [1e-6, 1e6], divides the logits
    top_p: float = 1.0  # nucleus mass in (0, 1]; 1 keeps the whole vocabulary
    do_sample: bool = True  # False: the point mass on the argmax

    def _facts(self) -> Facts:
        # In full, as a call that makes the same policy.
        return {f.name: Words(repr(getattr(self, f.name))) for f in fields(self)}

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        require("do_sample", self.do_sample, bool, "True or False")
        if not MIN_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE:
            way_out = (
                "for greedy decoding use do_sample=False (--greedy)"
                if self.do_sample
                else "do_sample=False is greedy at any: leave it out"
            )
            raise ConfigError(
                f"temperature must lie in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}], got "
                f"{self.temperature!r}; {way_out}"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top_p must lie in (0, 1], got {self.top_p!r}; 1.0 keeps the whole vocabulary"
            )

    @property
    def truncates(self) -> bool:
        """Whether some tokens of finite logit can fall outside the support."""
        return not self.do_sample or self.top_p < 1


def _tensor_facts(tensor: Tensor) -> Facts:
    """Shape, dtype and device, without a look at the numbers."""
    return {
        "shape": Words(list(tensor.shape)),
        "dtype": name_of_dtype(tensor.dtype),
        "device": str(tensor.device),
        "requires_grad": tensor.requires_grad or None,
    }


def _number(name: str, value: Any) -> Any:
    """A number, numpy's as Python's."""
    if isinstance(value, (np.floating, np.integer)):
        return value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    return value


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PolicyStatistics(Printed):
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

    def _facts(self) -> Facts:
        there = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        return {**_tensor_facts(self.rb_entropy), "statistics": len(there)}

    def map(self, transform: Callable[[Tensor], Tensor]) -> PolicyStatistics:
        """Apply ``transform`` to every tensor that is there."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped: dict[str, Any] = {k: None if v is None else transform(v) for k, v in values.items()}
        return PolicyStatistics(**mapped)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenScores(Printed):
    """Scores of realised tokens, every field of shape ``[...]``; nats."""

    logprobs: Tensor  # log p_raw(y)
    logqs: Tensor  # log q(y), −∞ outside the support
    stats: PolicyStatistics

    def _facts(self) -> Facts:
        return _tensor_facts(self.logprobs)

    def map(self, transform: Callable[[Tensor], Tensor]) -> TokenScores:
        """Apply ``transform`` to every tensor."""
        return TokenScores(
            logprobs=transform(self.logprobs),
            logqs=transform(self.logqs),
            stats=self.stats.map(transform),
        )

    def rows(self, start: int, stop: int) -> TokenScores:
        """Part of the scores along their first dimension."""
        return self.map(lambda field: field[start:stop])

    @staticmethod
    def concatenate(parts: Sequence[TokenScores]) -> TokenScores:
        """Join scores along their first dimension."""
        if len(parts) == 1:
            return parts[0]

        def joined(name: str) -> Any:
            fields_ = [getattr(part.stats, name) for part in parts]
            return None if fields_[0] is None else torch.cat(fields_)

        return TokenScores(
            logprobs=torch.cat([part.logprobs for part in parts]),
            logqs=torch.cat([part.logqs for part in parts]),
            stats=PolicyStatistics(**{f.name: joined(f.name) for f in fields(PolicyStatistics)}),
        )


def support(logits: Tensor, policy: SamplingPolicy, *, may_wait: bool = True) -> Tensor:
    """Which tokens the policy can sample.

    A token of logit −∞ has no mass and is never in the support.

    Args:
        logits: ``[..., V]``, floating.
        policy: the sampling policy.
        may_wait: False for the same support by a full sort, which reads nothing back from the
            device, so that the host never waits for an accelerator. On a CPU it takes longer.

    Returns:
        Boolean mask ``[..., V]``, decided in float64.
    """
    _require(logits, policy, may_be_meta=not may_wait)
    rows = _rows(logits.detach())
    if not policy.truncates:
        return (rows > _NEG_INF).view(logits.shape)
    mask = torch.zeros_like(rows, dtype=torch.bool)
    for group in _nuclei(rows, policy, may_wait=may_wait):
        mask[group.rows] = torch.zeros_like(mask[group.rows]).scatter(-1, group.ids, group.kept)
    return mask.view(logits.shape)


def log_q(logits: Tensor, policy: SamplingPolicy, *, may_wait: bool = True) -> Tensor:
    """log q of the whole vocabulary: ``[..., V]``, −∞ outside the support. Differentiable.

    It is −∞, too, of a logit whose distance from the largest its dtype cannot hold. ``may_wait`` is
    that of `support`.
    """
    _require(logits, policy, may_be_meta=not may_wait)
    shifted = scaled(_shifted(_at_least_fp32(logits)), policy.temperature)
    inside = shifted.masked_fill(~support(logits, policy, may_wait=may_wait), _NEG_INF)
    return inside - inside.logsumexp(-1, keepdim=True)


def token_log_q(logits: Tensor, tokens: Tensor, policy: SamplingPolicy) -> Tensor:
    """log q(y) of given tokens; −∞, never clipped, where y is outside the support.

    Args:
        logits: ``[..., V]``, floating.
        tokens: ``[...]``, int64 ids in [0, V).
        policy: the sampling policy.

    Returns:
        ``[...]``, nats, differentiable in the logits.
    """
    return score_tokens(logits, tokens, policy).logqs


def token_log_p(logits: Tensor, tokens: Tensor) -> Tensor:
    """log p_raw(y) = log_softmax(ℓ)[y]: the raw model, T = 1, no truncation. ``[...]``, nats."""
    return score_tokens(logits, tokens, SamplingPolicy()).logprobs


def rb_entropy(logits: Tensor, policy: SamplingPolicy) -> Tensor:
    """Rao-Blackwell entropy H(q) = logsumexp_S(a) − Σ_S q·a. ``[...]``, nats, differentiable.

    The support is held fixed when differentiating: the derivative is that of H on either side of
    a change of support.
    """
    return statistics(logits, policy).rb_entropy


def statistics(
    logits: Tensor, policy: SamplingPolicy, eos_token_ids: Sequence[int] = ()
) -> PolicyStatistics:
    """Every statistic of q that seqproc reports, in one pass over the logits.

    Args:
        logits: ``[..., V]``, floating.
        policy: the sampling policy.
        eos_token_ids: ids whose joint probability is ``eos_prob``; none: ``eos_prob`` is None.

    Returns:
        `PolicyStatistics`, each field ``[...]`` in the dtype of the logits (float32 at least),
        differentiable with the support held fixed.
    """
    _require(logits, policy)
    any_token = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    return score_tokens(logits, any_token, policy, eos_token_ids).stats


def score_tokens(
    logits: Tensor, tokens: Tensor, policy: SamplingPolicy, eos_token_ids: Sequence[int] = ()
) -> TokenScores:
    """log p, log q and all statistics of the same logits, with one search for the support.

    The vocabulary is read a few times and not sorted. Working memory is a few times that of the
    logits: for many rows use `seqproc.scorers.measure`, which takes them in parts.

    Args:
        logits: ``[..., V]``, floating.
        tokens: ``[...]``, int64 ids in [0, V).
        policy: the sampling policy.
        eos_token_ids: see `statistics`.

    Returns:
        `TokenScores`, each field ``[...]``, differentiable with the support held fixed.
    """
    _require(logits, policy)
    require_tokens(tokens, logits)
    rows, eos = _rows(logits), token_ids("eos_token_ids", eos_token_ids, logits.shape[-1])
    each = tokens.reshape(-1, 1).long()
    # Built on the device: copying from the host would synchronise.
    wanted = torch.cat([each, *(torch.full_like(each, token) for token in eos)], dim=-1)
    scores = _score_rows(rows, wanted, policy)
    return scores.map(lambda field: field.to(rows.dtype).view(logits.shape[:-1]))


def _require(logits: Tensor, policy: SamplingPolicy, *, may_be_meta: bool = False) -> None:
    """Check both; on the meta device, where nothing can be read, for what waits for nothing."""
    require_logits(logits, may_be_meta=may_be_meta)
    require_policy(policy)


def require_policy(policy: object) -> None:
    """Raise `ConfigError` unless this is a `SamplingPolicy`."""
    require("policy", policy, SamplingPolicy, "a SamplingPolicy")


def _score_rows(rows: Tensor, wanted: Tensor, policy: SamplingPolicy) -> TokenScores:
    """Score rows ``[N, V]``; wanted ``[N, 1 + E]``: each row's token, then the EOS ids. Float64."""
    log_total = None if policy.temperature == 1 else _log_total(rows)
    if not policy.truncates:
        every = torch.arange(len(rows), device=rows.device)
        peak, restricted = over_vocabulary(rows, wanted, policy.temperature)
        return _scores(restricted, _raw(rows, every, peak, wanted, log_total), policy)
    indices, parts = [], []
    for group in _nuclei(rows, policy):
        peak = wide(rows.detach()[group.rows, group.ids[:, 0]])
        raw = _raw(rows, group.rows, peak, wanted, log_total)
        indices.append(group.rows)
        parts.append(_scores(over_nuclei(group, wanted[group.rows]), raw, policy))
    order = torch.cat(indices).argsort()
    return TokenScores.concatenate(parts).map(lambda field: field[order])


def _nuclei(rows: Tensor, policy: SamplingPolicy, *, may_wait: bool = True) -> Iterable[Nuclei]:
    # The token of largest logit is the only one with no mass before it.
    top_p = policy.top_p if policy.do_sample else 0.0
    if may_wait:
        return nuclei(rows, policy.temperature, top_p)
    return [nuclei_by_sorting(rows, policy.temperature, top_p)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raw:
    """What is read off rows of logits before any truncation, in float64."""

    peak: Tensor  # [N] max ℓ, detached
    shifted: Tensor  # [N, 1 + E] ℓ − max ℓ of the wanted tokens
    log_total: Tensor | None  # [N] log Σ exp(ℓ − max ℓ); None at T = 1, where it comes with q


def _raw(
    rows: Tensor, which: Tensor, peak: Tensor, wanted: Tensor, log_total: Tensor | None
) -> _Raw:
    """Of the rows ``which``, by index; peak: their max ℓ."""
    return _Raw(
        peak=peak,
        shifted=wide(rows[which.unsqueeze(-1), wanted[which]]) - peak.unsqueeze(-1),
        log_total=None if log_total is None else log_total[which],
    )


def _log_total(rows: Tensor) -> Tensor:
    return torch.cat([wide(sums(exponential(_shifted(block)))) for block in blocks(rows)]).log()


def _scores(r: Restricted, raw: _Raw, policy: SamplingPolicy) -> TokenScores:
    """The formulas of q on S."""
    mass, mean, variance, squares = r.moments.unbind(-1)
    log_mass, log_total = mass.log(), (mass + r.tail).log()
    entropy = log_mass - mean
    head, tail = (log_mass - log_total).exp(), r.tail / (mass + r.tail)
    renyi2 = 2 * log_mass - squares.log()
    log_raw_total = log_total if raw.log_total is None else raw.log_total
    logqs = raw.shifted / policy.temperature - log_mass.unsqueeze(-1)
    # Logits that are no numbers have no support either, and no log q.
    logqs = logqs.masked_fill(~r.contains & ~log_mass.isnan().unsqueeze(-1), _NEG_INF)
    return TokenScores(
        logprobs=raw.shifted[:, 0] - log_raw_total,
        logqs=logqs[:, 0],
        stats=PolicyStatistics(
            rb_entropy=entropy,
            head_mass=head,
            tail_mass=tail,
            two_point_entropy=torch.special.entr(head) + _entr(tail),
            top1_prob=(r.first - log_mass).exp(),
            margin=r.margin,
            collision=(-renyi2).exp(),
            renyi2=renyi2,
            eff_support=entropy.exp(),
            logit_mean=mean + raw.peak / policy.temperature,
            logit_var=variance,
            cut_margin=r.cut_margin,
            eos_prob=logqs[:, 1:].exp().sum(-1) if logqs.shape[-1] > 1 else None,
        ),
    )


def _shifted(logits: Tensor) -> Tensor:
    return logits - logits.detach().amax(-1, keepdim=True)


def _entr(mass: Tensor) -> Tensor:
    """−x log x, with derivative 0 and not ∞ at x = 0, where ∞ · 0 would make gradients NaN."""
    empty = mass == 0
    return torch.special.entr(mass.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)


def _rows(logits: Tensor) -> Tensor:
    return _at_least_fp32(logits).reshape(-1, logits.shape[-1])


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
