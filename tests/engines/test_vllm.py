"""Real vLLM against Hugging Face on SmolLM2 in float32: tokens, ends, log q, seeds, LoRA.

One engine serves all tests but the last, which needs another and closes the first. Sequences are
short; the file takes a few minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import os
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
from seqproc.engines import (
    Completion,
    HFEngine,
    ModelSource,
    Request,
    StoppingRule,
    VLLMEngine,
    gumbel_noise,
)
from seqproc.engines.gumbel import finalise64, seed_tensor
from seqproc.engines.noise import COUPLED, NotReplayable
from seqproc.engines.noise import GREEDY as GREEDY_NOISE
from seqproc.engines.vllm.engine import _require_distribution
from seqproc.engines.vllm.options import environment, llm_options, sampling_params
from seqproc.errors import ConfigError, EngineError
from seqproc.models.source import Checkpoint
from seqproc.policy import SamplingPolicy, log_q, token_log_q

pytestmark = [pytest.mark.vllm, pytest.mark.model]

GREEDY = SamplingPolicy(do_sample=False)
POLICY = SamplingPolicy(temperature=0.9, top_p=0.95)


@pytest.fixture
def bench(vllm_host: VLLMHost) -> Bench:
    return vllm_host.bench()


@pytest.fixture
def hf(smollm2: tuple[Any, Any]) -> HFEngine:
    return HFEngine(*smollm2, max_context=512, batch_size=16)


# ---------------------------------------------------------------- tokens and log q


@pytest.mark.slow
def test_greedy_tokens_equal_those_of_hugging_face(
    bench: Bench, hf: HFEngine, smollm2: tuple[Any, Any]
) -> None:
    requests, rule = bench.requests(32), bench.rule(32)
    sampled = run(bench.engine, requests, GREEDY, rule)
    require_same_but_for_near_ties(smollm2[0], requests, sampled, run(hf, requests, GREEDY, rule))
    assert all(completion.logqs is None for completion in sampled.values())


@pytest.mark.parametrize(
    "policy", [POLICY, SamplingPolicy(), SamplingPolicy(temperature=1.5, top_p=0.8)], ids=str
)
def test_log_q_is_that_of_the_policy_over_hugging_face_logits(
    policy: SamplingPolicy, bench: Bench, smollm2: tuple[Any, Any]
) -> None:
    requests = bench.requests(8)
    for completion in bench.engine.generate(requests, policy, bench.rule(16)):
        prompt = requests[completion.index].prompt_ids
        logits = forward(smollm2[0], prompt, completion.token_ids).double()
        own = token_log_q(logits, torch.tensor(completion.token_ids), policy)
        np.testing.assert_allclose(completion.logqs, own.numpy(), atol=5e-4, rtol=0)


# ---------------------------------------------------------------- seeds


@pytest.mark.slow
def test_seeded_draws_repeat_and_do_not_depend_on_how_many_run_together(bench: Bench) -> None:
    # Rounding differs with the batch: of 512 tokens, about 1 in 200 runs of this test on another
    # machine would meet a draw so near to a tie that it shows.
    requests, rule = bench.requests(32), bench.rule(16)
    together = run(bench.engine, requests, POLICY, rule)
    assert run(bench.engine, requests, POLICY, rule) == together  # log q, too
    for size in (1, 7):
        for start in range(0, 4 * size, size):
            for index, one in run(
                bench.engine, requests[start : start + size], POLICY, rule
            ).items():
                assert one.token_ids == together[index].token_ids


def test_torchs_own_seed_plays_no_part(bench: Bench) -> None:
    requests, rule = bench.requests(4), bench.rule(8)
    found = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(run(bench.engine, requests, POLICY, rule))
    assert found[0] == found[1]


# ---------------------------------------------------------------- where responses end


def greedy_text(bench: Bench) -> tuple[Request, Completion]:
    request = Request(
        index=0,
        prompt_ids=tuple(prompt_ids(bench.tokenizer, "Name three colours of the rainbow.")),
        seed=0,
    )
    return request, run(bench.engine, [request], GREEDY, bench.rule(16))[0]


def test_stop_strings_however_they_tokenise_as_in_hugging_face(bench: Bench, hf: HFEngine) -> None:
    request, free = greedy_text(bench)
    pieces = [bench.tokenizer.decode([token]) for token in free.token_ids]
    long = max(range(4, len(pieces) - 1), key=lambda i: len(pieces[i]))
    assert len(pieces[long]) >= 3
    cases = {
        "split over tokens": (pieces[5][-1] + pieces[6] + pieces[7][:1], 8),
        "inside a token": (pieces[long][1:-1], long + 1),
        "a whole token": (pieces[long], long + 1),
        "at the limit": (pieces[14] + pieces[15], 16),
    }
    for name, (stop, at_most) in cases.items():
        ours = run(bench.engine, [request], GREEDY, bench.rule(16, stop))[0]
        assert ours.finish_reason == "stop", name
        assert stop in ours.text, name
        assert len(ours.token_ids) <= at_most, name
        assert ours.token_ids == free.token_ids[: len(ours.token_ids)], name
        assert ours == run_without_logqs(hf, request, bench.rule(16, stop)), name


def run_without_logqs(engine: HFEngine, request: Request, rule: StoppingRule) -> Completion:
    """Greedy; vLLM reports no log q then."""
    return dataclasses.replace(run(engine, [request], GREEDY, rule)[0], logqs=None)


def test_eos_special_token_stop_and_length_as_in_hugging_face(bench: Bench, hf: HFEngine) -> None:
    request = Request(
        index=0, prompt_ids=tuple(prompt_ids(bench.tokenizer, "What is 2+3?")), seed=0
    )
    eos = run(bench.engine, [request], GREEDY, bench.rule(20))[0]
    assert eos.finish_reason == "eos"
    assert eos.token_ids[-1] == bench.tokenizer.eos_token_id
    no_eos = StoppingRule(max_new_tokens=20, eos_token_ids=())
    after = run(bench.engine, [request], GREEDY, no_eos)[0]
    assert (len(after.token_ids), after.finish_reason) == (20, "length")
    special = StoppingRule(max_new_tokens=20, eos_token_ids=(), stop=("<|im_end|>",))
    stopped = run(bench.engine, [request], GREEDY, special)[0]
    assert (stopped.token_ids, stopped.finish_reason) == (eos.token_ids, "stop")
    several = StoppingRule(max_new_tokens=20, eos_token_ids=(eos.token_ids[2], 2))
    early = run(bench.engine, [request], GREEDY, several)[0]
    assert (early.finish_reason, len(early.token_ids)) == (
        "eos",
        1 + eos.token_ids.index(several.eos_token_ids[0]),
    )
    for rule, ours in (
        (bench.rule(32), eos),
        (no_eos, after),
        (special, stopped),
        (several, early),
    ):
        assert run_without_logqs(hf, request, rule) == ours


def test_sampled_responses_cut_by_a_stop_string_keep_their_log_q(bench: Bench) -> None:
    requests = bench.requests(8)
    free = run(bench.engine, requests, POLICY, bench.rule(12))
    stopped = run(bench.engine, requests, POLICY, bench.rule(12, "e"))
    assert {c.finish_reason for c in stopped.values()} >= {"stop"}
    for index, completion in stopped.items():
        length = len(completion.token_ids)
        assert completion.token_ids == free[index].token_ids[:length]
        assert completion.logqs == pytest.approx(free[index].logqs[:length], abs=1e-4)


# ---------------------------------------------------------------- the loop


def test_completions_come_out_as_they_finish(bench: Bench) -> None:
    (short,) = bench.requests(1)
    eos = run(bench.engine, [short], GREEDY, bench.rule(1))[0].token_ids[0]
    rule = StoppingRule(max_new_tokens=40, eos_token_ids=(eos,))
    other = Request(index=1, prompt_ids=(400, 401, 402), seed=1)
    completions: Any = bench.engine.generate([other, short], GREEDY, rule)
    assert next(completions).index == short.index
    assert bench.engine._engine.get_num_unfinished_requests() == 1
    completions.close()
    assert bench.engine._engine.get_num_unfinished_requests() == 0


def test_one_generation_at_a_time(bench: Bench) -> None:
    first = bench.engine.generate(bench.requests(2), POLICY, bench.rule(4))
    next(first)
    with pytest.raises(EngineError, match="generating already"):
        next(bench.engine.generate(bench.requests(1), POLICY, bench.rule(4)))
    first.close()
    assert len(run(bench.engine, bench.requests(1), POLICY, bench.rule(4))) == 1


def test_a_bad_request_among_good_ones_leaves_nothing_behind(bench: Bench) -> None:
    bad = Request(index=5, prompt_ids=(10**6,), seed=0)
    with pytest.raises(EngineError, match=r"vLLM refused request 5.*vocab"):
        list(bench.engine.generate([*bench.requests(2), bad], POLICY, bench.rule(4)))
    assert bench.engine._engine.get_num_unfinished_requests() == 0


@pytest.mark.parametrize("temperature", [0.005, 2.5])
def test_temperatures_that_vllm_would_change_are_coupled(
    bench: Bench, hf: HFEngine, temperature: float
) -> None:
    policy, requests = SamplingPolicy(temperature=temperature), bench.requests(4)
    found = run(bench.engine, requests, policy, bench.rule(4))
    expected = run(hf, requests, policy, bench.rule(4))
    assert {i: c.token_ids for i, c in found.items()} == {
        i: c.token_ids for i, c in expected.items()
    }


def test_the_process_is_left_as_it_was(bench: Bench) -> None:
    torch.set_num_threads(torch.get_num_threads())  # vLLM puts a refusal in its place
    assert "tcmalloc" not in os.environ.get("LD_PRELOAD", "")
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"


def test_the_description_tells_versions_dtype_and_options(bench: Bench) -> None:
    description = bench.engine.describe()
    assert "0." in description["versions"]["vllm"]
    assert description["dtype"] == "float32"
    assert description["adapter"] is None
    assert description["options"]["logprobs_mode"] == "processed_logprobs"
    assert description["max_model_len"] == 512
    assert description["model_runner"] == "V1"
    assert description["top_p_backend"] == "sort"
    assert description["sampler"] == "auto"
    assert description["sampled_by"] == {
        "top_p = 1": "native",
        "top_p < 1": "native",
        "T < 0.01 or T > 2": "coupled",
    }
    assert "signed 64-bit" in description["seeds"]


def test_v1s_noise_is_not_replayable_and_says_why(bench: Bench) -> None:
    noise = bench.engine.noise(POLICY)
    assert isinstance(noise, NotReplayable)
    assert "torch generator of each request" in noise.reason
    assert bench.engine.noise(GREEDY) is GREEDY_NOISE


# ---------------------------------------------------------------- options


CHECKPOINT = Checkpoint(path="some/model", dtype="float32")


def test_sampling_parameters_hold_the_policy_and_nothing_else() -> None:
    rule = StoppingRule(max_new_tokens=7, eos_token_ids=(2, 5), stop=("x",))
    params = sampling_params(2**64 - 1, POLICY, rule)
    assert (params.temperature, params.top_p) == (0.9, 0.95)
    assert params.seed == int(finalise64(seed_tensor([2**64 - 1])))
    assert (params.top_k, params.min_p, params.min_tokens, params.max_tokens) == (0, 0.0, 0, 7)
    assert params.repetition_penalty == 1.0
    assert params.presence_penalty == params.frequency_penalty == 0.0
    assert (params.stop_token_ids, params.ignore_eos, params.stop) == ([2, 5], True, ["x"])
    greedy = sampling_params(3, GREEDY, rule)
    assert (greedy.temperature, greedy.top_p) == (0.0, 1.0)


def test_a_users_options_win_and_the_cpu_has_its_own_defaults() -> None:
    options = llm_options(CHECKPOINT, {"enforce_eager": False, "max_model_len": 99}, on_cpu=True)
    assert (options["enforce_eager"], options["max_model_len"]) == (False, 99)
    assert options["enable_chunked_prefill"] is False
    assert 1 << 30 <= options["kv_cache_memory_bytes"] <= 16 << 30
    assert "enforce_eager" not in llm_options(CHECKPOINT, {}, on_cpu=False)
    taken = {"gpu_memory_utilization": 0.5}
    assert "kv_cache_memory_bytes" not in llm_options(CHECKPOINT, taken, on_cpu=True)


def test_a_log_q_that_is_nan_is_an_error_and_any_other_is_not() -> None:
    request = Request(index=7, prompt_ids=(1,), seed=0)
    _require_distribution((0.0, -3.5, float("-inf")), request)
    with pytest.raises(EngineError, match="no token to draw at step 1 of request 7"):
        _require_distribution((0.0, float("nan")), request)


def test_the_samplers_are_three() -> None:
    with pytest.raises(ConfigError, match="'auto', 'native' or 'coupled', got 'greedy'"):
        VLLMEngine(CHECKPOINT, None, sampler="greedy")  # type: ignore[arg-type]


def test_options_that_are_not_vllms_or_would_change_the_measure_are_refused() -> None:
    for options, problem in (
        ({"enforce_eagre": True}, "no option 'enforce_eagre'.*did you mean 'enforce_eager'"),
        ({"generation_config": "auto"}, "needs generation_config='vllm'"),
        ({"logprobs_mode": "raw_logprobs"}, "needs logprobs_mode='processed_logprobs'"),
        ({"logits_processors": ["x:Y"]}, "sets 'logits_processors' itself"),
        ({"watermark_config": {"key": 1}}, "a watermark changes the distribution"),
        ({"worker_extension_cls": "x.Y"}, "sets 'worker_extension_cls' itself"),
    ):
        with pytest.raises(EngineError, match=problem):
            llm_options(CHECKPOINT, options, on_cpu=True)


def test_the_environment_on_few_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1})
    values = environment({}, on_cpu=True, in_process=True)
    assert values["VLLM_CPU_OMP_THREADS_BIND"] == "1,3"
    assert values["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    several = environment({"tensor_parallel_size": 2}, on_cpu=True, in_process=False)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in several
    assert several["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment({}, on_cpu=False, in_process=True)


def test_the_coupled_sampler_follows_requests_through_the_batch() -> None:
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

    from seqproc.engines.vllm.coupled import CoupledSampler

    rule = StoppingRule(max_new_tokens=7, eos_token_ids=())
    coupled = [sampling_params(seed, POLICY, rule, coupled=True) for seed in range(3)]
    assert all(params.temperature == 0 for params in coupled)
    logits = torch.linspace(0, 3, 50).repeat(4, 1)

    def chosen(seed: int, step: int) -> int:
        return int(drawn_token(logits[0], seed, step))

    on_v1 = SimpleNamespace(use_v2_model_runner=False)
    sampler = CoupledSampler(on_v1, torch.device("cpu"), False)
    so_far: list[list[int]] = [[], [5], [], [1, 2]]
    params = [*coupled, SamplingParams(temperature=0.0)]
    added = [(row, params[row], [1], so_far[row]) for row in range(4)]
    sampler.update_state(BatchUpdate(batch_size=4, removed=[], added=added, moved=[]))
    out = sampler.apply(logits.clone())
    assert out.argmax(-1).tolist() == [chosen(0, 0), chosen(1, 1), chosen(2, 0), 49]
    assert torch.equal(out[3], logits[3])  # not ours
    so_far[0].append(9)  # vLLM's own list grows
    swap = (0, 3, MoveDirectionality.SWAP)
    onto = (2, 1, MoveDirectionality.UNIDIRECTIONAL)
    sampler.update_state(BatchUpdate(batch_size=4, removed=[1], added=[], moved=[onto, swap]))
    out = sampler.apply(logits.clone())
    assert out.argmax(-1).tolist() == [49, chosen(2, 0), 49, chosen(0, 1)]
    sampler.update_state(None)
    sampler.update_state(BatchUpdate(batch_size=0, removed=[0, 1, 2, 3], added=[], moved=[]))
    assert torch.equal(sampler.apply(logits.clone()), logits)


def drawn_token(logits: torch.Tensor, seed: int, step: int) -> torch.Tensor:
    return (log_q(logits.double(), POLICY) + gumbel_noise(seed, step, len(logits))).argmax()


# ---------------------------------------------------------------- another engine


@pytest.mark.slow
def test_lora_and_coupling_in_a_second_engine_after_a_start_that_failed(
    vllm_host: VLLMHost, smollm2_path: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    from seqproc import load_model

    vllm_host.stop()
    model, tokenizer = load_model(str(smollm2_path), device="cpu")
    torch.manual_seed(0)
    config = LoraConfig(
        r=5, lora_alpha=10, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    with torch.no_grad():
        adapted = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.1)
    requests = [
        Request(index=i, prompt_ids=tuple(prompt_ids(tokenizer, text)), seed=i)
        for i, text in enumerate(["What is 2+3?", "Name a colour.", "Say hello.", "Who are you?"])
    ]
    with ModelSource.from_model(adapted, tokenizer) as source:
        rule = StoppingRule(max_new_tokens=16, eos_token_ids=source.eos_token_ids)
        expected = run(HFEngine(adapted, tokenizer), requests, GREEDY, rule)
        with adapted.disable_adapter():
            plain = run(HFEngine(adapted, tokenizer), requests, GREEDY, rule)
        assert all(plain[i].token_ids != expected[i].token_ids for i in range(4))
        with pytest.raises(EngineError, match=r"vLLM could not start \(ValueError: No available"):
            start_vllm(source, kv_cache_memory_bytes=1 << 20)
        assert not torch.distributed.is_initialized()
        with start_vllm(source, sampler="coupled") as engine:
            assert engine.describe()["options"]["max_lora_rank"] == 8
            found = run(engine, requests, GREEDY, rule)
            require_same_but_for_near_ties(adapted, requests, found, expected)
            assert engine.noise(POLICY) is COUPLED
            # The same seeds give the same samples in both engines.
            found = run(engine, requests, POLICY, rule)
            coupled = run(HFEngine(adapted, tokenizer), requests, POLICY, rule)
            assert {i: c.token_ids for i, c in found.items()} == {
                i: c.token_ids for i, c in coupled.items()
            }
            assert found[0].logqs is None
        with pytest.raises(EngineError, match="closed"):
            next(engine.generate(requests, GREEDY, rule))
        engine.close()
