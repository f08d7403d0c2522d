"""Fixtures that every test may use: a small tokenizer, tiny random models, the embedded model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import byte_tokenizer, random_model

# Before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # each takes its share, also in processes that it starts
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_share, 1)))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


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
    return byte_tokenizer()


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
        return random_model(LlamaConfig, tiny_tokenizer, seed, fields | config)

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
        return random_model(Qwen2Config, tiny_tokenizer, seed, fields | config)

    return make


@pytest.fixture
def tiny_gpt2(tiny_tokenizer: Any) -> Callable[..., Any]:
    """`tiny_gpt2(seed=0, num_layers=2, **config)`: a new GPT-2, with absolute positions."""
    from transformers import GPT2Config

    def make(seed: int = 0, num_layers: int = 2, **config: Any) -> Any:
        fields = {"n_embd": 32, "n_layer": num_layers, "n_head": 4, "n_positions": 512}
        return random_model(GPT2Config, tiny_tokenizer, seed, fields | config)

    return make


@pytest.fixture
def tiny_gemma2(tiny_tokenizer: Any) -> Callable[..., Any]:
    """`tiny_gemma2(seed=0, num_layers=2, **config)`: a new Gemma 2.

    With soft-capped logits and attention, and a window of 5 tokens in every second layer.
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
        return random_model(Gemma2Config, tiny_tokenizer, seed, fields | config)

    return make


@pytest.fixture(scope="session")
def docs_model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model that stands for the real one in documentation and notebooks."""
    from transformers import LlamaConfig

    fields = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
    }
    folder = tmp_path_factory.mktemp("model") / "tiny"
    random_model(LlamaConfig, tiny_tokenizer, 0, fields).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


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


@pytest.fixture
def complete(made: Path, tmp_path: Path) -> Path:
    """A copy of the complete run among those that a module's fixture ``made`` has made."""
    return Path(shutil.copytree(made / "complete", tmp_path / "complete"))


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    """A copy of the one that was stopped after 20 of 24 draws: the third part has no scores."""
    return Path(shutil.copytree(made / "stopped", tmp_path / "stopped"))
