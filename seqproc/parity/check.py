"""`check_engine`: sample with an engine, score every token, test, and give one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from seqproc._util.printing import Facts, Printed, items
from seqproc._util.snippets import table
from seqproc.engines.answers import batch_size_of, described, noise_of
from seqproc.engines.base import Engine, Request, StoppingRule
from seqproc.engines.gumbel import is_seed
from seqproc.engines.noise import Noise
from seqproc.errors import ConfigError, SequenceError
from seqproc.models.parameters import ParamMapping
from seqproc.models.tokenization import Tokenizer
from seqproc.parity import metrics
from seqproc.parity.betting.certificate import Certificate
from seqproc.parity.causes.attribution import attribute
from seqproc.parity.causes.cause import Cause
from seqproc.parity.draws import Answer
from seqproc.parity.findings.replay import Replay
from seqproc.parity.findings.sampler import require_scipy
from seqproc.parity.findings.worst import WorstToken, worst_tokens
from seqproc.parity.logit_error import require_logit_error
from seqproc.parity.metrics import Metric
from seqproc.parity.sequential import Until
from seqproc.parity.subject import OnLook, Subject
from seqproc.parity.suspects import Suspects, all_suspects
from seqproc.parity.verdict import FALSE_ALARMS, Finding, Verdict, decide, require_rate
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Check(Printed):
    """What one engine was found to do under one policy."""

    engine: dict[str, Any]  # as it describes itself
    noise: str | None  # name of the noise it draws with; None when it cannot be computed again
    policy: SamplingPolicy
    num_prompts: int
    num_draws: int
    num_tokens: int
    logit_error: float  # allowed to the engine, nats
    assumed: str | None  # or measured, for the error of its logits; in words
    findings: tuple[Finding, ...]
    verdict: Verdict
    certificate: Certificate | None  # None: the check was not to go on until it is decided
    mismatch: dict[str, Metric] | None  # None: the engine reports no log q
    replay: Replay | None  # None: the noise cannot be computed again
    causes: tuple[Cause, ...]  # empty when the verdict holds
    worst: tuple[WorstToken, ...]  # tokens by what failed; empty when the verdict holds
    answers: tuple[Answer, ...]  # what it sampled

    def _facts(self) -> Facts:
        return {
            "holds": self.verdict.holds,
            "engine": self.engine.get("name"),
            "policy": self.policy,
            "draws": self.num_draws,
            "tokens": self.num_tokens,
            "tests": self.verdict.num_tests,
            "failed": items(self.verdict.failed, 2) if self.verdict.failed else None,
            "causes": items([one.description for one in self.causes], 1) if self.causes else None,
        }

    def _pieces(self) -> Iterable[str]:
        """The tests that failed, and the causes."""
        failed = [one for one in self.findings if one.name in self.verdict.failed]
        if failed:
            rows = [(one.name, one.link, _p_value(one), one.detail) for one in failed]
            yield table("Failed tests", ("test", "link", "p-value", "detail"), rows)
        if self.causes:
            told = [(one.link, one.description, one.detail) for one in self.causes]
            yield table("Causes", ("link", "cause", "detail"), told)


def _p_value(finding: Finding) -> str:
    return "undecided" if finding.p_value is None else f"{finding.p_value:.3g}"


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
    until: Until | None = None,
    on_look: OnLook | None = None,
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
        suspects: other parameters that it might hold, or prompts that it might see, by a
            description each. They are bet on, which takes a forward over all draws each; their
            parameters are made anew at each look.
        logit_error: by which each logit may be off [nats]; None for what goes with the dtype that
            the engine says it has, which in float16 and bfloat16 is measured on its tokens.
        false_alarms: probability that a right engine fails.
        seed: of the tests' own randomisation.
        until: when it is decided, with all D draws at most; None to sample them all. Give the draws
            in an order that soon comes to every prompt.
        on_look: called after each look of a check that goes on until it is decided.

    Raises:
        ConfigError: a rate of false alarms, a logit error, a seed or a suspect that is none.
        OverrideError: parameters of a suspect that are not those of the scorer's model.
        SequenceError: no requests, indices that repeat, or not one prompt number for each.
        EngineError: when the engine fails, or breaks its contract so that nothing can be tested.
        MissingDependencyError: scipy is not installed.
    """
    require_scipy()
    require_rate(false_alarms)
    require_logit_error(logit_error)
    if not is_seed(seed):
        raise ConfigError(f"seed must be an integer in [0, 2**64), got {seed!r}")
    _require_requests(requests, prompts)
    require_until(until, policy)
    description, noise = described(engine), noise_of(engine, policy)
    batch_size_of(engine)
    subject = Subject(
        engine=engine,
        scorer=scorer,
        tokenizer=tokenizer,
        policy=policy,
        stopping=stopping,
        noise=noise,
        override=override,
        suspects=all_suspects(suspects),
        logit_error=logit_error,
        description=description,
        false_alarms=false_alarms,
        seed=seed,
    )
    if until is None:
        case = subject.sampled(requests, prompts)
        judged, certificate = subject.judged(case), None
        verdict = decide(judged.findings, false_alarms)
    else:
        case, judged, look = subject.sampled_until(requests, prompts, until, on_look)
        verdict, certificate = look.verdict, look.certificate
    failed = [finding for finding in judged.findings if finding.name in verdict.failed]
    logqs = case.nominal.engine_logqs
    return Check(
        engine=description,
        noise=noise.name if isinstance(noise, Noise) else None,
        policy=policy,
        num_prompts=len(set(case.draws.prompts)),
        num_draws=len(case.answers),
        num_tokens=len(case.draws.logqs),
        logit_error=case.error.nats,
        assumed=case.error.told,
        findings=tuple(judged.findings),
        verdict=verdict,
        certificate=certificate,
        mismatch=None if logqs is None else metrics.mismatch(case.draws, logqs),
        replay=judged.replayed,
        causes=tuple(attribute(case, failed)) if failed else (),
        worst=worst_tokens(case, failed, tokenizer, judged.replayed),
        answers=tuple(case.answers),
    )


def require_until(until: Until | None, policy: SamplingPolicy) -> None:
    """Refuse a rule for when to stop that is none, or that a policy leaves nothing to decide.

    Raises:
        ConfigError: in both cases.
    """
    if until is None:
        return
    if not isinstance(until, Until):
        raise ConfigError(
            f"until must be an Until, such as Until(within=0.01), or None; got {until!r}"
        )
    if not policy.do_sample:
        raise ConfigError(
            "until needs a policy that samples: under a greedy one every token is right or wrong, "
            "and nothing is left to decide by more draws; leave it out"
        )


def _require_requests(requests: Sequence[Request], prompts: Sequence[int]) -> None:
    for name, given in {"requests": requests, "prompts": prompts}.items():
        if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            raise SequenceError(
                f"{name} must be a list, which can be read more than once; got a "
                f"{type(given).__name__}: give list({name})"
            )
    if not requests or len(requests) != len(prompts):
        raise SequenceError(
            "a check needs requests, and for each the number of its prompt; got "
            f"{len(requests)} requests and {len(prompts)} numbers"
        )
    if len({request.index for request in requests}) < len(requests):
        raise SequenceError("every request needs an index of its own; some have the same")
