"""Every number that leaves the scorer is finite, or the infinity that its definition allows.

Knows columns of numbers and whose they are; not how they were computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from math import inf

import torch
from torch import Tensor

from seqproc.errors import ScoringError
from seqproc.policy import TokenScores

Span = tuple[int, int, int]  # of a sequence: its index, and where its rows [start, stop) are

# log p and log q of a token that cannot be; the distance to a token dropped where none was.
_INFINITIES = {"logprobs": -inf, "logqs": -inf, "cut_margin": inf}


def require_numbers(scores: TokenScores, spans: Iterable[Span]) -> None:
    """Raise `ScoringError` unless all scores ``[R]`` of some sequences are numbers."""
    require_finite(dict(_columns(scores)), spans)


def require_finite(columns: Mapping[str, Tensor], spans: Iterable[Span]) -> None:
    """Raise `ScoringError` for the first of the columns ``[R]`` that holds what it must not."""
    good = torch.stack([_is_good(name, values) for name, values in columns.items()])
    if bool(good.all()):  # the only time that the host waits for the device
        return
    column, row = (~good).nonzero()[0].tolist()
    name, values = list(columns.items())[column]
    raise ScoringError(_explanation(name, values, row, spans))


def _columns(scores: TokenScores) -> Iterator[tuple[str, Tensor]]:
    yield "logprobs", scores.logprobs.detach()
    yield "logqs", scores.logqs.detach()
    for field in dataclasses.fields(scores.stats):
        values = getattr(scores.stats, field.name)
        if values is not None:
            yield field.name, values.detach()


def _is_good(name: str, values: Tensor) -> Tensor:
    infinity = _INFINITIES.get(name)
    return values.isfinite() if infinity is None else values.isfinite() | (values == infinity)


def _explanation(name: str, values: Tensor, row: int, spans: Iterable[Span]) -> str:
    index, start = next((i, start) for i, start, stop in spans if start <= row < stop)
    value, dtype = float(values[row]), str(values.dtype).removeprefix("torch.")
    where = f"sequence {index}: {name} of generated token {row - start} is {value}"
    if value != value:
        return (
            f"{where}. The model's logits are NaN or infinite there: check its weights, or score "
            "in a wider dtype"
        )
    return f"{where}, beyond what {dtype} holds: score with precision.entropy_fp64=True"
