"""What is no number is an error that says where; what may be infinite is not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from helpers.scorer_helpers import families
from seqproc.config import PrecisionConfig
from seqproc.errors import ScoringError
from seqproc.policy import PolicyStatistics, SamplingPolicy, TokenScores, score_tokens
from seqproc.scorers import Limits, TeacherForcingScorer, jvp, plan
from seqproc.scorers.finite import require_numbers

V = 40
LOWEST = torch.finfo(torch.float32).min
FIELDS = ["logprobs", "logqs", *(f.name for f in dataclasses.fields(PolicyStatistics))]


def batch() -> Any:
    (one,) = plan(families(V)[:4], Limits(tokens=1000))
    return one


def scores() -> TokenScores:
    logits = torch.randn(len(batch().targets), V, generator=torch.Generator().manual_seed(0))
    return score_tokens(logits, batch().targets, SamplingPolicy(top_p=0.9), (0,))


def broken(name: str, row: int, value: float) -> TokenScores:
    whole = scores()
    holder = whole if hasattr(whole, name) else whole.stats
    getattr(holder, name)[row] = value
    return whole


def test_numbers_pass():
    require_numbers(scores(), batch().spans())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FIELDS)
def test_each_field_is_looked_at(name, value):
    allowed = {"logprobs": -math.inf, "logqs": -math.inf, "cut_margin": math.inf}
    index, start, _ = list(batch().spans())[1]
    if value == allowed.get(name):
        require_numbers(broken(name, start + 2, value), batch().spans())
        return
    message = rf"sequence {index}: {name} of generated token 2 is {value}"
    with pytest.raises(ScoringError, match=message):
        require_numbers(broken(name, start + 2, value), batch().spans())


def biased(value: float, *ids: int) -> Any:
    """A small Llama with a bias on its head."""
    config = transformers.LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    head = nn.Linear(16, V)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[list(ids)] = value
    model.lm_head = head
    return model


def without(*ids: int) -> list[Any]:
    """Sequences in which no response holds these tokens."""
    return [s for s in families(V) if not set(s.response_ids.tolist()) & set(ids)]


@pytest.mark.parametrize("value", [-math.inf, LOWEST, -1e20])
@pytest.mark.parametrize("policy", [SamplingPolicy(temperature=0.8), SamplingPolicy(top_p=0.9)])
def test_a_padded_vocabulary_scores_as_one_without_these_tokens(value, policy):
    model, cut = biased(value, V - 1, V - 2), biased(-1e4, V - 1, V - 2)
    sequences = without(V - 1, V - 2)
    found, expected = (TeacherForcingScorer(m).score(sequences, policy)[0] for m in (model, cut))
    for one, other in zip(found, expected, strict=True):
        for name in ("rb_entropy", "logit_mean", "logit_var", "eff_support", "margin"):
            torch.testing.assert_close(getattr(one.stats, name), getattr(other.stats, name))
        torch.testing.assert_close(one.logqs, other.logqs)


@pytest.mark.parametrize("value", [-math.inf, LOWEST, -1e20])
def test_so_do_its_gradients_and_derivatives(value):
    policy, sequences = SamplingPolicy(temperature=0.8), without(V - 1)
    gradients, slopes = [], []
    for model in (biased(value, V - 1), biased(-1e4, V - 1)):
        scores = TeacherForcingScorer(model).score_with_grad(sequences, policy)
        torch.stack([s.stats.rb_entropy.sum() + s.logqs.sum() for s in scores]).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        v = {name: torch.ones_like(p) for name, p in model.named_parameters()}
        found = jvp(TeacherForcingScorer(model), sequences, policy, v)
        slopes.append([torch.stack([f.logprobs, f.logqs, f.rb_entropy]) for f in found])
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*slopes)


def test_what_float32_cannot_hold_is_an_error_that_float64_mends():
    """One token is left: the margin over the next is 3.4e38 / T."""
    model = biased(LOWEST, *range(1, V))
    sequences = [dataclasses.replace(s, response_ids=s.response_ids * 0) for s in families(V)]
    policy = SamplingPolicy(temperature=0.5)
    with pytest.raises(ScoringError, match=r"margin of .* is inf, beyond what float32.*entropy_fp"):
        TeacherForcingScorer(model).score(sequences, policy)
    wide = PrecisionConfig(entropy_fp64=True)
    (found,) = TeacherForcingScorer(model, precision=wide).score(sequences, policy)
    assert float(found[0].stats.margin[0]) == pytest.approx(-LOWEST / 0.5)
