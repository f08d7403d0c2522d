"""`check_engine`: sample with an engine, score every token, test, and give one verdict.

Joins the parts of this package; computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seqproc.engines.answers import described, noise_of
from seqproc.engines.base import Engine, Request, StoppingRule
from seqproc.engines.gumbel import is_seed
from seqproc.engines.noise import Noise, NotReplayable
from seqproc.errors import ConfigError, SequenceError
from seqproc.models import vocab_size
from seqproc.models.parameters import ParamMapping
from seqproc.models.tokenization import Tokenizer
from seqproc.parity import metrics, structure
from seqproc.parity.attribution import attribute
from seqproc.parity.betting.evidence import evidence
from seqproc.parity.betting.findings import bet_findings
from seqproc.parity.cause import Cause
from seqproc.parity.draws import (
    Answer,
    Draws,
    NominalScores,
    sample,
    score_nominal,
    with_tokens,
)
from seqproc.parity.metrics import Metric
from seqproc.parity.replay import Replay, replay, replay_finding
from seqproc.parity.sampler import require_scipy, sampler_findings
from seqproc.parity.suspects import Case, Suspects
from seqproc.parity.twins import twins
from seqproc.parity.verdict import FALSE_ALARMS, Finding, Verdict, decide, require_rate
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer

_ENOUGH_GAPS = 100  # reported log q whose largest error is near that of all logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one engine was found to do under one policy."""

    engine: dict[str, Any]  # as it describes itself
    noise: str | None  # name of the noise it draws with; None when it cannot be computed again
    policy: SamplingPolicy
    num_prompts: int
    num_draws: int
    num_tokens: int
    logit_error: float  # allowed to the engine, nats
    assumed: str | None  # about the engine, where it does not tell; in words
    findings: tuple[Finding, ...]
    verdict: Verdict
    mismatch: dict[str, Metric] | None  # None: the engine reports no log q
    replay: Replay | None  # None: the noise cannot be computed again
    causes: tuple[Cause, ...]  # empty when the verdict holds
    answers: tuple[Answer, ...] = field(repr=False)  # what it sampled


def check_engine(
    engine: Engine,
    scorer: TeacherForcingScorer,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    prompts: Sequence[int],
    policy: SamplingPolicy,
    stopping: StoppingRule,
    *,
    override: ParamMapping | None = None,
    suspects: Suspects | None = None,
    logit_error: float | None = None,
    false_alarms: float = FALSE_ALARMS,
    seed: int = 0,
) -> Check:
    """Test whether an engine samples from the q that the scorer scores.

    Args:
        engine: any engine; it need not have been told of the override.
        scorer: its model is the truth, in the precision of its forward without gradients.
        tokenizer: the model's, which tells where a response ends.
        requests: D draws; two or more of each prompt, so that their independence is tested.
        prompts: ``[D]``, the number of each request's prompt.
        policy: the measure q.
        stopping: where responses end; its EOS ids are the scorer's.
        override: parameters that the engine is said to sample with; None for the model's own.
        suspects: other parameters that it might hold instead, by a description each; they are
            made only when something failed. The model's own are one, when there is an override.
        logit_error: by which each logit may be off [nats]; None for what goes with the dtype that
            the engine says it has.
        false_alarms: probability that a right engine fails.
        seed: of the tests' own randomisation.

    Raises:
        ConfigError: a rate of false alarms, a logit error or a seed that is none.
        SequenceError: no requests, indices that repeat, or not one prompt number for each.
        EngineError: when the engine fails, or breaks its contract so that nothing can be tested.
        MissingDependencyError: scipy is not installed.
    """
    require_scipy()
    require_rate(false_alarms)
    if not is_seed(seed):
        raise ConfigError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    _require_requests(requests, prompts)
    description, noise = described(engine), noise_of(engine, policy)
    error, assumed = metrics.logit_error_of(description, logit_error)
    vocabulary = vocab_size(scorer.model)
    answers = sample(engine, requests, prompts, policy, stopping, vocabulary=vocabulary)
    draws, nominal = score_nominal(
        answers,
        scorer,
        policy,
        error,
        noise=noise if isinstance(noise, Noise) else None,
        override=override,
        seed=seed,
    )
    case = Case(
        engine=engine,
        answers=answers,
        scorer=scorer,
        policy=policy,
        stopping=stopping,
        draws=draws,
        nominal=nominal,
        override=override,
        suspects=_suspects(override, suspects),
        logit_error=error,
        false_alarms=false_alarms,
    )
    check = _judged(case, tokenizer, description, noise)
    return replace(check, assumed=assumed)


def _judged(
    case: Case, tokenizer: Tokenizer, description: dict[str, Any], noise: Noise | NotReplayable
) -> Check:
    """Test, decide, and look for causes of what failed."""
    draws, logqs = case.draws, case.nominal.engine_logqs
    findings = all_findings(
        case.answers, draws, case.nominal, tokenizer, case.stopping, case.policy, case.tolerance
    )
    replayed = None if isinstance(noise, NotReplayable) else _replay(case, noise)
    findings.append(replay_finding(replayed, getattr(noise, "reason", "")))
    verdict = decide(findings, case.false_alarms)
    failed = [finding for finding in findings if finding.name in verdict.failed]
    return Check(
        engine=description,
        noise=noise.name if isinstance(noise, Noise) else None,
        policy=case.policy,
        num_prompts=len(set(draws.prompts)),
        num_draws=len(case.answers),
        num_tokens=len(draws.logqs),
        logit_error=case.logit_error,
        assumed=None,
        findings=tuple(findings),
        verdict=verdict,
        mismatch=None if logqs is None else metrics.mismatch(draws, logqs),
        replay=replayed,
        causes=tuple(attribute(case, failed)) if failed else (),
        answers=tuple(case.answers),
    )


def _replay(case: Case, noise: Noise) -> Replay | None:
    nominal, draws, answers = case.nominal, case.draws, with_tokens(case.answers)
    if nominal.replayed is None:
        return None
    allowed = case.tolerance
    if nominal.engine_logqs is not None:
        gaps = metrics.settled_gaps(draws, nominal.engine_logqs, nominal.is_settled)
        if len(gaps) >= _ENOUGH_GAPS:  # the error is known then, not only bounded
            allowed = min(allowed, 2 * float(gaps.max()))
    return replay(
        noise.name,
        nominal.replayed,
        sampled=np.concatenate([answer.completion.token_ids for answer in answers]),
        indices=np.repeat([answer.request.index for answer in answers], draws.lengths),
        steps=draws.steps,
        is_settled=nominal.is_settled,
        allowed=allowed + noise.error,
    )


def _require_requests(requests: Sequence[Request], prompts: Sequence[int]) -> None:
    if not requests or len(requests) != len(prompts):
        raise SequenceError(
            "a check needs requests, and for each the number of its prompt; got "
            f"{len(requests)} requests and {len(prompts)} numbers"
        )
    if len({request.index for request in requests}) < len(requests):
        raise SequenceError("every request needs an index of its own; some have the same")


def all_findings(
    answers: Sequence[Answer],
    draws: Draws,
    nominal: NominalScores,
    tokenizer: Tokenizer,
    stopping: StoppingRule,
    policy: SamplingPolicy,
    tolerance: float,
) -> list[Finding]:
    """Every test and check of sampled and scored draws, along the chain.

    Args:
        answers: from `sample`.
        draws: from `score_nominal`, with
        nominal: what it says beside.
        tokenizer: tells where a response ends.
        stopping: where it should.
        policy: the measure q.
        tolerance: of a reported log q, nats.
    """
    due = metrics.log_q_range(draws, nominal, policy, tolerance)
    return [
        *structure.structure_findings(answers, tokenizer, stopping),
        structure.support(draws, nominal),
        *sampler_findings(draws),
        twins(with_tokens(answers), draws, due.most),
        metrics.reported_log_q(draws, nominal.engine_logqs, due),
        *(
            []
            if nominal.gains is None
            else bet_findings(evidence(nominal.gains), tolerance * policy.temperature / 2)
        ),
    ]


def _suspects(override: ParamMapping | None, suspects: Suspects | None) -> Suspects:
    own = {} if override is None else {"the model's own weights, not the override": dict}
    return {**own, **(suspects or {})}
