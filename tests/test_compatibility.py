"""Probes written for the upstream module run with another import and nothing else."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch

from seqproc import GenerationConfig, SequenceProcessor
from seqproc.config import PrecisionConfig
from seqproc.engines.scripted import ScriptedEngine
from seqproc.errors import ConfigError, SeqprocError
from seqproc.prompts import PromptEntry
from seqproc.types import BatchedSequences

RIGHT, WRONG, BARE = "<answer>5</answer>", "<answer>6</answer>", "it is 5"
ENTRIES = [
    PromptEntry(text="2 + 3?", question="2 + 3?", answer="5", meta={"global_prompt_id": 17}),
    PromptEntry(text="7 - 1?", question="7 - 1?", answer="6", meta={"global_prompt_id": 4}),
]
PROMPTS = [entry.text for entry in ENTRIES]


@pytest.fixture
def make(tiny_llama: Any, tiny_tokenizer: Any) -> Any:
    """`make(**options)`: a processor whose engine answers right, wrong and without a tag."""

    def build(**options: Any) -> SequenceProcessor:
        texts = (RIGHT, WRONG, BARE + "<eos>")
        script = [tiny_tokenizer(text)["input_ids"] for text in texts]
        engine = ScriptedEngine(lambda request: script[request.index % 3], tiny_tokenizer)
        given: dict[str, Any] = {
            "config": {"generation": {"max_new_tokens": 40}},
            "engine": engine,
        } | options
        return SequenceProcessor(tiny_llama(), tiny_tokenizer, **given)

    return build


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.WARNING, logger="seqproc")
    return lambda: [r.getMessage() for r in caplog.records]


# Examples and rewards.


def test_examples_set_before_sampling_are_rewarded(make):
    processor = make()
    processor._temp_examples = ENTRIES
    sequences, results, _ = processor.generate_with_logprobs(PROMPTS, G=3, seed=0)
    assert results.rewards == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.0]]
    assert processor._compute_rewards(PROMPTS, sequences) == results.rewards
    assert processor._temp_examples is ENTRIES
    processor._temp_examples = None
    assert not np.any(processor.generate_with_logprobs(PROMPTS, G=3, seed=0)[1].rewards)


def test_examples_of_a_call_come_first(make):
    processor = make()
    processor.default_examples = ENTRIES[::-1]
    results = processor.generate_with_logprobs(PROMPTS, G=3, seed=0, examples=ENTRIES)[1]
    assert results.rewards[0] == [1.0, 0.5, 0.0]


def test_examples_of_other_prompts_are_refused(make):
    processor = make()
    processor._temp_examples = ENTRIES
    with pytest.raises(SeqprocError, match=r"one entry per prompt \(1\), got 2"):
        processor.generate_with_logprobs(PROMPTS[:1], G=3)


@pytest.mark.parametrize("weights", [(0.0, 1.0), [0, 1], {"answer": 1.0, "tag": 0.0}])
def test_the_upstream_weights(make, weights):
    processor = make(config={"generation": {"max_new_tokens": 40, "reward_weights": weights}})
    results = processor.generate_with_logprobs(PROMPTS, G=3, seed=0, examples=ENTRIES)[1]
    assert results.rewards == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert results.provenance.reward == {"name": "tag_pref", "tag": 0.0, "answer": 1.0}
    processor.config.reward_weights = (0.25, 2)
    assert processor.compute_rewards(processor.generate_batched(PROMPTS, G=3, seed=0), ENTRIES) == [
        [2.25, 0.25, 0.0],
        [0.25, 2.25, 0.0],
    ]


@pytest.mark.parametrize(
    "weights", [0.5, "01", (1.0,), (1.0, float("nan")), ("a", "b"), {"tag": 1.0}]
)
def test_other_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="reward_weights"):
        GenerationConfig(reward_weights=weights)


def length(texts: Any, entry: PromptEntry) -> list[int]:
    return [len(text) + entry.meta["global_prompt_id"] for text in texts]


def test_a_reward_of_ones_own(make):
    """The entry it gets is the user's own, with all that a dataset says of a prompt."""
    results = make(reward=length).generate_with_logprobs(PROMPTS, G=3, seed=0, examples=ENTRIES)[1]
    lengths = [len(text) for text in (RIGHT, WRONG, BARE)]
    assert results.rewards == [[n + 17 for n in lengths], [n + 4 for n in lengths]]
    assert results.provenance.reward == {"name": f"{__name__}.length"}


@pytest.mark.parametrize(
    "bad", [[1.0], [1.0, 2.0, float("nan")], [1.0, 2.0, "x"], None, 3, [[1], [2], [3]]]
)
def test_a_reward_that_gives_something_else_is_an_error(make, bad):
    processor = make(reward=lambda texts, entry: bad)
    with pytest.raises(ConfigError, match=r"the reward '<lambda>' must return"):
        processor.generate_with_logprobs(PROMPTS, G=3, examples=ENTRIES)


def test_a_reward_without_entries(make):
    processor = make(reward=lambda texts, entry: [0.0 if entry is None else 1.0] * len(texts))
    assert not np.any(processor.generate_with_logprobs(PROMPTS, G=3)[1].rewards)


@pytest.mark.parametrize("reward", [3, "tag_pref", {"tag": 0.0}])
def test_what_is_no_reward(make, reward):
    with pytest.raises(ConfigError, match="reward must be a function"):
        make(reward=reward)


# Precision.


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("fp32", "float32"),
        ("fp64", "float64"),
        ("bf16", "bfloat16"),
        ("FP16", "float16"),
        ("half", "float16"),
        ("double", "float64"),
        ("float", "float32"),
        ("torch.float64", "float64"),
        (torch.bfloat16, "bfloat16"),
    ],
)
def test_other_names_of_dtypes(make, name, canonical):
    processor = make(config={"precision": {"tf_nograd": {"dtype": name}}})
    assert processor._tf_cfg["dtype"] == canonical
    processor._fo_cfg.update({"dtype": name})
    assert processor._fo_cfg.dtype == canonical


def test_a_dtype_that_there_is_not(make):
    with pytest.raises(ConfigError, match="dtype"):
        make(config={"precision": {"tf_nograd": {"dtype": "fp8"}}})


def test_profile_keys_without_effect_are_told_of(make, told):
    section = {"func_override": {"cast_buffers": False, "dtype": "fp64"}}
    processor = make(config={"precision": section})
    processor._fo_cfg.update(cast_buffers=True, fallback_on_nan=True, cast_params=False)
    processor._fo_cfg["fallback_on_nan"] = False
    assert processor._fo_cfg.dtype == "float64"
    assert processor._fo_cfg.cast_params is False
    assert [line.split(":")[0] for line in told()] == [
        "func_override.cast_buffers has no effect",
        "func_override.cast_buffers has no effect",
        "func_override.fallback_on_nan has no effect",
        "func_override.fallback_on_nan has no effect",
    ]
    with pytest.raises(ConfigError, match="unknown key 'cast_bufers'"):
        processor._fo_cfg.update(cast_bufers=True)
    with pytest.raises(ConfigError, match="unknown key 'cast_buffers'"):
        processor._tf_cfg.update(cast_buffers=True)


def test_entropies_in_float64_by_the_upstream_name(make):
    processor = make()
    assert processor._entropy_fp64 is False
    processor._entropy_fp64 = True
    assert processor.precision.entropy_fp64
    sequences = processor.generate_batched(PROMPTS, G=1, seed=0)
    results = processor.teacher_force_logprobs(sequences, compute_rb=True)
    assert results.rb_entropies[0][0].dtype == np.float64


def test_a_precision_that_is_replaced_is_used(make):
    processor = make()
    sequences = processor.generate_batched(PROMPTS, G=1, seed=0)
    assert processor.teacher_force_logprobs(sequences).logprobs[0][0].dtype == torch.float32
    processor.precision = PrecisionConfig(entropy_fp64=True)
    assert processor.teacher_force_logprobs(sequences).logprobs[0][0].dtype == torch.float64
    with pytest.raises(ConfigError, match="must be a PrecisionConfig, got dict"):
        processor.precision = {"entropy_fp64": True}


def test_a_configuration_in_the_loggers_place_is_told_of(tiny_llama, tiny_tokenizer):
    configs: tuple[Any, ...] = ({"generation": {}}, GenerationConfig(), "config.toml")
    for config in configs:
        with pytest.raises(ConfigError, match=r"logger must be a logging.Logger.*config="):
            SequenceProcessor(tiny_llama(), tiny_tokenizer, config)


# Attributes.


def test_an_attribute_that_nothing_reads_is_an_error(make):
    processor = make()
    for name, hint in (("_temp_example", "_temp_examples"), ("precission", "precision")):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; did you mean '{hint}'"):
            setattr(processor, name, 1)
    with pytest.raises(SeqprocError, match=r"no attribute 'zzz'$"):
        processor.zzz = 1


def test_a_subclass_has_attributes_of_its_own(tiny_llama, tiny_tokenizer):
    class Probe(SequenceProcessor):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.seen = 0

    assert Probe(tiny_llama(), tiny_tokenizer).seen == 0


# Whole probes, as they are written for the upstream module.


@pytest.fixture
def probe(make: Any) -> tuple[SequenceProcessor, BatchedSequences, dict[str, torch.Tensor]]:
    processor = make(config={"generation": {"temperature": 0.9, "rb_requires_grad": True}})
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 300, (2, 3, 12), generator=drawn)
    mask = torch.ones_like(ids)
    sequences = BatchedSequences(
        sequences=ids,
        prompt_lens=[5, 5],
        gen_lens=[[7, 7, 7], [7, 7, 7]],
        attention_masks=mask,
        responses_text=[],
    )
    v = {n: torch.randn(p.shape, generator=drawn) for n, p in processor.model.named_parameters()}
    return processor, sequences, v


def entropy_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Σ H of seven tokens, in float64 by brute force."""
    q = (model(input_ids=ids[None]).logits[0, 4:-1].double() / 0.9).log_softmax(-1)
    return -(q.exp() * q).sum()


def test_a_true_change_of_entropy(probe):
    processor, sequences, v = probe
    base = processor._build_params_override(None, 0.0)
    state = processor._build_state_override(None, 0.0, include_buffers=True)
    moved = processor._build_params_override(v_named=v, eta=1e-3)
    entropies = [
        sum(
            float(np.sum(h))
            for row in processor.teacher_force_logprobs(
                sequences, with_grad=False, compute_rb=True, params_override=mapping
            ).rb_entropies
            for h in row
        )
        for mapping in (base, moved, {n: state[n] for n in base})
    ]
    shifted = copy.deepcopy(processor.model)
    with torch.no_grad():
        for name, p in shifted.named_parameters():
            p.add_(v[name], alpha=1e-3)
        rows = sequences.sequences.flatten(0, 1)
        own, other = (
            sum(float(entropy_of(m, ids)) for ids in rows) for m in (processor.model, shifted)
        )
    assert entropies[0] == entropies[2] == pytest.approx(own, abs=1e-4)
    assert entropies[1] - entropies[0] == pytest.approx(other - own, abs=2e-4)
    assert abs(other - own) > 1e-2


def test_a_first_order_change_of_entropy(probe):
    processor, sequences, v = probe
    results = processor.teacher_force_logprobs(sequences, with_grad=True, compute_rb=True)
    total = sum(h.sum() for row in results.rb_entropies_torch for h in row)
    params = dict(processor._mdl_target.named_parameters())
    grads = torch.autograd.grad(total, list(params.values()))
    slope = sum(float((g * v[n]).sum()) for n, g in zip(params, grads, strict=True))
    entropies = [entropy_of(processor.model, ids) for ids in sequences.sequences.flatten(0, 1)]
    own = torch.stack(entropies).sum()
    exact = torch.autograd.grad(own, list(params.values()))
    assert slope == pytest.approx(
        sum(float((g * v[n]).sum()) for n, g in zip(params, exact, strict=True)), rel=1e-3
    )


def test_a_fisher_kernel_by_rows(probe):
    processor, sequences, _ = probe
    results = processor.teacher_force_logprobs(sequences, with_grad=True, tf_batch_size=1)
    params = list(processor._mdl_target.parameters())
    rows = []
    for row in results.logprobs:
        for logprobs in row:
            grads = torch.autograd.grad(logprobs.sum(), params)
            rows.append(torch.cat([g.flatten() for g in grads]).double())
    kernel = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(
        processor.gradient_gram(sequences, "logprob"), kernel, rtol=1e-4, atol=1e-3
    )
