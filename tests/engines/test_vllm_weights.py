"""Other weights in a real vLLM, against Hugging Face with the same; SmolLM2 in float32.

Some tests share the one engine of the session; the last needs LoRA, and starts its own. What goes
to vLLM, and when, is asked of a fake one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.engine_bench import (
    Bench,
    VLLMHost,
    forward,
    prompt_ids,
    require_same_but_for_near_ties,
    run,
    start_vllm,
)
from seqproc.engines import HFEngine, ModelSource, Request, StoppingRule
from seqproc.engines.vllm.weights import VLLMWeights
from seqproc.errors import EngineError
from seqproc.models.weights import temporary_weights, validate_weights
from seqproc.policy import SamplingPolicy, token_log_q

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.slow]

GREEDY = SamplingPolicy(do_sample=False)
POLICY = SamplingPolicy(temperature=0.9, top_p=0.95)


@pytest.fixture
def bench(vllm_host: VLLMHost) -> Iterator[Bench]:
    bench = vllm_host.bench()
    yield bench
    bench.engine.load_weights(None)


def step(model: Any, size: float, only: str = "") -> dict[str, torch.Tensor]:
    """θ + η·v for the parameters whose name holds ``only``, v as large as θ."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: param.detach() + size * param.std() * torch.randn(param.shape, generator=generator)
        for name, param in model.named_parameters()
        if only in name
    }


def flipped(model: Any, name: str) -> dict[str, torch.Tensor]:
    """One parameter with the last bit of one element flipped."""
    changed = dict(model.named_parameters())[name].detach().clone()
    changed.view(torch.int32).reshape(-1)[changed.numel() // 2] ^= 1
    return {name: changed}


def require_policy_of(model: Any, engine: Any, requests: list[Request], rule: StoppingRule) -> None:
    """The engine's log q is that of the model."""
    for completion in engine.generate(requests, POLICY, rule):
        assert completion.prompt_ids == requests[completion.index].prompt_ids
        logits = forward(model, completion.prompt_ids, completion.token_ids).double()
        own = token_log_q(logits, torch.tensor(completion.token_ids), POLICY)
        np.testing.assert_allclose(completion.logqs, own.numpy(), atol=5e-4, rtol=0)


def test_mappings_give_the_policy_of_the_model_with_them(
    bench: Bench, smollm2: tuple[Any, Any]
) -> None:
    model, tokenizer = smollm2
    engine, requests, rule = bench.engine, bench.requests(8), bench.rule(16)
    own, digest = run(engine, requests, GREEDY, rule), engine.fingerprint()
    assert engine.describe()["weights"] == digest
    full = step(model, 0.05)  # the tied head among them
    engine.load_weights(full)
    moved, moved_digest = run(engine, requests, GREEDY, rule), engine.fingerprint()
    hf = HFEngine(model, tokenizer)
    hf.load_weights(full)
    expected = run(hf, requests, GREEDY, rule)
    with temporary_weights(model, validate_weights(model, full)):
        require_policy_of(model, engine, requests, rule)
        require_same_but_for_near_ties(model, requests, moved, expected)
    assert all(moved[i].token_ids != own[i].token_ids for i in range(8))
    assert engine.describe()["weights"] == moved_digest != digest
    # What is not named has the source's own values again.
    part = step(model, 0.3, only="layers.3.")
    engine.load_weights(part)
    with temporary_weights(model, validate_weights(model, part)):
        require_policy_of(model, engine, requests, rule)
    assert engine.fingerprint() not in (digest, moved_digest)
    engine.load_weights(None)
    assert engine.fingerprint() == digest
    assert run(engine, requests, GREEDY, rule) == own


def test_the_fingerprint_sees_a_bit_of_what_vllm_packs_and_of_what_it_does_not(
    bench: Bench, smollm2: tuple[Any, Any]
) -> None:
    model, digests = smollm2[0], {bench.engine.fingerprint()}
    names = ("model.layers.7.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight")
    for name in names:
        canonical = name if name in dict(model.named_parameters()) else "model.embed_tokens.weight"
        bench.engine.load_weights(flipped(model, canonical))
        digests.add(bench.engine.fingerprint())
    assert len(digests) == 4


def test_a_checkpoint_and_what_is_refused(
    bench: Bench, smollm2: tuple[Any, Any], tiny_llama: Any, tmp_path: Path
) -> None:
    model = smollm2[0]
    engine, requests, rule = bench.engine, bench.requests(4), bench.rule(8)
    other = validate_weights(model, step(model, 0.05))
    with temporary_weights(model, other):
        model.save_pretrained(tmp_path / "other", max_shard_size="200MB")
    engine.load_weights(tmp_path / "other")
    with temporary_weights(model, other):
        require_policy_of(model, engine, requests, rule)
    digest = engine.fingerprint()
    tiny_llama().save_pretrained(tmp_path / "tiny")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    for weights, problem in (
        (tmp_path / "tiny", r"lacks model\.layers\.10"),
        (tmp_path / "adapter", "without LoRA.*enable_lora=True"),
        (tmp_path / "missing", "there is no directory"),
        ({"model.norm.weight": torch.ones(3)}, r"expected shape \[576\], got \[3\]"),
        ({"model.norm.wieght": torch.ones(576)}, "did you mean 'model.norm.weight'"),
    ):
        with pytest.raises(EngineError, match=problem):
            engine.load_weights(weights)
    completions: Any = engine.generate(requests, POLICY, rule)
    next(completions)
    with pytest.raises(EngineError, match="under way: finish or close"):
        engine.load_weights(None)
    completions.close()
    engine._weights._digest = None  # read again what the workers hold
    assert engine.fingerprint() == digest


class FakeLLM:
    """What `VLLMWeights` asks of `vllm.LLM`; it keeps what it was given to read."""

    def __init__(self, *, has_lora: bool) -> None:
        text_config = SimpleNamespace(tie_word_embeddings=False)
        self.llm_engine = self
        self.vllm_config = SimpleNamespace(lora_config="yes" if has_lora else None)
        self.model_config = SimpleNamespace(
            dtype=torch.float32,
            hf_config=SimpleNamespace(get_text_config=lambda: text_config),
        )
        self.base: list[dict[str, torch.Tensor]] = []
        self.adapters: dict[int, dict[str, torch.Tensor]] = {}
        self.directories: list[Path] = []
        self.num_resets = 0

    def _read(self, directory: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        self.directories.append(Path(directory))
        (file,) = Path(directory).glob("*.safetensors")
        return load_file(file)

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[str]:
        if method == "seqproc_reload":
            self.base.append(self._read(*args))
        return ["00", "11"]  # of two workers

    def add_lora(self, request: Any) -> None:
        self.adapters[request.lora_int_id] = self._read(request.lora_path)

    def remove_lora(self, lora_id: int) -> None:
        self.adapters.pop(lora_id, None)

    def reset_prefix_cache(self) -> None:
        self.num_resets += 1


def tiny_weights(model: Any, tokenizer: Any) -> tuple[FakeLLM, VLLMWeights, ModelSource]:
    source = ModelSource.from_model(model, tokenizer)
    checkpoint = source.checkpoint()
    llm = FakeLLM(has_lora=checkpoint.adapter is not None)
    return llm, VLLMWeights(llm, checkpoint, source), source


def test_a_whole_checkpoint_goes_to_vllm_and_leaves_no_file(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    model, name = tiny_llama(), "model.norm.weight"
    llm, weights, source = tiny_weights(model, tiny_tokenizer)
    with source:
        weights.load({name: torch.full((32,), 2.0)})
        weights.load({"lm_head.weight": torch.zeros_like(model.lm_head.weight)})
        with torch.no_grad():
            model.model.norm.weight.mul_(3)  # a training step
        weights.load(None)
        first, second, last = llm.base
        assert set(first) == set(second) == set(last) == set(model.state_dict())
        assert torch.equal(first[name], torch.full((32,), 2.0))
        assert torch.equal(first["lm_head.weight"], model.lm_head.weight)
        assert not second["lm_head.weight"].any()
        assert torch.equal(second[name], torch.ones(32))  # θ, not the earlier load
        assert torch.equal(last[name], torch.full((32,), 3.0))  # the model as it is now
        assert llm.num_resets == 3
        assert not any(directory.exists() for directory in llm.directories)
        assert weights._adapter_files is None
        assert len(weights.fingerprint()) == 2
        with pytest.raises(EngineError, match="knows no live model"):
            VLLMWeights(llm, source.checkpoint(), None).load({name: torch.ones(32)})


def test_lora_alone_goes_as_an_adapter_over_the_models_own_base(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    lora = {n: torch.ones_like(p) for n, p in model.named_parameters() if ".lora_" in n}
    norm = {"base_model.model.model.norm.weight": torch.full((32,), 2.0)}
    llm, weights, source = tiny_weights(model, tiny_tokenizer)
    with source:
        weights.load(lora)
        assert (llm.base, list(llm.adapters)) == ([], [2])
        assert len(llm.adapters[2]) == 4
        assert all(tensor.eq(1).all() for tensor in llm.adapters[2].values())
        assert weights.lora.lora_int_id == 2
        weights.load(norm | lora)
        assert torch.equal(llm.base[-1]["model.norm.weight"], torch.full((32,), 2.0))
        weights.load(lora)  # over θ again
        assert torch.equal(llm.base[-1]["model.norm.weight"], torch.ones(32))
        weights.load(lora)
        assert len(llm.base) == 2
        with torch.no_grad():
            dict(model.named_parameters())[next(iter(norm))].mul_(3)  # the base model is trained
        weights.load(lora)
        assert torch.equal(llm.base[-1]["model.norm.weight"], torch.full((32,), 3.0))
        assert len(llm.adapters) == 1
        assert llm.directories[-1].exists()  # vLLM may read the adapter again
        weights.close()
        assert not any(directory.exists() for directory in llm.directories)


def test_lora_weights_in_a_second_engine(
    vllm_host: VLLMHost, smollm2_path: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    from seqproc import load_model

    vllm_host.stop()
    model, tokenizer = load_model(str(smollm2_path), device="cpu")
    config = LoraConfig(r=5, lora_alpha=10, target_modules=["q_proj", "down_proj"])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        adapted = get_peft_model(model, config)
        lora = {n: p for n, p in adapted.named_parameters() if ".lora_" in n}
        for param in lora.values():
            param.normal_(std=0.1)
        second = {name: torch.randn_like(param) * 0.1 for name, param in lora.items()}
    base = {
        name: param.detach() * 1.05
        for name, param in adapted.named_parameters()
        if "layers.4.mlp" in name and ".lora_" not in name
    }
    with temporary_weights(adapted, second):
        adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    requests = [
        Request(index=i, prompt_ids=tuple(prompt_ids(tokenizer, text)), seed=i)
        for i, text in enumerate(["What is 2+3?", "Name a colour."])
    ]
    with (
        ModelSource.from_model(adapted, tokenizer) as source,
        start_vllm(source) as engine,
    ):
        rule = StoppingRule(max_new_tokens=6, eos_token_ids=source.eos_token_ids)
        digests = [engine.fingerprint()]
        require_policy_of(adapted, engine, requests, rule)
        for weights, same in (
            (second, second),
            (tmp_path, second),
            (base, base),
            (second | base, second | base),
            (second, second),  # and the base model has its own weights again
            (None, {}),
        ):
            engine.load_weights(weights)
            with temporary_weights(adapted, same):
                require_policy_of(adapted, engine, requests, rule)
            digests.append(engine.fingerprint())
        own, by_mapping, by_directory, of_base, of_both, again, at_last = digests
        assert own == at_last
        assert by_mapping == by_directory == again
        assert len({own, by_mapping, of_base, of_both}) == 4
    with pytest.raises(EngineError, match="closed"):
        engine.load_weights(None)
