"""Coupled runs: identical, parted at a near-tie, and parted without reason."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.parity_range import POLICY, STOPPING, Range
from seqproc.engines import HFEngine, Request, gumbel_noise
from seqproc.parity import Answer, compare, sample
from seqproc.policy import log_q
from seqproc.prompts import draw_seed

REQUESTS = [Request(index=i, prompt_ids=(40 + i, 41), seed=draw_seed(0, i)) for i in range(48)]


def answers(model: Any, tokenizer: Any) -> list[Answer]:
    engine = HFEngine(model, tokenizer, batch_size=48)
    return sample(engine, REQUESTS, range(48), POLICY, STOPPING)


def test_the_same_engine_does_not_part(small: Range) -> None:
    first = answers(small.model, small.tokenizer)
    found = compare(("a", "b"), first, first, small.scorer, POLICY, 5e-4)
    assert (found.num_draws, found.num_identical, found.divergences) == (48, 48, ())
    assert found.holds


def test_a_near_tie_is_explained_and_its_gap_is_that_of_the_keys(small: Range) -> None:
    """Weights rounded to bfloat16 part where the keys nearly tie, within a wide enough error."""
    rounded = copy.deepcopy(small.model).bfloat16().float()
    pair = answers(small.model, small.tokenizer), answers(rounded, small.tokenizer)
    found = compare(("a", "b"), *pair, small.scorer, POLICY, 0.5)
    assert 0 < len(found.divergences) < 48
    assert found.holds
    one = next(d for d in found.divergences if math.isfinite(d.gap))
    request, ids = REQUESTS[one.index], pair[0][one.index].completion.token_ids
    prefix = torch.tensor([[*request.prompt_ids, *ids[: one.step]]])
    with torch.no_grad():
        keys = log_q(small.model(prefix).logits[0, -1].double(), POLICY)
    keys += gumbel_noise(request.seed, one.step, len(keys))
    a, b = one.tokens
    assert a == ids[one.step] == int(keys.argmax())
    assert one.gap == pytest.approx(float(keys[a] - keys[b]), abs=1e-5)
    assert not compare(("a", "b"), *pair, small.scorer, POLICY, 1e-6).holds


def test_another_token_is_not_explained(small: Range) -> None:
    first = answers(small.model, small.tokenizer)
    ids = first[0].completion.token_ids
    wrong = replace(first[0].completion, token_ids=(ids[0] + 1, *ids[1:]))
    second = [replace(first[0], completion=wrong), *first[1:]]
    found = compare(("a", "b"), first, second, small.scorer, POLICY, 5e-4)
    assert [(d.index, d.step, d.is_explained) for d in found.divergences] == [(0, 0, False)]
    assert not found.holds


def test_an_early_end_is_not_explained(small: Range) -> None:
    first = answers(small.model, small.tokenizer)
    ids = first[0].completion.token_ids
    short = replace(first[0].completion, token_ids=ids[:-1])
    second = [replace(first[0], completion=short), *first[1:]]
    found = compare(("a", "b"), first, second, small.scorer, POLICY, 5e-4)
    (one,) = found.divergences
    assert one.tokens == (ids[-1], None)
    assert math.isnan(one.gap)
    assert not one.is_explained
