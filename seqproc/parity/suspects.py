"""Suspects: distributions that engines have been seen to sample from in place of the policy's.

Other policies (another temperature or nucleus, a top-k left on, the order of the two exchanged),
some fitted to the tokens, and other weights (rounded, without the adapter, of before an update).
Knows the policy and the scorer; which suspect it was is for `attribution` to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from seqproc.engines.base import Engine, StoppingRule
from seqproc.models.parameters import ParamMapping
from seqproc.parity.draws import Answer, Draws, NominalScores, score
from seqproc.parity.metrics import tolerance
from seqproc.parity.positions import LogDistribution
from seqproc.parity.verdict import FALSE_ALARMS
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TeacherForcingScorer
from seqproc.support.top_logits import largest

_TOP_K = 50  # what Hugging Face `generate` applies unless told otherwise
_NEWTON_STEPS, _LONGEST_STEP, _SHORT_STEP = 6, 0.7, 0.05  # of log T; after a short one, enough
_LEAST_SHIFT = 1e-3  # of a fitted temperature or top_p that is worth naming

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
    logit_error: float  # by which each logit may be off, nats
    false_alarms: float = FALSE_ALARMS

    @property
    def tolerance(self) -> float:
        """Of a reported log q, nats."""
        return tolerance(self.logit_error, self.policy)


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


def other_policies(case: Case) -> dict[str, LogDistribution]:
    """Distributions that an engine may mistake the policy for, and those fitted to its tokens."""
    policy = case.policy
    others = {
        "temperature ignored": replace(policy, temperature=1.0),
        "top_p ignored": replace(policy, top_p=1.0),
        "temperature and top_p ignored": replace(policy, temperature=1.0, top_p=1.0),
        "sampling off (greedy)": replace(policy, do_sample=False),
        **_fitted(case),
    }
    suspects: dict[str, LogDistribution] = {
        name: of_policy(other) for name, other in others.items() if other != policy
    }
    suspects[f"top_k = {_TOP_K} left on"] = lambda a: _top_k(log_q(a, policy), _TOP_K)
    if policy.top_p < 1:
        suspects["the token that crosses top_p left out"] = lambda a: _without_last(
            log_q(a, policy)
        )
        if policy.temperature != 1:
            suspects["top_p applied before the temperature"] = lambda a: _cut_first(a, policy)
    return suspects


def _fitted(case: Case) -> dict[str, SamplingPolicy]:
    """The policy with T, or top_p, moved to where the tokens have them.

    The largest mass before a token is the maximum-likelihood estimate of top_p.
    """
    policy = case.policy
    if not policy.do_sample:
        return {}
    temperature = _fitted_temperature(case)
    top_p = float(min(case.nominal.mass_before.max() * (1 + 1e-6), 1.0))
    found = {}
    if abs(math.log(temperature / policy.temperature)) > _LEAST_SHIFT:
        name = f"temperature {temperature:.3g} in place of {policy.temperature:g}"
        found[name] = replace(policy, temperature=temperature)
    if abs(top_p - policy.top_p) > _LEAST_SHIFT and top_p > 0:
        found[f"top_p {top_p:.3g} in place of {policy.top_p:g}"] = replace(policy, top_p=top_p)
    return found


def _fitted_temperature(case: Case) -> float:
    """Newton steps for log T; its score is d log q/d log T = −(log q + H)."""
    draws, log_t = case.draws, math.log(case.policy.temperature)
    for _ in range(_NEWTON_STEPS):
        kept = draws.in_support
        gap = float((-draws.logqs[kept] - draws.entropies[kept]).sum())
        step = gap / max(float(draws.variances[kept].sum()), 1e-9)
        log_t += float(np.clip(step, -_LONGEST_STEP, _LONGEST_STEP))
        if abs(step) < _SHORT_STEP:
            break
        distribution = of_policy(replace(case.policy, temperature=math.exp(log_t)))
        draws = score(case.answers, case.scorer, {"q": distribution}, override=case.override)["q"]
    return math.exp(log_t)


def of_policy(policy: SamplingPolicy) -> LogDistribution:
    """The policy's q, as a function of logits."""
    return lambda logits: log_q(logits, policy)


def _top_k(log_q_RV: Tensor, k: int) -> Tensor:
    ids_Rk = largest(log_q_RV, min(k, log_q_RV.shape[-1]))
    least_R1 = log_q_RV.gather(-1, ids_Rk[:, -1:])
    return _renormalised(log_q_RV, log_q_RV >= least_R1)


def _without_last(log_q_RV: Tensor) -> Tensor:
    kept_RV = log_q_RV > -math.inf
    last_R1 = log_q_RV.masked_fill(~kept_RV, math.inf).amin(-1, keepdim=True)
    alone_R1 = kept_RV.sum(-1, keepdim=True) == 1
    return _renormalised(log_q_RV, (log_q_RV > last_R1) | (alone_R1 & kept_RV))


def _cut_first(logits_RV: Tensor, policy: SamplingPolicy) -> Tensor:
    """The nucleus of softmax(ℓ), and the temperature within it."""
    cut_RV = log_q(logits_RV, replace(policy, temperature=1.0))
    return _renormalised(logits_RV / policy.temperature, cut_RV > -math.inf)


def _renormalised(logits_RV: Tensor, kept_RV: Tensor) -> Tensor:
    return logits_RV.masked_fill(~kept_RV, -math.inf).log_softmax(-1)
