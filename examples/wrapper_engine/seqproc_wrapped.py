"""An engine of a third party: it hands requests on to the `hf` engine, and can record them.

What it knows of seqproc is the engine contract. Everything that is not its own business goes to
the engine inside.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from seqproc.engines import (
    Completion,
    Engine,
    ModelSource,
    Noise,
    NotReplayable,
    Request,
    StoppingRule,
    create_engine,
)
from seqproc.policy import SamplingPolicy


class WrappedEngine(Engine):
    """Samples with another engine.

    Args:
        inner: the engine that does the work; closed with this one.
        log: file to which a line of JSON is added for each request that is handed on; None for no
            record.
        forget_temperature: sample at T = 1 whatever the policy says. A fault, for tests of parity.
    """

    name: ClassVar[str] = "wrapped"

    def __init__(
        self, inner: Engine, *, log: str | None = None, forget_temperature: bool = False
    ) -> None:
        self._inner = inner
        self._log = log
        self._forgets_temperature = forget_temperature
        self.batch_size = inner.batch_size

    @classmethod
    def from_source(
        cls,
        source: ModelSource,
        *,
        log: str | None = None,
        forget_temperature: bool = False,
        **options: Any,
    ) -> WrappedEngine:
        """Wrap `hf`, which gets the options that are not the wrapper's own."""
        inner = create_engine("hf", source, **options)
        return cls(inner, log=log, forget_temperature=forget_temperature)

    @property
    def max_context(self) -> int | None:
        """That of the engine inside."""
        return self._inner.max_context

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        """Hand the requests on as they come, and the completions back."""
        if self._forgets_temperature:
            policy = dataclasses.replace(policy, temperature=1.0)
        self._inner.batch_size = self.batch_size
        yield from self._inner.generate(map(self._recorded, requests), policy, stopping)

    def describe(self) -> dict[str, Any]:
        """The engine inside, under the name of this one."""
        own = {"log": self._log, "forget_temperature": self._forgets_temperature}
        return self._inner.describe() | {"name": self.name, "wraps": self._inner.name, **own}

    def noise(self, policy: SamplingPolicy) -> Noise | NotReplayable:
        """That of the engine inside: a wrapper changes no token."""
        return self._inner.noise(policy)

    def load_weights(self, weights: Mapping[str, Tensor] | str | os.PathLike[str] | None) -> None:
        """Load them into the engine inside."""
        self._inner.load_weights(weights)

    def fingerprint(self) -> str | None:
        """That of the engine inside."""
        return self._inner.fingerprint()

    def sleep(self) -> None:
        """Let the engine inside sleep."""
        self._inner.sleep()

    def wake(self) -> None:
        """Wake the engine inside."""
        self._inner.wake()

    def close(self) -> None:
        """Close the engine inside."""
        self._inner.close()

    def _recorded(self, request: Request) -> Request:
        if self._log is not None:
            line = {"index": request.index, "seed": request.seed, "tokens": request.prompt_ids}
            with Path(self._log).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return request
