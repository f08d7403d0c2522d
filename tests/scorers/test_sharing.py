"""Prompts that are computed once for all their responses: the same scores, fewer tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from helpers.devices import as_on_an_accelerator, everywhere
from helpers.scorer_helpers import distance, families, float64_profiles, random_sequences
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, jvp, teacher_forcing, token_sequences
from seqproc.types import BatchedSequences

FULL = SamplingPolicy()
NUCLEUS = SamplingPolicy(temperature=0.8, top_p=0.95)
BOUNDS = [(None, 2e-5), (float64_profiles(), 1e-11)]
FAMILIES = ["tiny_llama", "tiny_qwen2", "tiny_gpt2", "tiny_gemma2", "tiny_lora"]
WINDOW = 5  # of tiny_gemma2


@pytest.fixture
def tiny_lora(tiny_llama):
    def make(seed: int = 0) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return get_peft_model(tiny_llama(seed=seed), config).eval()

    return make


@pytest.fixture(params=FAMILIES)
def model(request):
    return request.getfixturevalue(request.param)()


def score(model: nn.Module, sequences: Any, policy: Any = NUCLEUS, **more: Any) -> Any:
    scorer = TeacherForcingScorer(model, precision=more.pop("precision", None))
    assert scorer.parts.can_share_prompts
    return scorer.score(sequences, policy, **more)[0]


class Counter:
    """Counts the tokens that a model embeds."""

    def __init__(self, model: Any) -> None:
        self._embedding = model.get_input_embeddings()
        self._tokens = 0
        self._embedding.register_forward_hook(self._count)

    def _count(self, _: nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
        self._tokens += inputs[0].numel()

    def take(self) -> int:
        """How many since the last time."""
        taken, self._tokens = self._tokens, 0
        return taken


# Scores.


@pytest.mark.parametrize(("precision", "bound"), BOUNDS)
@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=str)
def test_shared_prompts_do_not_change_scores(model, policy, precision, bound):
    sequences = families(300)
    apart = score(model, sequences, policy, precision=precision, share_prompts=False)
    together = score(model, sequences, policy, precision=precision)
    assert distance(apart, together) < bound
    alone = score(model, sequences, policy, precision=precision, batch_size=1)
    assert distance(alone, together) < bound
    for budget in (20, 60):  # families in parts, and several of them in a batch
        parts = score(model, sequences, policy, precision=precision, token_budget=budget)
        assert distance(apart, parts) < bound
    other = score(model, families(300, seed=1), policy, precision=precision)
    assert distance(apart, other, ["logprobs"]) > 1e-2


@pytest.mark.parametrize(("precision", "bound"), BOUNDS)
def test_a_sliding_window_slides_over_shared_prompts(tiny_gemma2, precision, bound):
    """Prompts and responses both longer than the window, and together several times as long."""
    model = tiny_gemma2()
    sequences = families(300, [(4 * WINDOW, (3 * WINDOW, 1, WINDOW)), (WINDOW - 2, (2, 20))])
    apart = score(model, sequences, precision=precision, share_prompts=False)
    assert distance(apart, score(model, sequences, precision=precision)) < bound
    wide = tiny_gemma2()
    for layer in wide.model.layers:
        layer.self_attn.sliding_window = None
    wide.config.sliding_window = 100
    unlike = score(wide, sequences, precision=precision, share_prompts=False)
    assert distance(apart, unlike, ["logprobs"]) > 1e-2  # the twin: the window acts here


@pytest.mark.parametrize(("precision", "bound"), BOUNDS)
def test_responses_in_several_forwards_say_the_same(model, precision, bound, monkeypatch):
    """Scores and gradients, where a forward costs so little that hardly anything is padded."""
    sequences = families(300, [(7, (9, 1, 8, 2)), (7, (2, 12))])
    apart = score(model, sequences, precision=precision, share_prompts=False)
    twin = copy.deepcopy(model).double()
    slope = gradient(twin, sequences, NUCLEUS, share=False)
    monkeypatch.setattr(teacher_forcing, "FORWARD_COST", everywhere(1))
    (batch,) = TeacherForcingScorer(model).schedule(sequences).batches
    assert batch.forwards == [(1, 11), (1, 8), (1, 7), (2, 1), (1, 0)]
    assert distance(apart, score(model, sequences, precision=precision)) < bound
    together = gradient(twin, sequences, NUCLEUS, share=True)
    assert slope.norm() > 0
    assert (together - slope).norm() < 1e-10 * slope.norm()


@pytest.mark.parametrize(("precision", "bound"), BOUNDS)
def test_responses_of_one_token_are_read_off_their_prompt(model, precision, bound):
    sequences = families(300, [(9, (1, 1, 1)), (4, (1, 1)), (2, (1,))])
    counter = Counter(model)
    apart = score(model, sequences, precision=precision, share_prompts=False)
    scorer = TeacherForcingScorer(model, precision=precision)
    counter.take()
    together = scorer.score(sequences, NUCLEUS)[0]
    assert counter.take() == 2 * 9 + 2
    assert distance(apart, together) < bound
    assert [len(s.logprobs) for s in together] == [1] * 6


@pytest.mark.parametrize(("precision", "bound"), BOUNDS)
def test_several_responses_per_prompt_of_a_padded_batch(tiny_gpt2, precision, bound):
    """G = 3 rows of each of two prompts, as an engine gives them."""
    model = tiny_gpt2()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, (2, 3, 12), generator=generator)
    ids[:, :, :5] = ids[:, :1, :5]
    mask = torch.ones_like(ids)
    mask[1, :, :3] = 0  # a prompt of two tokens, padded on the left
    lengths = [[7, 2, 5], [1, 6, 7]]
    for b, row in enumerate(lengths):
        for g, length in enumerate(row):
            mask[b, g, 5 + length :] = 0
    sequences = token_sequences(
        BatchedSequences(
            sequences=ids,
            prompt_lens=[5, 5],
            gen_lens=lengths,
            attention_masks=mask,
            responses_text=[[""] * 3] * 2,
        )
    )
    apart = score(model, sequences, precision=precision, share_prompts=False)
    counter = Counter(model)
    scorer = TeacherForcingScorer(model, precision=precision)
    counter.take()
    assert distance(apart, scorer.score(sequences, NUCLEUS)[0]) < bound
    assert counter.take() == 2 * 5 + 6 * 6


@pytest.mark.parametrize(("precision", "bound"), BOUNDS)
def test_overrides_reach_prompts_and_responses(model, precision, bound):
    sequences = families(300)
    scorer = TeacherForcingScorer(model, precision=precision)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        moved = [(n, p) for n, p in changed.named_parameters() if "embed" in n or "0" in n]
        for _, parameter in moved:
            parameter.mul_(1.1)
    override = {name: parameter.detach().clone() for name, parameter in moved}
    own, over = scorer.score(sequences, NUCLEUS, overrides=[None, override])
    assert distance(over, score(changed, sequences, precision=precision)) < bound
    apart = scorer.score(sequences, NUCLEUS, overrides=[override], share_prompts=False)[0]
    assert distance(over, apart) < bound
    assert distance(own, over, ["logprobs"]) > 1e-2


def test_positions_of_padding_stay_within_the_model(tiny_gpt2):
    """A long prompt beside a long response of another: 10 + 12 tokens, of 16 that there are."""
    model = tiny_gpt2(n_positions=16)
    sequences = families(300, [(10, (3, 3)), (2, (12, 12))])
    apart = score(model, sequences, share_prompts=False)
    assert distance(apart, score(model, sequences)) < 2e-5


# Gradients.


def gradient(model: nn.Module, sequences: Any, policy: Any, *, share: bool) -> torch.Tensor:
    """Of a sum that weighs every token's log p, log q and entropy differently, in float64."""
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    loss = torch.zeros((), dtype=torch.float64)
    for n, s in enumerate(scorer.score_with_grad(sequences, policy, share_prompts=share)):
        weight = 1 + torch.arange(len(s.logprobs), dtype=torch.float64) / (n + 1)
        inside = s.logqs.isfinite()
        loss = loss + (weight * (s.logprobs + s.stats.rb_entropy)).sum()
        loss = loss + (weight * s.logqs)[inside].sum()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=str)
def test_shared_prompts_do_not_change_gradients(model, policy):
    model.double()
    sequences = families(300)
    apart = gradient(model, sequences, policy, share=False)
    together = gradient(model, sequences, policy, share=True)
    size = float(apart.norm())
    assert apart.dtype == torch.float64
    assert size > 0
    assert float((together - apart).norm()) < 1e-10 * size
    other = gradient(model, families(300, seed=1), policy, share=True)
    assert float((other - apart).norm()) > 1e-2 * size


def test_scores_with_and_without_a_graph_are_the_same(model):
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    sequences = families(300)
    graphed = scorer.score_with_grad(sequences, NUCLEUS)
    assert distance(graphed, scorer.score(sequences, NUCLEUS)[0]) < 1e-11
    assert all(s.logprobs.requires_grad for s in graphed if len(s.logprobs))


# The saving.


@pytest.fixture
def counted(tiny_llama: Any) -> tuple[TeacherForcingScorer, Counter]:
    model = tiny_llama()
    scorer = TeacherForcingScorer(model)
    return scorer, Counter(model)


def test_a_prompt_is_computed_once(counted):
    scorer, counter = counted
    sequences = families(300, [(7, (5, 5, 5, 5))])
    scorer.score(sequences, NUCLEUS)
    assert counter.take() == 7 + 4 * 4
    scorer.score(sequences, NUCLEUS, share_prompts=False)
    assert counter.take() == 4 * (7 + 4)
    scorer.score(sequences, NUCLEUS, overrides=[None, None])
    assert counter.take() == 2 * (7 + 4 * 4)


def test_a_prompt_is_computed_once_with_a_graph(counted):
    """In the backward pass too, only the head is computed again."""
    scorer, counter = counted
    sequences = families(300, [(7, (5, 5, 5, 5))])
    for share, expected in ((True, 7 + 4 * 4), (False, 4 * (7 + 4))):
        scores = scorer.score_with_grad(sequences, NUCLEUS, share_prompts=share)
        sum(s.logprobs.sum() for s in scores).backward()
        assert counter.take() == expected


def test_a_prompt_is_computed_once_for_each_batch_that_it_is_in(counted):
    scorer, counter = counted
    sequences = families(300, [(7, (5, 5, 5, 5))])
    scorer.score(sequences, NUCLEUS, batch_size=2)
    assert counter.take() == 2 * 7 + 4 * 4
    scorer.score(sequences, NUCLEUS, batch_size=1)
    assert counter.take() == 4 * (7 + 4)


@pytest.mark.parametrize("share", [True, False])
def test_the_plan_says_what_is_computed(counted, share):
    scorer, counter = counted
    sequences = families(300)
    schedule = scorer.schedule(sequences, token_budget=60, share_prompts=share)
    assert any(batch.prompts is not None for batch in schedule.batches) is share
    scorer.score(sequences, NUCLEUS, token_budget=60, share_prompts=share)
    assert counter.take() == sum(batch.num_tokens for batch in schedule.batches) > 0


def test_prompts_that_differ_are_computed_each(counted):
    scorer, counter = counted
    scorer.score(random_sequences(300, [(7, 5)] * 4), NUCLEUS)
    assert counter.take() == 4 * (7 + 4)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_the_sizes_of_an_accelerator_change_nothing(tiny_llama, monkeypatch, top_p):
    """Scores, gradients and derivatives, in float64, with everything taken in larger parts."""
    model, policy = tiny_llama().double(), SamplingPolicy(top_p=top_p)
    scorer, sequences = TeacherForcingScorer(model), families(300)
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters()}

    def read() -> tuple[Any, Any, Any]:
        (scores,) = scorer.score(sequences, policy)
        graph = scorer.score_with_grad(sequences, policy)
        loss = torch.stack([s.logprobs.sum() + s.stats.rb_entropy.sum() for s in graph]).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return scores, gradients, jvp(scorer, sequences, policy, direction)

    small = read()
    as_on_an_accelerator(monkeypatch)
    large = read()
    assert distance(small[0], large[0]) < 1e-11
    for one, other in zip(small[1], large[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for one, other in zip(small[2], large[2], strict=True):
        torch.testing.assert_close(one.rb_entropy, other.rb_entropy, rtol=1e-9, atol=1e-9)
