"""The vLLM engine: a `vllm.LLM`, fed request by request and stepped by hand.

Requests go in lazily, as many as vLLM can work on, and each completion comes out in the step that
finishes it. vLLM samples with the seed of each request, or on request by coupling, as the Hugging
Face engine does. Where a response ends is decided, as for every engine, by `stopping.finish`. Knows
nothing about scoring, datasets or files.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqproc._util.printing import Facts
from seqproc._util.versions import vllm_build
from seqproc.engines.base import NO_FOLLOWING, Completion, Engine, Path, Request, StoppingRule
from seqproc.engines.contexts import ONE_TOKEN, path_requests, read_at_once
from seqproc.engines.noise import Noise, NotReplayable
from seqproc.engines.stopping import check_request, finish
from seqproc.engines.vllm.choice import Sampler, SamplerChoice, require_sampler
from seqproc.engines.vllm.distributions import (
    ALL_IDS,
    log_distributions,
    path_params,
    paths_at_a_time,
)
from seqproc.engines.vllm.layers import outputs_told
from seqproc.engines.vllm.options import environment, llm_options, require_options, sampling_params
from seqproc.engines.vllm.process import (
    WHERE_IT_CAN,
    explained,
    failure_to_start,
    has_process_group,
    import_vllm,
    process_unchanged,
    release_memory,
    require_vllm,
    start_vllm,
    stop_vllm,
    with_trace_replay,
)
from seqproc.engines.vllm.queue import RequestQueue
from seqproc.engines.vllm.runner import Runner
from seqproc.engines.vllm.weights import VLLMWeights
from seqproc.errors import EngineError
from seqproc.models.source import Checkpoint, ModelSource
from seqproc.models.tokenization import Tokenizer
from seqproc.policy import SamplingPolicy, log_q

_SEEDS = "mixed by SplitMix64's finaliser, signed 64-bit"
_HOW_TO_FOLLOW = (
    "vLLM decodes them on its model runner V2, without speculative decoding, when it was started "
    "with the options max_logprobs=-1 and enable_trace_replay=true, which change no draw"
)
_QUEUED_PER_RUNNING = 2  # requests in vLLM for each that it can run at once


class VLLMEngine(Engine):
    """Samples with vLLM, on GPUs or on the CPU.

    Args:
        checkpoint: the weights, and a LoRA adapter if there is one.
        tokenizer: the model's tokenizer, which tells where a response ends.
        sampler: "native" for vLLM's own, which also reports log q; "coupled" for ours: Gumbel noise
            that is a function of seed, step and token id (see `coupling`), the same in every
            engine; "auto" for vLLM's own where it draws from the policy exactly, and ours
            elsewhere (see `Runner.inexact`).
        source: where the checkpoint came from; without it only directories can be loaded later.
        **options: of `vllm.LLM`; each overrides the default chosen for the platform. With
            ``enable_trace_replay="auto"`` it is set where the model runner is V2.

    Raises:
        MissingDependencyError: when vLLM is not installed.
        ConfigError: a sampler that is none of the three.
        EngineError: when vLLM does not start, in its own words.
    """

    name: ClassVar[str] = "vllm"
    distribution_options: ClassVar[Mapping[str, Any]] = {
        "max_logprobs": ALL_IDS,
        "enable_trace_replay": WHERE_IT_CAN,
    }

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        *,
        sampler: Sampler = "auto",
        source: ModelSource | None = None,
        **options: Any,
    ) -> None:
        require_sampler(sampler)
        self._sampler = sampler
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._is_asleep = False
        self._queue = RequestQueue(lambda: self._engine)
        on_cpu = not torch.cuda.is_available()
        self._platform = "cpu" if on_cpu else torch.cuda.get_device_name()
        _set_environment(options, on_cpu=on_cpu)
        with process_unchanged():  # importing vLLM warns and changes as much as starting it
            vllm = import_vllm()
            self._options = llm_options(
                checkpoint, options, on_cpu=on_cpu, coupled=sampler != "native"
            )
            with explained(failure_to_start()):
                self._options = with_trace_replay(self._options)
                self._llm: Any = start_vllm(vllm, self._options)
                self._runner = Runner(**self._llm.collective_rpc("seqproc_runner")[0])
                self._choice = SamplerChoice(sampler, self._runner)
                self._weights = VLLMWeights(self._llm, checkpoint, source)

    def _facts(self) -> Facts:
        closed = {"is_closed": True} if self._llm is None else {}
        model = str(self._options.get("model", ""))
        return {"name": self.name, "model": model, "sampler": self._sampler, **closed}

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> VLLMEngine:
        """Start vLLM on the source's checkpoint; a live model is exported first."""
        require_vllm()
        return cls(source.checkpoint(), source.tokenizer, source=source, **options)

    @classmethod
    def require_options(cls, options: Mapping[str, Any]) -> None:
        """See `Engine.require_options`; imports vLLM."""
        require_sampler(options.get("sampler", "auto"))
        of_vllm = {name: value for name, value in options.items() if name != "sampler"}
        _set_environment(of_vllm, on_cpu=not torch.cuda.is_available())
        with process_unchanged():
            import_vllm()
            require_options(of_vllm)

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
        self._choice.require_possible(policy)
        is_coupled = self._choice.is_coupled(policy)
        self._choice.tell(policy)

        def params(request: Request) -> Any:
            check_request(request, stopping, self.max_context)
            return sampling_params(request.seed, policy, stopping, coupled=is_coupled)

        running = self._engine.vllm_config.scheduler_config.max_num_seqs
        reports = policy.do_sample and not is_coupled  # else it reports log p
        outputs = self._outputs(requests, params, running * _QUEUED_PER_RUNNING)
        with closing(outputs):
            for request, output in outputs:
                yield self._completion(request, output, stopping, reports_log_q=reports)

    def distributions(
        self, contexts: Sequence[Sequence[int]], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        """See `Engine.distributions`. It takes the option ``max_logprobs=-1``.

        Where vLLM's own sampler draws, it is what that reports, its nucleus included; where ours
        does, the policy over the log p that vLLM reports. vLLM computes in float32.
        """
        return self._follow(read_at_once(contexts), policy)

    @property
    def can_follow(self) -> bool:
        """On model runner V2, with the options ``enable_trace_replay`` and ``max_logprobs=-1``."""
        model, speculative = self._engine.model_config, self._options.get("speculative_config")
        return model.enable_trace_replay and model.max_logprobs == ALL_IDS and speculative is None

    def follow(self, paths: Sequence[Path], policy: SamplingPolicy) -> Iterator[Tensor]:
        """See `Engine.follow`; by vLLM's trace replay, told as `distributions` tells.

        vLLM makes log q of all steps up to the last one that is asked about.
        """
        if not self.can_follow:
            raise EngineError(f"{NO_FOLLOWING.format(self.name)}. {_HOW_TO_FOLLOW}")
        return self._follow(paths, policy)

    def layer_outputs(self, context: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        """See `Engine.layer_outputs`; by hooks, with the option ``enforce_eager=True`` alone."""
        self._engine  # noqa: B018 - raises when closed
        requests = path_requests(read_at_once([context]), self.max_context)
        greedy = sampling_params(0, SamplingPolicy(do_sample=False), ONE_TOKEN)
        self._llm.collective_rpc("seqproc_record", args=(list(names),))
        try:
            list(self._outputs(requests, lambda _: greedy, 1))
        finally:
            told, *_ = self._llm.collective_rpc("seqproc_recorded")
        return outputs_told(told, len(context))

    def _follow(self, paths: Sequence[Path], policy: SamplingPolicy) -> Iterator[Tensor]:
        self._choice.require_possible(policy)
        if self._engine.model_config.max_logprobs != ALL_IDS:
            raise EngineError(
                "vLLM tells the log q of all tokens only when it was started with the option "
                "max_logprobs=-1, which changes nothing of what it samples: start it so"
            )
        return self._in_order(path_requests(paths, self.max_context), paths, policy)

    def _in_order(
        self, requests: Sequence[Request], paths: Sequence[Path], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        is_ours = self._choice.is_coupled(policy) or not policy.do_sample
        asked = SamplingPolicy() if is_ours else policy
        vocabulary = int(self._engine.model_config.get_vocab_size())
        early: dict[int, list[Tensor]] = {}
        due = 0
        outputs = self._outputs(
            requests,
            lambda request: path_params(paths[request.index], asked),
            paths_at_a_time(paths, vocabulary),
        )
        with closing(outputs):
            for request, output in outputs:
                told = log_distributions(output, paths[request.index], vocabulary)
                early[request.index] = [log_q(one, policy) if is_ours else one for one in told]
                while due in early:
                    yield from early.pop(due)
                    due += 1

    def _outputs(
        self, requests: Iterable[Request], params: Callable[[Request], Any], num_queued: int
    ) -> Generator[tuple[Request, Any], None, None]:
        return self._queue.outputs(requests, params, num_queued, self._weights.lora)

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
        if self._queue.is_busy:
            raise EngineError(
                "a generation is under way: finish or close its iterator before loading weights"
            )
        self._engine  # noqa: B018 - raises when closed
        with process_unchanged(), explained("vLLM could not load the weights"):
            self._weights.load(weights)

    def fingerprint(self) -> str:
        """Of what vLLM multiplies with, its packed weights too; read once after each load."""
        self._engine  # noqa: B018 - raises when closed
        with process_unchanged(), explained("vLLM could not read its weights"):
            return self._weights.fingerprint()

    def noise(self, policy: SamplingPolicy) -> Noise | NotReplayable:
        """Ours, or that of vLLM's model runner V2; V1's cannot be computed again."""
        is_speculative = self._options.get("speculative_config") is not None
        return self._choice.noise(policy, is_speculative=is_speculative)

    def describe(self) -> dict[str, Any]:
        """What samples, JSON-ready."""
        config = self._engine.vllm_config
        return {
            "name": self.name,
            "sampler": self._sampler,
            "sampled_by": self._choice.describe(),
            **self._runner.describe(),
            "logprobs_mode": self._options["logprobs_mode"],
            "seeds": _SEEDS,
            "versions": {"vllm": vllm_build(), "torch": torch.__version__},
            "options": {key: _plain(value) for key, value in self._options.items()},
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "platform": self._platform,
            "adapter": self._checkpoint.adapter,
            "max_model_len": self.max_context,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "notes": list(self._checkpoint.notes),
            "weights": self.fingerprint(),
        }

    @property
    def num_running(self) -> int:
        """Requests that vLLM works on: those it was given, as many as it can run at once."""
        most = int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        return min(self._queue.num_in_flight, most)

    def is_alive(self) -> bool:
        """False once a step has failed."""
        return self._llm is not None and not self._queue.has_failed

    @property
    def can_sleep(self) -> bool:
        """With the option ``enable_sleep_mode``."""
        return bool(self._options.get("enable_sleep_mode")) and self._llm is not None

    def sleep(self) -> None:
        """Give the accelerator's memory back; only with the option ``enable_sleep_mode``."""
        if self.can_sleep and not self._is_asleep:
            self.fingerprint()  # which cannot be read later
            with explained("vLLM could not go to sleep"):
                self._llm.sleep(level=1)
            self._is_asleep = True

    def wake(self) -> None:
        """Undo `sleep`."""
        if self._is_asleep:
            with explained("vLLM could not wake up"):
                self._llm.wake_up()
            self._is_asleep = False

    def close(self) -> None:
        """Stop vLLM and free its memory; another engine can then start in this process."""
        if self._llm is None:
            return
        self._weights.close()
        llm, self._llm = self._llm, None
        stop_vllm(llm)
        del llm
        release_memory()

    @property
    def _engine(self) -> Any:
        if self._llm is None:
            raise EngineError("this vLLM engine is closed; start another")
        return self._llm.llm_engine

    def _completion(
        self, request: Request, output: Any, stopping: StoppingRule, *, reports_log_q: bool
    ) -> Completion:
        response = output.outputs[0]
        ids, text, reason = finish(list(response.token_ids), self._tokenizer, stopping)
        logqs = None
        if reports_log_q:
            steps = itertools.islice(zip(response.logprobs, ids, strict=False), len(ids))
            logqs = tuple(float(position[token].logprob) for position, token in steps)
            _require_distribution(logqs, request)
        return Completion(
            index=request.index,
            token_ids=ids,
            text=text,
            finish_reason=reason,
            logqs=logqs,
            prompt_ids=tuple(output.prompt_token_ids),
        )


def _set_environment(options: Mapping[str, Any], *, on_cpu: bool) -> None:
    """What vLLM reads when it is imported, where the user has not set it."""
    # In this process, closing vLLM would close a process group of the user's as well.
    in_process = not has_process_group()
    for name, value in environment(options, on_cpu=on_cpu, in_process=in_process).items():
        os.environ.setdefault(name, value)


def _require_distribution(logqs: Sequence[float], request: Request) -> None:
    """Refuse draws of a step at which vLLM masked every token."""
    step = next((step for step, value in enumerate(logqs) if math.isnan(value)), None)
    if step is not None:
        raise EngineError(
            f"vLLM's own sampler left no token to draw at step {step} of request {request.index}: "
            "its log q is NaN. Its top-p does that at very small top_p, and logits that are NaN "
            "do; sampler='auto' or 'coupled' has an exact top-p"
        )


def _plain(value: object) -> object:
    """A value that JSON can hold."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
