"""`ModelSource`: live models, checkpoints, and exports that load back as the same function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from seqproc.engines import ModelSource
from seqproc.errors import EngineError, ModelError

IDS = torch.tensor([[40, 41, 42, 43, 44]])

Make = Callable[..., Any]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def loaded(path: str, adapter: str | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter)


def with_lora(model: Any, name: str = "default", **options: Any) -> Any:
    """LoRA with both factors random."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **options})
    torch.manual_seed(1)
    model = get_peft_model(model, config, adapter_name=name)
    for parameter_name, parameter in model.named_parameters():
        if ".lora_" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    return model


def weight_names(path: str) -> set[str]:
    with safe_open(Path(path) / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.fixture
def tiny_path(tiny_llama: Make, tiny_tokenizer: Any, tmp_path: Path) -> str:
    tiny_llama().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer.save_pretrained(tmp_path / "tiny")
    return str(tmp_path / "tiny")


# ---------------------------------------------------------------- what a source knows


def test_a_live_model_knows_its_ids_and_sizes(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    model = tiny_llama()
    source = ModelSource.from_model(model, tiny_tokenizer)
    assert source.live_model() is model
    assert source.eos_token_ids == (tiny_tokenizer.eos_token_id,)
    assert source.max_context == 512
    assert source.vocab_size == len(tiny_tokenizer)
    assert source.dtype == "float32"
    assert ModelSource.from_model(model, tiny_tokenizer, (0, 5)).eos_token_ids == (0, 5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_wrappers_are_taken_off(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    model = tiny_llama()
    wrapped: Any = torch.compile(nn.DataParallel(model))  # not run, so nothing is compiled
    assert ModelSource.from_model(wrapped, tiny_tokenizer).live_model() is model


def test_a_path_is_read_without_its_weights_until_a_model_is_wanted(
    tiny_path: str, tiny_llama: Make
) -> None:
    source = ModelSource.from_pretrained(tiny_path, dtype="float64", device="cpu")
    assert source.name == tiny_path
    assert (source.max_context, source.vocab_size) == (512, len(source.tokenizer))
    assert source._model is None
    model = source.live_model()
    assert source.live_model() is model
    assert next(model.parameters()).dtype == torch.float64
    torch.testing.assert_close(logits(model).float(), logits(tiny_llama()))


def test_a_source_has_a_model_or_a_path_and_the_path_a_loader(tiny_tokenizer: Any) -> None:
    known = {
        "name": "x",
        "tokenizer": tiny_tokenizer,
        "eos_token_ids": (0,),
        "max_context": 5,
        "vocab_size": 5,
    }
    with pytest.raises(ModelError, match="either a live model or a path"):
        ModelSource(**known)
    with pytest.raises(ModelError, match="give the source a loader"):
        ModelSource(**known, path="somewhere").live_model()


def test_an_unreadable_checkpoint_is_a_model_error(tiny_path: str) -> None:
    (Path(tiny_path) / "tokenizer.json").unlink()
    (Path(tiny_path) / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="cannot read the configuration and tokenizer"):
        ModelSource.from_pretrained(tiny_path)


# ---------------------------------------------------------------- checkpoints


def test_the_checkpoint_of_a_path_is_the_path(tiny_path: str) -> None:
    source = ModelSource.from_pretrained(tiny_path, adapter="some/adapter", dtype="bfloat16")
    checkpoint = source.checkpoint()
    assert (checkpoint.path, checkpoint.adapter) == (tiny_path, "some/adapter")
    assert (checkpoint.dtype, checkpoint.notes) == ("bfloat16", ())
    source.close()
    assert Path(tiny_path, "model.safetensors").exists()


def test_a_float64_path_is_float32_for_engines_of_their_own(tiny_path: str) -> None:
    checkpoint = ModelSource.from_pretrained(tiny_path, dtype="float64").checkpoint()
    assert checkpoint.dtype == "float32"
    assert "float64" in checkpoint.notes[0]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_gpt2"])
def test_an_export_loads_back_as_the_same_function(
    family: str, tiny_tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoTokenizer

    model = request.getfixturevalue(family)().train()
    source = ModelSource.from_model(model, tiny_tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    checkpoint = source.checkpoint()
    assert source.checkpoint() is checkpoint
    assert checkpoint.adapter is None
    assert model.training
    assert model.config.to_dict() == config
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(loaded(checkpoint.path)), logits(model))
    every = list(range(len(tiny_tokenizer)))
    decoded = AutoTokenizer.from_pretrained(checkpoint.path).decode(every)
    assert decoded == tiny_tokenizer.decode(every)
    tied = model.config.tie_word_embeddings
    assert ("lm_head.weight" in weight_names(checkpoint.path)) != tied


def test_an_export_is_private_and_goes_with_close_or_with_its_source(
    tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    source = ModelSource.from_model(tiny_llama(), tiny_tokenizer)
    with source:
        path = Path(source.checkpoint().path)
        assert path.stat().st_mode & 0o077 == 0
    assert not path.exists()
    source.close()
    again = Path(source.checkpoint().path)
    assert again.exists()
    del source
    assert not again.exists()


def test_a_float64_model_is_exported_in_float32(tiny_qwen2: Make, tiny_tokenizer: Any) -> None:
    model = tiny_qwen2().double()
    source = ModelSource.from_model(model, tiny_tokenizer)
    checkpoint = source.checkpoint()
    assert checkpoint.dtype == "float32"
    assert "float64" in checkpoint.notes[0]
    assert json.loads(Path(checkpoint.path, "config.json").read_text())["dtype"] == "float32"
    assert "lm_head.weight" not in weight_names(checkpoint.path)  # still tied
    assert next(model.parameters()).dtype == torch.float64
    torch.testing.assert_close(logits(loaded(checkpoint.path)), logits(model).float())


def test_hostile_generation_defaults_do_not_stop_an_export(
    tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    model = tiny_llama()
    model.generation_config.temperature = 0.0  # transformers refuses to save this
    hostile = model.generation_config
    assert ModelSource.from_model(model, tiny_tokenizer).checkpoint().path
    assert model.generation_config is hostile


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize(
    ("family", "name", "targets"),
    [
        ("tiny_llama", "default", ["q_proj", "embed_tokens", "lm_head"]),
        ("tiny_llama", "mine", ["q_proj", "v_proj"]),
        ("tiny_qwen2", "default", ["o_proj", "down_proj"]),
    ],
)
def test_a_lora_export_loads_back_as_the_same_function(
    family: str,
    name: str,
    targets: list[str],
    tiny_tokenizer: Any,
    request: pytest.FixtureRequest,
) -> None:
    base = request.getfixturevalue(family)
    plain = logits(base())
    model = with_lora(base(), name, target_modules=targets)
    source = ModelSource.from_model(model, tiny_tokenizer)
    checkpoint = source.checkpoint()
    assert not any("lora" in key or "base_layer" in key for key in weight_names(checkpoint.path))
    assert torch.equal(logits(loaded(checkpoint.path)), plain)
    adapted = logits(model)
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(logits(loaded(checkpoint.path, checkpoint.adapter)), adapted)


def test_a_lora_that_is_switched_off_is_left_out(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    model = with_lora(tiny_llama())
    model.base_model.disable_adapter_layers()
    assert ModelSource.from_model(model, tiny_tokenizer).checkpoint().adapter is None


def merged(model: Any) -> Any:
    model.merge_adapter()
    return model


def with_two_active(model: Any) -> Any:
    from peft import LoraConfig

    model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return model


def prefix_tuned(model: Any) -> Any:
    from peft import PrefixTuningConfig, get_peft_model

    return get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: with_lora(m, modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\]"),
        (lambda m: with_lora(m, trainable_token_indices=[3]), "trainable_token_indices"),
        (lambda m: merged(with_lora(m)), "unmerge_adapter"),
        (lambda m: with_two_active(with_lora(m)), "exactly one adapter"),
        (prefix_tuned, "of type PREFIX_TUNING, not LORA: merge it"),
    ],
)
def test_what_an_adapter_cannot_carry_is_refused_with_a_way_out(
    change: Callable[[Any], Any], problem: str, tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    source = ModelSource.from_model(change(tiny_llama()), tiny_tokenizer)
    with pytest.raises(EngineError, match=problem):
        source.checkpoint()


def test_a_model_that_cannot_save_itself_is_refused(tiny_tokenizer: Any) -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(300, 4)

        def get_input_embeddings(self) -> nn.Module:
            return self.embedding

    with pytest.raises(EngineError, match="cannot write a Bare as a checkpoint"):
        ModelSource.from_model(Bare(), tiny_tokenizer).checkpoint()
