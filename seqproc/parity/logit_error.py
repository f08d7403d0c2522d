"""By how much the logits of a right engine may be off from the scorer's.

Kernels of one dtype differ by its rounding, which in float64 and float32 is small for every model.
What float16 and bfloat16 do depends on the model and on the tokens: there it is measured, by a
forward of the scorer's own model in that dtype over tokens that the engine sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqproc.config import dtype_name
from seqproc.errors import ConfigError
from seqproc.models.parameters import ParamMapping
from seqproc.parity.reading import Rows, read_columns
from seqproc.policy import SamplingPolicy, token_log_p
from seqproc.scorers import TeacherForcingScorer, TokenSequence

# How far each logit of a right engine may be off, in nats, by the dtype that it computes in; in
# float16 and bfloat16 at least.
LOGIT_ERRORS = {"float64": 1e-7, "float32": 5e-4, "float16": 0.05, "bfloat16": 0.25}
_ASSUMED = "float32"
_MEASURED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SEQUENCES = 64  # that it is measured on, at most
_ENOUGH = 100  # tokens whose mean error is near that of all
_TIMES_THE_MEAN = 3.0  # which other kernels of the dtype may be off by


def known_dtype(told: object) -> tuple[str, str | None]:
    """The dtype that an engine says it computes in, by its one name; float32 where that is none.

    And what was assumed, in words; None when nothing was.
    """
    name = dtype_name(told)
    if isinstance(name, str) and name in LOGIT_ERRORS:
        return name, None
    was = "the engine tells no dtype" if told is None else f"the engine's dtype {told!r} is unknown"
    return _ASSUMED, f"{was}: its logits are allowed the error of {_ASSUMED}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitError:
    """What a right engine's logits may be off by."""

    nats: float  # each of them, at most
    mean: float = math.inf  # log p of sampled tokens, on average; nats
    told: str | None = None  # how it came about, in words, where it is not plain


def logit_error_of(
    description: Mapping[str, Any],
    given: float | None,
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    override: ParamMapping | None = None,
) -> LogitError:
    """By how much the logits of an engine may be off.

    Args:
        description: of the engine by itself.
        given: nats, by the user; None for what goes with the engine's dtype.
        scorer: its model is the truth.
        sequences: that the engine sampled; the first of them are read, where it is measured.
        override: parameters that the engine samples with; None for the model's own.
    """
    if given is not None:
        return LogitError(nats=given)
    dtype, assumed = known_dtype(description.get("dtype"))
    if dtype not in _MEASURED or not sequences:
        return LogitError(nats=LOGIT_ERRORS[dtype], told=assumed)
    gaps = rounding_gaps(scorer, sequences[:_SEQUENCES], _MEASURED[dtype], override)
    largest, mean = float(gaps.max()), float(gaps.mean())
    nats = max(LOGIT_ERRORS[dtype], largest)
    return LogitError(
        nats=nats,
        mean=_TIMES_THE_MEAN * mean if len(gaps) >= _ENOUGH else math.inf,
        told=f"{dtype} moves log p of this model by {mean:.2g} nats on average and {largest:.2g} "
        f"at most: the logits of the engine are allowed an error of {nats:.2g}",
    )


def require_logit_error(given: float | None) -> None:
    """Refuse an error that is none, before anything is sampled for it.

    Raises:
        ConfigError: it is no number of nats.
    """
    if given is None:
        return
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 <= given < math.inf:
        raise ConfigError(f"logit_error must be a number of nats ≥ 0, got {given!r}")


def tolerance(logit_error: float, policy: SamplingPolicy) -> float:
    """By how much a log q, or the gap of two, may then be off [nats]: 2·δ/T."""
    return 2 * logit_error / policy.temperature


def rounding_gaps(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    dtype: torch.dtype,
    override: ParamMapping | None = None,
) -> Tensor:
    """How far log p of tokens is off in a forward in some dtype: ``[N]`` float64, nats.

    Against one in float32, also where the scorer computes in neither: two kernels of a dtype differ
    by as much as it rounds. For the time of the call parameters are held in both.

    Args:
        scorer: whose model reads.
        sequences: N tokens in all.
        dtype: of parameters and activations.
        override: parameters of both forwards, possibly partial; None for the model's own.
    """

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        return {"log_p": token_log_p(logits.double(), rows.tokens)}

    exact, rounded = (
        torch.cat([one["log_p"] for one in found])
        for found in (
            read_columns(scorer, sequences, reading, override=override, rounded_to=width)
            for width in (torch.float32, dtype)
        )
    )
    return (exact - rounded).abs()
