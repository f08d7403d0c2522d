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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import inf

import torch
from torch import Tensor
from torch.nn import functional

from seqproc._util.by_device import ByDevice
from seqproc._util.kernels import is_on
from seqproc.support.top_logits import largest

# Numbers of candidates that a look at a row may take; what is still open then is sorted in full.
# A GPU finds the 2,048 largest logits as soon as the 192 largest.
_WIDTHS: ByDevice[tuple[int, ...]] = ByDevice(cpu=(192, 2048, 8192), accelerator=(2048,))

# What is in memory at a time, in numbers of elements.
_BLOCK_ELEMENTS = ByDevice(cpu=1 << 20, accelerator=1 << 24)  # logits that are read whole
_LOOK_ELEMENTS = ByDevice(cpu=1 << 17, accelerator=1 << 23)  # candidates of a look
_COPIED_ELEMENTS = ByDevice(cpu=1 << 22, accelerator=1 << 25)  # of a look's rows, if not all rows

_LOG2_E = 1 / math.log(2)

# Bounds on the relative error of a sum of exponentials. In float32, x = (ℓ − max ℓ)/T carries
# 2⁻²³·|x| and x·log₂e half of that and 2e-8·|x|; exp2 and the cascaded sum add 2e-6 at most. That
# is 8e-6 down to x = −30. What is below has no part in it: of a million tokens it is 1e-7 of a
# row's mass, so that its own error, 2e-5 of it down to exp(−88), is within the bound of float64,
# which is always added. In float64 what counts is the cumulative sum over at most 8,192 candidates.
_SUM_ERROR = {torch.float32: 8e-6, torch.float64: 1e-11}

# Whether float32 logits outside the candidates are summed in float64. That makes second looks rare.
# It is worth it on a GPU, where a second look is slow; on a CPU the float64 sum would dominate.
_SUMS_ARE_WIDE = ByDevice(cpu=False, accelerator=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuclei:
    """The nuclei of M rows among their k largest logits, in falling order (ties: smaller id first).

    ``shifted``, ``weights`` and ``outside`` are differentiable in the logits.
    """

    rows: Tensor  # [M] int64, which rows of the logits these are
    ids: Tensor  # [M, k] int64
    shifted: Tensor  # [M, k] float64, x = (ℓ − max ℓ)/T
    weights: Tensor  # [M, k] float64, exp(x)
    kept: Tensor  # [M, k] bool, in the nucleus: a first part of each row
    outside: Tensor  # [M] float64, Σ exp(x) over all other tokens
    share: Tensor  # [M, k] float64, mass up to each token and with it, over that of the whole row

    def take(self, which: Tensor) -> Nuclei:
        """Some of the rows, by index."""
        return Nuclei(**{f.name: getattr(self, f.name)[which] for f in fields(self)})


def nuclei(logits: Tensor, temperature: float, top_p: float) -> Iterator[Nuclei]:
    """The nucleus of every row, in groups of rows that took the same number of candidates.

    Args:
        logits: ``[N, V]``, float32 or float64.
        temperature: T > 0.
        top_p: nucleus mass in [0, 1); 0 keeps the first token alone.
    """
    every_row = torch.arange(len(logits), device=logits.device)
    pending = [_Search(logits, every_row, temperature, top_p, _widths(logits))]
    while pending:
        search, rest = pending.pop().split()
        attempt = search.attempt()
        if (settled := attempt.settled) is not None:
            yield settled
        # What is put last comes next, so that few rows are copied at a time.
        pending += [*rest, *search.wider(~attempt.in_reach), *search.exact(attempt.too_close)]


def nuclei_by_sorting(logits: Tensor, temperature: float, top_p: float) -> Nuclei:
    """The nuclei of all rows among all V tokens, in a number of steps that no value decides.

    The same as those of `nuclei`. Nothing is read back from the device, so that the host never
    waits for an accelerator.
    """
    rows = torch.arange(len(logits), device=logits.device)
    outside = torch.zeros_like(rows, dtype=wide(logits[:0]).dtype)
    ids = _largest(logits, logits.shape[-1])
    return _head(logits, rows, temperature, top_p, ids, outside)


def blocks(logits: Tensor) -> Sequence[Tensor]:
    """Rows ``[n, V]`` of logits ``[N, V]`` to read at a time: on a CPU what fits in its caches."""
    return logits.split(max(1, _BLOCK_ELEMENTS.on(logits.device) // logits.shape[-1]))


def wide(values: Tensor) -> Tensor:
    """Float64 where the device has it (Apple's MPS has not)."""
    return values if values.device.type == "mps" else values.double()


def _widths(logits: Tensor) -> list[int]:
    """Numbers of candidates to try in turn; the last is the whole vocabulary."""
    vocabulary = logits.shape[-1]
    if not is_on("nucleus"):
        return [vocabulary]
    return [*(width for width in _WIDTHS.on(logits.device) if width < vocabulary), vocabulary]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Nuclei among some candidates, and for each row whether that settles it."""

    nuclei: Nuclei
    in_reach: Tensor  # [M] bool, the cut lies among the candidates, with all its ties
    beyond_rounding: Tensor  # [M] bool, and no rounding can have moved it

    @property
    def settled(self) -> Nuclei | None:
        """The nuclei that are found."""
        settled = self.in_reach & self.beyond_rounding
        if bool(settled.all()):
            return self.nuclei
        return self.nuclei.take(settled.nonzero()[:, 0]) if bool(settled.any()) else None

    @property
    def too_close(self) -> Tensor:
        """``[M]`` bool: the cut is so close to a token that sums must be exact to decide."""
        return self.in_reach & ~self.beyond_rounding


@dataclass(frozen=True, slots=True)
class _Search:
    """Rows of logits whose nuclei are still to be found, among ever more candidates."""

    logits: Tensor  # [N, V]
    rows: Tensor  # [M] int64, which rows of the caller's logits these are
    temperature: float
    top_p: float
    widths: list[int]  # numbers of candidates to try in turn
    chosen: Tensor | None = None  # [M] int64, which rows of `logits` to search; None: all, M = N

    def split(self) -> tuple[_Search, list[_Search]]:
        """The first rows, as many as may be in memory at a time, and the others, if any."""
        vocabulary, device = self.logits.shape[-1], self.logits.device
        most = _LOOK_ELEMENTS.on(device) // self.widths[0]
        if self.chosen is None:
            most = max(1, most)
            first = replace(self, logits=self.logits[:most], rows=self.rows[:most])
            rest = replace(self, logits=self.logits[most:], rows=self.rows[most:])
        else:
            most = max(1, min(most, _COPIED_ELEMENTS.on(device) // vocabulary))
            copied = self.logits.index_select(0, self.chosen[:most])
            first = replace(self, logits=copied, rows=self.rows[:most], chosen=None)
            rest = replace(self, rows=self.rows[most:], chosen=self.chosen[most:])
        return first, [rest] if len(rest.rows) else []

    def attempt(self) -> _Attempt:
        """Look among the first number of candidates."""
        logits, width = self.logits, self.widths[0]
        ids, outside = _candidates(logits, self.temperature, width)
        found = self._nuclei(ids, outside)
        if width == logits.shape[-1]:
            everything = torch.ones_like(found.kept[:, 0])
            return _Attempt(found, everything, everything)
        last = found.kept.sum(-1, keepdim=True) - 1
        shifted = found.shifted.detach()
        cut = shifted.gather(-1, last)
        following = shifted.gather(-1, (last + 1).clamp(max=width - 1))
        in_reach = shifted[:, -1] < cut[:, 0]
        if bool((in_reach & (following == cut)[:, 0]).any()):  # the cut splits a tie
            found = self._nuclei(_smaller_ids_first(logits, ids), outside)
        sum_error = _SUM_ERROR[_summed_as(logits)]
        return _Attempt(found, in_reach, _certain(found, last, self.top_p, sum_error))

    def wider(self, which: Tensor) -> Iterator[_Search]:
        """The search of some rows among more candidates."""
        if bool(which.any()):
            chosen = which.nonzero()[:, 0]
            yield replace(self, rows=self.rows[chosen], widths=self.widths[1:], chosen=chosen)

    def exact(self, which: Tensor) -> Iterator[_Search]:
        """The search of some rows with sums in float64; among all tokens if they were that."""
        if bool(which.any()):
            exact = wide(self.logits[which])
            widths = self.widths[-1:] if exact.dtype == _summed_as(self.logits) else self.widths
            yield replace(self, logits=exact, rows=self.rows[which], widths=widths)

    def _nuclei(self, ids: Tensor, outside: Tensor) -> Nuclei:
        return _head(self.logits, self.rows, self.temperature, self.top_p, ids, outside)


def _candidates(logits: Tensor, temperature: float, width: int) -> tuple[Tensor, Tensor]:
    """Ids ``[N, width]`` of the largest logits, falling, and Σ exp(x) ``[N]`` over all others.

    Only what reads the whole vocabulary goes in blocks.
    """
    ids, outside = [], []
    for block in blocks(logits):
        chosen = _largest(block, width)
        peak = block.detach().gather(-1, chosen[:, :1])
        others = scaled(block - peak.to(_summed_as(block)), temperature)
        others = others.scatter_(-1, chosen, -inf)
        ids.append(chosen)
        outside.append(wide(sums(exponential(others))))
    return torch.cat(ids), torch.cat(outside)


def _head(
    logits: Tensor, rows: Tensor, temperature: float, top_p: float, ids: Tensor, outside: Tensor
) -> Nuclei:
    values = wide(logits.gather(-1, ids))
    shifted = scaled(values - values.detach()[:, :1], temperature)
    inside = shifted.exp()
    share = inside.detach().cumsum(-1)
    share /= share[:, -1:] + outside.detach().unsqueeze(-1)
    kept = functional.pad(share[:, :-1] < top_p, (1, 0), value=True)
    return Nuclei(
        rows=rows,
        ids=ids,
        shifted=shifted,
        weights=inside,
        kept=kept,
        outside=outside,
        share=share,
    )


def _certain(found: Nuclei, last: Tensor, top_p: float, sum_error: float) -> Tensor:
    """Whether the mass before the last token kept, and before the next, is far from top_p."""
    after = found.share.gather(-1, last)
    before = found.share.gather(-1, (last - 1).clamp(min=0)).masked_fill(last == 0, -inf)
    error = sum_error * (1 - found.share[:, -1:]) + _SUM_ERROR[torch.float64]
    return ((top_p - before > error) & (after - top_p > error)).squeeze(-1)


def _summed_as(logits: Tensor) -> torch.dtype:
    """The dtype in which the mass outside the candidates is summed."""
    return wide(logits[:0]).dtype if _SUMS_ARE_WIDE.on(logits.device) else logits.dtype


def _largest(logits: Tensor, width: int) -> Tensor:
    if width == logits.shape[-1]:
        return logits.detach().sort(dim=-1, descending=True, stable=True).indices
    return largest(logits, width)


def _smaller_ids_first(logits: Tensor, ids: Tensor) -> Tensor:
    ids = ids.sort(dim=-1).values
    falling = logits.detach().gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, falling.indices)


def sums(rows: Tensor) -> Tensor:
    """The sum of each row, ``[N]``.

    A single row is duplicated: PyTorch would otherwise split it over threads and round differently.
    """
    return rows.sum(-1) if len(rows) != 1 else rows.expand(2, -1).sum(-1)[:1]


def exponential(x: Tensor) -> Tensor:
    """exp(x). In float32 as 2^(x·log₂e), several times faster on a CPU."""
    return (x * _LOG2_E).exp2_() if x.dtype == torch.float32 else x.exp()


def scaled(values: Tensor, temperature: float) -> Tensor:
    """values / T; the same tensor at T = 1."""
    return values if temperature == 1 else values / temperature
