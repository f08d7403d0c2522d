"""Other weights in an engine, and the fingerprints that tell which they are; tiny models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqproc.engines import HFEngine, Request, ScriptedEngine, StoppingRule
from seqproc.errors import EngineError
from seqproc.models.fingerprint import FingerprintCache, checksum, fingerprint
from seqproc.models.weights import temporary_weights
from seqproc.policy import SamplingPolicy
from seqproc.scorers import build_params_override

Make = Callable[..., Any]
Params = dict[str, Tensor]
POLICY = SamplingPolicy(temperature=0.9, top_p=0.95)
GREEDY = SamplingPolicy(do_sample=False)
RULE = StoppingRule(max_new_tokens=12, eos_token_ids=())
REQUESTS = [
    Request(index=i, prompt_ids=(40 + i, 41, 42 + i)[: 1 + i % 3], seed=i) for i in range(6)
]


def sampled(engine: HFEngine, policy: SamplingPolicy = POLICY) -> dict[int, tuple[int, ...]]:
    return {c.index: c.token_ids for c in engine.generate(REQUESTS, policy, RULE)}


def params(model: Any) -> Params:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def with_params(model: Any, values: Params) -> Any:
    """A deep copy of the model that has these parameters for good."""
    changed = copy.deepcopy(model)
    own = dict(changed.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return changed


def direction(model: Any, only: str = "", seed: int = 1) -> Params:
    """A random v, of the parameters whose name holds ``only``."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(param.shape, generator=generator)
        for name, param in model.named_parameters()
        if only in name
    }


def adapted(model: Any, seed: int = 3, **fields: Any) -> Any:
    """The model with a LoRA adapter that does something."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options | fields))
        with torch.no_grad():
            for name, param in wrapped.named_parameters():
                if ".lora_" in name:
                    param.normal_(std=0.3)
    return wrapped


def save_adapter(model: Any, path: Path) -> None:
    model.save_pretrained(path, save_embedding_layers=False)  # or PEFT asks the hub


@pytest.fixture
def model(tiny_llama: Make) -> Any:
    return tiny_llama()


@pytest.fixture
def engine(model: Any, tiny_tokenizer: Any) -> HFEngine:
    return HFEngine(model, tiny_tokenizer, batch_size=4)


# ---------------------------------------------------------------- checksums


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("length", [1, 7, 300_001])
def test_every_bit_of_a_tensor_counts(dtype: torch.dtype, length: int) -> None:
    tensor = torch.linspace(-100, 100, length).to(dtype)
    before = checksum(tensor)
    data = tensor.view(torch.uint8)
    for place in {0, len(data) // 2, len(data) - 1}:
        for bit in range(8):
            data[place] ^= 1 << bit
            assert checksum(tensor) != before
            data[place] ^= 1 << bit
    assert checksum(tensor) == before


def test_changes_that_cancel_in_a_plain_sum_count() -> None:
    tensor = torch.linspace(-1, 1, 1000, dtype=torch.float64)
    found = {checksum(tensor), checksum(tensor.flip(0)), checksum(tensor.roll(1))}
    for first, second in ((0, 1), (5, 900), (0, 999)):  # two signs
        changed = tensor.clone()
        changed[[first, second]] *= -1
        found.add(checksum(changed))
    assert len(found) == 6


def test_sums_do_not_depend_on_how_a_tensor_lies_in_memory() -> None:
    whole = torch.randn(5, 77)
    assert checksum(whole.t()) == checksum(whole.t().contiguous())
    odd = torch.cat([torch.zeros(1), whole.reshape(-1)])[1:]  # not on an 8-byte boundary
    assert checksum(odd) == checksum(whole)
    assert checksum(torch.empty(0)) == 0


def test_names_shapes_and_dtypes_count_and_order_does_not() -> None:
    tensor, other = torch.zeros(2, 6), torch.ones(3)
    digests = {
        fingerprint([("a", tensor), ("b", other)]),
        fingerprint([("b", tensor), ("a", other)]),
        fingerprint([("a", tensor.reshape(3, 4)), ("b", other)]),
        fingerprint([("a", tensor.int()), ("b", other)]),
        fingerprint([("a", tensor)]),
    }
    assert len(digests) == 5
    assert fingerprint([("b", other), ("a", tensor)]) in digests
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_a_cache_sums_up_what_changed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqproc.models import fingerprint as weights

    summed: list[int] = []

    def noted(tensor: torch.Tensor) -> int:
        summed.append(tensor.numel())
        return checksum(tensor)

    monkeypatch.setattr(weights, "checksum", noted)
    tensors = {"a": torch.randn(1000), "b": torch.randn(2000)}
    cache = FingerprintCache()
    before = cache.fingerprint(tensors)
    assert before == cache.fingerprint(tensors) == fingerprint(tensors.items())
    assert sorted(summed[:2]) == [1000, 2000]
    del summed[:]
    tensors["a"][17] += 1  # an operation that torch counts
    changed = cache.fingerprint(tensors)
    assert (changed != before, summed) == (True, [1000])
    tensors["b"].data.add_(1)  # and one that it does not
    assert cache.fingerprint(tensors) not in (before, changed)
    assert cache.fingerprint(tensors | {"a": tensors["a"].clone()}) == fingerprint(tensors.items())


# ---------------------------------------------------------------- mappings, Hugging Face


@pytest.mark.parametrize("policy", [GREEDY, POLICY], ids=str)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_gpt2"])
def test_a_step_samples_as_a_model_that_has_taken_it(
    family: str, policy: SamplingPolicy, tiny_tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)()
    engine, before = HFEngine(model, tiny_tokenizer, batch_size=4), params(model)
    own = sampled(engine, policy)
    override = build_params_override(model, direction(model), 0.05)
    engine.load_weights(override)
    expected = sampled(HFEngine(with_params(model, override), tiny_tokenizer, batch_size=4), policy)
    assert sampled(engine, policy) == expected != own
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    engine.load_weights(None)
    assert sampled(engine, policy) == own


def test_what_is_not_named_keeps_the_models_own_values_not_those_of_an_earlier_load(
    model: Any, engine: HFEngine, tiny_tokenizer: Any
) -> None:
    first = build_params_override(model, direction(model), 0.1)
    name = "model.layers.1.mlp.down_proj.weight"
    second = {name: first[name]}
    engine.load_weights(first)
    moved = sampled(engine)
    engine.load_weights(second)
    expected = sampled(HFEngine(with_params(model, second), tiny_tokenizer, batch_size=4))
    assert sampled(engine) == expected != moved


def test_between_batches_and_after_errors_the_model_has_its_own_weights(
    model: Any, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, storages = params(model), [param.data_ptr() for param in model.parameters()]
    optimizer_sees = list(model.parameters())

    def require_own() -> None:
        assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
        assert [param.data_ptr() for param in model.parameters()] == storages
        assert all(a is b for a, b in zip(model.parameters(), optimizer_sees, strict=True))

    engine.load_weights(build_params_override(model, direction(model), 0.1))
    require_own()
    completions: Any = engine.generate(REQUESTS, POLICY, RULE)
    next(completions)
    require_own()
    completions.close()
    seen: list[bool] = []

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(torch.equal(self.lm_head.weight, before["lm_head.weight"]))
        raise RuntimeError("the device fell over")

    monkeypatch.setattr(type(model), "forward", broken)
    with pytest.raises(EngineError, match="fell over"):
        list(engine.generate(REQUESTS, POLICY, RULE))
    assert seen == [False]  # the loaded weights were in it
    require_own()


def test_a_graph_of_the_scorer_outlives_a_generation(model: Any, engine: HFEngine) -> None:
    loss = model(torch.tensor([[40, 41, 42]])).logits.square().sum()
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    engine.load_weights(build_params_override(model, direction(model), 0.1))
    list(engine.generate(REQUESTS[:2], POLICY, RULE))
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_loaded_weights_are_copied_and_cast(model: Any, engine: HFEngine) -> None:
    override = build_params_override(model, direction(model), 0.1, dtype=torch.float64)
    engine.load_weights(override)
    before, digest = sampled(engine), engine.fingerprint()
    for tensor in override.values():
        tensor.zero_()
    assert (sampled(engine), engine.fingerprint()) == (before, digest)
    narrow = {"lm_head.weight": model.lm_head.weight.detach() * 0.5}
    engine.load_weights(narrow)
    digest = engine.fingerprint()
    narrow["lm_head.weight"].zero_()
    assert engine.fingerprint() == digest


def test_tied_weights_stay_tied(tiny_qwen2: Make, tiny_tokenizer: Any) -> None:
    model = tiny_qwen2()
    engine = HFEngine(model, tiny_tokenizer)
    new = model.lm_head.weight.detach() * 1.5
    engine.load_weights({"lm_head.weight": new})
    by_alias = sampled(engine)
    engine.load_weights({"model.embed_tokens.weight": new})
    assert sampled(engine) == by_alias
    with temporary_weights(model, {"model.embed_tokens.weight": new}):
        assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(EngineError, match="is tied to 'lm_head"):
        engine.load_weights({"lm_head.weight": new, "model.embed_tokens.weight": new + 1})


# ---------------------------------------------------------------- fingerprints, Hugging Face


def test_the_engines_fingerprint_follows_what_it_holds(model: Any, engine: HFEngine) -> None:
    own = engine.fingerprint()
    assert own == engine.fingerprint() == engine.describe()["weights"]
    engine.load_weights(build_params_override(model, direction(model), 0.1))
    moved = engine.fingerprint()
    assert moved not in (None, own)
    assert engine.describe()["weights"] == moved
    engine.load_weights({name: param.clone() for name, param in model.named_parameters()})
    assert engine.fingerprint() == own  # the same values in other tensors
    weight = model.lm_head.weight.detach()
    weight.view(torch.int32)[7, 5] ^= 1
    assert engine.fingerprint() == own  # the loaded ones are another copy
    engine.load_weights(None)
    assert engine.fingerprint() not in (own, moved)
    weight.view(torch.int32)[7, 5] ^= 1
    assert engine.fingerprint() == own
    other = HFEngine(copy.deepcopy(model), None)
    assert other.fingerprint() == own


def test_a_training_step_changes_it(model: Any, engine: HFEngine) -> None:
    before = engine.fingerprint()
    optimizer = torch.optim.SGD([model.model.norm.weight], lr=0.1)
    model(torch.tensor([[40, 41, 42]])).logits.square().sum().backward()
    optimizer.step()
    assert engine.fingerprint() != before


def test_engines_that_cannot_take_weights_say_so(tiny_tokenizer: Any) -> None:
    engine = ScriptedEngine({}, tiny_tokenizer)
    assert engine.fingerprint() is None
    with pytest.raises(EngineError, match=r"'scripted' cannot take other weights; use engine='hf'"):
        engine.load_weights(None)


# ---------------------------------------------------------------- directories, Hugging Face


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_gpt2"])
def test_a_checkpoint_in_shards_or_whole(
    family: str, tiny_tokenizer: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    make = request.getfixturevalue(family)
    other = make(seed=5)
    other.save_pretrained(tmp_path / "whole")
    other.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    expected = sampled(HFEngine(other, tiny_tokenizer))
    for kind in ("whole", "shards"):
        engine = HFEngine(make(), tiny_tokenizer)
        own = engine.fingerprint()
        state = torch.random.get_rng_state()
        engine.load_weights(tmp_path / kind)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert sampled(engine) == expected
        assert engine.fingerprint() == HFEngine(other, tiny_tokenizer).fingerprint() != own


def test_a_checkpoint_under_an_adapter_leaves_the_adapter(
    tiny_llama: Make, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tiny_llama(seed=5).save_pretrained(tmp_path)
    engine = HFEngine(adapted(tiny_llama()), tiny_tokenizer)
    engine.load_weights(str(tmp_path))
    expected = sampled(HFEngine(adapted(tiny_llama(seed=5)), tiny_tokenizer))
    assert sampled(engine) == expected != sampled(HFEngine(tiny_llama(seed=5), tiny_tokenizer))


def test_lora_weights_by_mapping_and_by_directory(
    tiny_llama: Make, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model, other = adapted(tiny_llama()), adapted(tiny_llama(), seed=4)
    save_adapter(other, tmp_path)
    expected = sampled(HFEngine(other, tiny_tokenizer))
    engine, before = HFEngine(model, tiny_tokenizer), params(model)
    own, digest = sampled(engine), engine.fingerprint()
    assert own != expected
    engine.load_weights({n: p for n, p in other.named_parameters() if ".lora_" in n})
    assert sampled(engine) == expected
    moved = engine.fingerprint()
    engine.load_weights(None)
    assert (sampled(engine), engine.fingerprint()) == (own, digest)
    engine.load_weights(tmp_path)
    assert sampled(engine) == expected
    assert engine.fingerprint() == moved
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())


def test_an_adapter_is_merged_into_a_model_that_has_none(
    tiny_llama: Make, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    other = adapted(tiny_llama(), seed=4)
    save_adapter(other, tmp_path)
    model = tiny_llama()
    before = params(model)
    engine = HFEngine(model, tiny_tokenizer)
    own = sampled(engine)
    state = torch.random.get_rng_state()
    engine.load_weights(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(params(model)) == set(before)
    assert sampled(engine) == sampled(HFEngine(other, tiny_tokenizer)) != own
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())


# ---------------------------------------------------------------- errors


def test_mappings_that_do_not_fit_are_refused_and_change_nothing(
    model: Any, engine: HFEngine
) -> None:
    engine.load_weights({"lm_head.weight": model.lm_head.weight * 2})
    digest, name = engine.fingerprint(), "model.norm.weight"
    for weights, problem in (
        ({"model.norm.wieght": torch.ones(32)}, "no parameter named.*did you mean 'model.norm.we"),
        ({name: torch.ones(31)}, r"expected shape \[32\], got \[31\]"),
        (
            {name: torch.ones(32, dtype=torch.int64)},
            "expected a floating dtype.*torch.int64",
        ),
        ({name: [1.0] * 32}, "expected a tensor, got list"),
        ({name: torch.full((32,), float("inf"))}, "NaN or infinity"),
        (7, "a mapping of parameter names to tensors, a directory or None, got int"),
    ):
        with pytest.raises(EngineError, match=problem):
            engine.load_weights(weights)  # type: ignore[arg-type]
        assert engine.fingerprint() == digest


def test_loading_waits_for_a_generation_to_end(engine: HFEngine) -> None:
    completions: Any = engine.generate(REQUESTS, POLICY, RULE)
    next(completions)
    with pytest.raises(EngineError, match="under way: finish or close"):
        engine.load_weights(None)
    completions.close()
    engine.load_weights(None)


def test_directories_that_do_not_fit_are_refused(
    tiny_llama: Make, engine: HFEngine, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    pickled_adapter = tmp_path / "pickled_adapter"
    save_adapter(adapted(tiny_llama()), pickled_adapter)
    (pickled_adapter / "adapter_model.safetensors").rename(pickled_adapter / "adapter_model.bin")
    tiny_llama(num_layers=3).save_pretrained(tmp_path / "deeper")
    tiny_llama(num_layers=1).save_pretrained(tmp_path / "shallower")
    tiny_llama(intermediate_size=48).save_pretrained(tmp_path / "narrower")
    tiny_llama().save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no safetensors")
    digest = engine.fingerprint()
    for name, problem in (
        ("missing", "there is no directory .*missing"),
        (
            "pickled",
            "no \\*.safetensors: weights are read from safetensors alone, and never unpick",
        ),
        ("pickled_adapter", "holds no adapter_model.safetensors"),
        ("deeper", r"no place for: model\.layers\.2\.\S+ and 8 more"),
        ("shallower", r"lacks model\.layers\.1\.\S+ and 8 more"),
        ("narrower", r"another shape for model\.layers\.0\.mlp"),
        ("broken", "cannot read the weights"),
    ):
        with pytest.raises(EngineError, match=problem):
            engine.load_weights(tmp_path / name)
        assert engine.fingerprint() == digest


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"r": 2}, "has r=2, the model's own has 4"),
        ({"lora_alpha": 99}, "lora_alpha=99"),
        ({"target_modules": ["q_proj"]}, r"lacks \S+down_proj\S+ and 3 more"),
        ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, r"no place for: \S+v_proj"),
    ],
)
def test_adapters_of_another_structure_are_refused(
    fields: dict[str, Any], problem: str, tiny_llama: Make, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    save_adapter(adapted(tiny_llama(), **fields), tmp_path)
    engine = HFEngine(adapted(tiny_llama()), tiny_tokenizer)
    with pytest.raises(EngineError, match=problem):
        engine.load_weights(tmp_path)
