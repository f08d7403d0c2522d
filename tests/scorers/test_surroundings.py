"""What surrounds a call changes nothing: inference mode, autocast, threads, frozen weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from helpers.scorer_helpers import distance, families
from seqproc import SequenceProcessor
from seqproc.errors import ConfigError, ModelError
from seqproc.policy import SamplingPolicy
from seqproc.scorers import (
    TeacherForcingScorer,
    build_params_override,
    gradient_gram,
    hvp,
    jvp,
    sequence_gradients,
    weighted_gradient,
)

V = 40
POLICY = SamplingPolicy(temperature=0.8, top_p=0.9)
SEQUENCES = families(V)
WHOLE = SamplingPolicy(temperature=0.8)

SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture
def model(tiny_llama: Callable[..., Any]) -> Any:
    return tiny_llama(vocab_size=V, eos_token_id=0, pad_token_id=None)


def flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


def direction(model: Any) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {n: torch.randn(p.shape, generator=drawn) for n, p in model.named_parameters()}


def entropy(scores: Any) -> torch.Tensor:
    return torch.stack([s.stats.rb_entropy.sum() for s in scores]).sum()


CALLS: dict[str, Callable[[TeacherForcingScorer], torch.Tensor]] = {
    "score": lambda s: torch.cat([x.logprobs for x in s.score(SEQUENCES, POLICY)[0]]),
    "score with gradients": lambda s: torch.cat(
        [x.logprobs.detach() for x in s.score_with_grad(SEQUENCES, POLICY)]
    ),
    "jvp": lambda s: torch.cat(
        [x.rb_entropy for x in jvp(s, SEQUENCES, POLICY, direction(s.model))]
    ),
    "hvp": lambda s: flat(hvp(s, SEQUENCES[:3], POLICY, direction(s.model), entropy)),
    "a gradient": lambda s: flat(next(sequence_gradients(s, SEQUENCES, POLICY))),
    "a weighted gradient": lambda s: flat(
        weighted_gradient(s, SEQUENCES, POLICY, torch.ones(len(SEQUENCES)))
    ),
    "a Gram matrix": lambda s: gradient_gram(s, SEQUENCES[:4], WHOLE),
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
@pytest.mark.parametrize("call", CALLS)
def test_a_call_says_the_same_in_any_surrounding(model, call, surrounding):
    scorer = TeacherForcingScorer(model)
    alone = CALLS[call](scorer)
    assert alone.any()
    with SURROUNDINGS[surrounding]():
        within = CALLS[call](scorer)
    torch.testing.assert_close(within.clone(), alone, rtol=1e-6, atol=1e-6)


def test_a_backward_pass_under_autocast_computes_again_as_the_forward_did(model):
    gradients = []
    for surrounding in (contextlib.nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        scores = TeacherForcingScorer(model).score_with_grad(SEQUENCES, POLICY)
        total = torch.stack([s.stats.rb_entropy.sum() + s.logprobs.sum() for s in scores]).sum()
        model.zero_grad()
        with surrounding:
            total.backward()
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_threads_wait_their_turn(model):
    """Overrides are put in the place of the module's own parameters while it runs."""
    scorer, v = TeacherForcingScorer(model), direction(model)
    overrides = [build_params_override(model, v, 0.05 * n) for n in range(6)]

    def score(override: Any) -> Any:
        return scorer.score(SEQUENCES, POLICY, batch_size=2, overrides=[override])[0]

    expected = [score(one) for one in overrides]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for one, other in zip(pool.map(score, overrides), expected, strict=True):
                assert distance(one, other) == 0
    assert all(p.requires_grad for p in model.parameters())


def test_threads_may_score_and_differentiate_at_once(model):
    """Attention, the level of forward mode and parameters are one for all threads."""
    scorer, attention = TeacherForcingScorer(model), model.config._attn_implementation
    v = direction(model)

    def elsewhere(s: TeacherForcingScorer) -> torch.Tensor:
        override = build_params_override(s.model, v, 0.5)
        return torch.cat([x.logprobs for x in s.score(SEQUENCES, POLICY, overrides=[override])[0]])

    calls = [*CALLS.values(), elsewhere]
    expected = [call(scorer) for call in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(4):
            for found, right in zip(pool.map(lambda f: f(scorer), calls), expected, strict=True):
                torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
    assert model.config._attn_implementation == attention
    assert all(isinstance(p, torch.nn.Parameter) for p in model.parameters())


@pytest.mark.parametrize("call", ["score with gradients", "a gradient", "a weighted gradient"])
def test_a_frozen_model_has_no_gradients(model, call):
    scorer = TeacherForcingScorer(model.requires_grad_(False))
    with pytest.raises(ModelError, match="no parameter of the model requires a gradient"):
        CALLS[call](scorer)


def test_an_objective_without_a_graph_is_refused(model):
    gradients = sequence_gradients(
        TeacherForcingScorer(model), SEQUENCES, POLICY, lambda s: s.logprobs.sum().detach()
    )
    with pytest.raises(ConfigError, match="detach"):
        next(gradients)


def test_generate_draws_the_same_under_autocast(tiny_llama, tiny_tokenizer):
    processor = SequenceProcessor(
        tiny_llama(), tiny_tokenizer, config={"generation": {"max_new_tokens": 8}}
    )
    alone = processor.generate_batched(["2 + 3?"], G=4, seed=1)
    for surrounding in SURROUNDINGS.values():
        with surrounding():
            within = processor.generate_batched(["2 + 3?"], G=4, seed=1)
        assert torch.equal(within.sequences, alone.sequences)
        for one, other in zip(within.engine_logqs[0], alone.engine_logqs[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
