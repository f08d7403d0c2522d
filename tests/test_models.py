"""Models by name: resolved, loaded and checked, or refused with a sentence that helps."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from seqproc.errors import ConfigError, ModelError
from seqproc.models import (
    check_model_and_tokenizer,
    check_tokenizer,
    context_length,
    eos_token_ids,
    load_model,
    resolve_model,
    vocab_size,
)

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def saved(tmp_path: Path, tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> Path:
    """A model folder of two layers, as `save_pretrained` writes it."""
    folder = tmp_path / "saved"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def save_adapter(tmp_path: Path, tiny_llama: Callable[..., Any]) -> Callable[..., Any]:
    """Saves a LoRA adapter that does something; returns its folder and the adapted model."""

    def save(num_layers: int = 2, **fields: Any) -> tuple[Path, Any]:
        config = peft.LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(tiny_llama(num_layers=num_layers, **fields), config)
        folder = tmp_path / "adapter"
        model.save_pretrained(folder)
        return folder, model.eval()

    return save


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS.to(model.device)).logits


class TestResolve:
    @pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a-b/C.d_1"])
    def test_a_hub_id_is_unchanged(self, name):
        assert resolve_model(name) == name

    def test_a_folder_is_unchanged(self, saved):
        assert resolve_model(saved) == str(saved)
        assert resolve_model(str(saved)) == str(saved)

    def test_a_home_folder_is_expanded(self, saved, monkeypatch):
        monkeypatch.setenv("HOME", str(saved.parent))
        assert resolve_model("~/saved") == str(saved)

    @pytest.mark.parametrize(
        "name", ["./absent", "../absent", "/absent/model", "a/b/c", "~/absent", "", Path("absent")]
    )
    def test_a_path_that_is_not_there(self, name):
        with pytest.raises(ModelError, match=r"there is no folder .*smollm2-135m"):
            resolve_model(name)

    def test_a_folder_without_a_model(self, tmp_path):
        with pytest.raises(ModelError, match=r"has no config\.json"):
            resolve_model(tmp_path)

    @pytest.mark.parametrize("name", [None, 3, [], {}, b"gpt2"])
    def test_what_is_no_name(self, name):
        with pytest.raises(
            ModelError, match=f"must be a name or a path, got {type(name).__name__}"
        ):
            resolve_model(name)

    def test_a_file(self, saved):
        with pytest.raises(ModelError, match="is a file; give the folder"):
            resolve_model(saved / "config.json")


class TestLoad:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
    def test_every_parameter_has_the_dtype(self, saved, dtype):
        model, _ = load_model(saved, dtype=dtype, device="cpu")
        assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}

    def test_the_model_is_the_one_saved_in_eval_mode(self, saved, tiny_llama, tiny_tokenizer):
        model, tokenizer = load_model(str(saved), device=torch.device("cpu"))
        assert not model.training
        torch.testing.assert_close(logits(model), logits(tiny_llama()), rtol=0, atol=0)
        assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()

    def test_auto_is_the_checkpoints_own_dtype(self, saved, tiny_llama):
        tiny_llama().to(torch.bfloat16).save_pretrained(saved)
        model, _ = load_model(saved, dtype="auto", device="cpu")
        assert model.dtype == torch.bfloat16

    def test_a_torch_dtype_is_accepted(self, saved):
        assert load_model(saved, dtype=torch.float64, device="cpu")[0].dtype == torch.float64

    @pytest.mark.parametrize("dtype", ["fp8", "int8", torch.int64, None])
    def test_an_unknown_dtype(self, saved, dtype):
        with pytest.raises(ConfigError, match="float64, float32, bfloat16, float16, auto"):
            load_model(saved, dtype=dtype)

    @pytest.mark.parametrize("device", ["gpu", [], {}, 1.5, -1, "meta", "xla", "cuda:99", "mps:7"])
    def test_an_unknown_device(self, saved, device):
        with pytest.raises(ConfigError, match="expected 'cpu'"):
            load_model(saved, device=device)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
    def test_a_device_that_is_not_there(self, saved):
        with pytest.raises(ConfigError, match="torch sees none here; expected 'cpu'"):
            load_model(saved, device="cuda:0")

    def test_a_revision_of_a_folder(self, saved):
        with pytest.raises(ConfigError, match="revision is 'v1'"):
            load_model(saved, revision="v1")


class TestLoadFails:
    @pytest.mark.parametrize("name", ["smollm2-135", "smollm2_135m", "SmolLM2-135M"])
    def test_nearly_an_embedded_name(self, name):
        with pytest.raises(ModelError, match="did you mean 'smollm2-135m'"):
            load_model(name)

    def test_unreachable_hub_id(self):
        with pytest.raises(ModelError, match=r"'nobody/nothing': .*; unset HF_HUB_OFFLINE") as info:
            load_model("nobody/nothing")
        assert isinstance(info.value.__cause__, OSError)
        assert "\n" not in str(info.value)

    def test_no_tokenizer(self, saved):
        (saved / "tokenizer.json").unlink()
        with pytest.raises(ModelError, match=r"cannot load the tokenizer .* folder is complete"):
            load_model(saved)

    def test_no_weights(self, saved):
        (saved / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"cannot load the model .*no file named"):
            load_model(saved)

    def test_damaged_weights(self, saved):
        (saved / "model.safetensors").write_bytes(b"not tensors")
        with pytest.raises(ModelError, match=r"cannot load the model .*SafetensorError"):
            load_model(saved)

    def test_weights_that_would_be_drawn_at_random(self, saved):
        weights = load_file(saved / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"the checkpoint lacks lm_head\.weight;"):
            load_model(saved)

    def test_weights_of_another_shape(self, saved):
        edit_config(saved, intermediate_size=96)
        with pytest.raises(ModelError, match=r"another shape than .* and 3 more"):
            load_model(saved)

    def test_unknown_architecture(self, saved):
        edit_config(saved, model_type="no-such-model")
        with pytest.raises(ModelError, match="no-such-model"):
            load_model(saved)

    def test_remote_code_is_refused_and_not_run(self, saved):
        edit_config(saved, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
        (saved / "own.py").write_text("raise SystemExit('the code was run')")
        with pytest.raises(ModelError, match="pass trust_remote_code=True if you trust"):
            load_model(saved)

    def test_tokenizer_larger_than_the_model(self, saved, tiny_llama):
        tiny_llama(vocab_size=290).save_pretrained(saved)
        with pytest.raises(ModelError, match=r"tokenizer has 300 tokens .* only 290"):
            load_model(saved, device="cpu")


class TestAdapter:
    def test_round_trip(self, saved, save_adapter):
        folder, adapted = save_adapter()
        model, _ = load_model(saved, adapter=folder, device="cpu")
        torch.testing.assert_close(logits(model), logits(adapted), rtol=0, atol=0)
        plain, _ = load_model(saved, device="cpu")
        assert not torch.allclose(logits(model), logits(plain))

    def test_it_is_frozen_and_in_the_models_dtype(self, saved, save_adapter):
        folder, _ = save_adapter()
        model, _ = load_model(saved, adapter=str(folder), dtype="bfloat16", device="cpu")
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
        assert not model.training

    def test_it_answers_the_same_questions(self, saved, save_adapter):
        folder, _ = save_adapter()
        model, tokenizer = load_model(saved, adapter=folder, device="cpu")
        assert vocab_size(model) == 300
        assert eos_token_ids(model, None, tokenizer) == (tokenizer.eos_token_id,)
        assert context_length(model.config) == 512

    def test_an_adapter_of_a_shallower_model(self, saved, save_adapter):
        folder, _ = save_adapter(num_layers=1)
        with pytest.raises(ModelError, match=r"the adapter lacks .*layers\.1.* and 1 more"):
            load_model(saved, adapter=folder)

    def test_an_adapter_of_a_deeper_model(self, saved, save_adapter):
        folder, _ = save_adapter(num_layers=3)
        with pytest.raises(ModelError, match=r"the model has no place for .*layers\.2"):
            load_model(saved, adapter=folder)

    def test_an_adapter_of_a_wider_model(self, saved, save_adapter):
        folder, _ = save_adapter(hidden_size=64)
        with pytest.raises(ModelError, match="cannot load the adapter"):
            load_model(saved, adapter=folder)

    def test_a_folder_that_is_no_adapter(self, saved):
        with pytest.raises(ModelError, match=r"no adapter_config\.json, so it holds no adapter"):
            load_model(saved, adapter=saved)

    def test_an_adapter_in_place_of_a_model(self, save_adapter):
        folder, _ = save_adapter()
        with pytest.raises(ModelError, match=r"no config\.json, so it holds no model"):
            load_model(folder)


class TestChecks:
    def test_a_fitting_pair_is_left_alone(self, tiny_llama, tiny_tokenizer):
        check_model_and_tokenizer(tiny_llama(), tiny_tokenizer)
        assert tiny_tokenizer.pad_token == "<pad>"

    def test_a_padded_vocabulary_fits(self, tiny_llama, tiny_tokenizer):
        check_model_and_tokenizer(tiny_llama(vocab_size=320), tiny_tokenizer)

    def test_a_vocabulary_that_is_too_small(self, tiny_tokenizer):
        with pytest.raises(ModelError, match=r"300 tokens .* only 299"):
            check_tokenizer(tiny_tokenizer, 299)

    @pytest.mark.parametrize("model", [None, 3, []])
    def test_what_is_no_model(self, model, tiny_tokenizer):
        with pytest.raises(ModelError, match=r"causal language model in torch, got \w+$"):
            check_model_and_tokenizer(model, tiny_tokenizer)

    def test_a_name_in_place_of_a_model(self, tiny_tokenizer):
        with pytest.raises(ModelError, match=r"got str; a name or path is opened by"):
            check_model_and_tokenizer("gpt2", tiny_tokenizer)

    @pytest.mark.parametrize("tokenizer", [None, 3, "x", [], {}])
    def test_what_is_no_tokenizer(self, tiny_llama, tokenizer):
        with pytest.raises(ModelError, match=r"tokenizer must be .* got \w+, which has no "):
            check_model_and_tokenizer(tiny_llama(), tokenizer)

    @pytest.mark.parametrize("training", [False, True])
    def test_a_model_without_a_head(self, tiny_llama, tiny_gpt2, tiny_tokenizer, training):
        for model in (tiny_llama().model, tiny_gpt2().transformer):
            before = torch.random.get_rng_state()
            with pytest.raises(ModelError, match=r"Model gives no logits over the 300 .* but none"):
                check_model_and_tokenizer(model.train(training), tiny_tokenizer)
            assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_head_of_something_else(self, tiny_llama, tiny_tokenizer):
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_config(tiny_llama().config)
        with pytest.raises(ModelError, match=r"gives no logits .* but some of shape \[1, 2\] for"):
            check_model_and_tokenizer(model, tiny_tokenizer)

    def test_a_model_that_is_not_called_like_one(self, tiny_llama, tiny_tokenizer):
        class Renamed(torch.nn.Module):
            config = tiny_llama().config

            def forward(self, tokens):
                return tokens

        with pytest.raises(ModelError, match=r"a Renamed cannot be read with input_ids.*TypeError"):
            check_model_and_tokenizer(Renamed(), tiny_tokenizer)

    @pytest.mark.parametrize("bare", [True, False])
    def test_a_model_of_ones_own_need_not_tell_of_its_head(self, tiny_llama, tiny_tokenizer, bare):
        inner = tiny_llama()

        class Own(torch.nn.Module):
            config = inner.config

            def forward(self, **arguments):
                output = inner(**arguments)
                return output.logits if bare else output

        check_model_and_tokenizer(Own(), tiny_tokenizer)

    def test_no_eos(self, tiny_tokenizer):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.eos_token = None
        with pytest.raises(ModelError, match=r"set tokenizer\.eos_token"):
            check_tokenizer(tokenizer, 300)

    def test_no_pad_becomes_eos_with_a_note(self, tiny_tokenizer, caplog):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.pad_token = None
        with caplog.at_level("INFO", logger="seqproc.models"):
            check_tokenizer(tokenizer, 300)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        assert "padding with EOS '<eos>'" in caplog.text


@pytest.mark.model
def test_the_embedded_model_adds_two_and_three(smollm2):
    model, tokenizer = smollm2
    chat = [{"role": "user", "content": "What is 2+3?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    answer = output[0, inputs["input_ids"].shape[1] :]
    assert "5" in tokenizer.decode(answer)
    assert eos_token_ids(model, None, tokenizer) == (2,) == (tokenizer.pad_token_id,)
    assert not hasattr(model.config, "quantization_config")  # vLLM refuses one that names GGUF
