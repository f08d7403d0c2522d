"""Mixtures of experts in float64 and with forward derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.autograd import forward_ad

from helpers.scorer_helpers import distance, families, float64_profiles
from seqproc.errors import ScoringError
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, build_params_override, jvp
from seqproc.scorers.experts import expert_by_expert

V = 40
POLICY = SamplingPolicy(temperature=0.8)
STOPS = torch.tensor([2, 2, 5], dtype=torch.int32)  # the second expert has no rows


def operands(dtype: torch.dtype, rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    shapes = ((rows, 16), (3, 16, 8))
    first, second = (torch.randn(s, generator=drawn, dtype=torch.float64) for s in shapes)
    return first.to(dtype), second.to(dtype)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.MixtralForCausalLM(config).eval()


def test_it_is_pytorchs_product():
    rows, experts = operands(torch.float32)
    theirs = torch._grouped_mm(rows, experts, offs=STOPS)
    torch.testing.assert_close(expert_by_expert(rows, experts, STOPS), theirs)


def test_in_float64_it_is_that_of_each_row():
    rows, experts = operands(torch.float64, rows=7)
    found = expert_by_expert(rows, experts, STOPS)
    for row, expert in enumerate((0, 0, 2, 2, 2)):
        torch.testing.assert_close(found[row], rows[row] @ experts[expert])
    assert not found[5:].any()  # after the last expert's


def test_other_products_are_left_to_pytorch():
    rows, experts = operands(torch.float32)
    both = expert_by_expert(experts, experts.mT)  # a batch of matrices
    torch.testing.assert_close(both, experts @ experts.mT)
    with pytest.raises(RuntimeError):
        expert_by_expert(rows.double(), experts.double(), STOPS, bias=torch.zeros(8))


@torch.no_grad()
def test_a_mixture_scores_in_true_float64():
    """Against the model's own loop over experts, in float64, one sequence at a time."""
    model = mixtral()
    scores = TeacherForcingScorer(model, precision=float64_profiles()).score(families(V), POLICY)
    exact = mixtral().double()
    exact.config._experts_implementation = "eager"
    plain = TeacherForcingScorer(exact)
    assert distance(scores[0], plain.score(families(V), POLICY, batch_size=1)[0]) < 1e-12
    assert scores[0][0].logprobs.dtype == torch.float64


def test_a_mixture_is_differentiated_forwards():
    """To seven digits of central differences in float64."""
    model = mixtral()
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    drawn = torch.Generator().manual_seed(1)
    v = {n: torch.randn(p.shape, generator=drawn) for n, p in model.named_parameters()}
    slopes = jvp(scorer, families(V), POLICY, v)
    step, sides = 5e-8, []
    for eta in (step, -step):
        override = build_params_override(model, v, eta, dtype=torch.float64)
        sides.append(scorer.score(families(V), POLICY, overrides=[override])[0])
    for slope, up, down in zip(slopes, *sides, strict=True):
        for mine, more, less in (
            (slope.logprobs, up.logprobs, down.logprobs),
            (slope.rb_entropy, up.stats.rb_entropy, down.stats.rb_entropy),
        ):
            torch.testing.assert_close(mine, (more - less) / (2 * step), rtol=1e-7, atol=1e-7)


def test_without_it_there_is_no_derivative(monkeypatch):
    """The twin, and what a user is told then."""
    from seqproc.scorers.kernels import tangents

    swaps = {f: g for f, g in tangents._WRITTEN_OUT.items() if f is not torch._grouped_mm}
    monkeypatch.setattr(tangents, "_WRITTEN_OUT", swaps)
    model = mixtral()
    v = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    with pytest.raises(ScoringError, match=r"MixtralForCausalLM has no derivative.*_grouped_mm"):
        jvp(TeacherForcingScorer(model), families(V), POLICY, v)


def test_it_moves_with_both_operands():
    rows, experts = operands(torch.float64)
    d_rows, d_experts = operands(torch.float64)[0].flip(0), operands(torch.float64)[1].flip(0)
    with forward_ad.dual_level():
        dual = expert_by_expert(
            forward_ad.make_dual(rows, d_rows), forward_ad.make_dual(experts, d_experts), STOPS
        )
        slope = forward_ad.unpack_dual(dual).tangent
    by_hand = expert_by_expert(d_rows, experts, STOPS) + expert_by_expert(rows, d_experts, STOPS)
    torch.testing.assert_close(slope, by_hand)
