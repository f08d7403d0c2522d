"""Why an engine failed: which other distribution explains its tokens, or its reported log q.

Every token is scored under each of the `suspects`. The one of the largest likelihood under which
all tests of the sampler hold is the cause; the one whose log q the engine's agree with is what it
reports. Runs only after a failure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqproc.errors import EngineError
from seqproc.models import vocab_size
from seqproc.parity.draws import Answer, Draws, Floats, sample, score
from seqproc.parity.replay import REPLAY
from seqproc.parity.sampler import sampler_findings
from seqproc.parity.structure import ENDINGS
from seqproc.parity.suspects import Case, of_policy, other_policies, other_weights
from seqproc.parity.verdict import Finding, Link, decide

_IMPOSSIBLE = -50.0  # nats for a token that a suspect cannot emit, in place of −∞
_MOSTLY = 0.999  # share of tokens in a suspect's support; rounding may put a few outside
_RARE = 1e-6  # chance of a draw that another of the same prompt does not repeat
_OTHER_LOGITS = "other logits than the scorer's (dtype, kernel), or other weights"
_ALONE = 4  # draws that are sampled again, each alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What went wrong, as far as the draws tell."""

    link: Link
    description: str
    explains: bool  # whether all that failed holds when this is taken for true
    detail: str = ""


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
        return [cause for cause in causes if cause.link is Link.PROMPT]
    chances = [finding for finding in failed if finding.name != REPLAY]
    is_dependent = any(finding.link is Link.TOKENS for finding in chances)
    dependence = _dependence(case, chances) if is_dependent else None
    if dependence is not None and dependence.explains:  # what is drawn twice also counts twice
        links -= {Link.POLICY}
    if links & {Link.POLICY, Link.LOG_Q}:
        found = _distribution_causes(case, links)
        if any(cause.explains for cause in found):  # also when draws end
            causes = [_plain(finding) for finding in failed if finding.name == ENDINGS]
        causes += found
    if dependence is not None and (dependence.explains or Link.POLICY not in links):
        causes.append(dependence)
    if len(chances) < len(failed) and not any(cause.explains for cause in causes):
        causes.append(_other_tokens(failed))
    order = list(Link)
    return sorted(causes, key=lambda cause: order.index(cause.link))


def _plain(finding: Finding) -> Cause:
    return Cause(link=finding.link, description=finding.detail, explains=True)


def _other_tokens(failed: Sequence[Finding]) -> Cause:
    """The replay failed, and nothing else explains it."""
    finding = next(finding for finding in failed if finding.name == REPLAY)
    return Cause(
        link=finding.link,
        description="the tokens are not those that the engine's noise and the scorer's logits give",
        explains=False,
        detail=finding.detail,
    )


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
    repeated = sum(count for count in counts.values() if count > 1)
    which = ", ".join(finding.name for finding in failed if finding.link is Link.TOKENS)
    only = all(finding.link is Link.TOKENS for finding in failed)
    return Cause(
        link=Link.TOKENS,
        description=f"what should be independent is not ({which}): randomness is used twice"
        + _or_constant(counts),
        explains=twins > 0 or only,
        detail=f"{repeated:,} of {len(keys):,} draws are the same as another of their prompt; "
        f"{twins:,} of these are less likely than {_RARE:g} each",
    )


def _or_constant(counts: Mapping[tuple[int, tuple[int, ...]], int]) -> str:
    """The other explanation, where the draws of each (prompt, answer) leave it open."""
    prompts = {prompt for prompt, _ in counts}
    if len(prompts) > 1 and len({token_ids for _, token_ids in counts}) == 1:
        ignored = "seed and prompt"
    elif max(counts.values(), default=0) > 1 and len(counts) == len(prompts):
        ignored = "the seed"
    else:
        return ""
    return f", or the engine's answers do not depend on {ignored} at all"


def _distribution_causes(case: Case, links: set[Link]) -> list[Cause]:
    fits = _weight_fits(case)
    if not _explains(fits[-1], case):
        fits += _policy_fits(case)
    nominal = _fit("", Link.POLICY, case, case.draws)
    sampled = max(fits, key=lambda fit: (fit.tests_hold, fit.log_likelihood))
    reported = min(fits, key=lambda fit: fit.log_q_error)
    causes = []
    if Link.POLICY in links:
        causes.append(_cause_of_tokens(sampled, nominal))
    explained = causes and (reported is sampled or sampled.log_q_error <= case.tolerance)
    if Link.LOG_Q in links and not explained:
        causes.append(_cause_of_reports(case, reported, nominal))
    return causes


def _cause_of_tokens(best: _Fit, nominal: _Fit) -> Cause:
    gain = best.log_likelihood - nominal.log_likelihood
    unknown = "another distribution, not a known one"
    return Cause(
        link=best.link if best.tests_hold else Link.LOGITS,
        description=best.description if best.tests_hold else unknown,
        explains=best.tests_hold,
        detail=f"the nearest suspect is: {best.description}; its log-likelihood is {gain:+,.1f} "
        "nats against the policy's",
    )


def _cause_of_reports(case: Case, best: _Fit, nominal: _Fit) -> Cause:
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
    try:
        change = max((_change_alone(case, answer) for answer in some), default=0.0)
    except EngineError as error:  # the verdict stands without it
        detail = f"{errors}; sampled alone, the engine fails: {error}"
        return Cause(link=Link.LOGITS, description=_OTHER_LOGITS, explains=False, detail=detail)
    batched = change > case.tolerance
    return Cause(
        link=Link.LOGITS,
        description="logits depend on the batch (padding, positions)" if batched else _OTHER_LOGITS,
        explains=batched,
        detail=f"{errors}; sampled alone, log q change by up to {change:.2g} nats",
    )


def _change_alone(case: Case, answer: Answer) -> float:
    (other,) = sample(
        case.engine,
        [answer.request],
        [answer.prompt],
        case.policy,
        case.stopping,
        vocabulary=vocab_size(case.scorer.model),
    )
    alone = other.completion
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
    distributions = other_policies(case)
    found = score(case.answers, case.scorer, distributions, override=case.override)
    return [_fit(name, Link.POLICY, case, draws) for name, draws in found.items()]


def _weight_fits(case: Case) -> list[_Fit]:
    """Of other weights, one after another; none after one that explains everything."""
    fits: list[_Fit] = []
    for name, parameters in other_weights(case).items():
        own = {"q": of_policy(case.policy)}
        found = score(case.answers, case.scorer, own, override=parameters())
        fits.append(_fit(name, Link.WEIGHTS, case, found["q"]))
        if _explains(fits[-1], case):
            break
    return fits


def _explains(fit: _Fit, case: Case) -> bool:
    """Whether the tokens, and the log q that came with them, are those of the suspect."""
    return fit.tests_hold and fit.log_q_error <= case.tolerance


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
    told = ~np.isnan(engine_logqs)
    engine_logqs, logqs = engine_logqs[told], logqs[told]
    gaps = np.maximum(engine_logqs, _IMPOSSIBLE) - np.maximum(logqs, _IMPOSSIBLE)
    return float(np.abs(gaps).mean())
