"""Who draws: vLLM's own sampler or ours, policy by policy."""

from __future__ import annotations

import logging
import typing
from typing import Literal

from seqproc.engines.noise import COUPLED, GREEDY, Noise, NotReplayable
from seqproc.engines.vllm.noise import NATIVE_V2, NATIVE_V2_FP64
from seqproc.engines.vllm.runner import TEMPERATURES, Runner
from seqproc.errors import ConfigError, EngineError
from seqproc.policy import SamplingPolicy

Sampler = Literal["auto", "native", "coupled"]

_LOGGER = logging.getLogger("seqproc")


def require_sampler(sampler: object) -> None:
    """Refuse what is no sampler.

    Raises:
        ConfigError: it is none of the three.
    """
    if sampler not in typing.get_args(Sampler):
        raise ConfigError(f"sampler must be 'auto', 'native' or 'coupled', got {sampler!r}")


class SamplerChoice:
    """Which sampler draws under a policy.

    Args:
        sampler: what was asked for.
        runner: what vLLM's own sampler does.
    """

    def __init__(self, sampler: Sampler, runner: Runner) -> None:
        self._sampler, self._runner = sampler, runner
        self._told_reasons: set[str] = set()  # why our sampler was chosen, each said once

    def is_coupled(self, policy: SamplingPolicy) -> bool:
        """Whether our sampler draws under a policy, and not vLLM's."""
        if self._sampler == "auto":
            return self._runner.inexact(policy) is not None
        return self._sampler == "coupled" and policy.do_sample

    def require_possible(self, policy: SamplingPolicy) -> None:
        """Refuse a policy that vLLM's own sampler was asked for and would change.

        Raises:
            EngineError: naming vLLM's bounds.
        """
        if self._sampler == "native" and self._runner.changes_temperature(policy):
            raise EngineError(
                f"vLLM's own sampler {self._runner.inexact(policy)}, not at {policy.temperature}; "
                "the options sampler='auto' and 'coupled', like engine='hf', have no bounds"
            )

    def tell(self, policy: SamplingPolicy) -> None:
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

    def noise(self, policy: SamplingPolicy, *, is_speculative: bool) -> Noise | NotReplayable:
        """Ours, or that of vLLM's model runner V2; V1's cannot be computed again."""
        if not policy.do_sample:
            return GREEDY
        if self.is_coupled(policy):
            return COUPLED
        if is_speculative:
            return NotReplayable("vLLM draws in another way with speculative decoding")
        if self._runner.model_runner == "V1":
            return NotReplayable(
                "vLLM's model runner V1 draws from a torch generator of each request, whose state "
                "is no function of the token alone; V2's noise and sampler='coupled' are"
            )
        return NATIVE_V2_FP64 if self._runner.fp64_gumbel else NATIVE_V2

    def describe(self) -> dict[str, str]:
        """Who draws: without a nucleus, with one, and at temperatures beyond vLLM's bounds."""
        lowest, highest = TEMPERATURES
        policies = {
            "top_p = 1": SamplingPolicy(),
            "top_p < 1": SamplingPolicy(top_p=0.5),
            f"T < {lowest:g} or T > {highest:g}": SamplingPolicy(temperature=2 * highest),
        }
        samplers = {
            name: "coupled" if self.is_coupled(policy) else "native"
            for name, policy in policies.items()
        }
        refused = {
            name: "refused"
            for name, policy in policies.items()
            if self._sampler == "native" and self._runner.changes_temperature(policy)
        }
        return samplers | refused
