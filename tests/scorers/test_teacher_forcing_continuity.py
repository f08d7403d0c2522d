"""(H(θ + η·v) − H(θ)) / η down to η = 1e-8: what true float64 is for."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from helpers.scorer_helpers import float64_profiles, oracle_logits, random_sequences
from seqproc.config import PrecisionConfig
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, build_params_override

ETAS = (1e-5, 1e-6, 1e-7, 1e-8)
FIVE_DIGITS = 1.5e-5
FAMILIES = ["tiny_llama", "tiny_qwen2", "tiny_gpt2"]
# The step is so large that rounding at η = 1e-8 stays below five digits, and so small that
# curvature at η = 1e-5 does; with a nucleus, smaller, so that no support changes on the way.
FULL = SamplingPolicy(), 0.1
POLICIES = [
    pytest.param(*FULL, id="full"),
    pytest.param(SamplingPolicy(temperature=0.8, top_p=0.95), 0.03, id="nucleus"),
]
Direction = dict[str, torch.Tensor]


@pytest.fixture(params=FAMILIES)
def model(request):
    return request.getfixturevalue(request.param)()


def total_entropies(
    model: Any, overrides: list[Any], policy: SamplingPolicy, precision: PrecisionConfig
) -> list[float]:
    """Σ_t H(q_t) over all sequences, per override."""
    scorer = TeacherForcingScorer(model, precision=precision)
    sequences = random_sequences(model.config.vocab_size)
    scored = scorer.score(sequences, policy, batch_size=8, overrides=overrides)
    return [sum(float(s.stats.rb_entropy.double().sum()) for s in one) for one in scored]


def uphill(model: Any, policy: SamplingPolicy, length: float) -> tuple[Direction, float]:
    """A direction close to that of steepest ascent of ΣH, and the derivative along it."""
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    sequences = random_sequences(model.config.vocab_size)
    scores = scorer.score_with_grad(sequences, policy, batch_size=8)
    named = dict(model.named_parameters())
    total = torch.stack([s.stats.rb_entropy.sum() for s in scores]).sum()
    gradients = torch.autograd.grad(total, list(named.values()))
    wide = {name: g.double() for name, g in zip(named, gradients, strict=True)}
    norm = sum(float(g.square().sum()) for g in wide.values()) ** 0.5
    generator = torch.Generator().manual_seed(1)
    direction = {
        name: length * (g / norm + 1e-3 * torch.randn(g.shape, generator=generator))
        for name, g in wide.items()
    }
    return direction, sum(float((wide[name] * direction[name]).sum()) for name in wide)


def slopes(entropies: list[float]) -> list[float]:
    """Forward differences of entropies taken at η = 0 and then at ETAS."""
    start, *rest = entropies
    return [(h - start) / eta for h, eta in zip(rest, ETAS, strict=True)]


def worst_error(found: list[float], derivative: float) -> float:
    return max(abs(slope / derivative - 1) for slope in found)


def oracle_slope(model: Any, direction: Direction, policy: SamplingPolicy) -> float:
    """Central difference of ΣH by the numpy forward; entropies summed from probabilities."""
    half = []
    for eta in (1e-5, -1e-5):
        moved = copy.deepcopy(model).double()
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter.add_(eta * direction[name])
        # Casting rounds nothing here, but the buffer must stay the model's own float32 numbers.
        sequences = random_sequences(model.config.vocab_size)
        half.append(sum(numpy_entropy(oracle_logits(moved, s), policy) for s in sequences))
    return (half[0] - half[1]) / 2e-5


def numpy_entropy(logits: np.ndarray, policy: SamplingPolicy) -> float:
    total = 0.0
    for row in logits:
        p = np.sort(np.exp(row / policy.temperature))[::-1]
        p /= p.sum()
        q = p[np.concatenate([[0.0], np.cumsum(p)[:-1]]) < policy.top_p]
        q /= q.sum()
        total -= float((q * np.log(q)).sum())
    return total


@pytest.mark.parametrize(("policy", "length"), POLICIES)
def test_float64_slopes_are_right_to_five_digits(model, policy, length):
    direction, derivative = uphill(model, policy, length)
    overrides = [build_params_override(model, direction, eta, dtype=torch.float64) for eta in ETAS]
    entropies = total_entropies(model, [None, *overrides], policy, float64_profiles())
    found = slopes(entropies)
    assert worst_error(found, derivative) < FIVE_DIGITS, found
    assert worst_error(found, oracle_slope(model, direction, policy)) < FIVE_DIGITS
    assert worst_error(found, 1.0001 * derivative) > FIVE_DIGITS


def test_float32_slopes_are_not(model):
    policy, length = FULL
    direction, derivative = uphill(model, policy, length)
    narrow = {name: v.float() for name, v in direction.items()}
    overrides = [build_params_override(model, narrow, eta) for eta in ETAS]
    found = slopes(total_entropies(model, [None, *overrides], policy, PrecisionConfig()))
    assert worst_error(found[:1], derivative) > 100 * FIVE_DIGITS
    assert worst_error(found[-1:], derivative) > 0.1


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
@torch.no_grad()
def test_nor_are_those_of_a_plain_double_model(family, request):
    model = request.getfixturevalue(family)()
    policy, length = FULL
    with torch.enable_grad():
        direction, derivative = uphill(model, policy, length)
    double = copy.deepcopy(model).double()
    entropies = []
    for eta in (0.0, *ETAS):
        mapping = build_params_override(double, direction, eta)
        total = 0.0
        for s in random_sequences(model.config.vocab_size):
            ids = torch.cat([s.prompt_ids, s.response_ids])[None]
            call = {"input_ids": ids, "use_cache": False}
            output = torch.func.functional_call(double, mapping, args=(), kwargs=call)
            rows = output.logits[0, len(s.prompt_ids) - 1 : -1]
            total += numpy_entropy(rows.numpy(), policy)
        entropies.append(total)
    found = slopes(entropies)
    assert worst_error(found[:1], derivative) > 10 * FIVE_DIGITS
    assert worst_error(found[-1:], derivative) > 0.05
