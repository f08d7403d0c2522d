"""Coupled sampling inside vLLM: what a request carries, and the logits processor that vLLM loads.

vLLM has two model runners with an interface of logits processors each. `CoupledSampler` is the one
class that either of them is given by name: it fits both interfaces, and turns into the adapter of
the runner that makes it. Knows vLLM's interfaces and nothing else of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from seqproc.policy import SamplingPolicy

_KEY = "seqproc"


@dataclass(frozen=True, slots=True, kw_only=True)
class CoupledDraw:
    """A draw that our sampler makes, on a request that is greedy to vLLM."""

    seed: int  # unsigned 64-bit
    policy: SamplingPolicy


def extra_args(draw: CoupledDraw) -> dict[str, Any]:
    """What makes a greedy request of vLLM a coupled draw: plain values, which any process reads."""
    policy = draw.policy
    return {
        _KEY: {"seed": draw.seed, "temperature": policy.temperature, "top_p": policy.top_p},
    }


def coupled_draw(extra: Mapping[str, Any] | None) -> CoupledDraw | None:
    """The draw that a request's ``extra_args`` describe; None for requests that are vLLM's own."""
    values = (extra or {}).get(_KEY)
    if values is None:
        return None
    policy = SamplingPolicy(temperature=values["temperature"], top_p=values["top_p"])
    return CoupledDraw(seed=values["seed"], policy=policy)


class CoupledSampler(LogitsProcessorV1, LogitsProcessorV2):
    """The processor that vLLM is told to load; an instance is the running runner's adapter.

    vLLM loads it in the worker, after it has decided which runner works there.
    """

    def __new__(cls, vllm_config: Any, *given: Any) -> Any:
        """Make the adapter; ``given`` is what the runner gives to processors of its interface."""
        if vllm_config.use_v2_model_runner:
            from seqproc.engines.vllm.coupled_v2 import CoupledSamplerV2

            return CoupledSamplerV2(vllm_config, *given)
        from seqproc.engines.vllm.coupled_v1 import CoupledSamplerV1

        return CoupledSamplerV1(vllm_config, *given)
