"""Engines to put side by side, what they are asked, and what numpy says of their model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helpers.parity_range import STOPPING
from seqproc.engines import Engine, HFEngine, Request, register_engine
from seqproc.engines.base import Path
from seqproc.parity import Answer, sample
from seqproc.policy import SamplingPolicy
from seqproc.prompts import draw_seed

RAW = SamplingPolicy()
NUCLEUS = SamplingPolicy(temperature=0.7, top_p=0.9)
NUM_PROMPTS = 8
REQUESTS = [
    Request(index=i, prompt_ids=(40 + i % NUM_PROMPTS, 41, 42)[i % 2 :], seed=draw_seed(0, i))
    for i in range(32)
]
OWNERS = [i % NUM_PROMPTS for i in range(32)]
HALF = torch.tensor([0.5, 0.5]).log()


class Warm(HFEngine):
    """It samples at twice the temperature that it is told."""

    name = "warm"

    def follow(self, paths: Sequence[Path], policy: SamplingPolicy) -> Iterator[Tensor]:
        return super().follow(paths, replace(policy, temperature=2 * policy.temperature))


class Forgetful(HFEngine):
    """Its prefill is right. In decode steps each token stands one position too far."""

    name = "forgetful"

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(copy.deepcopy(model), tokenizer, **options)
        self._model.register_forward_pre_hook(shifted, with_kwargs=True)


def shifted(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if inputs["input_ids"].shape[1] == 1 and inputs["past_key_values"].get_seq_length():
        inputs = {**inputs, "position_ids": inputs["position_ids"] + 1}
    return args, inputs


class Telling:
    """It gives what it is made of."""

    name = "telling"

    def __init__(self, given: Any) -> None:
        self.given = given

    def distributions(self, _: Any, __: Any) -> Any:
        return self.given


register_engine("warm", Warm)
register_engine("forgetful", Forgetful)


def answers_of(engine: Engine, policy: SamplingPolicy = RAW) -> list[Answer]:
    return sample(engine, REQUESTS, OWNERS, policy, STOPPING)


def probabilities(model: Any, context: Sequence[int], policy: SamplingPolicy) -> np.ndarray:
    """q by numpy in float64, from a forward of this context alone."""
    with torch.no_grad():
        a = model(torch.tensor([list(context)])).logits[0, -1].double().numpy()
    a = a / policy.temperature
    p = np.exp(a - a.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[np.cumsum(p[order]) - p[order] < policy.top_p]
    q = np.zeros_like(p)
    q[kept] = p[kept] / p[kept].sum()
    return q
