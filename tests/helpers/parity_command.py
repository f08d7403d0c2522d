"""What tests of `seqproc parity` share: engines to check, and the report it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from seqproc.engines import (
    Completion,
    HFEngine,
    ModelSource,
    Request,
    ScriptedEngine,
    StoppingRule,
    register_engine,
)
from seqproc.errors import EngineError
from seqproc.policy import SamplingPolicy

Run = Callable[..., Any]


class Hot(HFEngine):
    """It samples at T = 1.5 whatever it is told, and reports that log q."""

    name = "hot"

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        return super().generate(requests, replace(policy, temperature=1.5), stopping)


class Failing(HFEngine):
    """It fails whatever it is asked."""

    name = "failing"

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        raise EngineError("out of order")


class Repeating(ScriptedEngine):
    """It gives every prompt the same answer."""

    name = "repeating"

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> Repeating:
        return cls(lambda request: (60, 61, 62, 63, source.eos_token_ids[0]), source.tokenizer)


register_engine("repeating", Repeating)
register_engine("hot", Hot)
register_engine("failing", Failing)


def report(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "parity.json").read_text())


def cannot_print(*_: object) -> None:
    raise OSError("no space left on device")
