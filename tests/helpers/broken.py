"""Engines that are broken in ways that engines have been, or may be: for tests and benchmarks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from helpers.faults import (
    Distribution,
    FaultyEngine,
    Uniform,
    asked,
    biased,
    first_k,
    frequent,
    greedy,
    hotter,
    least_of,
    mixed,
    of_batch,
    of_bits,
    of_draws,
    of_key,
    only_at,
    own,
    present,
    repeating,
    right,
    rounded,
    top_p_by,
    typical,
)
from helpers.gallery import (
    crossing_token_excluded,
    top_p_before_temperature,
    with_rounded_weights,
)
from helpers.parity_range import PER_PROMPT
from seqproc.engines import Request
from seqproc.policy import SamplingPolicy

WHOLE = SamplingPolicy()
COLD = SamplingPolicy(temperature=0.7, top_p=0.95)
HOT = SamplingPolicy(temperature=1.3, top_p=0.9)
POLICIES = (WHOLE, COLD, HOT)

TWICE = "randomness is used twice"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and what a check should say of it."""

    name: str
    words: str | None  # part of the cause, or of a contender; None: the catalogue lacks it
    distribution: Distribution = right
    uniform: Uniform = own
    sees: Callable[[Request], tuple[int, ...]] = asked
    weights: Callable[[Any], Any] = lambda model: model  # that it decodes with
    stops: bool = True
    policies: tuple[SamplingPolicy, ...] = POLICIES  # under which 256 draws are enough for a test
    is_fault: Callable[[SamplingPolicy], bool] = lambda policy: True  # else it changes nothing

    @property
    def has_ratio(self) -> bool:
        """Whether its fault is all in the distribution, so that its log q is what it draws from."""
        return self.uniform is own and self.stops

    def build(
        self,
        model: Any,
        tokenizer: Any,
        *,
        silent: bool = False,
        forced: Mapping[int, Sequence[int]] | None = None,
    ) -> FaultyEngine:
        return FaultyEngine(
            self.weights(model),
            tokenizer,
            distribution=self.distribution,
            uniform=self.uniform,
            sees=self.sees,
            stops=self.stops,
            silent=silent,
            forced=forced,
        )


def truncates(policy: SamplingPolicy) -> bool:
    return policy.truncates


# ---------------------------------------------------------------------- randomness


def _shared(of: Callable[[Request], int]) -> Uniform:
    return lambda request, step: of_key(of(request), step)


def _of_two_prompts(request: Request) -> int:
    prompt, number = divmod(request.index, PER_PROMPT)
    return (prompt if prompt % 4 < 2 else prompt - 2) * PER_PROMPT + number


def _antithetic(request: Request, step: int) -> float:
    u = of_key(request.index // 2, step)
    return 1 - u if request.index % 2 else u


def _late(request: Request, step: int) -> float:
    return of_key(request.index // 2 if step >= 24 else 1_000_000 + request.index, step)


def _steps_again(request: Request, step: int) -> float:
    return own(request, step - 2 if step % 4 >= 2 else step)


NOISE = (
    Fault(
        name="draws i and i + 2 have one seed",
        words=TWICE,
        uniform=_shared(lambda r: r.index - 2 if r.index % 4 >= 2 else r.index),
    ),
    Fault(
        name="the last draw of a prompt is its first",
        words=TWICE,
        uniform=_shared(lambda r: r.index - r.index % PER_PROMPT * (r.index % PER_PROMPT == 7)),
    ),
    Fault(
        name="all draws of one prompt in 16 have one seed",
        words=TWICE,
        uniform=_shared(
            lambda r: r.index // PER_PROMPT if r.index // PER_PROMPT % 16 == 3 else r.seed
        ),
    ),
    Fault(
        name="prompts k and k + 2 have the same noise",
        words=TWICE,
        uniform=_shared(_of_two_prompts),
    ),
    Fault(name="steps t and t + 2 have the same noise", words=TWICE, uniform=_steps_again),
    Fault(name="antithetic pairs", words=TWICE, uniform=_antithetic),
    Fault(
        name="pairs share their noise from step 24 on",
        words=TWICE,
        uniform=_late,
        policies=(WHOLE,),
    ),
)

# ---------------------------------------------------------------------- distributions

TEMPERATURES = (
    Fault(name="T × 1.1", words="temperature", distribution=hotter(1.1)),
    Fault(name="T × 0.9", words="temperature", distribution=hotter(0.9)),
    Fault(name="T × 1.02", words="temperature", distribution=hotter(1.02), policies=(COLD, HOT)),
    Fault(
        name="T × 1.5 at the first token",
        words="at the first token",
        distribution=only_at(lambda step: step == 0, hotter(1.5)),
        policies=(),
    ),
    Fault(
        name="first token is the argmax",
        words="at the first token",
        distribution=only_at(lambda step: step == 0, greedy),
    ),
    Fault(
        name="1 in 20 responses decoded greedily",
        words="of draws decoded greedily",
        distribution=of_draws(lambda request: request.index % 20 == 0, greedy),
    ),
    Fault(
        name="5 % of tokens decoded greedily",
        words="of tokens decoded greedily",
        distribution=mixed(0.05, greedy),
        policies=(WHOLE,),
    ),
)

CUTS = (
    Fault(name="top_k = 20", words="top_k = 20", distribution=first_k(20)),
    Fault(
        name="top_k = 10 in a tenth of the draws",
        words="in 10% of the draws",
        distribution=of_draws(lambda request: of_key(7, request.index) < 0.1, first_k(10)),
        policies=(WHOLE, HOT),
    ),
    Fault(name="top_k = 50", words="top_k = 50", distribution=first_k(50), policies=()),
    Fault(name="min_p = 0.05", words="min_p = 0.05", distribution=least_of(0.05)),
    Fault(name="min_p = 0.02", words="min_p = 0.02", distribution=least_of(0.02), policies=()),
    Fault(name="typical_p = 0.9", words="typical_p = 0.9", distribution=typical(0.9), policies=()),
    Fault(
        name="top_p higher by 0.01",
        words="top_p",
        distribution=top_p_by(0.01),
        policies=(COLD, HOT),
        is_fault=truncates,
    ),
    Fault(name="top_p lower by 0.02", words="top_p", distribution=top_p_by(-0.02)),
    Fault(
        name="top_p before the temperature",
        words="before the temperature",
        distribution=of_batch(top_p_before_temperature),
        policies=(),
        is_fault=truncates,
    ),
    Fault(
        name="the token that crosses top_p left out",
        words="crosses top_p",
        distribution=of_batch(crossing_token_excluded),
        policies=(),
        is_fault=truncates,
    ),
)

LOGITS = (
    Fault(
        name="EOS never",
        words="EOS never sampled",
        distribution=biased([0], -math.inf),
        policies=(WHOLE, COLD),
    ),
    Fault(name="EOS −0.2", words="EOS", distribution=biased([0], -0.2), policies=()),
    Fault(name="EOS +0.3", words="EOS", distribution=biased([0], 0.3), policies=()),
    Fault(name="repetition penalty 1.1", words="repetition penalty", distribution=repeating(1.1)),
    Fault(
        name="repetition penalty 1.02",
        words="repetition penalty",
        distribution=repeating(1.02),
        policies=(),
    ),
    Fault(
        name="presence penalty 0.3",
        words="presence penalty",
        distribution=present(0.3),
        policies=(),
    ),
    Fault(
        name="frequency penalty 0.2",
        words="frequency penalty",
        distribution=frequent(0.2),
        policies=(),
    ),
    Fault(
        name="logits rounded to bfloat16",
        words="rounded to bfloat16",
        distribution=rounded(torch.bfloat16),
        policies=(COLD, HOT),
    ),
    Fault(
        name="logits rounded to float16",
        words="rounded to float16",
        distribution=rounded(torch.float16),
        policies=(),
    ),
)

# ---------------------------------------------------------------------- weights and the rest


def _checkpoint(model: Any) -> Any:
    """Each weight a small step away."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.03 * parameter.std().nan_to_num() * step)
    return other


OTHERS = (
    Fault(
        name="weights rounded to bfloat16",
        words="rounded to bfloat16",
        weights=with_rounded_weights,
        policies=(),
    ),
    Fault(
        name="a common token is never sampled",
        words="token id 50 never sampled",
        distribution=biased([50], -math.inf),
    ),
    Fault(
        name="the last 30 ids are never sampled",
        words=None,
        distribution=biased(range(270, 300), -math.inf),
    ),
    Fault(name="u has 8 bits", words="of 8 bits", distribution=of_bits(8), policies=(WHOLE, HOT)),
    Fault(
        name="u has 8 bits, by rank",
        words="of 8 bits, tokens in order of falling probability",
        distribution=of_bits(8, 0.0, falling=True),
        policies=(WHOLE,),
    ),
    Fault(name="weights of another checkpoint", words=None, weights=_checkpoint),
    Fault(
        name="a system prompt is missing", words=None, sees=lambda request: request.prompt_ids[1:]
    ),
    Fault(name="stop strings are not honoured", words="goes on after its stop", stops=False),
)

FAULTS = (*NOISE, *TEMPERATURES, *CUTS, *LOGITS, *OTHERS)
