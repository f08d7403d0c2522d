"""Finds where two coupled runs of the same draws part, and whether rounding explains it.

Under coupled sampling a token is the argmax of log q + g, with g the same in both engines. So two
right engines part only where the two best candidates are within what their logits differ by. Knows
completions, the scorer and the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqproc._util.printing import Facts, Printed
from seqproc.engines.gumbel import gumbel_noise
from seqproc.models.parameters import ParamMapping
from seqproc.parity.draws import Answer
from seqproc.parity.logit_error import tolerance
from seqproc.parity.positions import cut
from seqproc.parity.reading import Rows, read_columns
from seqproc.policy import SamplingPolicy, token_log_q
from seqproc.scorers import TeacherForcingScorer, TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first token at which two answers to one request differ."""

    index: int  # of the request
    step: int
    tokens: tuple[int | None, int | None]  # the candidates; None where a response had ended
    gap: float  # of log q + g between them, by the scorer, nats; NaN where one had ended
    is_explained: bool  # a near-tie, or a cut of the support, within the logits' error


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(Printed):
    """Two engines' answers to the same requests."""

    engines: tuple[str, str]
    num_draws: int
    num_identical: int
    tolerance: float  # by which log q + g of two candidates may be off against each other, nats
    divergences: tuple[Divergence, ...]

    def _facts(self) -> Facts:
        return {
            "holds": self.holds,
            "engines": self.engines,
            "draws": self.num_draws,
            "identical": self.num_identical,
            "explained": sum(one.is_explained for one in self.divergences),
        }

    @property
    def holds(self) -> bool:
        """Whether every divergence is explained."""
        return all(one.is_explained for one in self.divergences)


def compare(
    names: tuple[str, str],
    first: Sequence[Answer],
    second: Sequence[Answer],
    scorer: TeacherForcingScorer,
    policy: SamplingPolicy,
    logit_error: float,
    *,
    override: ParamMapping | None = None,
) -> Comparison:
    """Compare coupled answers to the same requests.

    Args:
        names: of the engines.
        first: from `draws.sample`.
        second: as many, to the same requests in the same order.
        scorer: weighs the candidates, in the widest dtype that it is asked for.
        policy: both were sampled under.
        logit_error: by which each logit of either engine may be off [nats]. Two candidates can
            then change places when their log q + g are within 2·δ/T of each other.
        override: parameters to score at.
    """
    parted = [
        (a, b, step)
        for a, b in zip(first, second, strict=True)
        if (step := _parting(a, b)) is not None
    ]
    both = [(a, b, step) for a, b, step in parted if None not in _tokens(a, b, step)]
    gaps = dict(
        zip(
            [a.request.index for a, _, _ in both],
            _gaps(both, scorer, policy, logit_error, override),
            strict=True,
        )
    )
    allowed = tolerance(logit_error, policy)
    divergences = []
    for a, b, step in parted:
        gap, reachable = gaps.get(a.request.index, (math.nan, False))
        near = reachable and (math.isinf(gap) or abs(gap) <= allowed)
        divergences.append(
            Divergence(
                index=a.request.index,
                step=step,
                tokens=_tokens(a, b, step),
                gap=gap,
                is_explained=near,
            )
        )
    return Comparison(
        engines=names,
        num_draws=len(first),
        num_identical=len(first) - len(divergences),
        tolerance=allowed,
        divergences=tuple(divergences),
    )


def _parting(first: Answer, second: Answer) -> int | None:
    """The first step at which two answers differ; None when they do not."""
    a, b = first.completion.token_ids, second.completion.token_ids
    if a == b:
        return None
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _tokens(first: Answer, second: Answer, step: int) -> tuple[int | None, int | None]:
    a, b = first.completion.token_ids, second.completion.token_ids
    return (a[step] if step < len(a) else None), (b[step] if step < len(b) else None)


def _gaps(
    parted: Sequence[tuple[Answer, Answer, int]],
    scorer: TeacherForcingScorer,
    policy: SamplingPolicy,
    logit_error: float,
    override: ParamMapping | None,
) -> list[tuple[float, bool]]:
    """Gap of log q + g between the two candidates, and whether both can be in the support."""
    sequences = [_candidate(answer, step) for a, b, step in parted for answer in (a, b)]

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        wide = logits.double()
        reachable = cut(wide, rows.tokens, policy, logit_error).is_reachable
        return {"log_q": token_log_q(wide, rows.tokens, policy), "reachable": reachable}

    found = read_columns(scorer, sequences, reading, override=override) if sequences else []
    keys = []
    for n, (a, b, step) in enumerate(parted):
        width = max(one.completion.token_ids[step] for one in (a, b)) + 1
        noise = gumbel_noise(a.request.seed, step, width)
        pair = found[2 * n : 2 * n + 2]
        first, second = (
            float(one["log_q"]) + float(noise[answer.completion.token_ids[step]])
            for one, answer in zip(pair, (a, b), strict=True)
        )
        keys.append((first - second, all(bool(one["reachable"]) for one in pair)))
    return keys


def _candidate(answer: Answer, step: int) -> TokenSequence:
    """The step's token as a response to everything before it."""
    ids = answer.completion.token_ids
    return TokenSequence(
        prompt_ids=torch.tensor([*answer.request.prompt_ids, *ids[:step]]),
        response_ids=torch.tensor([ids[step]]),
    )
