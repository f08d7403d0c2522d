"""vLLM's engine, fed request by request and stepped by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from seqproc.engines.base import Request
from seqproc.engines.vllm.process import explained, torch_generator_unchanged
from seqproc.errors import EngineError


class RequestQueue:
    """What vLLM works on; one stream of requests at a time.

    Args:
        engine: gives the `vllm.LLMEngine`; raises `EngineError` once that is closed.
    """

    def __init__(self, engine: Callable[[], Any]) -> None:
        self._engine = engine
        self.is_busy = False
        self.has_failed = False  # in a step; what it was working on is lost
        self.num_in_flight = 0
        self._ids = itertools.count()

    def outputs(
        self,
        requests: Iterable[Request],
        params: Callable[[Request], Any],
        num_queued: int,
        adapter: Any,
    ) -> Generator[tuple[Request, Any], None, None]:
        """vLLM's own outputs, each in the step that finishes it, with the request it is of.

        Args:
            requests: fed lazily.
            params: vLLM's sampling parameters of each.
            num_queued: requests that vLLM is given at a time.
            adapter: vLLM's request for an adapter, or None.

        Raises:
            EngineError: it is busy, or vLLM refuses a request or fails.
        """
        if self.is_busy:
            raise EngineError(
                "this vLLM engine is generating already: finish or close that iterator first"
            )
        in_flight: dict[str, Request] = {}
        stream = iter(requests)
        self.is_busy = True
        try:
            self._feed(stream, in_flight, params, num_queued, adapter)
            while in_flight:
                for output in self._step(in_flight):
                    request = in_flight.pop(output.request_id, None)
                    if request is not None:
                        yield request, output
                self._feed(stream, in_flight, params, num_queued, adapter)
        finally:
            self.is_busy = False
            self.num_in_flight = 0
            if in_flight:
                with suppress(EngineError):  # closed meanwhile
                    self._engine().abort_request(list(in_flight))

    def _feed(
        self,
        stream: Iterator[Request],
        in_flight: dict[str, Request],
        params: Callable[[Request], Any],
        num_queued: int,
        adapter: Any,
    ) -> None:
        """Fill vLLM's queue up."""
        for request in itertools.islice(stream, num_queued - len(in_flight)):
            request_id = str(next(self._ids))
            with explained(f"vLLM refused request {request.index}"):
                self._engine().add_request(
                    request_id,
                    {"type": "token", "prompt_token_ids": list(request.prompt_ids)},
                    params(request),
                    lora_request=adapter,
                )
            in_flight[request_id] = request
        self.num_in_flight = len(in_flight)

    def _step(self, in_flight: dict[str, Request]) -> list[Any]:
        """One step of vLLM; what it finished."""
        try:
            # On a CPU vLLM draws from torch's global generator, and then uses the requests' own.
            with explained("vLLM failed while it was generating"), torch_generator_unchanged():
                outputs = self._engine().step()
        except EngineError:
            in_flight.clear()  # there is nothing to abort in an engine that failed
            self.has_failed = True
            raise
        return [output for output in outputs if output.finished]
