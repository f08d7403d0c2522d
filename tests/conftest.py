"""Fixtures that every test may use: a small tokenizer, tiny random models, the embedded model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

SENTENCES = (
    "What is 2 + 3? Think, then answer: <answer>5</answer>.",
    "Natalia sold clips to 48 of her friends in April. How many clips did she sell altogether?",
    "The answer is 72, because 48 + 24 = 72. The other answer is wrong.",
    "Ünïcödé and 数学: every byte has a token of its own.",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests marked ``gpu`` out where there is no accelerator to run them on."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _few_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models are quickest on one thread; those of a real size get them all."""
    import torch

    before = torch.get_num_threads()
    if not any(request.node.get_closest_marker(name) for name in ("model", "vllm", "gpu")):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE of about 300 tokens; EOS and pad differ; `</answer>` takes several tokens.

    Shared by the whole session: copy it (`copy.deepcopy`) before changing it.
    """
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


def _build(config_class: type, tokenizer: Any, seed: int, fields: dict[str, Any]) -> Any:
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


@pytest.fixture
def tiny_llama(tiny_tokenizer: Any) -> Callable[..., Any]:
    """`tiny_llama(seed=0, num_layers=2, **config)`: a new Llama with grouped-query attention."""
    from transformers import LlamaConfig

    def make(seed: int = 0, num_layers: int = 2, **config: Any) -> Any:
        fields = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        }
        return _build(LlamaConfig, tiny_tokenizer, seed, fields | config)

    return make


@pytest.fixture
def tiny_qwen2(tiny_tokenizer: Any) -> Callable[..., Any]:
    """`tiny_qwen2(seed=0, num_layers=2, **config)`: a new Qwen2 with tied embeddings."""
    from transformers import Qwen2Config

    def make(seed: int = 0, num_layers: int = 2, **config: Any) -> Any:
        fields = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        }
        return _build(Qwen2Config, tiny_tokenizer, seed, fields | config)

    return make


@pytest.fixture
def tiny_gpt2(tiny_tokenizer: Any) -> Callable[..., Any]:
    """`tiny_gpt2(seed=0, num_layers=2, **config)`: a new GPT-2, with absolute positions."""
    from transformers import GPT2Config

    def make(seed: int = 0, num_layers: int = 2, **config: Any) -> Any:
        fields = {"n_embd": 32, "n_layer": num_layers, "n_head": 4, "n_positions": 512}
        return _build(GPT2Config, tiny_tokenizer, seed, fields | config)

    return make


@pytest.fixture
def tiny_gemma2(tiny_tokenizer: Any) -> Callable[..., Any]:
    """`tiny_gemma2(seed=0, num_layers=2, **config)`: a new Gemma 2, with soft-capped logits and
    attention, and a window of 5 tokens in every second layer.
    """
    from transformers import Gemma2Config

    def make(seed: int = 0, num_layers: int = 2, **config: Any) -> Any:
        fields = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "sliding_window": 5,
            "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 3.0,
            "attn_implementation": "eager",
        }
        return _build(Gemma2Config, tiny_tokenizer, seed, fields | config)

    return make


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The folder of the embedded model, converted on first use."""
    from seqproc.models import resolve_model

    return Path(resolve_model("smollm2-135m"))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> tuple[Any, Any]:
    """The embedded model in fp32 on the CPU, and its tokenizer. Shared: leave both unchanged."""
    from seqproc.models import load_model

    return load_model("smollm2-135m", device="cpu")
