"""A small tokenizer and tiny random models, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

SENTENCES = (
    "What is 2 + 3? Think, then answer: <answer>5</answer>.",
    "Natalia sold clips to 48 of her friends in April. How many clips did she sell altogether?",
    "The answer is 72, because 48 + 24 = 72. The other answer is wrong.",
    "Ünïcödé and 数学: every byte has a token of its own.",
)


def byte_tokenizer() -> Any:
    """A byte-level BPE of 300 tokens; EOS is 0 and pad is 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def random_model(config_class: type, tokenizer: Any, seed: int, fields: dict[str, Any]) -> Any:
    """A float32 model of a configuration class, in evaluation mode, with random weights."""
    import torch
    from transformers import AutoModelForCausalLM

    defaults = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,  # logits spread by about 1: nuclei worth looking at
    }
    config = config_class(**defaults | fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
