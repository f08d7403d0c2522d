"""What must hold on an accelerator as on a CPU; skipped where there is none."""

from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import pytest
import torch

from helpers.adversarial import KINDS, adversarial
from seqproc import SequenceProcessor
from seqproc.engines import HFEngine, Request, StoppingRule
from seqproc.engines.gumbel import gumbel_noise
from seqproc.parity import check_engine
from seqproc.parity.positions import cut, place
from seqproc.policy import PolicyStatistics, SamplingPolicy, log_q, score_tokens, support
from seqproc.scorers import TeacherForcingScorer, TokenSequence
from seqproc.scorers.budget import free_memory

pytestmark = pytest.mark.gpu

PROMPTS = ["What is 2 + 3?", "The answer is 72, because"]
CONFIG = {"generation": {"max_new_tokens": 12, "top_p": 0.9}}


def test_scores_agree_with_the_cpu(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    on_cpu = SequenceProcessor(tiny_llama(), tiny_tokenizer, config=CONFIG)
    on_gpu = SequenceProcessor(tiny_llama().cuda(), tiny_tokenizer, config=CONFIG)
    batch = on_cpu.generate_batched(PROMPTS, G=4, seed=0)
    expected = on_cpu.teacher_force_logprobs(batch, compute_rb=True)
    results = on_gpu.teacher_force_logprobs(batch, compute_rb=True)
    for b in range(2):
        for g in range(4):
            assert results.logprobs[b][g].device.type == "cpu"
            assert torch.allclose(results.logprobs[b][g], expected.logprobs[b][g], atol=1e-4)


def test_derivatives_agree_with_the_cpu(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    on_cpu = SequenceProcessor(tiny_llama(), tiny_tokenizer, config=CONFIG)
    on_gpu = SequenceProcessor(tiny_llama().cuda(), tiny_tokenizer, config=CONFIG)
    batch = on_cpu.generate_batched(PROMPTS, G=4, seed=0)
    v = {name: torch.ones_like(p) for name, p in on_cpu.model.named_parameters()}
    expected = on_cpu.jvp(batch, v)
    found = on_gpu.jvp(batch, {name: tensor.cuda() for name, tensor in v.items()})
    for b in range(2):
        for g in range(4):
            slopes, own = expected[b][g].logprobs, found[b][g].logprobs
            assert torch.allclose(own, slopes, rtol=1e-3, atol=1e-3 * float(slopes.abs().max()))


def test_same_seed_same_tokens_on_both_devices(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    config = {"generation": {"max_new_tokens": 12}}
    on_cpu = SequenceProcessor(tiny_llama(), tiny_tokenizer, config=config)
    on_gpu = SequenceProcessor(tiny_llama().cuda(), tiny_tokenizer, config=config)
    first = on_cpu.generate_batched(PROMPTS, G=8, seed=0)
    second = on_gpu.generate_batched(PROMPTS, G=8, seed=0)
    same = [
        a == b
        for rows, others in zip(first.responses_text, second.responses_text, strict=True)
        for a, b in zip(rows, others, strict=True)
    ]
    assert sum(same) >= 15  # one of sixteen draws may pass a near-tie


def test_noise_is_the_same_on_both_devices() -> None:
    here = gumbel_noise(2**64 - 1, 7, 5000)
    there = gumbel_noise(2**64 - 1, 7, 5000, device="cuda").cpu()
    assert torch.allclose(here, there, rtol=1e-14, atol=1e-14)


def test_placements_are_the_same_on_both_devices() -> None:
    logits = torch.randn(40, 3_000, generator=torch.Generator().manual_seed(0)) * 3
    tokens, policy = torch.arange(40) * 70, SamplingPolicy(temperature=0.8, top_p=0.9)
    for read in (
        lambda rows, ids: place(log_q(rows.double(), policy), ids, (0, 1)),
        lambda rows, ids: cut(rows, ids, policy, 1e-4),
    ):
        here, there = read(logits, tokens), read(logits.cuda(), tokens.cuda())
        for field in fields(here):
            own, other = (getattr(x, field.name).cpu().double() for x in (here, there))
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_nucleus_is_that_of_the_cpu(kind: str) -> None:
    logits = adversarial(kind, 400, 9_000, torch.float32)
    for top_p in (0.3, 0.95, 0.999):
        policy = SamplingPolicy(temperature=0.7, top_p=top_p)
        assert torch.equal(support(logits.cuda(), policy).cpu(), support(logits.double(), policy))


@pytest.mark.parametrize("top_p", [0.95, 1.0])
def test_statistics_are_those_of_float64(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    widths = torch.linspace(0.2, 5, 700)[:, None]  # from flat to peaked
    logits = torch.randn(700, 49_152, generator=generator) * widths
    tokens, policy = logits.argmax(-1), SamplingPolicy(temperature=0.9, top_p=top_p)
    expected = score_tokens(logits.double(), tokens, policy, (0, 7))
    found = score_tokens(logits.cuda(), tokens.cuda(), policy, (0, 7))
    for field in fields(PolicyStatistics):
        own, other = (getattr(scores.stats, field.name) for scores in (found, expected))
        torch.testing.assert_close(own.cpu().double(), other, rtol=2e-6, atol=2e-6)
    for one, other in ((found.logprobs, expected.logprobs), (found.logqs, expected.logqs)):
        torch.testing.assert_close(one.cpu().double(), other, rtol=2e-6, atol=2e-6)


def families(number: int) -> list[TokenSequence]:
    """Eight responses, of different lengths, to each of some prompts."""
    generator = torch.Generator().manual_seed(1)

    def draw(size: int) -> torch.Tensor:
        return torch.randint(200, (size,), generator=generator)

    prompts = [draw(20 + 3 * n) for n in range(number)]
    return [
        TokenSequence(prompt_ids=prompt, response_ids=draw(15 + g))
        for prompt in prompts
        for g in range(8)
    ]


def test_sharing_changes_nothing(tiny_llama: Any) -> None:
    scorer = TeacherForcingScorer(tiny_llama(initializer_range=0.2).cuda())
    sequences, policy = families(6), SamplingPolicy(top_p=0.95)
    (shared,) = scorer.score(sequences, policy)
    (alone,) = scorer.score(sequences, policy, share_prompts=False)
    for one, other in zip(shared, alone, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=2e-5)
        torch.testing.assert_close(one.stats.rb_entropy, other.stats.rb_entropy, rtol=0, atol=2e-5)


def test_gradients_agree_with_the_cpu(tiny_llama: Any) -> None:
    models = tiny_llama(initializer_range=0.2), tiny_llama(initializer_range=0.2).cuda()
    for model in models:
        scores = TeacherForcingScorer(model).score_with_grad(families(3), SamplingPolicy(top_p=0.9))
        torch.stack([s.logprobs.sum() + s.stats.rb_entropy.sum() for s in scores]).sum().backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one.grad, other.grad.cpu(), atol=1e-3 * float(one.grad.abs().max()))


def test_work_goes_on_when_the_gpu_s_memory_runs_out(tiny_llama: Any, caplog: Any) -> None:
    model = tiny_llama(initializer_range=0.2, hidden_size=256, intermediate_size=4096)
    model = model.double().cuda()
    scorer, policy = TeacherForcingScorer(model), SamplingPolicy(top_p=0.95)
    sequences = families(60)
    (expected,) = scorer.score(sequences, policy, token_budget=400)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + 100_000_000) / total
        )
        (found,) = scorer.score(sequences, policy, token_budget=100_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory on" in caplog.text
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=1e-10)


def test_memory_that_pytorch_keeps_for_later_is_free() -> None:
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before = free_memory(device)
    taken = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    assert free_memory(device) <= before - (1 << 30)
    del taken
    assert free_memory(device) >= before - (64 << 20)


def test_float64_is_float64_on_the_gpu(tiny_llama: Any) -> None:
    model = tiny_llama(initializer_range=0.2)
    there, here = copy.deepcopy(model).double().cuda(), model.double()
    sequences, policy = families(2), SamplingPolicy(top_p=0.95)
    (found,), (expected,) = (
        TeacherForcingScorer(m).score(sequences, policy) for m in (there, here)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=1e-11)
        torch.testing.assert_close(one.stats.rb_entropy, other.stats.rb_entropy, rtol=0, atol=1e-11)


def test_parity_of_the_engine_on_the_gpu(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    model = tiny_llama(initializer_range=0.5).cuda()
    scorer = TeacherForcingScorer(model, (0,))
    requests = [Request(index=i, prompt_ids=(40 + i // 4, 50), seed=i) for i in range(256)]
    found = check_engine(
        HFEngine(model, tiny_tokenizer, batch_size=256),
        scorer,
        tiny_tokenizer,
        requests,
        [i // 4 for i in range(256)],
        SamplingPolicy(temperature=0.7, top_p=0.9),
        StoppingRule(max_new_tokens=16, eos_token_ids=(0,)),
    )
    assert found.verdict.holds, (found.findings, found.causes)
