"""A model in two parts says what it says whole; one that cannot be taken apart is used whole."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from helpers.scorer_helpers import distance, float64_profiles, random_sequences
from seqproc import scorers
from seqproc.policy import SamplingPolicy
from seqproc.scorers import (
    Limits,
    TeacherForcingScorer,
    TokenSequence,
    examination,
    plan,
    split_model,
)
from seqproc.scorers.model_parts import BackboneAndHead, WholeModel

V = 40
POLICY = SamplingPolicy(temperature=0.8, top_p=0.95)
LLAMA_EMBEDDING, LLAMA_HEAD = "model.embed_tokens.weight", "lm_head.weight"

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}

# Configuration class and what is special about the family.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES | {"tie_word_embeddings": False}),
    "llama tied": ("LlamaConfig", SIZES | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", SIZES | {"tie_word_embeddings": True}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.4},
    ),
    "gemma2": (
        "Gemma2Config",
        SIZES
        | {
            "head_dim": 8,
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 1.5,
            "sliding_window": 4,
            "attn_implementation": "eager",
        },
    ),
    "cohere": ("CohereConfig", SIZES | {"logit_scale": 0.25}),
    "granite": (
        "GraniteConfig",
        SIZES | {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    ),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 12,
            "init_std": 0.4,
        },
    ),
}


def build(family: str, seed: int = 0, **changes: Any) -> Any:
    """A model of some thousand parameters."""
    name, values = FAMILIES[family]
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = getattr(transformers, name)(vocab_size=V, **special, **(values | changes))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def common_prompts(seed: int = 0) -> list[TokenSequence]:
    """Two prompts, of 7 and 3 tokens, with three responses each; and one prompt of its own."""
    drawn = random_sequences(V, [(7, 5), (7, 9), (7, 1), (3, 2), (3, 8), (3, 4), (5, 6)], seed)
    prompts = [drawn[i].prompt_ids for i in (0, 0, 0, 3, 3, 3, 6)]
    return [
        TokenSequence(prompt_ids=prompt, response_ids=s.response_ids)
        for prompt, s in zip(prompts, drawn, strict=True)
    ]


def own_logits(model: nn.Module, sequence: TokenSequence) -> torch.Tensor:
    """Logits of the response, by one plain call of the whole model on this sequence alone."""
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])[None]
    mask = torch.ones_like(ids)
    output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    return output.logits[0, len(sequence.prompt_ids) - 1 : -1]


@torch.no_grad()
def worst_gap(parts: Any, model: nn.Module, *, share: bool) -> float:
    """Largest distance of the logits of the parts from the model's own."""
    sequences, worst = common_prompts(), 0.0
    for batch in plan(sequences, Limits(tokens=1000, share_prompts=share)):
        states = parts.hidden_states(batch, None)
        logits = torch.cat([parts.logits(some, None) for some in states.split(4)])
        own = torch.cat([own_logits(model, sequences[i]) for i in batch.indices])
        worst = max(worst, float((logits - own).abs().max()))
    return worst


def scored(model: nn.Module, precision: Any = None, **more: Any) -> Any:
    scorer = TeacherForcingScorer(model, precision=precision)
    return scorer.score(common_prompts(), POLICY, batch_size=4, **more)


@pytest.fixture
def told(caplog):
    """`told()`: what seqproc logged so far, as (level, text)."""
    caplog.set_level(logging.WARNING, logger="seqproc")

    def read() -> list[tuple[int, str]]:
        return [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "seqproc"]

    return read


# Families.


@pytest.mark.parametrize(
    "family",
    FAMILIES,
)
def test_the_parts_say_what_the_model_says(family, told):
    model = build(family)
    parts = split_model(model)
    assert isinstance(parts, BackboneAndHead)
    assert parts.can_share_prompts
    assert parts.vocab_size == V
    for share in (True, False):
        assert worst_gap(parts, model, share=share) < 2e-5
        assert worst_gap(parts, build(family, seed=1), share=share) > 1e-2
    assert told() == []


@pytest.mark.parametrize("family", ["gemma2", "cohere", "granite"])
@torch.no_grad()
def test_what_a_model_does_to_its_logits_is_done(family):
    """The twin: the matrix of the head alone gives other logits."""
    model = build(family)
    parts = split_model(model)
    (batch,) = plan(common_prompts()[:3], Limits(tokens=1000))
    states = parts.hidden_states(batch, None)
    bare = states @ model.get_output_embeddings().weight.T
    assert (parts.logits(states, None) - bare).abs().max() > 1e-2


@torch.no_grad()
def test_states_are_narrower_than_logits():
    parts = split_model(build("llama"))
    (batch,) = plan(common_prompts()[:3], Limits(tokens=1000))
    assert parts.hidden_states(batch, None).shape == (15, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_the_same_when_scored(family):
    """Also those that are used whole."""
    model = build(family)
    plain = TeacherForcingScorer(Plain(model)).score(common_prompts(), POLICY)[0]
    assert distance(scored(model)[0], plain) < 2e-5
    assert distance(scored(build(family, seed=1))[0], plain, ["logprobs"]) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_double_model_is_taken_apart(family, told):
    assert isinstance(split_model(build(family).double()), BackboneAndHead)
    assert told() == []


def test_taking_apart_leaves_the_model_alone():
    model = build("gpt2").train()
    model.transformer.h[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    modules = [id(module) for module in model.modules()]
    state = torch.get_rng_state()
    split_model(model)
    scored(model)
    assert [module.training for module in model.modules()] == modes
    assert [id(module) for module in model.modules()] == modules
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_an_update_in_place_is_seen():
    model = build("llama")
    parts = split_model(model)
    before = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
        model.model.layers[0].mlp.up_proj.weight.neg_()
    assert worst_gap(parts, model, share=True) < 2e-5
    assert worst_gap(parts, before, share=True) > 1e-2


# Adapters.


def adapted(family: str, **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(build(family), config).eval()


@pytest.mark.parametrize(
    ("family", "targets"),
    [("llama", ["q_proj", "v_proj"]), ("llama", ["q_proj", "lm_head"]), ("gemma2", ["o_proj"])],
)
def test_an_adapted_model_is_taken_apart(family, targets, told):
    model = adapted(family, target_modules=targets)
    parts = split_model(model)
    assert isinstance(parts, BackboneAndHead)
    assert parts.can_share_prompts
    for share in (True, False):
        assert worst_gap(parts, model, share=share) < 2e-5
        assert worst_gap(parts, build(family), share=share) > 1e-2
    assert told() == []


@pytest.mark.parametrize(("precision", "bound"), [(None, 2e-5), (float64_profiles(), 1e-11)])
def test_an_adapter_on_the_head_is_overridden(precision, bound):
    model = adapted("llama", target_modules=["q_proj", "lm_head"])
    name = next(n for n, _ in model.named_parameters() if "lm_head.lora_B" in n)
    shifted = -2 * model.get_parameter(name).detach()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_parameter(name).copy_(shifted)
    own, over = scored(model, precision, overrides=[None, {name: shifted}])
    assert distance(over, scored(changed, precision)[0]) < bound
    assert distance(over, own, ["logprobs"]) > 1e-2


def test_an_adapter_put_in_later_is_seen():
    """`get_peft_model` changes the model that the scorer holds, in place."""
    from peft import LoraConfig, get_peft_model

    model = build("llama")
    scorer = TeacherForcingScorer(model)
    before = scorer.score(common_prompts(), POLICY)[0]
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        get_peft_model(model, config).eval()
    after = scorer.score(common_prompts(), POLICY)[0]
    assert distance(after, scored(model)[0]) < 2e-5
    assert distance(after, before, ["logprobs"]) > 1e-2


def test_buffers_that_a_forward_replaces():
    """Phi-3's positions: after a short input the frequencies are the original ones, by identity."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 32,
        "factor": 2.0,
    }
    model = build("llama", rope_parameters=rope)
    assert distance(scored(model)[0], scored(Plain(model))[0]) < 2e-5


# Overrides of the head.


@pytest.mark.parametrize(("precision", "bound"), [(None, 2e-5), (float64_profiles(), 1e-11)])
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", [LLAMA_HEAD]),
        ("llama", [LLAMA_EMBEDDING]),
        ("llama", [LLAMA_HEAD, LLAMA_EMBEDDING, "model.layers.1.mlp.up_proj.weight"]),
        ("llama tied", [LLAMA_EMBEDDING]),
        ("llama tied", [LLAMA_HEAD]),
        ("gpt2", ["transformer.wte.weight"]),
        ("gemma2", [LLAMA_EMBEDDING, "model.norm.weight"]),
    ],
    ids=str,
)
def test_an_override_is_as_good_as_other_weights(family, names, precision, bound):
    model = build(family)
    changed = copy.deepcopy(model)
    override = {}
    for n, name in enumerate(names):
        weight = changed.get_parameter(name)
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            weight.add_(noise, alpha=0.1)
        override[name] = weight.detach().clone()
    own, over = scored(model, precision, overrides=[None, override])
    assert distance(over, scored(changed, precision)[0]) < bound
    assert distance(over, own, ["logprobs"]) > 1e-2
    assert distance(own, scored(model, precision)[0]) == 0


# Models that cannot be taken apart.


class Plain(nn.Module):
    """A module that returns bare logits and has no parts that anyone knows of."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> torch.Tensor:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        return output.logits


class Skipping(transformers.LlamaForCausalLM):
    """A head that looks at the tokens too, and not at hidden states alone."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.skip = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids: Any = None, **arguments: Any) -> CausalLMOutputWithPast:
        hidden = self.model(input_ids=input_ids, **arguments).last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden + self.skip(input_ids)))


def skipping() -> Skipping:
    config = build("llama").config
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Skipping(config).eval()


def counting_from_zero() -> Any:
    """A Llama whose positions count from the start of every call, whatever it is told."""
    model = build("llama")

    def recount(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        ids = kwargs["input_ids"]
        return args, kwargs | {"position_ids": torch.arange(ids.shape[1]).expand(ids.shape)}

    model.model.register_forward_pre_hook(recount, with_kwargs=True)
    return model


def test_a_plain_module_is_used_whole(told):
    inner = build("llama")
    parts = split_model(Plain(inner))
    assert isinstance(parts, WholeModel)
    assert not parts.can_share_prompts
    assert worst_gap(parts, inner, share=False) < 2e-5
    ((level, text),) = told()
    assert level == logging.WARNING
    assert "own logits" in text
    assert "Plain has no backbone" in text


def test_a_head_that_looks_at_tokens_is_used_whole(told):
    model = skipping()
    parts = split_model(model)
    assert isinstance(parts, WholeModel)
    assert worst_gap(parts, model, share=False) < 2e-5
    ((level, text),) = told()
    assert level == logging.WARNING
    assert "log p is off by" in text


def test_the_check_is_what_tells(monkeypatch, told):
    """The twin: with any error allowed, the same model is taken apart and says something else."""
    monkeypatch.setitem(examination._TOLERANCE, torch.float32, math.inf)
    model = skipping()
    parts = split_model(model)
    assert isinstance(parts, BackboneAndHead)
    assert worst_gap(parts, model, share=False) > 1e-1
    assert told() == []


def test_a_model_that_forgets_its_positions_shares_no_prompts(told):
    model = counting_from_zero()
    parts = split_model(model)
    assert isinstance(parts, BackboneAndHead)
    assert not parts.can_share_prompts
    assert worst_gap(parts, model, share=False) < 2e-5
    assert worst_gap(parts, model, share=True) > 1e-2
    ((level, text),) = told()
    assert level == logging.WARNING
    assert "without shared prompts" in text


@pytest.mark.parametrize(("precision", "bound"), [(None, 2e-5), (float64_profiles(), 1e-11)])
def test_a_plain_module_scores_like_the_model_inside(precision, bound, told):
    inner = build("llama")
    own = scored(inner, precision)[0]
    assert told() == []
    assert distance(scored(Plain(inner), precision)[0], own) < bound
    assert len(told()) == 1  # for the scorer's whole life, not for each batch
    graphed = TeacherForcingScorer(Plain(inner), precision=precision).score_with_grad(
        common_prompts(), POLICY, batch_size=4
    )
    assert distance(graphed, own) < bound
    assert distance(scored(Plain(build("llama", seed=1)), precision)[0], own, ["logprobs"]) > 1e-2


@pytest.mark.parametrize("make", [skipping, counting_from_zero])
@pytest.mark.parametrize(("precision", "bound"), [(None, 2e-5), (float64_profiles(), 1e-11)])
def test_what_is_not_taken_apart_scores_the_same(make, precision, bound, told):
    """Against the same model wrapped in a module without parts."""
    model = make()
    found = scored(model, precision)[0]
    assert len(told()) == 1
    assert distance(found, scored(Plain(model), precision)[0]) < bound


def test_overrides_of_a_model_used_whole():
    model = skipping()
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.skip.weight.mul_(2)
    override = {"skip.weight": changed.skip.weight.detach().clone()}
    own, over = scored(model, overrides=[None, override])
    assert distance(over, scored(changed)[0]) < 2e-5
    assert distance(over, own, ["logprobs"]) > 1e-2


def test_weights_that_are_not_numbers_fail_the_check(told):
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    assert isinstance(split_model(model), WholeModel)
    assert len(told()) == 1


def test_running_out_of_memory_is_not_taken_for_a_model_that_has_no_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = build("llama")
    monkeypatch.setattr(model.model, "forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        split_model(model)


def test_the_old_name_tells_of_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="take_apart is now split_model"):
        assert scorers.take_apart is split_model


def test_a_cache_by_either_name_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 calls it `cache`, earlier ones `past_key_values`."""
    model = build("llama")
    inner = model.model.forward
    takes_cache = "cache" in inspect.signature(inner).parameters
    old, new = ("cache", "past_key_values") if takes_cache else ("past_key_values", "cache")

    def renamed(self: nn.Module, **arguments: Any) -> Any:
        if arguments.pop(old, None) is not None:
            raise TypeError(f"unexpected keyword argument {old!r}")
        if new in arguments:
            arguments[old] = arguments.pop(new)
        return inner(**arguments)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("input_ids", new)
    ]
    monkeypatch.setattr(type(model.model), "forward", renamed)
    renamed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *parameters]
    )
    assert split_model(model).can_share_prompts
