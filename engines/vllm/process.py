"""vLLM in a process that is not its own: import and start it, keep its changes in, explain it.

vLLM changes random states, torch's settings and the environment of the process that it starts in.
Knows how vLLM comes up; nothing of requests.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import random
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from seqproc._util.versions import vllm_build
from seqproc.errors import EngineError, MissingDependencyError, SeqprocError

# The versions that the tests cover, both ends; pyproject.toml says the same.
TESTED_VERSIONS = ((0, 32), (0, 33))

WHERE_IT_CAN = "auto"  # value of vLLM's option for trace replay, which itself knows True and False
_TRACE_REPLAY = "enable_trace_replay"

_LOGGER = logging.getLogger("seqproc")
_GIST_LENGTH = 300  # characters of an error of vLLM's; all of it is in the exception's cause


def require_vllm() -> None:
    """Refuse to go on without vLLM.

    Raises:
        MissingDependencyError: saying how to install it.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError(
            "engine 'vllm' needs vLLM, which is not installed. In a checkout of seqproc: "
            'pip install ".[vllm]" with a CUDA GPU; on a CPU, pip install --no-deps -r '
            "requirements/cpu.txt. engine='hf' samples without it"
        )


def import_vllm() -> Any:
    """The module.

    Raises:
        MissingDependencyError: it is not installed.
        EngineError: it is, and cannot be imported.
    """
    require_vllm()
    # On a CPU Triton is not needed: whether it is missing, or installed for the tests' sake, is
    # nothing to warn of.
    for name in ("torch._library.triton", "vllm.triton_utils.importing"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import vllm
    except (ImportError, RuntimeError, OSError) as error:
        raise EngineError(
            f"vLLM is installed but cannot be imported ({type(error).__name__}: {error}); "
            "reinstall versions that fit together: pip install --no-deps -r requirements/cpu.txt, "
            "or cuda.txt with a CUDA GPU"
        ) from error
    _warn_of_untested_version()
    return vllm


def _warn_of_untested_version() -> None:
    build = vllm_build() or "this vLLM"
    numbers = tuple(int(part) for part in build.split()[-1].split(".")[:2] if part.isdigit())
    lowest, highest = TESTED_VERSIONS
    if not lowest <= numbers <= highest:
        _LOGGER.warning(
            "%s is not among the versions that seqproc is tested with (%s to %s): check it with "
            "`seqproc parity` before you rely on it",
            build,
            *(".".join(map(str, version)) for version in TESTED_VERSIONS),
        )


def failure_to_start() -> str:
    """What to say when vLLM does not start, with the likely cause where there is one."""
    is_cuda_build = (vllm_build() or "").startswith("vllm ")
    if not is_cuda_build or torch.cuda.is_available():
        return "vLLM could not start"
    return (
        "vLLM could not start: its CUDA build is installed, and torch sees no GPU; look at "
        "nvidia-smi and CUDA_VISIBLE_DEVICES, or set a CPU up with make setup DEVICE=cpu"
    )


def with_trace_replay(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a `vllm.LLM`, with trace replay where it can be, if that was asked for.

    Model runner V2 alone can follow given tokens, and V1 does not start with the option. Which of
    them runs is asked of the configuration that vLLM makes of the options.
    """
    if options.get(_TRACE_REPLAY) != WHERE_IT_CAN:
        return options
    from vllm.engine.arg_utils import EngineArgs

    known = {field.name for field in fields(EngineArgs)} - {_TRACE_REPLAY}
    given = {name: value for name, value in options.items() if name in known}
    config = EngineArgs(**given).create_engine_config()
    return {**options, _TRACE_REPLAY: bool(config.use_v2_model_runner)}


def start_vllm(vllm: Any, options: dict[str, Any]) -> Any:
    """A `vllm.LLM`; one that does not start leaves no process group behind."""
    was_distributed = has_process_group()
    try:
        return vllm.LLM(**options)
    except Exception:
        if has_process_group() and not was_distributed:  # left open by a start in this process
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        raise


def stop_vllm(llm: Any) -> None:
    """Stop a `vllm.LLM`; once nothing refers to it, `release_memory` makes room for another."""
    with process_unchanged():
        llm.llm_engine.engine_core.shutdown()


def release_memory() -> None:
    """Free what only cycles and torch's cache still hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def has_process_group() -> bool:
    """Whether this process is part of one of torch's process groups."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn whatever vLLM raises into an `EngineError` of one sentence."""
    try:
        yield
    except SeqprocError:
        raise
    except Exception as error:
        raise EngineError(f"{what} ({type(error).__name__}: {_gist(error)})") from error


def _gist(error: Exception) -> str:
    """The message on one line; of a pydantic error, what is wrong and not where to read on."""
    text = str(error)
    if isinstance(error, ValidationError):
        text = "; ".join(detail["msg"] for detail in error.errors())
    return textwrap.shorten(text, _GIST_LENGTH, placeholder=" …")


@contextmanager
def process_unchanged() -> Iterator[None]:
    """Keep what vLLM changes in this process and others rely on: random states, torch's knobs."""
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _random_states_unchanged(), torch.random.fork_rng(devices), warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # vLLM's, against torch
            warnings.simplefilter("ignore", category)
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads  # on a CPU vLLM replaces it by a refusal
            if preload is None:
                os.environ.pop("LD_PRELOAD", None)
            else:
                os.environ["LD_PRELOAD"] = preload


@contextmanager
def _random_states_unchanged() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is meant)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def torch_generator_unchanged() -> Iterator[None]:
    """Keep torch's global generator of the CPU."""
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
