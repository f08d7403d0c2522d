"""Scores with a graph: first and second derivatives, and gradients that reach every parameter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from helpers.scorer_helpers import distance, float64_profiles, random_sequences
from seqproc.config import PrecisionConfig
from seqproc.policy import SamplingPolicy, rb_entropy
from seqproc.scorers import TeacherForcingScorer, TokenSequence, baseline_features, jvp

POLICIES = [SamplingPolicy(), SamplingPolicy(temperature=0.8, top_p=0.9)]
FIELDS = ("logprobs", "logqs", "rb_entropy")


def minute(attention: str = "sdpa") -> Any:
    """A double Llama of some 700 parameters."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


def likely_sequences(model: Any) -> list[TokenSequence]:
    """Two prompts continued greedily: tokens that every nucleus holds."""
    found = []
    for prompt in ([3, 7], [5]):
        ids = list(prompt)
        for _ in range(3):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        response = torch.tensor(ids[len(prompt) :])
        found.append(TokenSequence(prompt_ids=torch.tensor(prompt), response_ids=response))
    return found


def outputs(model: Any, policy: SamplingPolicy) -> tuple[torch.Tensor, ...]:
    """log p, log q and H of every token."""
    scores = TeacherForcingScorer(model).score_with_grad(
        likely_sequences(model), policy, batch_size=2
    )
    return (
        torch.cat([s.logprobs for s in scores]),
        torch.cat([s.logqs for s in scores]),
        torch.cat([s.stats.rb_entropy for s in scores]),
    )


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_first_derivatives_by_finite_differences(policy):
    model = minute()
    everything = tuple(model.parameters())
    # gradcheck moves the parameters in place, which is how a live module is differentiated.
    assert torch.autograd.gradcheck(
        lambda *_: outputs(model, policy), everything, atol=1e-6, fast_mode=True
    )
    few = (model.model.norm.weight, model.model.layers[0].input_layernorm.weight)
    assert torch.autograd.gradcheck(lambda *_: outputs(model, policy), few, atol=1e-7)


def test_finite_differences_notice_the_casts_inside_a_plain_double_model():
    model = minute()
    sequence = likely_sequences(model)[0]
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])[None]

    def plain(*_: torch.Tensor) -> torch.Tensor:
        return rb_entropy(model(input_ids=ids, use_cache=False).logits[0], POLICIES[0])

    few = (model.model.layers[0].input_layernorm.weight,)
    assert not torch.autograd.gradcheck(plain, few, atol=1e-7, raise_exception=False)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_second_derivatives_by_finite_differences_of_gradients(policy):
    model = minute("eager")
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(2)
    v = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64) / len(p) for p in parameters
    ]

    def gradients(create_graph: bool = False) -> tuple[torch.Tensor, ...]:
        log_p, log_q, entropy = outputs(model, policy)
        value = log_p.sum() + 2 * log_q.sum() + 3 * entropy.sum()
        return torch.autograd.grad(value, parameters, create_graph=create_graph)

    slopes = [(g * d).sum() for g, d in zip(gradients(create_graph=True), v, strict=True)]
    along = torch.stack(slopes).sum()
    exact = torch.autograd.grad(along, parameters)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p.add_(sign * 1e-5 * d)
        ends.append(gradients())
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p.sub_(sign * 1e-5 * d)
    size = max(float(h.abs().max()) for h in exact)
    assert size > 1e-2
    for h, up, down in zip(exact, *ends, strict=True):
        assert (h - (up - down) / 2e-5).abs().max() < 1e-6 * size
    worst = max(
        float((1.00001 * h - (up - down) / 2e-5).abs().max())
        for h, up, down in zip(exact, *ends, strict=True)
    )
    assert worst > 1e-6 * size


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_gpt2"])
def test_gradients_reach_float32_parameters_through_a_float64_forward(family, request):
    model = request.getfixturevalue(family)()
    double = copy.deepcopy(model).double()
    sequences = random_sequences(model.config.vocab_size)

    def gradients(of: Any, precision: PrecisionConfig) -> dict[str, torch.Tensor]:
        scores = TeacherForcingScorer(of, precision=precision).score_with_grad(
            sequences, SamplingPolicy(), batch_size=4
        )
        assert {s.logprobs.dtype for s in scores} == {
            torch.float64 if precision.tf_withgrad.dtype == "float64" else torch.float32
        }
        total = torch.stack([s.stats.rb_entropy.sum() + s.logprobs.sum() for s in scores]).sum()
        total.backward()
        return {name: p.grad for name, p in of.named_parameters()}

    lifted = gradients(model, float64_profiles())
    assert {g.dtype for g in lifted.values()} == {torch.float32}
    exact = gradients(double, float64_profiles())
    lifted = {name: g.double() for name, g in lifted.items()}
    model.zero_grad()
    single = gradients(model, PrecisionConfig())
    scale = max(float(g.abs().max()) for g in exact.values())
    for name, g in exact.items():
        # Only the last rounding, of the gradient to float32, separates the two.
        assert (lifted[name] - g).abs().max() <= 2**-24 * g.abs().max() + 1e-12 * scale, name
    worst = max(float((single[name].double() - g).abs().max()) for name, g in exact.items())
    assert 1e-7 * scale < worst < 1e-3 * scale


@pytest.mark.parametrize(("precision", "bound"), [(None, 1e-6), (float64_profiles(), 1e-13)])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_with_and_without_a_graph_the_scores_agree(tiny_llama, precision, bound, policy):
    model = tiny_llama()
    sequences = random_sequences(model.config.vocab_size)
    scorer = TeacherForcingScorer(model, (0, 3), precision)
    without = scorer.score(sequences, policy, batch_size=4)[0]
    graph = scorer.score_with_grad(sequences, policy, batch_size=4)
    assert distance(without, graph, (*FIELDS, "eos_prob", "logit_var", "head_mass")) < bound
    filled = [i for i, s in enumerate(sequences) if len(s.response_ids)]
    assert all(graph[i].logprobs.requires_grad for i in filled)
    assert not any(s.logprobs.requires_grad for s in without)
    assert not baseline_features(graph[0].stats).requires_grad


def test_a_graph_is_kept_even_where_the_caller_has_gradients_off(tiny_llama):
    scorer = TeacherForcingScorer(tiny_llama())
    with torch.no_grad():
        scores = scorer.score_with_grad(random_sequences(20), SamplingPolicy(), batch_size=4)
    assert scores[0].logprobs.requires_grad


def test_frozen_parameters_get_no_gradient(tiny_llama):
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    for precision in (None, float64_profiles()):
        scores = TeacherForcingScorer(model, precision=precision).score_with_grad(
            random_sequences(20), SamplingPolicy(), batch_size=4
        )
        torch.stack([s.logprobs.sum() for s in scores]).sum().backward()
        assert model.model.embed_tokens.weight.grad is None
        assert model.lm_head.weight.grad.abs().max() > 0


def test_autocast_on_request(tiny_llama):
    model = tiny_llama()
    precision = PrecisionConfig()
    precision.tf_withgrad.update(autocast=True, dtype="bfloat16")
    sequences = random_sequences(model.config.vocab_size)
    scorer = TeacherForcingScorer(model, precision=precision)
    rough = scorer.score_with_grad(sequences, SamplingPolicy(), batch_size=4)
    exact = TeacherForcingScorer(model).score_with_grad(sequences, SamplingPolicy(), batch_size=4)
    assert 1e-3 < distance(rough, exact, ["logprobs"]) < 0.2
    assert rough[0].logprobs.dtype == torch.float32
    rough[0].logprobs.sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_a_gradient_reaches_the_row_of_the_padding_token(tiny_llama):
    """Which is a token like any other where it was read; by forward mode it moves all the same."""
    model = tiny_llama(pad_token_id=3, tie_word_embeddings=False)
    name = "model.embed_tokens.weight"
    assert model.get_submodule("model.embed_tokens").padding_idx == 3
    sequence = TokenSequence(
        prompt_ids=torch.tensor([5, 3, 8]), response_ids=torch.tensor([3, 9, 3, 4])
    )
    scorer = TeacherForcingScorer(model)
    (scores,) = scorer.score_with_grad([sequence], SamplingPolicy())
    scores.logprobs.sum().backward()
    row = model.get_parameter(name).grad[3]
    for column in range(3):
        v = torch.zeros_like(model.get_parameter(name))
        v[3, column] = 1
        (slope,) = jvp(scorer, [sequence], SamplingPolicy(), {name: v})
        torch.testing.assert_close(slope.logprobs.sum(), row[column], rtol=1e-4, atol=1e-5)
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])[None]
    model.zero_grad()
    model(input_ids=ids).logits.square().sum().backward()
    assert not model.get_parameter(name).grad[3].any()  # the model's own forward
