"""The vLLM engine: a `vllm.LLM`, fed request by request and stepped by hand.

Requests go in lazily, as many as vLLM can work on, and each completion comes out in the step that
finishes it. vLLM samples with the seed of each request, or on request by coupling, as the Hugging
Face engine does. Where a response ends is decided, as for every engine, by `stopping.finish`. Knows
nothing about scoring, datasets or files.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from seqproc._util.versions import vllm_build
from seqproc.engines.base import NO_FOLLOWING, Completion, Engine, Path, Request, StoppingRule
from seqproc.engines.contexts import ONE_TOKEN, path_requests, read_at_once
from seqproc.engines.noise import COUPLED, GREEDY, Noise, NotReplayable
from seqproc.engines.stopping import check_request, finish
from seqproc.engines.vllm.distributions import (
    ALL_IDS,
    log_distributions,
    path_params,
    paths_at_a_time,
)
from seqproc.engines.vllm.layers import outputs_told
from seqproc.engines.vllm.noise import NATIVE_V2, NATIVE_V2_FP64
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
    torch_generator_unchanged,
    with_trace_replay,
)
from seqproc.engines.vllm.runner import TEMPERATURES, Runner
from seqproc.engines.vllm.weights import VLLMWeights
from seqproc.errors import ConfigError, EngineError
from seqproc.models.source import Checkpoint, ModelSource
from seqproc.models.tokenization import Tokenizer
from seqproc.policy import SamplingPolicy, log_q

Sampler = Literal["auto", "native", "coupled"]

_LOGGER = logging.getLogger("seqproc")
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
        _require_sampler(sampler)
        self._sampler = sampler
        self._told_reasons: set[str] = set()  # why our sampler was chosen, each said once
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._is_generating = False
        self._is_asleep = False
        self._has_failed = False  # in a step; what it was working on is lost
        self._num_in_flight = 0
        self._ids = itertools.count()
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
                self._weights = VLLMWeights(self._llm, checkpoint, source)

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> VLLMEngine:
        """Start vLLM on the source's checkpoint; a live model is exported first."""
        require_vllm()
        return cls(source.checkpoint(), source.tokenizer, source=source, **options)

    @classmethod
    def require_options(cls, options: Mapping[str, Any]) -> None:
        """See `Engine.require_options`; imports vLLM."""
        _require_sampler(options.get("sampler", "auto"))
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
        self._require_possible(policy)
        is_coupled = self._is_coupled(policy)
        self._tell_choice(policy)

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
        self._require_possible(policy)
        if self._engine.model_config.max_logprobs != ALL_IDS:
            raise EngineError(
                "vLLM tells the log q of all tokens only when it was started with the option "
                "max_logprobs=-1, which changes nothing of what it samples: start it so"
            )
        return self._in_order(path_requests(paths, self.max_context), paths, policy)

    def _in_order(
        self, requests: Sequence[Request], paths: Sequence[Path], policy: SamplingPolicy
    ) -> Iterator[Tensor]:
        is_ours = self._is_coupled(policy) or not policy.do_sample
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
        self,
        requests: Iterable[Request],
        params: Callable[[Request], Any],
        num_queued: int,
    ) -> Generator[tuple[Request, Any], None, None]:
        """vLLM's own outputs, each in the step that finishes it, with the request it is of."""
        if self._is_generating:
            raise EngineError(
                "this vLLM engine is generating already: finish or close that iterator first"
            )
        in_flight: dict[str, Request] = {}
        stream = iter(requests)
        self._is_generating = True
        try:
            self._feed(stream, in_flight, params, num_queued)
            while in_flight:
                for output in self._step(in_flight):
                    request = in_flight.pop(output.request_id, None)
                    if request is not None:
                        yield request, output
                self._feed(stream, in_flight, params, num_queued)
        finally:
            self._is_generating = False
            self._num_in_flight = 0
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
        with process_unchanged(), explained("vLLM could not load the weights"):
            self._weights.load(weights)

    def fingerprint(self) -> str:
        """Of what vLLM multiplies with, its packed weights too; read once after each load."""
        self._engine  # noqa: B018 - raises when closed
        with process_unchanged(), explained("vLLM could not read its weights"):
            return self._weights.fingerprint()

    def noise(self, policy: SamplingPolicy) -> Noise | NotReplayable:
        """Ours, or that of vLLM's model runner V2; V1's cannot be computed again."""
        if not policy.do_sample:
            return GREEDY
        if self._is_coupled(policy):
            return COUPLED
        if self._options.get("speculative_config") is not None:
            return NotReplayable("vLLM draws in another way with speculative decoding")
        if self._runner.model_runner == "V1":
            return NotReplayable(
                "vLLM's model runner V1 draws from a torch generator of each request, whose state "
                "is no function of the token alone; V2's noise and sampler='coupled' are"
            )
        return NATIVE_V2_FP64 if self._runner.fp64_gumbel else NATIVE_V2

    def describe(self) -> dict[str, Any]:
        """What samples, JSON-ready."""
        config = self._engine.vllm_config
        return {
            "name": self.name,
            "sampler": self._sampler,
            "sampled_by": self._samplers(),
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

    def _samplers(self) -> dict[str, str]:
        """Who draws: without a nucleus, with one, and at temperatures beyond vLLM's bounds."""
        lowest, highest = TEMPERATURES
        policies = {
            "top_p = 1": SamplingPolicy(),
            "top_p < 1": SamplingPolicy(top_p=0.5),
            f"T < {lowest:g} or T > {highest:g}": SamplingPolicy(temperature=2 * highest),
        }
        samplers = {
            name: "coupled" if self._is_coupled(policy) else "native"
            for name, policy in policies.items()
        }
        refused = {
            name: "refused"
            for name, policy in policies.items()
            if self._sampler == "native" and self._runner.changes_temperature(policy)
        }
        return samplers | refused

    @property
    def num_running(self) -> int:
        """Requests that vLLM works on: those it was given, as many as it can run at once."""
        most = int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        return min(self._num_in_flight, most)

    def is_alive(self) -> bool:
        """False once a step has failed."""
        return self._llm is not None and not self._has_failed

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

    def _is_coupled(self, policy: SamplingPolicy) -> bool:
        """Whether our sampler draws under a policy, and not vLLM's."""
        if self._sampler == "auto":
            return self._runner.inexact(policy) is not None
        return self._sampler == "coupled" and policy.do_sample

    def _require_possible(self, policy: SamplingPolicy) -> None:
        """Refuse a policy that vLLM's own sampler was asked for and would change.

        Raises:
            EngineError: naming vLLM's bounds.
        """
        if self._sampler == "native" and self._runner.changes_temperature(policy):
            raise EngineError(
                f"vLLM's own sampler {self._runner.inexact(policy)}, not at {policy.temperature}; "
                "the options sampler='auto' and 'coupled', like engine='hf', have no bounds"
            )

    def _tell_choice(self, policy: SamplingPolicy) -> None:
        """Say that our sampler was chosen, and why; each reason once."""
        reason = self._runner.inexact(policy) if self._sampler == "auto" else None
        if reason is None or reason in self._told_reasons:
            return
        self._told_reasons.add(reason)
        _LOGGER.warning(
            "sampler='auto': vLLM's own sampler (model runner %s) %s, so seqproc's exact one "
            "samples at T = %g, top_p = %g, and no log q are reported; sampler='native' takes "
            "vLLM's as it is",
            self._runner.model_runner,
            reason,
            policy.temperature,
            policy.top_p,
        )

    def _feed(
        self,
        stream: Iterator[Request],
        in_flight: dict[str, Request],
        params: Callable[[Request], Any],
        num_queued: int,
    ) -> None:
        """Fill vLLM's queue up."""
        for request in itertools.islice(stream, num_queued - len(in_flight)):
            request_id = str(next(self._ids))
            with explained(f"vLLM refused request {request.index}"):
                self._engine.add_request(
                    request_id,
                    {"type": "token", "prompt_token_ids": list(request.prompt_ids)},
                    params(request),
                    lora_request=self._weights.lora,
                )
            in_flight[request_id] = request
        self._num_in_flight = len(in_flight)

    def _step(self, in_flight: dict[str, Request]) -> list[Any]:
        """One step of vLLM; what it finished."""
        try:
            # On a CPU vLLM draws from torch's global generator, and then uses the requests' own.
            with explained("vLLM failed while it was generating"), torch_generator_unchanged():
                outputs = self._engine.step()
        except EngineError:
            in_flight.clear()  # there is nothing to abort in an engine that failed
            self._has_failed = True
            raise
        return [output for output in outputs if output.finished]

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


def _require_sampler(sampler: object) -> None:
    if sampler not in typing.get_args(Sampler):
        raise ConfigError(f"sampler must be 'auto', 'native' or 'coupled', got {sampler!r}")


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
