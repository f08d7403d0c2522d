"""Scorers: teacher forcing in torch, in float32 or true float64, also at shifted parameters.

The pieces can be used one by one: `TeacherForcingScorer` for token sequences, `measure` for a
logits tensor, `build_params_override` for θ + η·v, `plan` for batches, `jvp` and `hvp` for
derivatives.
"""

import warnings
from collections.abc import Callable
from typing import Any

from seqproc.scorers.batching import Batch, Limits, TokenSequence, plan, token_sequences
from seqproc.scorers.budget import Schedule
from seqproc.scorers.derivatives import TokenDerivatives, hvp, jvp
from seqproc.scorers.diagnostics import DistributionDiagnostics, diagnostics_pack
from seqproc.scorers.examination import Shortcuts, examine, split_model
from seqproc.scorers.forward import forward_logits
from seqproc.scorers.gradients import (
    gradient_gram,
    projected_gradients,
    sequence_gradients,
    weighted_gradient,
)
from seqproc.scorers.kernels.allocator import keep_freed_memory
from seqproc.scorers.measure import baseline_features, measure
from seqproc.scorers.overrides import build_params_override, build_state_override
from seqproc.scorers.precision import Float64Lift
from seqproc.scorers.teacher_forcing import TeacherForcingScorer

__all__ = [
    "Batch",
    "DistributionDiagnostics",
    "Float64Lift",
    "Limits",
    "Schedule",
    "Shortcuts",
    "TeacherForcingScorer",
    "TokenDerivatives",
    "TokenSequence",
    "baseline_features",
    "build_params_override",
    "build_state_override",
    "diagnostics_pack",
    "examine",
    "forward_logits",
    "gradient_gram",
    "hvp",
    "jvp",
    "keep_freed_memory",
    "measure",
    "plan",
    "projected_gradients",
    "sequence_gradients",
    "split_model",
    "token_sequences",
    "weighted_gradient",
]

_RENAMED: dict[str, Callable[..., Any]] = {"take_apart": split_model}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _RENAMED[name].__name__
    warnings.warn(
        f"seqproc.scorers.{name} is now {new}; the old name goes in version 0.2",
        DeprecationWarning,
        stacklevel=2,
    )
    return _RENAMED[name]
