"""A scripted engine: it plays back token ids instead of sampling. A public testing aid.

It keeps the engine contract to the letter (lazy requests, completions in any order, the shared
definition of where a response ends), so whatever works with it works with a real engine. It can
also fail on cue. It needs a tokenizer but no model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from seqproc.engines.base import Completion, Engine, Request, StoppingRule
from seqproc.engines.stopping import check_request, finish
from seqproc.errors import EngineError, EngineOptionError
from seqproc.models.source import ModelSource
from seqproc.models.tokenization import Tokenizer
from seqproc.policy import SamplingPolicy

Script = Mapping[int, Sequence[int]] | Callable[[Request], Sequence[int]]


@dataclass(kw_only=True)
class Call:
    """One call of `ScriptedEngine.generate`, as it went."""

    policy: SamplingPolicy
    stopping: StoppingRule
    requests: list[Request] = field(default_factory=list)  # in the order in which they were taken
    completed: list[int] = field(default_factory=list)  # indices, in the order of completion


class ScriptedEngine(Engine):
    """Plays back a script.

    Args:
        script: the token ids of a response by request index, or a function from a request to
            them. They may go on after the end of the response; `stopping.finish` cuts them.
        tokenizer: decodes them.
        in_flight: how many requests it holds at a time.
        order: gives the requests in flight the order in which they complete; default: as taken.
        fail_after: raise EngineError once this many completions are out, over all calls.
        logqs: the log q that the engine reports for a request and its response's token ids.
        max_context: longest sequence of prompt and response [tokens]; None for no limit.

    Attributes:
        calls: a `Call` per call of `generate` that was begun.
        events: "sleep", "wake" and "close", in order.
    """

    name: ClassVar[str] = "scripted"

    def __init__(
        self,
        script: Script,
        tokenizer: Tokenizer,
        *,
        in_flight: int = 8,
        order: Callable[[list[Request]], Iterable[Request]] | None = None,
        fail_after: int | None = None,
        logqs: Callable[[Request, tuple[int, ...]], Sequence[float]] | None = None,
        max_context: int | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.events: list[str] = []
        self._script = script
        self._tokenizer = tokenizer
        self._in_flight = in_flight
        self._order = order
        self._fail_after = fail_after
        self._logqs = logqs
        self._max_context = max_context
        self._num_completed = 0

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> ScriptedEngine:
        """Take the tokenizer and context of a source, and a ``script`` among the options."""
        if "script" not in options:
            raise EngineOptionError(
                "engine 'scripted' plays back a script: give the option script=…"
            )
        try:
            return cls(
                options.pop("script"),
                source.tokenizer,
                **{"max_context": source.max_context, **options},
            )
        except TypeError as error:
            raise EngineOptionError(
                f"engine 'scripted' does not take these options: {error}"
            ) from error

    @property
    def max_context(self) -> int | None:
        """As it was made."""
        return self._max_context

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        """Play back; see `Engine.generate`."""
        if "close" in self.events:
            raise EngineError("the engine is closed")
        call = Call(policy=policy, stopping=stopping)
        self.calls.append(call)
        stream = iter(requests)
        while window := list(itertools.islice(stream, self._in_flight)):
            call.requests += window
            for request in self._order(window) if self._order else window:
                if self._num_completed == self._fail_after:
                    raise EngineError(f"scripted failure after {self._fail_after} completions")
                completion = self._complete(request, stopping)
                self._num_completed += 1
                call.completed.append(request.index)
                yield completion

    def describe(self) -> dict[str, Any]:
        """What samples, JSON-ready."""
        return {"name": self.name, "options": {"in_flight": self._in_flight}}

    def sleep(self) -> None:
        """Only noted in ``events``."""
        self.events.append("sleep")

    def wake(self) -> None:
        """Only noted in ``events``."""
        self.events.append("wake")

    def close(self) -> None:
        """Noted in ``events``; `generate` fails from now on."""
        self.events.append("close")

    def _complete(self, request: Request, stopping: StoppingRule) -> Completion:
        check_request(request, stopping, self._max_context)
        ids, text, reason = finish(self._lines_of(request), self._tokenizer, stopping)
        logqs = None if self._logqs is None else tuple(self._logqs(request, ids))
        return Completion(
            index=request.index,
            token_ids=ids,
            text=text,
            finish_reason=reason,
            logqs=logqs,
            prompt_ids=request.prompt_ids,
        )

    def _lines_of(self, request: Request) -> Sequence[int]:
        if not isinstance(self._script, Mapping):
            return self._script(request)
        if request.index not in self._script:
            raise EngineError(f"the script has nothing for request {request.index}")
        return self._script[request.index]
