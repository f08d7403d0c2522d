"""Scores read off logits: the same in chunks, empty where there is nothing, and the features."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch

from helpers.devices import everywhere
from seqproc.policy import PolicyStatistics, SamplingPolicy
from seqproc.scorers import baseline_features
from seqproc.scorers import measure as measure_function
from seqproc.scorers.measure import empty_scores, measure

POLICY = SamplingPolicy(temperature=0.8, top_p=0.9)
FIELDS = [f.name for f in dataclasses.fields(PolicyStatistics)]


def steps(count: int = 23, size: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(count, size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(size, (count,), generator=generator)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three rows of 40 logits."""
    module = sys.modules[measure.__module__]
    sizes = []
    original = module.score_tokens

    def counted(logits, *args):
        sizes.append(len(logits))
        return original(logits, *args)

    for name in ("_CHUNK_ELEMENTS", "_CHUNK_ELEMENTS_WITH_GRAD"):
        monkeypatch.setattr(module, name, everywhere(125))
    monkeypatch.setattr(module, "score_tokens", counted)
    return sizes


@pytest.mark.parametrize("eos", [(), (0, 3)])
def test_chunks_change_nothing(eos, request):
    logits, tokens = steps()
    whole = measure(logits, tokens, POLICY, eos)
    sizes = request.getfixturevalue("small_chunks")
    pieces = measure(logits, tokens, POLICY, eos)
    assert sizes == [3] * 7 + [2]
    assert torch.equal(whole.logprobs, pieces.logprobs)
    assert torch.equal(whole.logqs, pieces.logqs)
    for name in FIELDS:
        one, other = getattr(whole.stats, name), getattr(pieces.stats, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    assert (whole.stats.eos_prob is None) == (eos == ())


def test_gradients_cross_chunks(small_chunks):
    logits, tokens = steps()
    logits.requires_grad_()
    scores = measure(logits, tokens, POLICY)
    (gradient,) = torch.autograd.grad(scores.stats.rb_entropy.sum(), logits)
    assert len(small_chunks) == 2 * 8  # each chunk once more in the backward pass
    assert bool((gradient.abs().sum(-1) > 0).all())


def test_a_row_wider_than_a_chunk_is_still_read(small_chunks):
    logits, tokens = steps(2, 200)
    assert measure(logits, tokens, POLICY).logprobs.shape == (2,)
    assert small_chunks == [1, 1]


def test_the_function_is_exported():
    assert measure_function is measure


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eos", [(), (7, 2)])
def test_empty_scores_have_every_field(dtype, eos):
    scores = empty_scores(dtype, eos)
    assert scores.logprobs.shape == scores.logqs.shape == (0,)
    assert scores.logprobs.dtype == dtype
    for name in FIELDS:
        value = getattr(scores.stats, name)
        assert (value is None) if (name == "eos_prob" and not eos) else value.shape == (0,)


# The baseline features.


def test_features_are_the_seven_named_columns():
    """Uniform over k of the k + 2 tokens of a row: every column in closed form."""
    rows = torch.full((4, 5), 1.5, dtype=torch.float64)
    rows[:, 3:] = float("-inf")
    rows[1, 2] = float("-inf")
    rows[2] = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0], dtype=torch.float64).log()
    rows[3] = rows[2]
    scores = measure(rows, torch.zeros(4, dtype=torch.int64), SamplingPolicy(top_p=0.75))
    features = baseline_features(scores.stats)
    two = math.log(2)
    binary = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    thirds = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    peaked = [thirds, 2 / 3, two, 0.75, binary, two**2 * 2 / 9]
    want = [
        [math.log(3), 1 / 3, 0, 1, 0, 0, 0 / 4],
        [two, 1 / 2, 0, 1, 0, 0, 1 / 4],
        [*peaked, 2 / 4],
        [*peaked, 3 / 4],
    ]
    assert features.shape == (4, 7)
    for row, values in zip(features.tolist(), want, strict=True):
        assert row == pytest.approx(values, abs=1e-12)
    swapped = features[:, [1, 0, *range(2, 7)]]
    assert swapped[2].tolist() != pytest.approx(want[2], abs=1e-12)


def test_features_are_detached_and_keep_the_dtype():
    logits, tokens = steps()
    for dtype in (torch.float32, torch.float64):
        mine = logits.to(dtype).requires_grad_()
        scores = measure(mine, tokens, POLICY)
        features = baseline_features(scores.stats)
        assert scores.stats.rb_entropy.requires_grad
        assert not features.requires_grad
        assert features.dtype == dtype
        assert bool(features.isfinite().all())


def test_features_of_nothing():
    assert baseline_features(empty_scores(torch.float32).stats).shape == (0, 7)


def test_a_constant_statistic_has_no_gradient():
    logits = torch.randn(3, 7, requires_grad=True)
    scores = measure(logits, torch.tensor([1, 2, 3]), SamplingPolicy())
    (gradient,) = torch.autograd.grad(scores.stats.tail_mass.sum(), logits, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_parts_have_the_derivatives_of_the_whole(monkeypatch):
    module = sys.modules[measure.__module__]
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS_WITH_GRAD", everywhere(14))  # two rows of seven
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = logits.argmax(-1)
    for policy in (SamplingPolicy(temperature=0.7), SamplingPolicy(top_p=0.6)):

        def read(x, policy=policy):
            scores = measure(x, tokens, policy)
            return scores.logqs, scores.logprobs, scores.stats.rb_entropy, scores.stats.logit_var

        assert torch.autograd.gradcheck(read, (logits.clone().requires_grad_(),))
        assert torch.autograd.gradgradcheck(read, (logits.clone().requires_grad_(),))
