"""The nucleus of a row of logits without sorting the vocabulary.

Only the k largest logits of a row are put in order. They decide the nucleus when the mass before
some token among them has passed ``top_p``, every tie at the cut is among them, and no rounding can
have moved the cut; a row where that does not hold is not settled, and is asked again with a
larger k. With k = V the whole row is sorted, which settles every row. The outcome is therefore that
of a full sort in float64.

Knows rows of logits only; `seqproc.policy` says what the nucleus is for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Candidates of a first, second, … look at a row; what is still open then is sorted in full.
_WIDTHS = (128, 512, 4096)

_LEAST_GROUP = 4  # logits; with smaller groups a detour through their largest does not pay

# Bounds on the relative error of a sum of exponentials. In float32, x = (ℓ − max ℓ)/T carries
# 2⁻²³·|x|, which matters down to exp(−88); exp and the cascaded sum add 2e-6 at most. In float64
# what counts is the cumulative sum over at most 4,096 candidates.
_SUM_ERROR = {torch.float32: 1.5e-5, torch.float64: 1e-11}


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuclei:
    """The nuclei of M rows among their k largest logits, in falling order (ties: smaller id first).

    ``shifted``, ``weights`` and ``outside`` are differentiable in the logits.
    """

    rows: Tensor  # [M] int64, which rows of the logits these are
    ids: Tensor  # [M, k] int64
    shifted: Tensor  # [M, k] float64, x = (ℓ − max ℓ)/T
    weights: Tensor  # [M, k] float64, exp(x)
    kept: Tensor  # [M, k] bool, in the nucleus
    outside: Tensor  # [M] float64, Σ exp(x) over all other tokens

    def take(self, which: Tensor) -> Nuclei:
        """Some of the rows, by index or mask."""
        return Nuclei(**{f.name: getattr(self, f.name)[which] for f in fields(self)})


def nuclei(logits: Tensor, temperature: float, top_p: float) -> Iterator[Nuclei]:
    """The nucleus of every row, in groups of rows that took the same number of candidates.

    Args:
        logits: ``[N, V]``, float32 or float64.
        temperature: T > 0.
        top_p: nucleus mass in [0, 1); 0 keeps the first token alone.
    """
    rows = torch.arange(len(logits), device=logits.device)
    yield from _search(logits, rows, temperature, top_p, _widths(logits.shape[-1]))


def wide(values: Tensor) -> Tensor:
    """Float64 where the device has it (Apple's MPS has not)."""
    return values if values.device.type == "mps" else values.double()


def _widths(vocabulary: int) -> list[int]:
    """Numbers of candidates to try in turn; the last is the whole vocabulary."""
    return [*(width for width in _WIDTHS if width < vocabulary), vocabulary]


def _search(
    logits: Tensor, rows: Tensor, temperature: float, top_p: float, widths: list[int]
) -> Iterator[Nuclei]:
    peak = logits.detach().amax(-1, keepdim=True)
    weights = scaled(logits - peak, temperature).exp()
    for i, width in enumerate(widths):
        found, within, certain = _look(logits, weights, rows, temperature, top_p, width)
        settled = within & certain
        if bool(settled.all()):
            yield found
            return
        if bool(settled.any()):
            yield found.take(settled)
        if bool((unsure := within & ~certain).any()):
            better = wide(logits[unsure])
            again = widths[-1:] if better.dtype == logits.dtype else widths[i:]
            yield from _search(better, rows[unsure], temperature, top_p, again)
        if bool(within.all()):
            return
        rest = (~within).nonzero().squeeze(-1)
        logits, weights, rows = (x.index_select(0, rest) for x in (logits, weights, rows))


def _look(
    logits: Tensor, weights: Tensor, rows: Tensor, temperature: float, top_p: float, width: int
) -> tuple[Nuclei, Tensor, Tensor]:
    """Nuclei among ``width`` candidates, and two masks ``[N]``: whether the cut lies among them
    with all its ties, and whether it is farther from any token than rounding reaches.
    """
    found = _head(logits, weights, rows, temperature, top_p, _largest(logits, width))
    if width == logits.shape[-1]:
        everything = torch.ones_like(found.kept[:, 0])
        return found, everything, everything
    last = found.kept.sum(-1, keepdim=True) - 1
    cut = found.shifted.detach().gather(-1, last)
    following = found.shifted.detach().gather(-1, (last + 1).clamp(max=width - 1))
    within = found.shifted.detach()[:, -1] < cut[:, 0]
    if bool((within & (following == cut)[:, 0]).any()):  # the cut parts a tie
        ids = _smaller_ids_first(logits, found.ids)
        found = _head(logits, weights, rows, temperature, top_p, ids)
    return found, within, _certain(found, top_p, _SUM_ERROR[logits.dtype])


def _head(
    logits: Tensor, weights: Tensor, rows: Tensor, temperature: float, top_p: float, ids: Tensor
) -> Nuclei:
    values = wide(logits.gather(-1, ids))
    shifted = scaled(values - values.detach()[:, :1], temperature)
    inside, outside = shifted.exp(), wide(weights.scatter(-1, ids, 0.0).sum(-1))
    kept = (_mass_before(inside, outside) < top_p) & (inside.detach() > 0)
    kept[:, 0] = True
    return Nuclei(rows=rows, ids=ids, shifted=shifted, weights=inside, kept=kept, outside=outside)


def _certain(found: Nuclei, top_p: float, sum_error: float) -> Tensor:
    share = found.outside.detach() / (found.weights.detach().sum(-1) + found.outside.detach())
    error = sum_error * share + _SUM_ERROR[torch.float64]
    distance = (_mass_before(found.weights, found.outside) - top_p).abs()
    return (distance > error.unsqueeze(-1))[:, 1:].all(-1)


def _mass_before(weights: Tensor, outside: Tensor) -> Tensor:
    """Normalised mass strictly before each candidate, ``[N, k]``, detached."""
    mass = weights.detach().cumsum(-1)
    before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
    return before / (mass[:, -1:] + outside.detach().unsqueeze(-1))


def _largest(logits: Tensor, width: int) -> Tensor:
    if width == logits.shape[-1]:
        return logits.detach().sort(dim=-1, descending=True, stable=True).indices
    return largest(logits, width)


def largest(logits: Tensor, number: int) -> Tensor:
    """Ids of the largest logits of each row, falling: ``[N, number]``, int64. Which of equal ones
    are taken at the end, and their order, is left open.

    In a large vocabulary only the ``number`` groups of largest maximum are looked into: each of
    them holds a logit at least as large as all in the groups left out. Group g of G holds the ids
    g, g + G, g + 2G, …; their size makes the two searches about equally long.
    """
    rows, vocabulary = logits.detach(), logits.shape[-1]
    size = math.isqrt(vocabulary // number)
    if size < _LEAST_GROUP:
        return rows.topk(number, dim=-1).indices
    num_groups = vocabulary // size
    peaks = rows[:, : num_groups * size].unflatten(-1, (size, num_groups)).amax(1)
    chosen = peaks.topk(number, dim=-1, sorted=False).indices
    members = torch.arange(size, device=rows.device).unsqueeze(-1) * num_groups
    rest = torch.arange(num_groups * size, vocabulary, device=rows.device)
    ids = (chosen.unsqueeze(1) + members).flatten(1)
    ids = torch.cat([ids, rest.expand(len(rows), -1)], dim=-1)
    return ids.gather(-1, rows.gather(-1, ids).topk(number, dim=-1).indices)


def _smaller_ids_first(logits: Tensor, ids: Tensor) -> Tensor:
    ids = ids.sort(dim=-1).values
    falling = logits.detach().gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, falling.indices)


def scaled(values: Tensor, temperature: float) -> Tensor:
    """values / T; the same tensor at T = 1."""
    return values if temperature == 1 else values / temperature
