"""One engine's draws with all that is needed to judge them, and the weights it may hold instead.

Weights that are rounded, without the adapter, or those of a caller's. Which it was is for
`attribution` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from seqproc.engines.base import Engine, StoppingRule
from seqproc.models.parameters import ParamMapping
from seqproc.parity.draws import Answer, Draws, NominalScores
from seqproc.parity.logit_error import LogitError, tolerance
from seqproc.parity.positions import LogDistribution
from seqproc.parity.verdict import FALSE_ALARMS
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TeacherForcingScorer

Suspects = Mapping[str, Callable[[], ParamMapping]]  # parameters to score at, by description


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One engine's draws and everything needed to score them again."""

    engine: Engine
    answers: Sequence[Answer]
    scorer: TeacherForcingScorer
    policy: SamplingPolicy
    stopping: StoppingRule
    draws: Draws
    nominal: NominalScores
    override: ParamMapping | None
    suspects: Suspects  # other weights that the engine might hold
    error: LogitError  # of a right engine
    false_alarms: float = FALSE_ALARMS

    @property
    def tolerance(self) -> float:
        """Of a reported log q, nats."""
        return tolerance(self.error.nats, self.policy)


def joined(parts: Sequence[Case]) -> Case:
    """The draws of several cases of one engine, in their order."""
    return replace(
        parts[0],
        answers=[answer for part in parts for answer in part.answers],
        draws=Draws.concatenate([part.draws for part in parts]),
        nominal=NominalScores.concatenate([part.nominal for part in parts]),
    )


def other_weights(case: Case) -> Suspects:
    """Parameters that the engine may hold: those named by the caller first."""
    model = case.scorer.model
    return {**case.suspects, **_adapterless(model), **_rounded(model, case.override)}


def _rounded(model: nn.Module, override: ParamMapping | None) -> Suspects:
    own = dict(model.named_parameters()) | dict(override or {})

    def rounded(dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: p.detach().to(dtype).to(p.dtype) for name, p in own.items()}

    return {
        "weights rounded to bfloat16": lambda: rounded(torch.bfloat16),
        "weights rounded to float16": lambda: rounded(torch.float16),
    }


def _adapterless(model: nn.Module) -> Suspects:
    """LoRA adds B·A to a weight: without B it adds nothing."""
    added = {n: torch.zeros_like(p) for n, p in model.named_parameters() if ".lora_B." in n}
    return {"the model without its adapter": lambda: added} if added else {}


def of_policy(policy: SamplingPolicy) -> LogDistribution:
    """The policy's q, as a function of logits."""
    return lambda logits: log_q(logits, policy)
