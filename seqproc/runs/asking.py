"""Asks an engine for draws until each has been answered, or has failed alone.

An engine that fails is started again and asked for what it left open. When it fails on the same
draws again, they are asked for in halves, until the draw that it cannot make is alone: that one is
given up, and the rest goes on. Knows requests and completions; nothing of scores or files.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seqproc.engines.base import Completion, Request
from seqproc.errors import EngineError, EngineMemoryError

if TYPE_CHECKING:
    from seqproc.processor.sampler import Sampler

_LOGGER = logging.getLogger("seqproc")

_MAX_ERROR_CHARS = 500

MOST_GIVEN_UP = 16  # draws in a row, before the engine is taken for broken and not the draws


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A request that the engine fails on, alone as with others."""

    request: Request
    error: EngineError


Answer = Completion | GivenUp


class Asking:
    """Answers of one engine.

    Args:
        sampler: has the engine, and the policy.
        max_restarts: how often the engine may be started again without having answered anything
            in between.
        tell: is told "smaller_batches" and "engine_restarted", with the error that led to it.
        witness: gives a request that was answered before, in this process or an earlier one, or
            None. When all others fail it is asked for once more, to tell draws that are at fault
            from an engine that is.
    """

    def __init__(
        self,
        sampler: Sampler,
        max_restarts: int = 3,
        tell: Callable[..., object] | None = None,
        witness: Callable[[], Request | None] | None = None,
    ) -> None:
        self._sampler = sampler
        self._tell = tell
        self._witness = witness
        self._max_restarts = max_restarts
        self._restarts = 0  # since the last answer
        self._given_up = 0  # since the last answer
        self._has_answered = False

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """An answer to each request, in the order the engine finishes them.

        Requests are taken as the engine has room for them.

        Raises:
            EngineError: the engine fails on everything, or does not start again.
        """
        held: list[GivenUp] = []  # until an answer tells that the draws are at fault
        for answer in self._answers(iter(requests)):
            if not self._has_answered:
                assert isinstance(answer, GivenUp)
                held.append(answer)
                continue
            yield from held
            held.clear()
            yield answer
        if held and not self._answers_witness(held[-1].error):
            raise held[-1].error
        yield from held

    def _answers_witness(self, error: EngineError) -> bool:
        """Whether the engine answers what it answered before, after it failed on all else."""
        request = None if self._witness is None else self._witness()
        if request is None:
            return False
        try:
            self._recover(error)
            return len(list(self._sampler.stream([request]))) == 1
        except EngineError:
            return False

    def _answers(self, stream: Iterator[Request]) -> Iterator[Answer]:
        while True:
            open_requests: dict[int, Request] = {}
            try:
                yield from self._asked(_noted(stream, open_requests), open_requests)
            except EngineError as error:
                if not open_requests:
                    raise
                yield from self._again(list(open_requests.values()), error)
            else:
                return

    def _asked(
        self, requests: Iterable[Request], open_requests: dict[int, Request]
    ) -> Iterator[Completion]:
        for completion in self._sampler.stream(requests):
            del open_requests[completion.index]
            self._restarts = self._given_up = 0
            self._has_answered = True
            yield completion

    def _again(self, requests: list[Request], error: EngineError) -> Iterator[Answer]:
        """Ask once more for what was left open; in halves if that fails, too."""
        self._recover(error)
        open_requests = {request.index: request for request in requests}
        try:
            yield from self._asked(requests, open_requests)
        except EngineMemoryError as second:
            left = list(open_requests.values())
            if self._sampler.engine.batch_size in (None, 1):
                yield from self._in_halves(left, second)
            else:
                yield from self._again(left, second)
        except EngineError as second:
            yield from self._in_halves(list(open_requests.values()), second)

    def _in_halves(self, left: list[Request], error: EngineError) -> Iterator[Answer]:
        if len(left) == 1:
            yield self._give_up(left[0], error)
            return
        middle = len(left) // 2
        for half in (left[:middle], left[middle:]):
            if half:
                yield from self._again(half, error)

    def _give_up(self, request: Request, error: EngineError) -> GivenUp:
        self._given_up += 1
        if self._given_up >= MOST_GIVEN_UP and self._answers_witness(error):
            self._given_up = 0
        if self._given_up >= MOST_GIVEN_UP:
            error.add_note(
                f"the engine failed on {self._given_up} draws in a row, each asked for alone"
            )
            raise error
        return GivenUp(request=request, error=error)

    def _recover(self, error: EngineError) -> None:
        """Make the engine able to be asked again."""
        if isinstance(error, EngineMemoryError) and self._sampler.use_less_memory():
            self._say("smaller_batches", "going on with smaller batches", error)
            return
        if self._sampler.is_engine_alive():
            return
        self._restarts += 1
        if self._restarts > self._max_restarts:
            error.add_note(f"it was started again {self._max_restarts} times, and failed each time")
            raise error
        self._say("engine_restarted", "starting the engine again", error)
        self._sampler.restart()

    def _say(self, event: str, in_words: str, error: EngineError) -> None:
        reason = " ".join(str(error).split())
        _LOGGER.warning("%s; %s", reason, in_words)
        if self._tell is not None:
            self._tell(event, error=reason[:_MAX_ERROR_CHARS])


def _noted(requests: Iterator[Request], open_requests: dict[int, Request]) -> Iterator[Request]:
    """The requests, each noted as open when it is taken."""
    for request in requests:
        open_requests[request.index] = request
        yield request
