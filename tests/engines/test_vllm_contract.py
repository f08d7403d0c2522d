"""What seqproc relies on in vLLM, read from vLLM's own files; each failure says what changed.

`make test` reads the vLLM that is installed; `make contract VLLM=0.33.0` reads any other release.
The formula of V2's noise is held against vLLM's kernel in `tests/vllm_runners/test_noise_v2.py`.
"""

from __future__ import annotations

import re

import pytest

from helpers.vllm_source import VLLMSource, installed_or_named
from seqproc.engines.vllm.process import TESTED_VERSIONS
from seqproc.engines.vllm.runner import TEMPERATURES

SAMPLING_PARAMS = "sampling_params.py"
V2 = "v1/worker/gpu"
V2_SAMPLER = f"{V2}/sample/sampler.py"
V2_INTERFACE = f"{V2}/sample/logits_processor/interface.py"
V1_INTERFACE = "v1/sample/logits_processor/interface.py"
TOP_P = "v1/sample/ops/topk_topp_sampler.py"


@pytest.fixture(scope="module")
def vllm() -> VLLMSource:
    source = installed_or_named()
    if source is None:
        pytest.skip("vLLM is not installed")
    return source


def test_the_version_is_one_that_seqproc_says_it_supports(vllm: VLLMSource) -> None:
    numbers = tuple(int(part) for part in vllm.version.split(".")[:2])
    assert TESTED_VERSIONS[0] <= numbers <= TESTED_VERSIONS[1]


@pytest.mark.parametrize(
    ("path", "name", "parameters"),
    [
        ("entrypoints/llm.py", "LLM.collective_rpc", ["method", "args", "kwargs"]),
        ("entrypoints/llm.py", "LLM.sleep", ["level"]),
        ("entrypoints/llm.py", "LLM.wake_up", []),
        ("entrypoints/llm.py", "LLM.reset_prefix_cache", []),
        ("v1/engine/llm_engine.py", "LLMEngine.step", []),
        (
            "v1/engine/llm_engine.py",
            "LLMEngine.add_request",
            ["request_id", "prompt", "params", "lora_request"],
        ),
        ("v1/engine/llm_engine.py", "LLMEngine.abort_request", ["request_ids"]),
        ("v1/engine/llm_engine.py", "LLMEngine.add_lora", ["lora_request"]),
        ("v1/engine/llm_engine.py", "LLMEngine.remove_lora", ["lora_id"]),
        (f"{V2}/model_runner.py", "GPUModelRunner.reload_weights", ["weights_path"]),
        ("v1/worker/gpu_model_runner.py", "GPUModelRunner.reload_weights", ["weights_path"]),
        (V2_INTERFACE, "LogitsProcessor.__init__", ["vllm_config", "req_states"]),
        (V2_INTERFACE, "LogitsProcessor.add_request", ["req_idx", "sampling_params"]),
        (V2_INTERFACE, "LogitsProcessor.apply_staged_writes", []),
        (V2_INTERFACE, "LogitsProcessor.apply", ["logits", "ctx"]),
        (V1_INTERFACE, "LogitsProcessor.__init__", ["vllm_config", "device", "is_pin_memory"]),
        (V1_INTERFACE, "LogitsProcessor.update_state", ["batch_update"]),
        (V1_INTERFACE, "LogitsProcessor.apply", ["logits"]),
        (V1_INTERFACE, "LogitsProcessor.is_argmax_invariant", []),
        (f"{V2}/buffer_utils.py", "UvaBackedTensor.__init__", ["size", "dtype"]),
        (f"{V2}/buffer_utils.py", "UvaBackedTensor.copy_to_uva", []),
        ("config/vllm.py", "VllmConfig.use_v2_model_runner", []),
        ("engine/arg_utils.py", "EngineArgs.create_engine_config", []),
    ],
    ids=lambda value: value if str(value)[:1].isupper() else "",
)
def test_a_function_takes_what_it_is_given(
    vllm: VLLMSource, path: str, name: str, parameters: list[str]
) -> None:
    missing = [one for one in parameters if one not in vllm.parameters(path, name)]
    if missing:
        vllm.changed(f"{name} in {path} takes no {', '.join(missing)} any more")


@pytest.mark.parametrize(
    ("path", "name", "fields"),
    [
        (V2_INTERFACE, "LogitsContext", "expanded_idx_mapping idx_mapping_np pos"),
        (V2_INTERFACE, "LogitsProcRequestState", "max_num_reqs prompt_len"),
        (V1_INTERFACE, "BatchUpdate", "removed added moved"),
        ("config/model.py", "ModelConfig", "use_fp64_gumbel logits_processors enable_trace_replay"),
        (
            SAMPLING_PARAMS,
            "SamplingParams",
            "temperature top_p top_k min_p seed max_tokens logprobs flat_logprobs stop "
            "stop_token_ids include_stop_str_in_output ignore_eos detokenize skip_special_tokens "
            "output_kind extra_args trace_decode_token_ids",
        ),
        ("logprobs.py", "FlatLogprobs", "token_ids logprobs start_indices end_indices"),
        (
            "engine/arg_utils.py",
            "EngineArgs",
            "model dtype revision tokenizer_revision trust_remote_code generation_config "
            "logprobs_mode seed disable_log_stats use_tqdm_on_load worker_extension_cls "
            "logits_processors enforce_eager enable_chunked_prefill enable_prefix_caching "
            "kv_cache_memory_bytes enable_lora max_lora_rank watermark_config speculative_config "
            "enable_sleep_mode max_logprobs enable_trace_replay",
        ),
    ],
    ids=lambda value: value if str(value)[:1].isupper() else "",
)
def test_a_record_has_the_fields_that_are_read(
    vllm: VLLMSource, path: str, name: str, fields: str
) -> None:
    missing = [one for one in fields.split() if one not in vllm.fields(path, name)]
    if missing:
        vllm.changed(f"{name} in {path} has no field {', '.join(missing)} any more")


def test_a_seed_of_minus_one_is_none_and_no_other(vllm: VLLMSource) -> None:
    text = vllm.text(SAMPLING_PARAMS, "SamplingParams.__post_init__")
    if "if self.seed == -1:\n        self.seed = None" not in text:
        vllm.changed("SamplingParams takes a seed of -1 for none no more, or in another way")
    if text.count("self.seed =") > 2:  # the comparison, and the assignment
        vllm.changed("SamplingParams changes seeds in another way")


def test_seeds_are_signed_numbers_of_64_bits_on_v2(vllm: VLLMSource) -> None:
    text = vllm.text(f"{V2}/sample/states.py", "SamplingStates.__init__")
    if "self.seeds = UvaBackedTensor(max_num_reqs, dtype=torch.int64)" not in text:
        vllm.changed("V2 keeps seeds in another way than as int64")


def test_logprobs_of_minus_one_are_those_of_all_tokens_in_both_runners(vllm: VLLMSource) -> None:
    places = {
        (f"{V2}/sample/states.py", "SamplingStates.add_request"): "num_logprobs == -1",
        ("v1/worker/gpu_input_batch.py", "InputBatch.add_request"): "logprobs == -1",
        (SAMPLING_PARAMS, "SamplingParams._validate_logprobs"): "max_logprobs == -1",
    }
    for (path, name), test in places.items():
        if test not in vllm.text(path, name):
            vllm.changed(f"{name} in {path} takes -1 for all log-probabilities no more")


def test_temperatures_are_bounded_as_we_say(vllm: VLLMSource) -> None:
    lowest, highest = TEMPERATURES
    tree = (vllm.root / SAMPLING_PARAMS).read_text()
    found = re.search(r"^_MAX_TEMP = (\S+)$", tree, re.MULTILINE)
    if found is None or float(found.group(1)) != lowest:
        vllm.changed(f"temperatures below {lowest} are treated in another way")
    verify = vllm.text(SAMPLING_PARAMS, "SamplingParams._verify_args")
    if f"if self.temperature > {highest}:" not in verify:
        vllm.changed(f"temperatures above {highest} are refused no more, or others are")


def test_v2_processes_logits_in_the_order_that_a_coupled_draw_needs(vllm: VLLMSource) -> None:
    """bias → penalties → custom processors → temperature → min-p → top-k and top-p → draw."""
    vllm.require_order(
        V2_SAMPLER,
        "Sampler.__init__",
        ["[logit_bias_state, self.penalties_state, ", "*custom_logits_processors]"],
        "which processors come before ours",
    )
    vllm.require_order(
        V2_SAMPLER,
        "Sampler.apply_sampling_params",
        [
            "dtype=torch.float32",
            "for processor in self.logits_processors:",
            "processor.apply(logits, ctx)",
            "self.sampling_states.apply_temperature(",
            "self.sampling_states.apply_min_p(",
        ],
        "ours sees logits in float32 before the temperature",
    )
    vllm.require_order(
        V2_SAMPLER,
        "Sampler._sample_random",
        ["apply_top_k_top_p(", "gumbel_sample(", "pos", "apply_temperature=False"],
        "the native draw is over the nucleus, with noise by position",
    )


def test_v2_takes_no_fused_sampler_when_a_request_has_a_seed(vllm: VLLMSource) -> None:
    vllm.require_order(
        V2_SAMPLER,
        "Sampler.sample",
        ["fused_sampler_eligible = not", "any_explicit_seed(", "_sample_random("],
        "a fused sampler has noise of its own",
    )


def test_which_top_p_runs_is_decided_by_triton_being_there(vllm: VLLMSource) -> None:
    vllm.require_order(
        TOP_P,
        "apply_top_k_top_p",
        ["if HAS_TRITON:", "apply_top_k_top_p_triton(", "apply_top_k_top_p_pytorch("],
        "the worker tells which one it is",
    )
    vllm.require_order(
        f"{V2}/sample/states.py",
        "SamplingStates.get_top_k_top_p",
        ["do_top_p = ", "!= 1.0"],
        "top_p = 1 cuts nothing",
    )


def test_a_logits_processor_is_loaded_by_name_in_both_runners(vllm: VLLMSource) -> None:
    for path, name in (
        (f"{V2}/sample/logits_processor/loader.py", "_load_v2_logitsprocs_by_fqcns"),
        ("v1/sample/logits_processor/__init__.py", "_load_logitsprocs_by_fqcns"),
    ):
        vllm.require_order(path, name, ["split(':')", "issubclass("], "the name is MODULE:CLASS")


def test_a_replayed_token_stands_in_for_the_sampled_one_and_not_in_the_logits(
    vllm: VLLMSource,
) -> None:
    vllm.require_order(
        V2_SAMPLER,
        "Sampler.__call__",
        ["self.sample(", "apply_trace(sampled, idx_mapping)", "compute_topk_scores("],
        "log q of a replay are the model's",
    )
    text = vllm.text("config/vllm.py", "VllmConfig._verify_trace_replay_config")
    if "not self.use_v2_model_runner" not in text:
        vllm.changed("trace replay is not of runner V2 alone any more")


def test_a_position_is_that_of_the_token_fed_in(vllm: VLLMSource) -> None:
    vllm.require_order(
        V2_SAMPLER,
        "Sampler.__call__",
        ["pos = input_batch.positions[input_batch.logits_indices]"],
        "steps are counted by it",
    )


def test_a_change_fails_with_a_sentence(vllm: VLLMSource) -> None:
    """The checks above can fail."""
    with pytest.raises(
        pytest.fail.Exception, match=r"vLLM 0\.\d+\.\d+: .* has no Sampler\.nothing"
    ):
        vllm.find(V2_SAMPLER, "Sampler.nothing")
    with pytest.raises(pytest.fail.Exception, match="has another order than"):
        vllm.require_order(
            V2_SAMPLER, "Sampler._sample_random", ["gumbel_sample(", "apply_top_k_top_p("], "draw"
        )
    with pytest.raises(pytest.fail.Exception, match=r"there is no v1/nothing\.py"):
        vllm.tree("v1/nothing.py")
