"""Sums over the support of each row of logits, once the support is known.

Knows rows of logits and their nuclei; `seqproc.policy` makes the statistics of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from seqproc._util.kernels import is_on
from seqproc.support.nucleus import Nuclei, blocks, exponential, scaled, sums, wide
from seqproc.support.top_logits import largest

_NEG_INF = float("-inf")
_FLOOR = -1000.0  # nats; exp of it is 0 in float32 and in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Restricted:
    """Sums over the support S of each of N rows, and over the rest of the row. Float64.

    x = (ℓ − max ℓ)/T throughout. The shift costs nothing and keeps logsumexp_S(a) − Σ q·a free of
    cancellation in float32. Nor is `torch.softmax` used: over 49,152 tokens its float32 sum on a
    CPU is off by 1e-5 and more, that of `Tensor.sum` by 1e-7.
    """

    moments: Tensor  # [N, 4], see `_moments`
    tail: Tensor  # [N] Σ exp(x) outside S
    first: Tensor  # [N] the largest x: 0, which moves with its logit as the shift by max ℓ does not
    margin: Tensor  # [N] first − second x on S; 0 when |S| = 1
    cut_margin: Tensor  # [N] last x kept − first dropped; +∞ when nothing is dropped
    contains: Tensor  # [N, 1 + E] bool, whether S contains the wanted tokens


def _moments(x: Tensor, weights: Tensor) -> Tensor:
    """``[N, 4]`` float64: Σ w, the mean of x under w, its variance, Σ w². Summed in x's dtype.

    Args:
        x: ``[N, M]``, finite.
        weights: ``[N, M]``, exp(x) on S, 0 elsewhere.
    """
    mass = wide(sums(weights))
    mean = wide(sums(x * weights)) / mass
    from_mean = x - mean.unsqueeze(-1).to(x)
    variance = wide(sums(from_mean.square_().mul_(weights))) / mass
    return torch.stack([mass, mean, variance, wide(sums(weights * weights))], dim=-1)


def over_vocabulary(rows: Tensor, wanted: Tensor, temperature: float) -> tuple[Tensor, Restricted]:
    """No truncation: S is every token of finite logit. The rows' max ℓ ``[N]``, and the rest.

    Only what reads the whole vocabulary goes in blocks.
    """
    tops, moments = [], []
    for block in blocks(rows):
        tops.append(_two_largest(block))
        x = _floored(scaled(block - tops[-1][:, :1].detach().to(block), temperature))
        weights = exponential(x)
        moments.append(_moments(x, weights))
    first, second = torch.cat(tops).unbind(-1)
    margin = torch.where(second > _NEG_INF, first - second, torch.zeros_like(first))
    return first.detach(), Restricted(
        moments=torch.cat(moments),
        tail=torch.zeros_like(first),
        first=(first - first.detach()) / temperature,
        margin=margin / temperature,
        cut_margin=torch.full_like(first, float("inf")),
        contains=rows.detach().gather(-1, wanted) > _NEG_INF,
    )


def _floored(x: Tensor) -> Tensor:
    """x, no lower than where exp(x) is 0 anyhow: ∞ · 0 would be NaN, and so would ∞² · 0."""
    return x.clamp(min=_FLOOR) if bool((x.detach().amin(-1) < _FLOOR).any()) else x


def _two_largest(rows: Tensor) -> Tensor:
    """The two largest logits of each row, ``[N, 2]`` float64; −∞ where there is no second."""
    if rows.shape[-1] == 1:
        return functional.pad(wide(rows), (0, 1), value=_NEG_INF)
    ids = largest(rows, 2) if is_on("nucleus") else rows.detach().topk(2).indices
    return wide(rows.gather(-1, ids))


def over_nuclei(group: Nuclei, wanted: Tensor) -> Restricted:
    """S is a nucleus, found among some candidates."""
    x, weights, kept = group.shifted, group.weights, group.kept
    second = x[:, min(1, x.shape[-1] - 1)]
    same = (group.ids.unsqueeze(1) == wanted.unsqueeze(-1)) & kept.unsqueeze(1)
    count, candidates = kept.sum(-1, keepdim=True), x.shape[-1]
    first_dropped = x.gather(-1, count.clamp(max=candidates - 1))
    first_dropped = first_dropped.masked_fill(count == candidates, _NEG_INF)
    return Restricted(
        moments=_moments(x.masked_fill(~kept, 0.0), weights.masked_fill(~kept, 0.0)),
        tail=weights.masked_fill(kept, 0.0).sum(-1) + group.outside,
        first=x[:, 0],
        margin=torch.where(count[:, 0] > 1, x[:, 0] - second, torch.zeros_like(second)),
        cut_margin=(x.gather(-1, count - 1) - first_dropped).squeeze(-1),
        contains=same.any(-1),
    )
