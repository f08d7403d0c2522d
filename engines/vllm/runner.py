"""Asks a running vLLM's workers what it samples with, and what follows for exactness.

vLLM has two model runners, and a top-p in two forms. Which of them run depends on the machine, on
the model and on the environment: so the workers are asked. Knows the answers' meaning; not how they
are got.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from seqproc.policy import SamplingPolicy

TEMPERATURES = (0.01, 2.0)  # vLLM raises a lower T to 0.01, silently, and refuses a higher

TopP = Literal["sort", "triton"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """How vLLM's workers sample. Seen in the workers, never derived from a version."""

    model_runner: Literal["V1", "V2"]
    top_p_backend: TopP  # "sort": exact; "triton": a search for the cut that is approximate
    fp64_gumbel: bool  # vLLM's option: V2's noise in float64

    def describe(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def inexact(self, policy: SamplingPolicy) -> str | None:
        """Why vLLM's own sampler does not draw from the policy exactly; None when it does."""
        if not policy.do_sample:
            return None
        if self.changes_temperature(policy):
            return "samples at temperatures from {} to {} only".format(*TEMPERATURES)
        if policy.top_p < 1 and self.top_p_backend == "triton":
            return "finds the nucleus of top_p by an approximate kernel"
        return None

    def changes_temperature(self, policy: SamplingPolicy) -> bool:
        """Whether vLLM's own sampler would take another temperature than the policy's, or none."""
        lowest, highest = TEMPERATURES
        return policy.do_sample and not lowest <= policy.temperature <= highest
