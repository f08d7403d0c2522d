"""What must hold on an accelerator as on a CPU; skipped where there is none."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from seqproc import SequenceProcessor
from seqproc.engines import HFEngine, Request, StoppingRule
from seqproc.engines.gumbel import gumbel_noise
from seqproc.parity import check_engine
from seqproc.placement import cut, place
from seqproc.policy import SamplingPolicy, log_q
from seqproc.scorers import TeacherForcingScorer

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
