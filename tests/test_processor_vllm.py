"""The processor with a real vLLM: what it samples is what the scorer scores, adapter included."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from seqproc import SequenceProcessor
from seqproc.models.tokenization import as_chat

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.slow]

OPTIONS = {"max_model_len": 256, "max_num_seqs": 16, "kv_cache_memory_bytes": 1 << 30}
CONFIG = {"generation": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 24}}


def with_random_lora(model: Any) -> Any:
    """A LoRA adapter that changes the model visibly: log p of the same text moves by tenths."""
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return adapted


@pytest.fixture(scope="module")
def lora_processor(smollm2: Any) -> Iterator[SequenceProcessor]:
    model, tokenizer = smollm2
    with SequenceProcessor(
        with_random_lora(model), tokenizer, config=CONFIG, engine="vllm", engine_options=OPTIONS
    ) as processor:
        yield processor


def test_lora_is_sampled_by_vllm_scored_and_overridden_by_name(
    lora_processor: SequenceProcessor, smollm2: Any
) -> None:
    sp = lora_processor
    prompts = [as_chat(sp.tokenizer, f"What is {i} plus {i + 2}?") for i in range(4)]
    batch = sp.generate_batched(prompts, G=4, seed=3)
    results = sp.teacher_force_logprobs(batch, compute_rb=True)
    assert worst_mismatch(results) < 5e-4, "vLLM did not sample from the adapted model"

    base = SequenceProcessor(smollm2[0], smollm2[1], config=CONFIG)
    without = base.teacher_force_logprobs(batch)
    without.engine_logqs = results.engine_logqs
    assert worst_mismatch(without) > 0.05, "the adapter makes no difference: the test is blind"

    lora = {name: p for name, p in sp.model.named_parameters() if "lora_B" in name}
    assert lora
    switched_off = sp.teacher_force_logprobs(
        batch, params_override={name: torch.zeros_like(p) for name, p in lora.items()}
    )
    for b in range(4):
        for g in range(4):
            assert torch.allclose(
                switched_off.logprobs[b][g], without.logprobs[b][g], atol=5e-5, rtol=1e-5
            )


def worst_mismatch(results: Any) -> float:
    """Largest |engine's log q − scorer's| over all tokens, nats."""
    return max(
        float((engine - scorer).abs().max())
        for engines, scorers in zip(results.engine_logqs, results.token_logqs, strict=True)
        for engine, scorer in zip(engines, scorers, strict=True)
    )
