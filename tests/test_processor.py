"""The processor: what it joins, what it refuses, and what it leaves alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from seqproc import GenerationConfig, SequenceProcessor
from seqproc.engines.scripted import ScriptedEngine
from seqproc.errors import (
    ConfigError,
    DatasetError,
    EngineError,
    ModelError,
    OverrideError,
    PromptError,
    SequenceError,
)
from seqproc.prompts import PromptEntry, draw_seed
from seqproc.types import BatchedSequences

PROMPTS = ["What is 2 + 3?", "The answer is 72, because", "How many clips?"]
SMALL = {"generation": {"max_new_tokens": 6, "gen_batch_size": 4, "tf_batch_size": 3}}


@pytest.fixture
def processor(tiny_llama: Any, tiny_tokenizer: Any) -> SequenceProcessor:
    return SequenceProcessor(tiny_llama(), tiny_tokenizer, config=SMALL)


def test_generation_has_the_shapes_of_the_specification(processor: SequenceProcessor) -> None:
    batch = processor.generate_batched(PROMPTS, G=2, seed=5)
    assert batch.sequences.shape[:2] == (3, 2)
    assert batch.prompt_lens == [batch.prompt_lens[0]] * 3
    for b, prompt in enumerate(PROMPTS):
        ids = processor.tokenizer(prompt)["input_ids"]
        assert batch.prompt_ids(b).tolist() == ids
        for g in range(2):
            assert 1 <= batch.gen_lens[b][g] <= 6
            assert batch.seeds is not None
            assert batch.seeds[b][g] == draw_seed(5, 2 * b + g)
    assert batch.provenance is not None
    assert batch.provenance.policy == processor.policy
    assert batch.provenance.engine["name"] == "hf"


def test_same_seed_same_tokens_and_other_seed_other_tokens(processor: SequenceProcessor) -> None:
    first = processor.generate_batched(PROMPTS, G=2, seed=5)
    again = processor.generate_batched(PROMPTS, G=2, seed=5, gen_batch_size=1)
    other = processor.generate_batched(PROMPTS, G=2, seed=6)
    assert first.responses_text == again.responses_text
    assert first.responses_text != other.responses_text


def test_without_a_seed_every_call_differs_and_says_which_seeds_it_used(
    processor: SequenceProcessor,
) -> None:
    assert (
        processor.generate_batched(PROMPTS, G=1).seeds
        != processor.generate_batched(PROMPTS, G=1).seeds
    )


def test_engine_logq_is_the_scorers(processor: SequenceProcessor) -> None:
    processor.config.temperature, processor.config.top_p = 0.8, 0.9
    batch = processor.generate_batched(PROMPTS, G=3, seed=1)
    results = processor.teacher_force_logprobs(batch)
    assert results.engine_logqs is not None
    assert results.token_logqs is not None
    for b in range(3):
        for g in range(3):
            engine, scorer = results.engine_logqs[b][g], results.token_logqs[b][g]
            assert engine is not None
            assert float((engine - scorer).abs().max()) < 1e-4


def test_end_to_end_rewards_need_gold_answers(
    processor: SequenceProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    script = list("<answer>5</answer>")
    ids = [processor.tokenizer(c, add_special_tokens=False)["input_ids"] for c in script]
    spelled = [i for part in ids for i in part]
    engine = ScriptedEngine(lambda _request: spelled, processor.tokenizer)
    engine_processor = SequenceProcessor(
        processor.model,
        processor.tokenizer,
        config={"generation": {"max_new_tokens": 64}},
        engine=engine,
    )
    entries = [
        PromptEntry(text=p, question=p, answer=a)
        for p, a in zip(PROMPTS, ["5", "6", None], strict=True)
    ]
    batch, results, diagnostics = engine_processor.generate_with_logprobs(
        prompts=PROMPTS, G=2, examples=entries, compute_rb=True
    )
    assert batch.finish_reasons == [["stop"] * 2] * 3
    assert results.rewards == [[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]
    assert "1 of 3 prompts have no gold answer" in caplog.text
    assert len(diagnostics.diagnostics) == 3
    untold = dataclasses.replace(batch, responses_text=[])
    assert engine_processor.compute_rewards(untold, entries) == results.rewards
    no_examples = engine_processor.compute_rewards(batch, None)
    assert no_examples == [[0.0] * 2] * 3
    with pytest.raises(SequenceError, match="one entry per prompt"):
        engine_processor.compute_rewards(batch, entries[:2])


def test_dataset_prompts_are_sampled_by_seed(processor: SequenceProcessor) -> None:
    texts, entries = processor.sample_prompts("arithmetic", "train", 5, seed=3)
    assert texts == [entry.text for entry in entries]
    assert texts == processor.sample_prompts("arithmetic", "train", 5, seed=3)[0]
    assert texts != processor.sample_prompts("arithmetic", "train", 5, seed=4)[0]


def test_draws_are_a_prefix_of_a_longer_run(processor: SequenceProcessor) -> None:
    short = processor.generate_with_replacement_sampling(4, "arithmetic", seed=9)[0]
    long = processor.generate_with_replacement_sampling(7, "arithmetic", seed=9)[0]
    assert long.responses_text[:4] == short.responses_text
    assert long.seeds is not None
    assert long.seeds[:4] == short.seeds


def test_a_list_of_overrides_gives_a_list_of_results(processor: SequenceProcessor) -> None:
    batch = processor.generate_batched(PROMPTS, G=1, seed=0)
    v = {name: torch.ones_like(p) for name, p in processor.model.named_parameters()}
    mappings = [processor.build_params_override(v, eta) for eta in (0.0, 0.01)]
    many = processor.teacher_force_logprobs(batch, params_override=mappings, compute_rb=True)
    assert isinstance(many, list)
    for mapping, (results, diagnostics) in zip(mappings, many, strict=True):
        alone = processor.teacher_force_logprobs(batch, params_override=mapping, compute_rb=True)
        assert alone.sequence_logprobs == results.sequence_logprobs
        assert len(diagnostics.diagnostics) == 3
    plain = processor.teacher_force_logprobs(batch)
    assert plain.sequence_logprobs == many[0][0].sequence_logprobs
    assert plain.sequence_logprobs != many[1][0].sequence_logprobs


def test_optional_parts_come_only_when_asked_for(processor: SequenceProcessor) -> None:
    batch = processor.generate_batched(PROMPTS, G=1, seed=0)
    bare = processor.teacher_force_logprobs(batch)
    assert bare.rb_entropies[0][0].size == 0
    assert bare.rb_entropies_torch is None
    assert bare.baseline_feats_torch is None
    full = processor.teacher_force_logprobs(batch, compute_rb=True, return_baseline_features=True)
    assert full.rb_entropies[0][0].size == batch.gen_lens[0][0]
    assert full.baseline_feats_torch is not None
    assert full.baseline_feats_torch[0][0].shape == (batch.gen_lens[0][0], 7)
    processor.config.rb_requires_grad = True
    graph = processor.teacher_force_logprobs(batch, with_grad=True, compute_rb=True)
    assert graph.rb_entropies_torch is not None
    assert graph.rb_entropies_torch[0][0].requires_grad
    assert graph.logprobs[0][0].requires_grad
    assert np.allclose(graph.rb_entropies[0][0], full.rb_entropies[0][0], atol=1e-6)


def test_underscore_names_are_aliases(processor: SequenceProcessor) -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([0, 1, 2, 3])
    assert processor._rb_entropies_top_p(logits, 0.9, 0.7).shape == (4,)
    assert processor._compute_logq_top_p(logits, tokens, 0.9, 0.7).shape == (4,)
    assert processor._mdl_target is processor.model
    assert processor._unwrap(torch.nn.DataParallel(processor.model)) is processor.model
    zero = processor._params_zero
    own = dict(processor.model.named_parameters())
    assert {n: t.data_ptr() for n, t in zero.items()} == {n: p.data_ptr() for n, p in own.items()}
    ids = torch.tensor([[5, 6, 7]])
    out = processor._fc_logits_noautocast(ids, torch.ones_like(ids), zero)
    with torch.no_grad():
        expected = processor.model(ids).logits
    assert torch.allclose(out, expected, atol=1e-6)
    state = processor._build_state_override({}, 0.0, param_dtype=None, include_buffers=True)
    assert set(own) < set(state)
    processor._tf_cfg["dtype"] = "float64"
    assert processor._fo_cfg["dtype"] == "float32"
    batch = processor.generate_batched(PROMPTS, G=1, seed=0)
    assert processor.teacher_force_logprobs(batch).logprobs[0][0].dtype == torch.float64
    assert processor._compute_rewards(PROMPTS, batch) == [[0.0]] * 3


def test_configuration_may_be_replaced_by_a_config_but_not_by_a_dict(
    processor: SequenceProcessor,
) -> None:
    processor.config = GenerationConfig(max_new_tokens=2)
    assert max(max(row) for row in processor.generate_batched(PROMPTS, G=1).gen_lens) <= 2
    with pytest.raises(ConfigError, match="must be a GenerationConfig"):
        processor.config = {"max_new_tokens": 2}  # type: ignore[assignment]


Call = Callable[[SequenceProcessor], Any]
BAD_CALLS: dict[str, tuple[Call, type[Exception], str]] = {
    "no prompts": (lambda sp: sp.generate_batched([], G=1), PromptError, "prompts is empty"),
    "empty prompt": (lambda sp: sp.generate_batched(["a", ""]), PromptError, "prompt 1 is empty"),
    "prompt of another type": (
        lambda sp: sp.generate_batched(["a", 3]),  # type: ignore[list-item]
        PromptError,
        "prompt 1 must be a string, got int",
    ),
    "one string for a list": (lambda sp: sp.generate_batched("abc"), PromptError, "list of str"),
    "prompt too long": (
        lambda sp: sp.generate_batched(["short", "word " * 600]),
        PromptError,
        r"1 of 2 prompts do not fit: prompt 1 .* 512 tokens",
    ),
    "G of zero": (lambda sp: sp.generate_batched(["a"], G=0), ConfigError, "G must be an integer"),
    "G of True": (lambda sp: sp.generate_batched(["a"], G=True), ConfigError, "G must be an"),
    "no draws": (
        lambda sp: sp.generate_with_replacement_sampling(0, "arithmetic"),
        ConfigError,
        "total_sequences must be an integer >= 1",
    ),
    "unknown dataset": (
        lambda sp: sp.sample_prompts("arithmetics"),
        DatasetError,
        "arithmetic",
    ),
    "unknown split": (lambda sp: sp.sample_prompts("arithmetic", "dev"), DatasetError, "train"),
    "more prompts than the pool": (
        lambda sp: sp.sample_prompts("arithmetic", "test", 10_000, seed=0),
        DatasetError,
        "10000 prompts",
    ),
    "prompts and dataset": (
        lambda sp: sp.generate_with_logprobs(prompts=["a"], dataset_name="arithmetic"),
        ConfigError,
        "either prompts or dataset_name",
    ),
    "neither": (lambda sp: sp.generate_with_logprobs(), ConfigError, "either prompts or"),
    "unknown keyword": (
        lambda sp: sp.generate_with_replacement_sampling(1, "arithmetic", compute_br=True),
        ConfigError,
        "compute_br",
    ),
    "not sequences": (
        lambda sp: sp.teacher_force_logprobs(cast("Any", [1])),
        SequenceError,
        "got list",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused_and_teach(processor: SequenceProcessor, name: str) -> None:
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call(processor)


def test_scoring_refuses_overrides_with_gradients_and_foreign_ids(
    processor: SequenceProcessor,
) -> None:
    batch = processor.generate_batched(PROMPTS, G=1, seed=0)
    with pytest.raises(OverrideError, match="live module"):
        processor.teacher_force_logprobs(
            batch, with_grad=True, params_override=processor._params_zero
        )
    with pytest.raises(ConfigError, match="tf_batch_size"):
        processor.teacher_force_logprobs(batch, tf_batch_size=0)
    foreign = copy.copy(batch)
    foreign.sequences = batch.sequences.clone()
    foreign.sequences[0, 0, -1] = 10**6
    foreign.attention_masks = torch.ones_like(batch.attention_masks)
    with pytest.raises(SequenceError, match="another tokenizer"):
        processor.teacher_force_logprobs(foreign)


def test_unknown_engine_and_unfit_tokenizers(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(EngineError, match="hf"):
        SequenceProcessor(tiny_llama(), tiny_tokenizer, engine="vlm").generate_batched(["a"], G=1)
    without_eos = copy.deepcopy(tiny_tokenizer)
    without_eos.eos_token = None
    with pytest.raises(ModelError, match=r"(?i)eos"):
        SequenceProcessor(tiny_llama(), without_eos)
    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens([f"<extra{i}>" for i in range(50)])
    with pytest.raises(ModelError, match=r"(?i)vocabular"):
        SequenceProcessor(tiny_llama(), larger)


def test_zero_length_responses_are_scored_as_empty(processor: SequenceProcessor) -> None:
    batch = BatchedSequences(
        sequences=torch.tensor([[[5, 6, 7, 8]], [[5, 6, 0, 0]]]),
        prompt_lens=[2, 2],
        gen_lens=[[2], [0]],
        attention_masks=torch.tensor([[[1, 1, 1, 1]], [[1, 1, 0, 0]]]),
        responses_text=[["x"], [""]],
    )
    results, diagnostics = processor.teacher_force_logprobs_with_diagnostics(batch, compute_rb=True)
    assert len(results.logprobs[1][0]) == 0
    assert results.sequence_logprobs[1][0] == 0.0
    assert diagnostics.diagnostics[1][0].seq.T == 0
    assert len(results.logprobs[0][0]) == 2


def test_model_and_generator_are_left_as_they_were(processor: SequenceProcessor) -> None:
    model = processor.model.train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    batch = processor.generate_batched(PROMPTS, G=1, seed=0)
    processor.teacher_force_logprobs(batch)
    assert model.training
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_from_pretrained_loads_the_model_only_to_score(
    tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Any
) -> None:
    tiny_llama().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    eos = tiny_tokenizer.eos_token_id
    engine = ScriptedEngine(lambda _request: [5, 6, eos], tiny_tokenizer)
    with SequenceProcessor.from_pretrained(str(tmp_path), engine=engine, config=SMALL) as sp:
        batch = sp.generate_batched(PROMPTS, G=1)
        assert not sp.source.is_loaded
        results = sp.teacher_force_logprobs(batch)
        assert sp.source.is_loaded
    direct = SequenceProcessor(tiny_llama(), tiny_tokenizer, config=SMALL)
    assert direct.teacher_force_logprobs(batch).sequence_logprobs == results.sequence_logprobs


# Gradients per sequence.


def test_gradients_per_sequence(tiny_llama, tiny_tokenizer):
    processor = SequenceProcessor(tiny_llama(), tiny_tokenizer)
    sequences = processor.generate_batched(["2 + 3?", "48 + 24"], G=3, seed=1)
    v = {name: torch.randn_like(p) for name, p in processor.model.named_parameters()}
    gradients = list(processor.per_sequence_grads(sequences, "logq"))
    rows = torch.stack([torch.cat([g.flatten() for g in one.values()]) for one in gradients])
    along = rows.double() @ torch.cat([x.flatten() for x in v.values()]).double()

    found = processor.per_sequence_grads(sequences, "logq", project=v)
    assert found.shape == (2, 3)
    torch.testing.assert_close(found.flatten(), along, rtol=1e-4, atol=1e-3)
    several = processor.per_sequence_grads(sequences, "logq", project=[v, v])
    assert several.shape == (2, 3, 2)
    torch.testing.assert_close(several[..., 1], found, rtol=1e-4, atol=1e-3)

    kernel = processor.gradient_gram(sequences, "logq")
    torch.testing.assert_close(kernel, (rows @ rows.T).double(), rtol=1e-4, atol=1e-3)
    weights = torch.arange(6.0).view(2, 3)
    total = processor.weighted_grad(sequences, weights, "logq")
    flat = torch.cat([g.flatten() for g in total.values()])
    torch.testing.assert_close(flat, weights.flatten() @ rows, rtol=1e-3, atol=1e-4)
    with pytest.raises(SequenceError, match=r"weights must be \[2, 3\], like sequences, got \[6\]"):
        processor.weighted_grad(sequences, weights.flatten())
