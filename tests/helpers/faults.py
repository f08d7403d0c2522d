"""Engines with one fault each, put together from a distribution and a source of randomness."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.gallery import ReferenceEngine
from seqproc.engines import Completion, Request, StoppingRule
from seqproc.policy import SamplingPolicy, log_q


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a token is about to be drawn."""

    request: Request
    ids: tuple[int, ...]  # drawn before
    logits: Tensor  # [V] float64
    policy: SamplingPolicy

    @property
    def step(self) -> int:
        return len(self.ids)


Distribution = Callable[[Place], Tensor]  # to log q of [V]
Uniform = Callable[[Request, int], float]  # request and step to (0, 1)


def right(place: Place) -> Tensor:
    return log_q(place.logits.unsqueeze(0), place.policy)[0]


def own(request: Request, step: int) -> float:
    return of_key(request.seed, step)


def of_key(*key: int) -> float:
    return float(np.random.default_rng(list(key)).random())


class FaultyEngine(ReferenceEngine):
    """A reference with another distribution, or other randomness; silent, or with its own log q."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        distribution: Distribution = right,
        uniform: Uniform = own,
        silent: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, **options)
        self._distribution, self._uniform, self._silent = distribution, uniform, silent

    def _step(
        self, draws: Any, logits: Tensor, policy: SamplingPolicy, stopping: StoppingRule
    ) -> None:
        for row, draw in enumerate(draws):
            if draw.beyond == 0:
                continue
            place = Place(
                request=draw.request, ids=tuple(draw.ids), logits=logits[row], policy=policy
            )
            log_r = self._distribution(place)
            masses = log_r.exp().cumsum(-1).numpy()
            u = self._uniform(draw.request, place.step)
            token = int(np.searchsorted(masses, u * masses[-1], "right"))
            draw.ids.append(token)
            draw.logqs.append(float(log_r[token]))
            is_end = draw.watcher.push(token) or token in stopping.eos_token_ids
            if is_end or len(draw.ids) >= stopping.max_new_tokens:
                draw.beyond = 0

    def _completion(self, draw: Any, stopping: StoppingRule) -> Completion:
        found = super()._completion(draw, stopping)
        return replace(found, logqs=None) if self._silent else found


# ---------------------------------------------------------------------- distributions


def at(change: Callable[[SamplingPolicy], SamplingPolicy]) -> Distribution:
    return lambda place: right(replace(place, policy=change(place.policy)))


def hotter(factor: float) -> Distribution:
    return at(lambda policy: replace(policy, temperature=factor * policy.temperature))


def only_at(steps: Callable[[int], bool], distribution: Distribution) -> Distribution:
    return lambda place: distribution(place) if steps(place.step) else right(place)


def greedy(place: Place) -> Tensor:
    log_r = torch.full_like(place.logits, -math.inf)
    log_r[place.logits.argmax()] = 0.0
    return log_r


def of_draws(chosen: Callable[[Request], bool], distribution: Distribution) -> Distribution:
    return lambda place: distribution(place) if chosen(place.request) else right(place)


def of_logits(change: Callable[[Place], Tensor]) -> Distribution:
    return lambda place: right(replace(place, logits=change(place)))


def biased(ids: list[int], bias: float) -> Distribution:
    def change(place: Place) -> Tensor:
        logits = place.logits.clone()
        logits[ids] += bias
        return logits

    return of_logits(change)


def repeating(penalty: float) -> Distribution:
    def change(place: Place) -> Tensor:
        logits, seen = place.logits.clone(), sorted({*place.request.prompt_ids, *place.ids})
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        return logits

    return of_logits(change)


def rounded(place: Place) -> Tensor:
    return place.logits.bfloat16().double()


def first_k(k: int) -> Distribution:
    def change(place: Place) -> Tensor:
        least = place.logits.topk(k).values[-1]
        return place.logits.masked_fill(place.logits < least, -math.inf)

    return of_logits(change)


def least_of(share: float) -> Distribution:
    def distribution(place: Place) -> Tensor:
        log_r = right(place)
        kept = log_r >= log_r.max() + math.log(share)
        return log_r.masked_fill(~kept, -math.inf).log_softmax(-1)

    return distribution


def mixed(share: float, other: Distribution) -> Distribution:
    """Some tokens are drawn from another distribution."""

    def distribution(place: Place) -> Tensor:
        return torch.logaddexp(right(place) + math.log1p(-share), other(place) + math.log(share))

    return distribution
