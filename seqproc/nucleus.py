"""The nucleus of a row of logits without sorting the vocabulary.

Only the k largest logits of a row are put in order. They decide the nucleus when the mass before
some token among them has passed ``top_p``, every tie at the cut is among them, and no rounding can
have moved the cut; a row where that does not hold is not settled, and is asked again with a
larger k. With k = V the whole row is sorted, which settles every row. The outcome is therefore that
of a full sort in float64.

Knows rows of logits only; `seqproc.policy` says what the nucleus is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Candidates of a first, second, … look at a row; what is still open then is sorted in full.
_WIDTHS = (64, 512, 4096)

# Bounds on the relative error of a sum of exponentials. In float32, x = (ℓ − max ℓ)/T carries
# 2⁻²³·|x|, which matters down to exp(−88); exp and the cascaded sum add 2e-6 at most. In float64
# what counts is the cumulative sum over at most 4,096 candidates.
_SUM_ERROR = {torch.float32: 1.5e-5, torch.float64: 1e-11}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The k largest logits of N rows, in falling order (ties: smaller id first).

    ``shifted`` and ``outside`` are differentiable in the logits.
    """

    ids: Tensor  # [N, k] int64
    shifted: Tensor  # [N, k] float64, (ℓ − max ℓ)/T
    kept: Tensor  # [N, k] bool, in the nucleus
    outside: Tensor  # [N] float64, Σ exp((ℓ − max ℓ)/T) over all other tokens
    settled: Tensor  # [N] bool, whether these candidates decide the nucleus

    def take(self, rows: Tensor) -> Candidates:
        """Some of the rows, by index ``[M]``."""
        return Candidates(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def widths(vocabulary: int) -> Iterator[int]:
    """Numbers of candidates to try, in turn; the last is the whole vocabulary."""
    yield from (width for width in _WIDTHS if width < vocabulary)
    yield vocabulary


def largest(logits: Tensor, temperature: float, top_p: float, width: int) -> Candidates:
    """Find the nucleus among the ``width`` largest logits of each row.

    Args:
        logits: ``[N, V]``, float32 or float64. The mass outside the candidates is summed in this
            dtype, all else in float64.
        temperature: T > 0.
        top_p: nucleus mass in [0, 1); 0 keeps the first token alone.
        width: k ≤ V.
    """
    ids = _largest_ids(logits.detach(), width)
    values = logits.gather(-1, ids)
    peak = values.detach()[:, :1]
    shifted = (wide(values) - wide(peak)) / temperature
    outside = _mass_outside(logits, ids, peak, temperature)
    before, total = _mass_before(shifted.detach(), outside.detach())
    kept = (before < top_p).logical_and(shifted.detach() > float("-inf"))
    kept[:, 0] = True
    return Candidates(
        ids=ids,
        shifted=shifted,
        kept=kept,
        outside=outside,
        settled=_settled(
            logits, shifted.detach(), kept, (before - top_p).abs(), outside.detach() / total
        ),
    )


def wide(values: Tensor) -> Tensor:
    """Float64 where the device has it (Apple's MPS has not)."""
    return values if values.device.type == "mps" else values.double()


def _largest_ids(logits: Tensor, width: int) -> Tensor:
    if width == logits.shape[-1]:
        return logits.sort(dim=-1, descending=True, stable=True).indices
    ids = logits.topk(width, dim=-1, sorted=False).indices.sort(dim=-1).values
    order = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def _mass_outside(logits: Tensor, ids: Tensor, peak: Tensor, temperature: float) -> Tensor:
    if ids.shape[-1] == logits.shape[-1]:
        return wide(torch.zeros_like(logits[:, 0]))
    others = (logits - peak).div_(temperature).scatter_(-1, ids, float("-inf"))
    return wide(others.exp_().sum(-1))


def _mass_before(shifted: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised mass strictly before each candidate ``[N, k]``, and the sum of weights ``[N]``."""
    mass = shifted.exp().cumsum(-1)
    total = mass[:, -1] + outside
    before = torch.cat([torch.zeros_like(mass[:, :1]), mass[:, :-1]], dim=-1)
    return before / total.unsqueeze(-1), total


def _settled(
    logits: Tensor, shifted: Tensor, kept: Tensor, distance: Tensor, share_outside: Tensor
) -> Tensor:
    if shifted.shape[-1] == logits.shape[-1]:
        return torch.ones_like(kept[:, 0])
    cut = shifted.gather(-1, kept.sum(-1, keepdim=True) - 1)
    ties_seen = shifted[:, -1] < cut.squeeze(-1)
    error = _SUM_ERROR[logits.dtype] * share_outside + _SUM_ERROR[torch.float64]
    certain = (distance[:, 1:] > error.unsqueeze(-1)).all(-1)
    return ties_seen & certain
