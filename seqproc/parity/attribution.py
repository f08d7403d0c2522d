"""Why an engine failed: which other distribution explains its tokens, or its reported log q.

Suspects are distributions that real engines have been seen to sample from: another temperature or
nucleus, a top-k left on, the order of the two exchanged; and other weights: rounded, without the
adapter, of before an update. Every token is scored under each. The suspect of the largest
likelihood, under which all tests of the sampler hold, is the cause; the one whose log q the
engine's agree with is what it reports. Knows the scorer and `Draws`; runs only after a failure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from seqproc.engines.base import Completion, Engine, StoppingRule
from seqproc.parity.draws import Answer, Draws, Floats, Nominal, score
from seqproc.parity.sampler import sampler_findings
from seqproc.parity.verdict import FALSE_ALARMS, Finding, Link, decide
from seqproc.placement import LogDistribution
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TeacherForcingScorer
from seqproc.scorers.overrides import ParamMapping

_TOP_K = 50  # what Hugging Face `generate` applies unless told otherwise
_IMPOSSIBLE = -50.0  # nats for a token that a suspect cannot emit, in place of −∞
_NEWTON_STEPS, _LONGEST_STEP, _SHORT_STEP = 6, 0.7, 0.05  # of log T; after a short one, enough
_LEAST_SHIFT = 1e-3  # of a fitted temperature or top_p that is worth naming
_MOSTLY = 0.999  # share of tokens in a suspect's support; rounding may put a few outside
_RARE = 1e-6  # chance of a draw that another of the same prompt does not repeat
_ALONE = 4  # draws that are sampled again, each alone

Suspects = Mapping[str, Callable[[], ParamMapping]]  # parameters to score at, by description


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What went wrong, as far as the draws tell."""

    link: Link
    description: str
    explains: bool  # whether all that failed holds when this is taken for true
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One engine's draws and everything needed to score them again."""

    engine: Engine
    answers: Sequence[Answer]
    scorer: TeacherForcingScorer
    policy: SamplingPolicy
    stopping: StoppingRule
    draws: Draws
    nominal: Nominal
    override: ParamMapping | None
    suspects: Suspects  # other weights that the engine might hold
    tolerance: float  # of a reported log q, nats
    false_alarms: float = FALSE_ALARMS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A suspect, and how well it fits."""

    description: str
    link: Link
    log_likelihood: float  # of all tokens, nats
    tests_hold: bool  # those of the sampler
    log_q_error: float  # mean distance of its log q from the engine's; NaN without


def attribute(case: Case, failed: Sequence[Finding]) -> list[Cause]:
    """Causes of what failed, the first link of the chain first."""
    links = {finding.link for finding in failed}
    causes = [_plain(finding) for finding in failed if finding.link in (Link.PROMPT, Link.TEXT)]
    if Link.PROMPT in links:  # then everything behind it differs
        return causes
    dependence = _dependence(case, failed) if Link.TOKENS in links else None
    if dependence is not None and dependence.explains:  # what is drawn twice also counts twice
        links -= {Link.POLICY}
    if links & {Link.POLICY, Link.LOG_Q}:
        causes += _distribution_causes(case, links)
    if dependence is not None and (dependence.explains or Link.POLICY not in links):
        causes.append(dependence)
    order = list(Link)
    return sorted(causes, key=lambda cause: order.index(cause.link))


def _plain(finding: Finding) -> Cause:
    return Cause(link=finding.link, description=finding.detail, explains=True)


def _dependence(case: Case, failed: Sequence[Finding]) -> Cause:
    """Randomness used twice; certain when draws have twins that chance would not give them."""
    draws = case.draws
    owner = np.repeat(np.arange(len(draws.lengths)), draws.lengths)
    chances = np.exp(np.bincount(owner, draws.logqs))
    answers = [answer for answer in case.answers if answer.completion.token_ids]
    keys = [(answer.prompt, answer.completion.token_ids) for answer in answers]
    counts = Counter(keys)
    twins = sum(
        counts[key] > 1 and chance < _RARE for key, chance in zip(keys, chances, strict=True)
    )
    which = ", ".join(finding.name for finding in failed if finding.link is Link.TOKENS)
    only = all(finding.link is Link.TOKENS for finding in failed)
    return Cause(
        link=Link.TOKENS,
        description=f"what should be independent is not ({which}): randomness is used twice",
        explains=twins > 0 or only,
        detail=f"{twins:,} of {len(keys):,} draws are the same as another of their prompt, though "
        f"each is less likely than {_RARE:g}",
    )


def _distribution_causes(case: Case, links: set[Link]) -> list[Cause]:
    fits = [*_policy_fits(case), *_weight_fits(case)]
    nominal = _fit("", Link.POLICY, case, case.draws)
    causes = []
    if Link.POLICY in links:
        causes.append(_cause_of_tokens(case, fits))
    if Link.LOG_Q in links:
        own = causes[0].description if causes else ""
        reported = _cause_of_reports(case, fits, nominal)
        if reported.description != own:
            causes.append(reported)
    return causes


def _cause_of_tokens(case: Case, fits: Sequence[_Fit]) -> Cause:
    best = max(fits, key=lambda fit: (fit.tests_hold, fit.log_likelihood))
    own = _log_likelihood(case.draws)
    return Cause(
        link=best.link if best.tests_hold else Link.LOGITS,
        description=best.description
        if best.tests_hold
        else "another distribution, not a known one",
        explains=best.tests_hold,
        detail=f"the nearest suspect is: {best.description}; its log-likelihood is "
        f"{best.log_likelihood - own:+,.1f} nats against the policy's",
    )


def _cause_of_reports(case: Case, fits: Sequence[_Fit], nominal: _Fit) -> Cause:
    best = min(fits, key=lambda fit: fit.log_q_error)
    errors = f"mean error {nominal.log_q_error:.2g} nats"
    if best.log_q_error > nominal.log_q_error / 2:
        return _unexplained_reports(case, errors)
    is_weights = best.link is Link.WEIGHTS
    return Cause(
        link=best.link if is_weights else Link.LOG_Q,
        description=best.description if is_weights else f"log q reported with {best.description}",
        explains=best.log_q_error <= case.tolerance,
        detail=f"{errors}, {best.log_q_error:.2g} when this is taken for true",
    )


def _unexplained_reports(case: Case, errors: str) -> Cause:
    """Whether log q change when a draw is sampled alone: then batching or padding is at fault."""
    some = [answer for answer in case.answers if answer.completion.logqs][:_ALONE]
    change = max((_change_alone(case, answer) for answer in some), default=0.0)
    batched = change > case.tolerance
    return Cause(
        link=Link.LOGITS,
        description="logits depend on the batch (padding, positions)"
        if batched
        else "other logits than the scorer's (dtype, kernel), or other weights",
        explains=batched,
        detail=f"{errors}; sampled alone, log q change by up to {change:.2g} nats",
    )


def _change_alone(case: Case, answer: Answer) -> float:
    alone: Completion = next(
        iter(case.engine.generate([answer.request], case.policy, case.stopping))
    )
    pairs = zip(
        alone.token_ids,
        answer.completion.token_ids,
        alone.logqs or (),
        answer.completion.logqs or (),
        strict=False,
    )
    changes = [0.0]
    for token, before, own, reported in pairs:
        if token != before:
            break
        changes.append(abs(own - reported))
    return max(changes)


def _policy_fits(case: Case) -> list[_Fit]:
    distributions = _other_policies(case)
    found = score(case.answers, case.scorer, distributions, override=case.override)
    return [_fit(name, Link.POLICY, case, draws) for name, draws in found.items()]


def _weight_fits(case: Case) -> list[_Fit]:
    policy = case.policy
    model = case.scorer.model
    suspects = {**_rounded(model, case.override), **_adapterless(model), **case.suspects}
    fits = []
    for name, parameters in suspects.items():
        found = score(
            case.answers,
            case.scorer,
            {"q": lambda logits: log_q(logits, policy)},
            override=parameters(),
        )
        fits.append(_fit(name, Link.WEIGHTS, case, found["q"]))
    return fits


def _rounded(model: nn.Module, override: ParamMapping | None) -> Suspects:
    own = dict(model.named_parameters()) | dict(override or {})

    def rounded(dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: p.detach().to(dtype).to(p.dtype) for name, p in own.items()}

    return {
        f"weights rounded to {str(dtype).removeprefix('torch.')}": lambda dtype=dtype: rounded(
            dtype
        )  # type: ignore[misc]
        for dtype in (torch.bfloat16, torch.float16)
    }


def _adapterless(model: nn.Module) -> Suspects:
    """LoRA adds B·A to a weight: without B it adds nothing."""
    added = {n: torch.zeros_like(p) for n, p in model.named_parameters() if ".lora_B." in n}
    return {"the model without its adapter": lambda: added} if added else {}


def _other_policies(case: Case) -> dict[str, LogDistribution]:
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
        name: _of_policy(other) for name, other in others.items() if other != policy
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
        distribution = _of_policy(replace(case.policy, temperature=math.exp(log_t)))
        draws = score(case.answers, case.scorer, {"q": distribution}, override=case.override)["q"]
    return math.exp(log_t)


def _of_policy(policy: SamplingPolicy) -> LogDistribution:
    return lambda logits: log_q(logits, policy)


def _top_k(log_q_RV: Tensor, k: int) -> Tensor:
    least_R1 = log_q_RV.topk(min(k, log_q_RV.shape[-1]), dim=-1).values[:, -1:]
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


def _fit(description: str, link: Link, case: Case, draws: Draws) -> _Fit:
    return _Fit(
        description=description,
        link=link,
        log_likelihood=_log_likelihood(draws),
        tests_hold=float(draws.in_support.mean()) >= _MOSTLY
        and decide(sampler_findings(draws), case.false_alarms).holds,
        log_q_error=_error(draws.logqs, case.nominal.engine_logqs),
    )


def _log_likelihood(draws: Draws) -> float:
    return float(np.maximum(draws.logqs, _IMPOSSIBLE).sum())


def _error(logqs: Floats, engine_logqs: Floats | None) -> float:
    if engine_logqs is None:
        return math.nan
    gaps = np.maximum(engine_logqs, _IMPOSSIBLE) - np.maximum(logqs, _IMPOSSIBLE)
    return float(np.abs(gaps).mean())
