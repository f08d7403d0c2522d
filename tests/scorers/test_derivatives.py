"""Derivatives along a direction against central differences in true float64, and each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.scorer_helpers import float64_profiles, random_sequences
from seqproc.errors import OverrideError, ScoringError
from seqproc.policy import SamplingPolicy, TokenScores
from seqproc.scorers import TeacherForcingScorer, TokenSequence, build_params_override
from seqproc.scorers.derivatives import hvp, jvp
from seqproc.scorers.kernels.attention import differentiable_attention

POLICIES = [
    SamplingPolicy(),
    SamplingPolicy(temperature=0.7),
    SamplingPolicy(temperature=0.9, top_p=0.4),
]
STEP = 2e-5


def direction_of(model: Any, seed: int = 1, only: str = "") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, dtype=torch.float64, generator=generator) * 0.05
        for name, p in model.named_parameters()
        if only in name
    }


def likely_sequences(model: Any, seed: int = 0) -> list[TokenSequence]:
    """Greedy responses: every token is in every support. Two share a prompt; one is empty."""
    prompts = [s.prompt_ids for s in random_sequences(model.config.vocab_size, seed=seed)][:5]
    found = []
    for prompt, steps in zip([*prompts, prompts[0]], (5, 4, 1, 0, 6, 3), strict=True):
        ids = prompt
        for _ in range(steps):
            with torch.no_grad():
                logits = model(input_ids=ids[None], use_cache=False).logits
            ids = torch.cat([ids, logits[0, -1].argmax()[None]])
        found.append(TokenSequence(prompt_ids=prompt, response_ids=ids[len(prompt) :]))
    return found


def slopes(
    scorer: TeacherForcingScorer,
    sequences: list[TokenSequence],
    policy: SamplingPolicy,
    direction: dict[str, torch.Tensor],
) -> list[dict[str, torch.Tensor]]:
    """Central differences of the scores, their first error term removed (Richardson)."""

    def at(eta: float) -> list[TokenScores]:
        override = build_params_override(scorer.model, direction, eta, dtype=torch.float64)
        return scorer.score(sequences, policy, overrides=[override])[0]

    points = {eta: at(eta) for eta in (-2 * STEP, -STEP, STEP, 2 * STEP)}
    found = []
    for i in range(len(sequences)):
        low2, low, high, high2 = (points[eta][i] for eta in sorted(points))
        found.append(
            {
                name: (8 * (read(high) - read(low)) - (read(high2) - read(low2))) / (12 * STEP)
                for name, read in FIELDS.items()
            }
        )
    return found


FIELDS = {
    "logprobs": lambda s: s.logprobs,
    "logqs": lambda s: s.logqs,
    "rb_entropy": lambda s: s.stats.rb_entropy,
}


def worst_gap(found: Any, wanted: Any, names: tuple[str, ...] = tuple(FIELDS)) -> float:
    """Largest error, relative to the largest derivative of the same kind."""
    worst = 0.0
    for name in names:
        got = torch.cat([getattr(d, name) for d in found])
        want = torch.cat([w[name] for w in wanted])
        worst = max(worst, float((got - want).abs().max() / want.abs().max()))
    return worst


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_gpt2", "tiny_gemma2"])
def test_jvp_matches_central_differences(family, policy, request):
    model = request.getfixturevalue(family)()
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    sequences, direction = likely_sequences(model), direction_of(model)
    found = jvp(scorer, sequences, policy, direction)
    wanted = slopes(scorer, sequences, policy, direction)
    assert min(float(d.scores.stats.cut_margin.min()) for d in found if len(d.logqs)) > 10 * STEP
    assert worst_gap(found, wanted) <= 1e-8
    other = slopes(scorer, sequences, policy, direction_of(model, seed=2))
    assert worst_gap(found, other) > 1e-2


def test_a_plain_double_forward_would_fail_that_bound(tiny_llama):
    """The twin: float32 casts inside the model are far above 1e-8."""
    model = tiny_llama()
    sequences, direction = likely_sequences(model), direction_of(model)
    exact = TeacherForcingScorer(model, precision=float64_profiles())
    wanted = slopes(exact, sequences, POLICIES[0], direction)
    single = {name: v.float() for name, v in direction.items()}
    rough = jvp(TeacherForcingScorer(model), sequences, POLICIES[0], single)
    assert 1e-8 < worst_gap(rough, wanted) < 1e-3


def test_jvp_carries_the_scores_and_the_order(tiny_llama):
    model = tiny_llama()
    scorer = TeacherForcingScorer(model, (0,))
    sequences = random_sequences(model.config.vocab_size)
    found = jvp(scorer, sequences, POLICIES[2], direction_of(model))
    scores = scorer.score(sequences, POLICIES[2])[0]
    for one, other in zip(found, scores, strict=True):
        assert one.scores.logprobs.shape == one.rb_entropy.shape == other.logprobs.shape
        torch.testing.assert_close(
            one.scores.logprobs.double(), other.logprobs.double(), atol=2e-5, rtol=0
        )
        assert torch.equal(one.logqs.isnan(), other.logqs == float("-inf"))
    assert any(d.logqs.isnan().any() for d in found)


def test_jvp_does_not_depend_on_batches_or_shared_prompts(tiny_llama):
    model = tiny_llama()
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    sequences, direction = likely_sequences(model), direction_of(model)
    one = jvp(scorer, sequences, POLICIES[2], direction)
    other = jvp(scorer, sequences, POLICIES[2], direction, batch_size=1, share_prompts=False)
    for a, b in zip(one, other, strict=True):
        for name in FIELDS:
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-11, rtol=0)


def test_jvp_is_the_gradient_times_the_direction(tiny_gpt2):
    model = tiny_gpt2().double()
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    sequences, direction = likely_sequences(model), direction_of(model)
    found = jvp(scorer, sequences, POLICIES[2], direction)
    graph = scorer.score_with_grad(sequences, POLICIES[2])
    for derivative, scores in zip(found, graph, strict=True):
        if len(scores.logqs):
            params = dict(model.named_parameters())
            gradient = torch.autograd.grad(
                scores.logqs.sum(), list(params.values()), retain_graph=True
            )
            slope = sum((g * direction[n]).sum() for n, g in zip(params, gradient, strict=True))
            torch.testing.assert_close(derivative.logqs.sum(), slope, rtol=1e-10, atol=1e-11)


def test_jvp_along_an_adapter_moves_nothing_else(tiny_llama):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    scorer = TeacherForcingScorer(adapted, precision=float64_profiles())
    sequences = random_sequences(300)
    direction = direction_of(adapted, only="lora_")
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    found = jvp(scorer, sequences, POLICIES[0], direction)
    assert worst_gap(found, slopes(scorer, sequences, POLICIES[0], direction)) <= 1e-8
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())


def test_no_direction_gives_no_slope(tiny_llama):
    model = tiny_llama()
    found = jvp(TeacherForcingScorer(model), random_sequences(300), POLICIES[0], {})
    assert all(not d.logprobs.any() and not d.rb_entropy.any() for d in found)


def test_a_direction_that_does_not_fit_is_refused(tiny_llama):
    scorer = TeacherForcingScorer(tiny_llama())
    with pytest.raises(OverrideError, match="no parameter named 'nothing'"):
        jvp(scorer, [], POLICIES[0], {"nothing": torch.zeros(1)})
    with pytest.raises(OverrideError, match="expected shape"):
        hvp(
            scorer,
            [],
            POLICIES[0],
            {"model.norm.weight": torch.zeros(1)},
            lambda _: torch.zeros(()),
        )


def mean_entropy(scores: list[TokenScores]) -> torch.Tensor:
    return torch.cat([s.stats.rb_entropy for s in scores]).mean()


@pytest.mark.parametrize("policy", POLICIES[1:], ids=str)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_hvp_matches_differences_of_gradients(family, policy, request):
    model = request.getfixturevalue(family)().double()
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    sequences, direction = likely_sequences(model), direction_of(model)
    found = hvp(scorer, sequences, policy, direction, mean_entropy)
    params = dict(model.named_parameters())

    def gradient() -> dict[str, torch.Tensor]:
        value = mean_entropy(scorer.score_with_grad(sequences, policy))
        return dict(zip(params, torch.autograd.grad(value, list(params.values())), strict=True))

    def moved(eta: float) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            for name, p in params.items():
                p.add_(direction[name], alpha=eta)
        try:
            return gradient()
        finally:
            with torch.no_grad():
                for name, p in params.items():
                    p.sub_(direction[name], alpha=eta)

    low, high, low2, high2 = moved(-STEP), moved(STEP), moved(-2 * STEP), moved(2 * STEP)
    scale = max(float(h.abs().max()) for h in found.values())
    assert scale > 1e-3
    for name, product in found.items():
        slope = (8 * (high[name] - low[name]) - (high2[name] - low2[name])) / (12 * STEP)
        assert float((product - slope).abs().max()) <= 1e-7 * scale, name


def test_hvp_of_what_does_not_move_is_zero(tiny_llama):
    model = tiny_llama()
    found = hvp(TeacherForcingScorer(model), random_sequences(300), POLICIES[0], {}, mean_entropy)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert not any(h.any() for h in found.values())


def test_attention_is_swapped_for_a_scope_only(tiny_llama):
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    with differentiable_attention(model):
        assert model.config._attn_implementation == "sdpa"
    assert model.config._attn_implementation == "flash_attention_2"


def test_logits_that_are_not_numbers_are_told(tiny_llama):
    model = tiny_llama()
    scorer = TeacherForcingScorer(model)
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(float("nan"))
    with pytest.raises(ScoringError, match="is nan"):
        jvp(scorer, random_sequences(300), POLICIES[0], {})
