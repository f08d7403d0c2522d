"""Gradients per sequence against float64 autograd of the plain model, and by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.scorer_helpers import families, float64_profiles
from seqproc._util.by_device import ByDevice
from seqproc.errors import ConfigError, OverrideError, ScoringError, SequenceError
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TeacherForcingScorer, TokenSequence, gradients
from seqproc.scorers.gradients import (
    OBJECTIVES,
    gradient_gram,
    projected_gradients,
    sequence_gradients,
    weighted_gradient,
)

V = 30
POLICY = SamplingPolicy(temperature=0.8)
SEQUENCES = families(V)


@pytest.fixture
def model(tiny_llama: Callable[..., Any]) -> Any:
    return tiny_llama(vocab_size=V, eos_token_id=0, pad_token_id=None, tie_word_embeddings=True)


@pytest.fixture
def scorer(model: Any) -> TeacherForcingScorer:
    return TeacherForcingScorer(model, precision=float64_profiles())


def plain(model: Any, sequence: TokenSequence, of: str) -> dict[str, torch.Tensor]:
    """By autograd through the whole model in float64, one sequence at a time."""
    from seqproc.scorers import Float64Lift

    params = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])
    if not len(sequence.response_ids):
        return {name: torch.zeros_like(p) for name, p in params.items()}
    with Float64Lift():
        logits = torch.func.functional_call(model, params, (ids[None],)).logits[0]
    logits = logits[len(sequence.prompt_ids) - 1 : -1]
    at = sequence.response_ids[:, None]
    q = (logits / POLICY.temperature).log_softmax(-1)
    entropy = -(q.exp() * q).sum(-1)
    later = [float(entropy.detach()[t + 1 :].sum()) for t in range(len(entropy))]
    value = {
        "logprob": logits.log_softmax(-1).gather(-1, at).sum(),
        "logq": q.gather(-1, at).sum(),
        "entropy": entropy.sum(),
        "surrogate": (entropy + q.gather(-1, at)[:, 0] * torch.tensor(later)).sum(),
    }[of]
    found = torch.autograd.grad(value, list(params.values()))
    return dict(zip(params, found, strict=True))


def flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.double().flatten() for g in gradient.values()])


def jacobian(model: Any, of: str) -> torch.Tensor:
    return torch.stack([flat(plain(model, s, of)) for s in SEQUENCES])


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    assert float((found * 1.001 - expected).abs().max()) > tolerance * float(expected.abs().max())


@pytest.mark.parametrize("of", OBJECTIVES)
@pytest.mark.parametrize("kept", [1 << 24, 0], ids=["logits kept", "computed again"])
def test_each_gradient(model, of, kept, monkeypatch):
    monkeypatch.setattr(gradients, "_KEPT_LOGITS", ByDevice(cpu=kept, accelerator=kept))
    for precision, tolerance in ((None, 2e-5), (float64_profiles(), 1e-6)):
        scorer = TeacherForcingScorer(model, precision=precision)
        found = [flat(g) for g in sequence_gradients(scorer, SEQUENCES, POLICY, of)]
        close(torch.stack(found), jacobian(model, of), tolerance)  # of float32 parameters


def test_gradients_are_named_and_shaped_as_parameters(model, scorer):
    model.model.norm.weight.requires_grad_(False)
    (gradient,) = sequence_gradients(scorer, SEQUENCES[:1], POLICY)
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert "model.norm.weight" not in gradient
    assert {n: g.shape for n, g in gradient.items()} == {n: p.shape for n, p in wanted.items()}
    assert all(p.grad is None for p in model.parameters())


def test_gradients_are_computed_when_asked_for(scorer):
    calls = []

    def of(scores: Any) -> torch.Tensor:
        calls.append(len(scores.logprobs))
        return scores.logprobs.sum()

    found = sequence_gradients(scorer, SEQUENCES, POLICY, of)
    assert calls == []
    next(found)
    assert calls == [len(SEQUENCES[0].response_ids)]


def test_a_response_without_tokens_has_none(scorer):
    empty = [s for s in SEQUENCES if not len(s.response_ids)]
    assert len(empty) == 1
    (gradient,) = sequence_gradients(scorer, empty, POLICY)
    assert not flat(gradient).any()


@pytest.mark.parametrize("of", OBJECTIVES)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_weighted_sum(model, scorer, of, batch_size):
    weights = torch.linspace(-1, 2, len(SEQUENCES))
    found = weighted_gradient(scorer, SEQUENCES, POLICY, weights, of, batch_size=batch_size)
    close(flat(found), weights.double() @ jacobian(model, of), 1e-6)


@pytest.mark.parametrize("of", OBJECTIVES)
@pytest.mark.parametrize("number", [1, 3])
def test_products_with_directions(model, scorer, of, number):
    drawn = torch.Generator().manual_seed(2)
    directions = [
        {n: torch.randn(p.shape, generator=drawn) for n, p in model.named_parameters()}
        for _ in range(number)
    ]
    found = projected_gradients(scorer, SEQUENCES, POLICY, directions, of)
    assert found.dtype == torch.float64
    close(found, jacobian(model, of) @ torch.stack([flat(v) for v in directions]).T, 1e-6)


def test_a_direction_that_leaves_parameters_out(model, scorer):
    name = "lm_head.weight"  # tied: the embedding by its other name
    part = {name: torch.ones_like(model.get_parameter(name))}
    still = {"model.norm.weight": torch.zeros_like(model.model.norm.weight)}
    both = projected_gradients(scorer, SEQUENCES, POLICY, [part, still])
    close(both[:, :1], projected_gradients(scorer, SEQUENCES, POLICY, [part]), 1e-6)
    assert not both[:, 1].any()


@pytest.mark.parametrize("held", [None, 1, 4, 100])
def test_the_gram_matrix(model, scorer, held):
    rows = jacobian(model, "logq")
    found = gradient_gram(scorer, SEQUENCES, POLICY, "logq", held=held)
    assert found.dtype == torch.float64
    close(found, rows @ rows.T, 1e-6)


def test_a_function_of_the_scores(model, scorer):
    def squared(scores: Any) -> torch.Tensor:
        return scores.logprobs.square().sum() / 2

    found = projected_gradients(scorer, SEQUENCES, POLICY, [ones(model)], squared)
    scores = scorer.score(SEQUENCES, POLICY)[0]
    for value, one, gradient in zip(
        found[:, 0].tolist(),
        scores,
        sequence_gradients(scorer, SEQUENCES, POLICY, squared),
        strict=True,
    ):
        assert value == pytest.approx(float(flat(gradient).sum()), rel=1e-5, abs=1e-5)
        assert (value != 0) == bool(len(one.logprobs))


def ones(model: Any) -> dict[str, torch.Tensor]:
    return {name: torch.ones_like(p) for name, p in model.named_parameters()}


def test_the_mean_surrogate_is_the_gradient_of_the_entropy(tiny_gpt2):
    """By enumeration of all sequences of three tokens over a vocabulary of four."""
    model = tiny_gpt2(vocab_size=4, eos_token_id=None, bos_token_id=None, pad_token_id=None)
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    prompt = torch.tensor([1, 2])
    every = [torch.tensor(tokens) for tokens in itertools.product(range(4), repeat=3)]
    sequences = [TokenSequence(prompt_ids=prompt, response_ids=tokens) for tokens in every]
    scores = scorer.score(sequences, POLICY)[0]
    chances = torch.stack([s.logqs.sum().exp() for s in scores])
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
    mean = flat(weighted_gradient(scorer, sequences, POLICY, chances, "surrogate"))

    params = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    ids = torch.stack([torch.cat([prompt, tokens]) for tokens in every])
    logits = torch.func.functional_call(model, params, (ids,)).logits[:, 1:-1]
    each = log_q(logits, POLICY).gather(-1, torch.stack(every)[..., None]).sum((1, 2))
    entropy = -(each.exp() * each).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(entropy, list(params.values()))])
    close(mean, exact, 1e-5)
    naive = flat(weighted_gradient(scorer, sequences, POLICY, chances, "entropy"))
    assert float((naive - exact).abs().max()) > 1e-2 * float(exact.abs().max())


# What is refused.


def test_an_unknown_objective(scorer):
    with pytest.raises(ConfigError, match="of is 'logprobs'; expected one of 'logprob', 'logq'"):
        sequence_gradients(scorer, SEQUENCES, POLICY, "logprobs")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1.0, torch.ones(2)])
def test_an_objective_that_is_no_scalar(scorer, value):
    with pytest.raises(ConfigError, match="of must give a scalar tensor"):
        next(sequence_gradients(scorer, SEQUENCES, POLICY, lambda _: value))


def test_a_token_outside_the_support(scorer):
    policy = SamplingPolicy(top_p=0.1)
    empty_first = sorted(SEQUENCES, key=lambda s: len(s.response_ids))
    with pytest.raises(ScoringError, match=r"sequence 1: of gives -inf.*outside the support"):
        list(sequence_gradients(scorer, empty_first, policy, "logq"))
    with pytest.raises(ScoringError, match=r"sequence 0: of gives nan"):
        weighted_gradient(scorer, SEQUENCES[:1], policy, torch.ones(1), "surrogate")


def test_what_has_no_forward_derivative(model, scorer):
    with pytest.raises(ConfigError, match="two directions or more"):
        projected_gradients(
            scorer, SEQUENCES, POLICY, [ones(model)], lambda s: s.stats.collision.sum()
        )
    twice = [ones(model)] * 2
    found = projected_gradients(scorer, SEQUENCES, POLICY, twice, lambda s: s.stats.collision.sum())
    assert math.isfinite(float(found.sum()))
    assert found.any()


def test_as_many_weights_as_sequences(scorer):
    with pytest.raises(SequenceError, match=r"weights must be \[14\].*got \[3\]"):
        weighted_gradient(scorer, SEQUENCES, POLICY, torch.ones(3))


def test_a_direction_of_another_model(scorer):
    with pytest.raises(OverrideError, match="no parameter named 'nothing'"):
        projected_gradients(scorer, SEQUENCES, POLICY, [{"nothing": torch.ones(1)}] * 2)


def test_how_many_are_held(scorer):
    with pytest.raises(ConfigError, match="held"):
        gradient_gram(scorer, SEQUENCES, POLICY, held=0)
