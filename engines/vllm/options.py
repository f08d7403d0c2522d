"""Settings of vLLM: environment and options at its start, sampling parameters per request.

Pure functions. Defaults depend on the platform; a user's own option or environment variable always
wins over them, unless vLLM would then sample from another distribution. Starts nothing.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqproc._util.optional import require_package
from seqproc.engines.base import StoppingRule
from seqproc.engines.gumbel import finalise64, seed_tensor
from seqproc.errors import EngineError, EngineOptionError, did_you_mean
from seqproc.models.source import Checkpoint
from seqproc.policy import SamplingPolicy

_GIB = 1 << 30
_KV_CACHE_GIB = (1, 16)  # least and most that is taken on a CPU without asking
_FEW_CORES = 4  # at most this many: vLLM's default of leaving one core idle costs too much
_COUPLED_SAMPLER = "seqproc.engines.vllm.coupled:CoupledSampler"
_WORKER_EXTENSION = "seqproc.engines.vllm.worker.WeightsExtension"
_OURS = ("model", "skip_tokenizer_init", "logits_processors", "worker_extension_cls")
_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def environment(options: Mapping[str, Any], *, on_cpu: bool, in_process: bool) -> dict[str, str]:
    """Defaults for the environment variables that vLLM reads.

    Args:
        options: the user's options.
        on_cpu: whether vLLM computes on the CPU.
        in_process: whether its engine may run in this process. On a CPU that leaves every torch
            thread to whoever computes at the time, vLLM or a scorer.
    """
    values = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if not on_cpu:
        return values
    values["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    cores = _cores()
    workers = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    if workers == 1 and len(cores) <= _FEW_CORES:
        values["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    return values


def llm_options(
    checkpoint: Checkpoint, options: Mapping[str, Any], *, on_cpu: bool, coupled: bool = False
) -> dict[str, Any]:
    """Keywords of `vllm.LLM` for a checkpoint, with the user's options over our defaults.

    Args:
        checkpoint: what vLLM starts on.
        options: the user's.
        on_cpu: whether vLLM computes on the CPU.
        coupled: whether it loads our sampler, for the requests that ask for it.

    Raises:
        EngineError: for an option that is not vLLM's, or that would change what it samples from.
    """
    defaults: dict[str, Any] = {
        "model": checkpoint.path,
        "dtype": checkpoint.dtype,
        "revision": checkpoint.revision,
        "tokenizer_revision": checkpoint.revision,
        "trust_remote_code": checkpoint.trust_remote_code,
        "generation_config": "vllm",  # none of the checkpoint's sampling defaults
        "logprobs_mode": "processed_logprobs",  # log q: after temperature and nucleus
        "seed": 0,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "worker_extension_cls": _WORKER_EXTENSION,  # tells and changes what weights it holds
    }
    if on_cpu:
        defaults |= _cpu_options(options)
    if coupled:
        defaults["logits_processors"] = [_COUPLED_SAMPLER]
    if checkpoint.adapter is not None:
        defaults |= {"enable_lora": True, "max_lora_rank": _lora_rank(checkpoint.adapter)}
    require_options(options)
    return {**defaults, **options}


def _cpu_options(options: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        # Start-up in seconds. Compilation takes a minute and a half, and gains little here.
        "enforce_eager": True,
        # A prefill that is split ends, for a request with its own seed, in "CPU Generator does
        # not use offset"; one that begins in the cache rounds differently from run to run.
        "enable_chunked_prefill": False,
        "enable_prefix_caching": False,
    }
    decides_memory = {"kv_cache_memory_bytes", "gpu_memory_utilization"} & set(options)
    if not decides_memory and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        chosen["kv_cache_memory_bytes"] = _kv_cache_bytes()
    return chosen


def require_options(options: Mapping[str, Any]) -> None:
    """Refuse options that are not vLLM's, or that would change what it samples from; imports vLLM.

    Raises:
        EngineOptionError: naming the option.
    """
    _require_known(options)
    _refuse_fixed(options)


def _require_known(options: Mapping[str, Any]) -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in fields(EngineArgs)} | set(signature(LLM.__init__).parameters)
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise EngineOptionError(
                f"engine 'vllm' has no option {name!r}: vllm.LLM has none{hint}"
            )


def _refuse_fixed(options: Mapping[str, Any]) -> None:
    """Refuse options that would make vLLM sample from, or report, something else."""
    fixed = {"generation_config": "vllm", "logprobs_mode": "processed_logprobs"}
    for name, value in fixed.items():
        if options.get(name, value) != value:
            raise EngineOptionError(
                f"engine 'vllm' needs {name}={value!r}, so that it samples from seqproc's policy "
                f"and reports its log q; got {options[name]!r}. Leave it out"
            )
    if options.get("watermark_config") is not None:
        raise EngineOptionError(
            "engine 'vllm' has no place for watermark_config: a watermark changes the distribution "
            "that vLLM samples from. Leave it out"
        )
    for name in _OURS:
        if name in options:
            raise EngineOptionError(f"engine 'vllm' sets {name!r} itself; leave it out")


def _kv_cache_bytes() -> int:
    """A quarter of the memory that is free, within bounds [bytes]."""
    least, most = _KV_CACHE_GIB
    return min(max(_available_memory() // (4 * _GIB), least), most) * _GIB


def _available_memory() -> int:
    """Memory that can be had without swapping, at most the container's [bytes]."""
    import psutil  # type: ignore[import-untyped]  # comes with vLLM

    limits = [int(psutil.virtual_memory().available)]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits)


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _lora_rank(adapter: str) -> int:
    """The least rank that vLLM can be set up for and that holds the adapter's."""
    require_package("peft", extra="peft", purpose="serving an adapter")
    from peft import PeftConfig
    from vllm.config.lora import MaxLoRARanks

    config = PeftConfig.from_pretrained(adapter)
    ranks = getattr(config, "rank_pattern", None) or {}
    rank = max([getattr(config, "r", 0), *ranks.values()])
    possible = [size for size in sorted(typing.get_args(MaxLoRARanks)) if size >= rank]
    if not rank or not possible:
        raise EngineError(
            f"vLLM cannot serve the adapter {adapter!r} ({config.peft_type}, rank {rank}); merge "
            "it into the weights, or sample with engine='hf'"
        )
    return int(possible[0])


def request_seeds(seeds_N: Tensor) -> Tensor:
    """Seeds of draws as vLLM is given them: mixed, and signed.

    On a CPU torch's generators heed the lower 32 bits of a seed only, so all bits are mixed into
    them. The result is the signed number with the same bits, since runner V2 keeps seeds as int64;
    torch's generators take it for the unsigned one. −1 stands for no seed in vLLM: the one seed
    that would give it gets −2.

    Args:
        seeds_N: int64, as from `gumbel.seed_tensor`.
    """
    mixed_N = finalise64(seeds_N)
    return torch.where(mixed_N == -1, -2, mixed_N)


def sampling_params(
    seed: int, policy: SamplingPolicy, stopping: StoppingRule, *, coupled: bool = False
) -> Any:
    """vLLM's parameters for one request: the policy, and nothing else that shapes tokens.

    Args:
        seed: of the draw.
        policy: the sampling policy.
        stopping: when the response ends.
        coupled: leave the sampling to `CoupledSampler`, on a request that is greedy to vLLM.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    shape: dict[str, Any] = {"temperature": 0.0}
    if policy.do_sample and coupled:
        from seqproc.engines.vllm.coupled import CoupledDraw, extra_args

        shape["extra_args"] = extra_args(CoupledDraw(seed=seed, policy=policy))
    elif policy.do_sample:
        shape = {"temperature": policy.temperature, "top_p": policy.top_p}
    return SamplingParams(
        **shape,
        seed=int(
            request_seeds(seed_tensor([seed]))
        ),  # greedy ones too: runner V2 draws one from numpy otherwise
        top_k=0,
        min_p=0.0,
        max_tokens=stopping.max_new_tokens,
        stop=list(stopping.stop),
        include_stop_str_in_output=True,
        stop_token_ids=list(stopping.eos_token_ids),
        ignore_eos=True,  # the rule's EOS ids count, and no others
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        detokenize=True,
        skip_special_tokens=False,  # a stop string may be, or hold, a special token
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
