"""Engines with one fault each, put together from a distribution and a source of randomness.

Where the fault is one of the distribution, an engine's own log q is exactly the logarithm of what
it samples from, and `forced` has it of any other tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.gallery import LogQ, ReferenceEngine
from seqproc.engines import Completion, Request, StoppingRule
from seqproc.policy import SamplingPolicy, log_q

# Shapes: R draws that go on, V tokens of the vocabulary.


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the next tokens of some draws are about to be drawn, all at one step."""

    requests: Sequence[Request]  # [R]
    ids: Sequence[Sequence[int]]  # [R][step] drawn before
    logits: Tensor  # [R, V] float64
    policy: SamplingPolicy

    @property
    def step(self) -> int:
        return len(self.ids[0])


Distribution = Callable[[Places], Tensor]  # to log q of [R, V], nats
Uniform = Callable[[Request, int], float]  # request and step to (0, 1)


def right(places: Places) -> Tensor:
    return log_q(places.logits, places.policy)


def own(request: Request, step: int) -> float:
    return of_key(request.seed, step)


def of_key(*key: int) -> float:
    return float(np.random.default_rng(list(key)).random())


def asked(request: Request) -> tuple[int, ...]:
    return request.prompt_ids


class FaultyEngine(ReferenceEngine):
    """A reference with another distribution, other randomness, or another end.

    Args:
        model: the causal language model that decodes.
        tokenizer: tells where a response ends.
        distribution: what it samples from, and reports the log q of.
        uniform: its randomness.
        silent: it reports no log q.
        sees: the prompt that it feeds; it says that it fed the one asked for.
        stops: it ends at stop strings.
        forced: tokens by the indices of the requests that it takes in place of its own.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        distribution: Distribution = right,
        uniform: Uniform = own,
        silent: bool = False,
        sees: Callable[[Request], tuple[int, ...]] = asked,
        stops: bool = True,
        forced: Mapping[int, Sequence[int]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, prompt_of=sees, **options)
        self._distribution, self._uniform_of = distribution, uniform
        self._silent, self._stops, self._forced = silent, stops, forced

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        rule = stopping if self._stops else replace(stopping, stop=())
        return super().generate(requests, policy, rule)

    def _distributions(
        self, draws: Any, logits: Tensor, policy: SamplingPolicy
    ) -> tuple[Tensor, Tensor]:
        places = Places(
            requests=[draw.request for draw in draws],
            ids=[draw.ids for draw in draws],
            logits=logits,
            policy=policy,
        )
        log_r = self._distribution(places)
        return log_r, log_r

    def _tokens(self, draws: Any, log_r: Tensor) -> list[int]:
        if self._forced is None:
            return super()._tokens(draws, log_r)
        return [self._forced[draw.request.index][len(draw.ids)] for draw in draws]

    def _uniform(self, draw: Any) -> float:
        return self._uniform_of(draw.request, len(draw.ids))

    def _completion(self, draw: Any, stopping: StoppingRule) -> Completion:
        found = replace(super()._completion(draw, stopping), prompt_ids=draw.request.prompt_ids)
        return replace(found, logqs=None) if self._silent else found


# ---------------------------------------------------------------------- distributions


def of_batch(function: LogQ) -> Distribution:
    return lambda places: function(places.logits, places.policy)


def at(change: Callable[[SamplingPolicy], SamplingPolicy]) -> Distribution:
    return lambda places: log_q(places.logits, change(places.policy))


def hotter(factor: float) -> Distribution:
    return at(lambda policy: replace(policy, temperature=factor * policy.temperature))


def top_p_by(change: float) -> Distribution:
    return at(lambda policy: replace(policy, top_p=min(policy.top_p + change, 1.0)))


def greedy(places: Places) -> Tensor:
    log_r = torch.full_like(places.logits, -math.inf)
    return log_r.scatter(-1, places.logits.argmax(-1, keepdim=True), 0.0)


def only_at(steps: Callable[[int], bool], distribution: Distribution) -> Distribution:
    return lambda places: distribution(places) if steps(places.step) else right(places)


def of_draws(chosen: Callable[[Request], bool], distribution: Distribution) -> Distribution:
    def mixed_rows(places: Places) -> Tensor:
        is_chosen = torch.tensor([[chosen(request)] for request in places.requests])
        return torch.where(is_chosen, distribution(places), right(places))

    return mixed_rows


def mixed(share: float, other: Distribution) -> Distribution:
    """Some tokens are drawn from another distribution."""

    def distribution(places: Places) -> Tensor:
        return torch.logaddexp(right(places) + math.log1p(-share), other(places) + math.log(share))

    return distribution


def of_logits(change: Callable[[Places], Tensor]) -> Distribution:
    return lambda places: log_q(change(places), places.policy)


def biased(ids: Sequence[int], bias: float) -> Distribution:
    def change(places: Places) -> Tensor:
        logits = places.logits.clone()
        logits[:, list(ids)] += bias
        return logits

    return of_logits(change)


def repeating(penalty: float) -> Distribution:
    """A repetition penalty, on the tokens of the prompt and of the response so far."""

    def change(places: Places) -> Tensor:
        prompts = [request.prompt_ids for request in places.requests]
        seen = _counts(places, prompts) + _counts(places, places.ids) > 0
        punished = torch.where(places.logits > 0, places.logits / penalty, places.logits * penalty)
        return torch.where(seen, punished, places.logits)

    return of_logits(change)


def present(penalty: float) -> Distribution:
    return of_logits(
        lambda places: places.logits - penalty * (_counts(places, places.ids) > 0).double()
    )


def frequent(penalty: float) -> Distribution:
    return of_logits(lambda places: places.logits - penalty * _counts(places, places.ids))


def _counts(places: Places, ids: Sequence[Sequence[int]]) -> Tensor:
    """How often each token is among the ids of each row, ``[R, V]``."""
    counts = np.zeros(tuple(places.logits.shape))
    rows = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    np.add.at(counts, (rows, np.array([i for row in ids for i in row], dtype=np.int64)), 1.0)
    return torch.from_numpy(counts)


def rounded(dtype: torch.dtype) -> Distribution:
    return of_logits(lambda places: places.logits.to(dtype).double())


def first_k(k: int) -> Distribution:
    def change(places: Places) -> Tensor:
        least = places.logits.topk(k).values[:, -1:]
        return places.logits.masked_fill(places.logits < least, -math.inf)

    return of_logits(change)


def least_of(share: float) -> Distribution:
    """min_p, after the policy."""

    def distribution(places: Places) -> Tensor:
        log_r = right(places)
        kept = log_r >= log_r.amax(-1, keepdim=True) + math.log(share)
        return log_r.masked_fill(~kept, -math.inf).log_softmax(-1)

    return distribution


def typical(mass: float) -> Distribution:
    """The tokens whose surprisal is nearest to the entropy, up to a mass, after the policy."""

    def distribution(places: Places) -> Tensor:
        log_r = right(places)
        entropy = torch.special.entr(log_r.exp()).sum(-1, keepdim=True)
        order = (log_r + entropy).abs().argsort(-1)
        sorted_masses = log_r.exp().gather(-1, order)
        kept = sorted_masses.cumsum(-1) - sorted_masses < mass
        outside = torch.zeros_like(kept).scatter(-1, order, ~kept)
        return log_r.masked_fill(outside, -math.inf).log_softmax(-1)

    return distribution


def of_bits(bits: int, offset: float = 0.5, *, falling: bool = False) -> Distribution:
    """u is (k + offset)/2^bits; the tokens lie in order of id, or of falling probability."""

    def distribution(places: Places) -> Tensor:
        q = right(places).exp()
        order = (
            q.argsort(-1, descending=True) if falling else torch.arange(q.shape[-1]).expand_as(q)
        )
        masses = q.gather(-1, order).cumsum(-1)
        below = (masses / masses[:, -1:] * 2**bits - offset).ceil()
        counts = below.diff(dim=-1, prepend=torch.zeros_like(below[:, :1]))
        return (torch.empty_like(q).scatter(-1, order, counts) / 2**bits).log()

    return distribution
