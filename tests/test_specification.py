"""The specification's usage examples, word for word but for the import line."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqproc import SequenceProcessor

INITIALIZATION = """
from seqproc import SequenceProcessor, GenerationConfig

# model, tokenizer are pre‑loaded (LoRA/PEFT kept intact)
cfg = {
  'generation': {'temperature': 1.0, 'top_p': 1.0, 'max_new_tokens': 64, 'gen_batch_size': 16, 'tf_batch_size': 8},
  'precision': {
    'func_override': {'autocast': False, 'dtype': 'float32', 'cast_params': True},
    'tf_nograd': {'autocast': False, 'dtype': 'float32', 'cast_logits_fp32': True},
    'allow_tf32': True, 'matmul_precision': 'high', 'entropy_fp64': False,
  },
}
sp = SequenceProcessor(model, tokenizer, logger=None, config=cfg)

# Generate and score from dataset
seqs, lps, diags = sp.generate_with_logprobs(
  prompts=None, G=4, dataset_name='gsm8k_r1_template', split='test', num_prompts=8, compute_rb=True
)

# Parameter‑only override (θ + η·v) scoring on existing sequences
params_mapping = sp._build_params_override(v_named=update_vector_named, eta=1e-6)
lp_no_grad = sp.teacher_force_logprobs(seqs, with_grad=False, compute_rb=True, params_override=params_mapping)
"""  # noqa: E501

REPLACEMENT_SAMPLING = """
seqs, lps, diags = sp.generate_with_replacement_sampling(
  total_sequences=32768, dataset_name='gsm8k_r1_template', split='train', seed=42, G=1, compute_rb=True
)
"""  # noqa: E501


@pytest.fixture
def gsm8k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the form that GSM8K has, a dozen problems a split."""
    for split, first in (("train", 1), ("test", 100)):
        rows = [
            {"question": f"What is {n} plus {n + 1}?", "answer": f"It is so.\n#### {2 * n + 1}"}
            for n in range(first, first + 12)
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    monkeypatch.setenv("SEQPROC_GSM8K_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def word_tokenizer() -> Any:
    """A token per word, so that prompts are short and tens of thousands of draws are quick."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from seqproc.prompts import r1_prompt

    words = {*r1_prompt("What is plus ?").split(), *map(str, range(300)), "plus", "?"}
    vocabulary = {word: i for i, word in enumerate(["<eos>", "<pad>", "<unk>", *sorted(words)])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_only, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def eager_to_stop(model: Any) -> Any:
    """Make EOS likely, so that most of the draws are short."""
    head = model.lm_head
    biased = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        biased.weight.copy_(head.weight)
        biased.bias.zero_()
        biased.bias[model.config.eos_token_id] = 12.0
    model.lm_head = biased
    return model


@pytest.fixture
def namespace(word_tokenizer: Any, gsm8k: Path) -> dict[str, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(word_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=word_tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=word_tokenizer.pad_token_id,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = eager_to_stop(LlamaForCausalLM(config))
    direction = {
        name: 1e4 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in model.named_parameters()
    }
    return {"model": model, "tokenizer": word_tokenizer, "update_vector_named": direction}


def test_initialization_generation_and_override(namespace: dict[str, Any]) -> None:
    exec(INITIALIZATION, namespace)
    seqs, lps, diags = namespace["seqs"], namespace["lps"], namespace["diags"]
    assert seqs.sequences.shape[:2] == (8, 4)
    assert len(seqs.prompt_lens) == 8
    assert len(set(seqs.prompt_lens)) == 1
    moved = copy.deepcopy(namespace["model"])
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += 1e-6 * namespace["update_vector_named"][name]
    expected = SequenceProcessor(moved, namespace["tokenizer"], config=namespace["cfg"])
    at_eta = expected.teacher_force_logprobs(seqs)
    for b in range(8):
        for g in range(4):
            steps = seqs.gen_lens[b][g]
            assert len(lps.logprobs[b][g]) == len(lps.rb_entropies[b][g]) == steps
            assert steps == diags.diagnostics[b][g].seq.T
            assert len(diags.diagnostics[b][g].step.rb_entropy) == steps
            shifted = namespace["lp_no_grad"].logprobs[b][g]
            assert torch.allclose(shifted, at_eta.logprobs[b][g], atol=1e-6, rtol=1e-5)
            assert not torch.equal(shifted, lps.logprobs[b][g])


@pytest.mark.slow
def test_replacement_sampling_of_32768_draws(namespace: dict[str, Any]) -> None:
    exec(INITIALIZATION, namespace)
    exec(REPLACEMENT_SAMPLING, namespace)
    seqs, lps = namespace["seqs"], namespace["lps"]
    assert seqs.sequences.shape[:2] == (32768, 1)
    prompts, counts = np.unique(
        seqs.sequences[:, 0, : seqs.prompt_lens[0]].numpy(), axis=0, return_counts=True
    )
    # Twelve prompts, each drawn 2731 ± 50 times: eight standard deviations, 1e-14 to miss by luck.
    assert len(prompts) == 12
    assert abs(counts - 32768 / 12).max() < 400
    assert len({row[0] for row in seqs.seeds}) == 32768
    assert np.isfinite([row[0] for row in lps.sequence_logprobs]).all()


def test_other_than_one_response_per_draw_is_overruled_with_a_word(
    namespace: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    exec(INITIALIZATION, namespace)
    with caplog.at_level(logging.WARNING, logger="seqproc"):
        seqs, _, _ = namespace["sp"].generate_with_replacement_sampling(
            total_sequences=3, dataset_name="gsm8k_r1_template", seed=1, G=5
        )
    assert seqs.sequences.shape[:2] == (3, 1)
    assert "G=1" in caplog.text
