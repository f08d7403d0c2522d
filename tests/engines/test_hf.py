"""The Hugging Face engine: the policy's distribution exactly, whatever model and batch it has.

Statistical tests are deterministic (fixed seeds) with thresholds of a false-alarm rate of 1e-6,
and each has a twin which shows that it can fail.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from seqproc.engines import HFEngine, ModelSource, Request, StoppingRule, gumbel_noise
from seqproc.engines.hf import PolicySampler
from seqproc.errors import ConfigError, EngineError
from seqproc.policy import SamplingPolicy, log_q, token_log_q

Make = Callable[..., Any]
ALARM = 1e-6
POLICY = SamplingPolicy(temperature=0.8, top_p=0.9)
GREEDY = SamplingPolicy(do_sample=False)
PROMPTS = [(40, 41, 42), (50,), (60, 61, 62, 63, 64, 65, 66), (70, 71), (44, 45, 46, 47)]


def requests(count: int, seed: int = 0) -> list[Request]:
    return [
        Request(index=i, prompt_ids=PROMPTS[i % len(PROMPTS)], seed=seed + i) for i in range(count)
    ]


def rule(limit: int = 12, *stop: str, eos: tuple[int, ...] = (0,)) -> StoppingRule:
    return StoppingRule(max_new_tokens=limit, eos_token_ids=eos, stop=stop)


def tokens(engine: HFEngine, asked: list[Request], policy: SamplingPolicy, stopping: Any) -> Any:
    return {c.index: c.token_ids for c in engine.generate(asked, policy, stopping)}


def forward(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Logits ``[len(ids), V]`` of one sequence on its own."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


# ---------------------------------------------------------------- the distribution


def chi_square_p(drawn: torch.Tensor, q: torch.Tensor) -> float:
    """Goodness of fit of token frequencies, with cells of small expectation pooled."""
    counts = torch.bincount(drawn, minlength=len(q)).double().numpy()
    expected = q.numpy() * len(drawn)
    if counts[expected == 0].any():  # outside the support
        return 0.0
    large = expected >= 5
    observed, wanted = counts[large], expected[large]
    if expected[~large].sum() >= 5:
        observed = np.append(observed, counts[~large].sum())
        wanted = np.append(wanted, expected[~large].sum())
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


def drawn_by_sampler(logits: torch.Tensor, policy: SamplingPolicy, count: int) -> torch.Tensor:
    sampler = PolicySampler(policy, list(range(count)))
    keys = sampler(torch.zeros(count, 1, dtype=torch.int64), logits.expand(count, -1))
    return keys.argmax(-1)


POLICIES = [SamplingPolicy(), POLICY, SamplingPolicy(temperature=1.7, top_p=0.5)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_sampler_draws_from_the_policy(policy: SamplingPolicy, tiny_llama: Make) -> None:
    logits = forward(tiny_llama(), PROMPTS[0])[-1]
    q = log_q(logits.double(), policy).exp()
    drawn = drawn_by_sampler(logits, policy, 20_000)
    assert chi_square_p(drawn, q) > ALARM


@pytest.mark.parametrize(
    "wrong",
    [
        SamplingPolicy(temperature=0.8),
        SamplingPolicy(temperature=0.9, top_p=0.9),
        SamplingPolicy(temperature=0.8, top_p=0.85),
    ],
    ids=str,
)
def test_the_chi_square_test_sees_a_wrong_policy(wrong: SamplingPolicy, tiny_llama: Make) -> None:
    logits = forward(tiny_llama(), PROMPTS[0])[-1]
    drawn = drawn_by_sampler(logits, wrong, 20_000)
    assert chi_square_p(drawn, log_q(logits.double(), POLICY).exp()) < ALARM


def test_first_tokens_of_the_engine_follow_the_policy(
    tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    model = tiny_llama()
    engine = HFEngine(model, tiny_tokenizer, batch_size=500)
    asked = [Request(index=i, prompt_ids=PROMPTS[2], seed=i) for i in range(4000)]
    drawn = tokens(engine, asked, POLICY, rule(1))
    logits = forward(model, PROMPTS[2])[-1].double()
    first = torch.tensor([ids[0] for ids in drawn.values()])
    assert chi_square_p(first, log_q(logits, POLICY).exp()) > ALARM


def test_every_token_is_the_argmax_of_log_q_and_the_noise_of_its_seed_and_step(
    tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    model = tiny_llama()
    engine = HFEngine(model, tiny_tokenizer, batch_size=4)
    for request in requests(10, seed=2**64 - 20):
        (completion,) = engine.generate([request], POLICY, rule())
        logits = forward(model, request.prompt_ids + completion.token_ids).double()
        start = len(request.prompt_ids) - 1
        for step, token in enumerate(completion.token_ids):
            keys = log_q(logits[start + step], POLICY)
            keys = keys + gumbel_noise(request.seed, step, len(keys))
            assert int(keys.argmax()) == token


# ---------------------------------------------------------------- log q and precision


@pytest.mark.parametrize("policy", [*POLICIES, GREEDY], ids=str)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_gpt2"])
def test_log_q_is_that_of_the_raw_logits_in_a_padded_batch(
    family: str, policy: SamplingPolicy, tiny_tokenizer: Any, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(family)()
    asked = requests(5)
    found = list(HFEngine(model, tiny_tokenizer).generate(asked, policy, rule()))
    for completion in found:
        prompt = asked[completion.index].prompt_ids
        logits = forward(model, prompt + completion.token_ids)[len(prompt) - 1 : -1]
        own = token_log_q(logits.double(), torch.tensor(completion.token_ids), policy)
        np.testing.assert_allclose(completion.logqs, own.numpy(), atol=2e-5)


def test_the_sampler_gets_a_float32_copy_of_the_raw_logits(
    tiny_llama: Make, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    call = PolicySampler.__call__

    def spy(self: PolicySampler, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores.clone())
        return call(self, ids, scores)

    monkeypatch.setattr(PolicySampler, "__call__", spy)
    model = tiny_llama(dtype="bfloat16").bfloat16()
    list(HFEngine(model, tiny_tokenizer).generate(requests(1), POLICY, rule(1)))
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0][0], forward(model, PROMPTS[0])[-1].float())


# ---------------------------------------------------------------- batches


def test_draws_do_not_depend_on_batch_size_or_order(tiny_gpt2: Make, tiny_tokenizer: Any) -> None:
    # GPT-2 has absolute positions: left padding would show if they were not corrected.
    model = tiny_gpt2()
    asked = requests(20)
    alone = tokens(HFEngine(model, tiny_tokenizer, batch_size=1), asked, POLICY, rule())
    for size in (3, 20):
        engine = HFEngine(model, tiny_tokenizer, batch_size=size)
        assert tokens(engine, asked, POLICY, rule()) == alone
        assert tokens(engine, asked[::-1], POLICY, rule()) == alone


def test_eos_and_pad_tokens_in_a_prompt_are_read(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    model = tiny_llama()
    engine = HFEngine(model, tiny_tokenizer)
    prompts = [(0, 0, 40, 0), (1, 1, 41), (40, 41, 42, 43, 44, 45)]
    asked = [Request(index=i, prompt_ids=ids, seed=i) for i, ids in enumerate(prompts)]
    for completion in engine.generate(asked, POLICY, rule(eos=(0, 1))):
        prompt = prompts[completion.index]
        logits = forward(model, prompt + completion.token_ids)[len(prompt) - 1 : -1]
        own = token_log_q(logits.double(), torch.tensor(completion.token_ids), POLICY)
        np.testing.assert_allclose(completion.logqs, own.numpy(), atol=2e-5)


def test_batches_hold_prompts_of_like_length_and_are_taken_few_at_a_time(
    tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    taken = 0

    def stream() -> Iterator[Request]:
        nonlocal taken
        for request in requests(100):
            taken += 1
            yield request

    engine = HFEngine(tiny_llama(), tiny_tokenizer, batch_size=5)
    completions = engine.generate(stream(), POLICY, rule(1))
    first = [next(completions).index for _ in range(5)]
    assert taken == 20
    assert {len(PROMPTS[index % 5]) for index in first} <= {1, 2}


def test_batch_size_is_an_option_and_can_be_set(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    source = ModelSource.from_model(tiny_llama(), tiny_tokenizer)
    engine = HFEngine.from_source(source, batch_size=7)
    assert engine.describe()["options"] == {"batch_size": 7}
    engine.batch_size = 2
    assert len(tokens(engine, requests(5), POLICY, rule(1))) == 5
    with pytest.raises(ConfigError, match="batch_size"):
        HFEngine.from_source(source, batch_size=0)


# ---------------------------------------------------------------- the model's own settings


def hostile(config: Any) -> Any:
    """A generation configuration in which everything that could change a token does."""
    config = copy.deepcopy(config)
    fields = {
        "do_sample": True,
        "temperature": 0.01,
        "top_k": 1,
        "top_p": 0.01,
        "min_p": 0.9,
        "typical_p": 0.1,
        "epsilon_cutoff": 0.5,
        "eta_cutoff": 0.5,
        "repetition_penalty": 9.0,
        "encoder_repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "bad_words_ids": [[i] for i in range(2, 200)],
        "suppress_tokens": list(range(2, 200)),
        "begin_suppress_tokens": list(range(2, 290)),
        "forced_bos_token_id": 295,
        "forced_eos_token_id": 296,
        "sequence_bias": [[[9], 50.0]],
        "guidance_scale": 3.0,
        "exponential_decay_length_penalty": (1, 5.0),
        "min_length": 50,
        "min_new_tokens": 50,
        "max_length": 3,
        "max_time": 1e-9,
        "stop_strings": ["a"],
        "num_beams": 4,
        "num_return_sequences": 3,
        "renormalize_logits": True,
        "remove_invalid_values": True,
        "eos_token_id": [299, 298],
        "pad_token_id": 297,
        "output_scores": True,
        "return_dict_in_generate": True,
        "use_cache": False,
        "cache_implementation": "static",
        "an_entry_of_its_own": 5,
    }
    for name, value in fields.items():  # one by one: together they would not be accepted
        setattr(config, name, value)
    return config


def processors_of(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[type]]:
    """The logits processors of each call of `generate`, by type."""
    seen: list[list[type]] = []
    prepare = type(model)._get_logits_processor

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        processors = prepare(self, *args, **kwargs)
        seen.append([type(processor) for processor in processors])
        return processors

    monkeypatch.setattr(type(model), "_get_logits_processor", spy)
    return seen


@pytest.mark.parametrize("policy", [POLICY, GREEDY], ids=str)
def test_a_hostile_generation_configuration_changes_nothing(
    policy: SamplingPolicy,
    tiny_llama: Make,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_llama()
    engine = HFEngine(model, tiny_tokenizer)
    expected = tokens(engine, requests(8), policy, rule())
    model.generation_config = own = hostile(model.generation_config)
    before = own.to_dict()
    seen = processors_of(model, monkeypatch)
    assert tokens(engine, requests(8), policy, rule()) == expected
    assert seen == [[PolicySampler]]
    assert model.generation_config is own
    assert own.to_dict() == before


def test_the_hostile_configuration_is_hostile(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    model = tiny_llama()
    ids = torch.tensor([PROMPTS[0]])
    kind = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    plain = model.generate(ids, **kind)
    model.generation_config.suppress_tokens = list(range(2, 200))
    assert model.generate(ids, **kind).tolist() != plain.tolist()


def test_greedy_is_what_generate_does_by_itself(tiny_qwen2: Make, tiny_tokenizer: Any) -> None:
    model = tiny_qwen2()
    ids = torch.tensor([PROMPTS[2]])
    mask = torch.ones_like(ids)
    plain = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    asked = [Request(index=0, prompt_ids=PROMPTS[2], seed=3)]
    (own,) = HFEngine(model, tiny_tokenizer).generate(asked, GREEDY, rule())
    assert list(own.token_ids) == plain[0, ids.shape[1] :].tolist()
    assert own.logqs == (0.0,) * len(own.token_ids)


def modes(model: Any) -> list[bool]:
    return [module.training for module in model.modules()]


def test_every_submodule_gets_its_own_mode_back(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    model = tiny_llama(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    before = modes(model)
    engine = HFEngine(model, tiny_tokenizer)
    sampled = tokens(engine, requests(4), POLICY, rule())
    assert modes(model) == before
    assert sampled == tokens(HFEngine(model.eval(), tiny_tokenizer), requests(4), POLICY, rule())


def test_a_failure_leaves_the_model_as_it_was(
    tiny_llama: Make, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama().train()
    own, before = model.generation_config, modes(model)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("the device fell over")

    monkeypatch.setattr(type(model), "forward", broken)
    engine = HFEngine(model, tiny_tokenizer)
    with pytest.raises(EngineError, match=r"generate failed on 2 prompts.*fell over"):
        list(engine.generate(requests(2), POLICY, rule()))
    assert model.generation_config is own
    assert modes(model) == before


def test_between_batches_the_model_is_as_it_was(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    model = tiny_llama().train()
    own = model.generation_config
    engine = HFEngine(model, tiny_tokenizer, batch_size=1)
    completions: Any = engine.generate(requests(3), POLICY, rule())
    next(completions)
    assert model.training
    assert model.generation_config is own
    completions.close()


def test_peft_models_sample_with_their_adapter(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = get_peft_model(tiny_llama(), config)
    for holder in (model, model.get_base_model()):
        holder.generation_config = hostile(tiny_llama().generation_config)
    own = [model.generation_config, model.get_base_model().generation_config]
    adapted = tokens(HFEngine(model, tiny_tokenizer), requests(5), POLICY, rule())
    assert model.generation_config is own[0]
    assert model.get_base_model().generation_config is own[1]
    assert adapted != tokens(HFEngine(tiny_llama(), tiny_tokenizer), requests(5), POLICY, rule())
    merged = model.merge_and_unload()
    assert adapted == tokens(HFEngine(merged, tiny_tokenizer), requests(5), POLICY, rule())


# ---------------------------------------------------------------- ends


def test_several_eos_ids_and_none(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    engine = HFEngine(tiny_llama(), tiny_tokenizer)
    asked = requests(10)
    free = tokens(engine, asked, POLICY, rule(eos=()))
    assert all(len(ids) == 12 for ids in free.values())
    eos = (free[0][3], free[1][5])
    for completion in engine.generate(asked, POLICY, rule(eos=eos)):
        whole = free[completion.index]
        end = next((n for n, token in enumerate(whole, 1) if token in eos), None)
        assert completion.token_ids == whole[:end]
        assert completion.finish_reason == ("length" if end is None else "eos")


def test_rows_that_stop_early_do_not_change_the_others(
    tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    engine = HFEngine(tiny_llama(), tiny_tokenizer)
    asked = requests(10)
    free = {c.index: c for c in engine.generate(asked, POLICY, rule(20, eos=()))}
    middle = tiny_tokenizer.decode(free[0].token_ids[8:10])
    assert middle.strip()
    stopped = {c.index: c for c in engine.generate(asked, POLICY, rule(20, middle, eos=()))}
    assert stopped[0].finish_reason == "stop"
    for index, completion in stopped.items():
        length = len(completion.token_ids)
        assert completion.token_ids == free[index].token_ids[:length]
        assert completion.logqs == pytest.approx(free[index].logqs[:length], abs=1e-5)
        assert (middle in completion.text) == (completion.finish_reason == "stop")


def test_generation_ends_when_every_row_has_stopped(
    tiny_llama: Make, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    call = PolicySampler.__call__

    def count(self: PolicySampler, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return call(self, ids, scores)

    monkeypatch.setattr(PolicySampler, "__call__", count)
    engine = HFEngine(tiny_llama(), tiny_tokenizer)
    (free,) = engine.generate(requests(1), GREEDY, rule(40, eos=()))
    steps = 0
    stop = tiny_tokenizer.decode(free.token_ids[2:4])
    (stopped,) = engine.generate(requests(1), GREEDY, rule(40, stop, eos=()))
    assert steps == len(stopped.token_ids) <= 4


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("policy", [POLICY, SamplingPolicy(), GREEDY], ids=str)
def test_logits_that_are_not_numbers_are_an_error(
    policy: SamplingPolicy, tiny_llama: Make, tiny_tokenizer: Any
) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(EngineError, match="logits are not numbers for request 0"):
        list(HFEngine(model, tiny_tokenizer).generate(requests(1), policy, rule()))


def test_a_prompt_outside_the_vocabulary_is_an_error(tiny_llama: Make, tiny_tokenizer: Any) -> None:
    asked = [Request(index=0, prompt_ids=(10**6,), seed=0)]
    with pytest.raises(EngineError, match=r"generate failed on 1 prompts.*IndexError"):
        list(HFEngine(tiny_llama(), tiny_tokenizer).generate(asked, POLICY, rule()))
