"""Why reported log q are wrong where the tokens are right: what the engine reports instead.

The log q of another policy or of other weights, those of other tokens, or a few that are off while
all others are right. Where nothing is found a few draws are sampled again, each alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from seqproc.errors import EngineError
from seqproc.models import vocab_size
from seqproc.parity.causes.cause import Cause, log_q_error
from seqproc.parity.draws import Answer, Draws, Floats, sample
from seqproc.parity.metrics import log_q_range
from seqproc.parity.positions import LogDistribution
from seqproc.parity.scoring import score
from seqproc.parity.suspected import log_r
from seqproc.parity.suspects import Case, of_policy, other_prompts, other_weights
from seqproc.parity.verdict import Link

_OTHER_LOGITS = "other logits than the scorer's (dtype, kernel), or other weights"
_ALONE = 4  # draws that are sampled again, each alone
_BATCH = 32  # draws that are sampled twice, together
_FEW = 0.01  # share of log q that may be wrong by themselves


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """What an engine may report, and how far from it its reports are."""

    link: Link
    description: str
    error: float  # mean, nats


def cause_of_reports(case: Case) -> Cause:
    """What the engine reports in place of log q."""
    reported = case.nominal.engine_logqs
    nominal = log_q_error(case.draws.logqs, reported)
    if reported is not None and np.all(reported[~np.isnan(reported)] == -math.inf):
        words = "log q of -inf reported of every token"
        return Cause(link=Link.LOG_Q, description=words, explains=True)
    if (few := _few_are_wrong(case)) is not None:
        return few
    best = min(_reports(case), key=lambda one: one.error)
    if best.error > nominal / 2:
        return _unexplained(case, f"mean error {nominal:.2g} nats")
    return Cause(
        link=best.link,
        description=best.description,
        explains=best.error <= case.tolerance,
        detail=f"mean error {nominal:.2g} nats, {best.error:.2g} when this is taken for true",
    )


def _few_are_wrong(case: Case) -> Cause | None:
    """Some log q that are wrong where all others are right."""
    reported = case.nominal.engine_logqs
    assert reported is not None
    due = log_q_range(case.draws, case.nominal, case.policy, case.error)
    judged = case.draws.in_support & ~np.isnan(reported)
    wrong = np.flatnonzero(judged & ~((reported >= due.least) & (reported <= due.most)))
    if not 0 < len(wrong) <= _FEW * judged.sum():
        return None
    gaps = np.abs(reported[wrong] - case.draws.logqs[wrong])
    token = int(wrong[np.argmax(gaps)])
    draw = int(np.searchsorted(case.draws.starts, token, side="right")) - 1
    return Cause(
        link=Link.LOG_Q,
        description=f"{len(wrong):,} of {int(judged.sum()):,} reported log q are wrong, and the "
        "others are right",
        explains=True,
        detail=f"the worst in draw {draw} at step {int(case.draws.steps[token])}: "
        f"{reported[token]:.6g} reported, {case.draws.logqs[token]:.6g} due",
    )


def _reports(case: Case) -> list[_Report]:
    """All that is known to be reported instead."""
    reported = case.nominal.engine_logqs
    found = [
        _Report(
            link=Link.LOG_Q,
            description=f"log q reported {how}",
            error=log_q_error(change(case.draws, case.draws.logqs), reported),
        )
        for how, change in _CHANGES.items()
    ]
    found += _of_catalogue(case)
    others = _other_policies(case)
    policies = score(case.answers, case.scorer, others, override=case.override) if others else {}
    found += [
        _Report(
            link=Link.LOG_Q,
            description=f"log q reported with {name}",
            error=log_q_error(draws.logqs, reported),
        )
        for name, draws in policies.items()
    ]
    for name, suspect in {**other_weights(case), **other_prompts(case)}.items():
        error = log_q_error(log_r(case, suspect), reported)
        found.append(_Report(link=suspect.link, description=name, error=error))
        if error <= case.tolerance:
            break
    return found


def _of_catalogue(case: Case) -> list[_Report]:
    """The log q of the alternatives that bets were placed on; those about noise have q's own."""
    gains = case.nominal.gains
    if gains is None or gains.report_errors is None:
        return []
    return [
        _Report(
            link=Link.LOG_Q,
            description=f"log q reported with {alternative.name}",
            error=float(error) / gains.num_reported,
        )
        for alternative, error in zip(gains.alternatives, gains.report_errors, strict=True)
        if alternative.log_r is not None
    ]


def _other_policies(case: Case) -> dict[str, LogDistribution]:
    policy = case.policy
    others = {
        "temperature ignored": replace(policy, temperature=1.0),
        "top_p ignored": replace(policy, top_p=1.0),
        "temperature and top_p ignored": replace(policy, temperature=1.0, top_p=1.0),
        "sampling off (greedy)": replace(policy, do_sample=False),
    }
    return {name: of_policy(one) for name, one in others.items() if one != policy}


def _of_neighbours(draws: Draws, values: Floats, shift: int) -> Floats:
    """The value of the token so many steps later; NaN beyond the draw."""
    places = np.arange(len(values)) + shift
    starts = np.repeat(draws.starts, draws.lengths)
    ends = starts + np.repeat(draws.lengths, draws.lengths)
    inside = (places >= starts) & (places < ends)
    return np.where(inside, values[np.clip(places, 0, len(values) - 1)], math.nan)


def _summed(draws: Draws, values: Floats) -> Floats:
    """The sum up to each token."""
    sums = np.cumsum(values)
    before = np.where(draws.starts > 0, sums[draws.starts - 1], 0.0)
    return np.asarray(sums - np.repeat(before, draws.lengths))


_CHANGES: dict[str, Callable[[Draws, Floats], Floats]] = {
    "for the token before": lambda draws, values: _of_neighbours(draws, values, -1),
    "for the token behind": lambda draws, values: _of_neighbours(draws, values, 1),
    "in bits": lambda _, values: values / math.log(2),
    "in decimal digits": lambda _, values: values / math.log(10),
    "with the sign of a surprisal": lambda _, values: -values,
    "as probabilities": lambda _, values: np.exp(values),
    "summed up from the first token on": _summed,
}


# ---------------------------------------------------------------------- sampled again


def _unexplained(case: Case, errors: str) -> Cause:
    """Whether log q change in the same batch again, or when a draw is sampled alone.

    The first is noise of the engine's; the second alone is a fault of batching or padding.
    """
    some = [answer for answer in case.answers if answer.completion.logqs][:_ALONE]
    try:
        again = _changes_again(case)
        change, alone = _changes_alone(case, some)
    except EngineError as error:  # the verdict stands without it
        detail = f"{errors}; sampled again, the engine fails: {error}"
        return Cause(link=Link.LOGITS, description=_OTHER_LOGITS, explains=False, detail=detail)
    if again > case.tolerance:
        return Cause(
            link=Link.LOGITS,
            description="log q differ from one run to the next",
            explains=False,
            detail=f"{errors}; sampled again in the same batch, they change by up to {again:.2g}",
        )
    batched = change > case.tolerance
    return Cause(
        link=Link.LOGITS,
        description="logits depend on the batch (padding, positions)" if batched else _OTHER_LOGITS,
        explains=batched and alone <= case.tolerance,
        detail=f"{errors}; sampled alone, log q change by up to {change:.2g} nats, and are then "
        f"off by up to {alone:.2g}",
    )


def _changes_again(case: Case) -> float:
    """How much log q differ, at most, between two samplings of one batch."""
    batch = case.answers[:_BATCH]
    first, second = _sampled(case, batch), _sampled(case, batch)
    pairs = [pair for one, other in zip(first, second, strict=True) for pair in _alike(one, other)]
    return max((abs(one - other) for one, other in pairs), default=0.0)


def _sampled(case: Case, answers: Sequence[Answer]) -> list[Answer]:
    """The same draws again."""
    return sample(
        case.engine,
        [answer.request for answer in answers],
        [answer.prompt for answer in answers],
        case.policy,
        case.stopping,
        vocabulary=vocab_size(case.scorer.model),
    )


def _alike(one: Answer, other: Answer) -> Iterator[tuple[float, float]]:
    """Log q of both, step by step, up to the first token that differs."""
    first, second = one.completion, other.completion
    logqs = zip(first.logqs or (), second.logqs or (), strict=False)
    tokens = zip(first.token_ids, second.token_ids, strict=False)
    are_alike = itertools.takewhile(lambda pair: pair[0] == pair[1], tokens)
    return (pair for pair, _ in zip(logqs, are_alike, strict=False))


def _changes_alone(case: Case, some: Sequence[Answer]) -> tuple[float, float]:
    """How much log q change when draws are sampled alone, and how wrong they are then, at most."""
    changes, errors = [0.0], [0.0]
    starts = dict(zip(map(id, _with_tokens(case)), case.draws.starts.tolist(), strict=True))
    for answer in some:
        (other,) = _sampled(case, [answer])
        for step, (alone, before) in enumerate(_alike(other, answer)):
            changes.append(abs(alone - before))
            own = case.draws.logqs[starts[id(answer)] + step]
            if math.isfinite(own):
                errors.append(abs(alone - own))
    return max(changes), max(errors)


def _with_tokens(case: Case) -> list[Answer]:
    return [answer for answer in case.answers if answer.completion.token_ids]
