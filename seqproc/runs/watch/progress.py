"""Says how far a run is: a line that is renewed on a terminal, or a new line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

from seqproc._util.progress import is_switched_off, tell

if TYPE_CHECKING:
    from seqproc.engines import Engine
    from seqproc.runs.run_folder import RunFolder

_LINE_SECONDS = 60.0  # between lines where there is no terminal


class Progress:
    """The progress of one run.

    Args:
        run: how many draws there are, and are done.
        engine: tells how many requests are running.
        unit: what a draw is called.
    """

    def __init__(self, run: RunFolder, engine: Engine | None = None, unit: str = "draw") -> None:
        self._engine, self._unit = engine, unit
        done = int(run.is_sampled.sum())
        self._bar = tqdm(
            total=run.manifest.num_own_draws,
            initial=done,
            desc="run",
            unit=unit,
            disable=is_switched_off() or None,  # None: where there is no terminal
        )
        self._is_terminal = not self._bar.disable
        self._num, self._total = done, run.manifest.num_own_draws
        self._num_finished = self._num_tokens = 0
        self._began = self._said = self._last = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def advance(self, draws: int, tokens: int) -> None:
        """Count draws that are finished, and their tokens."""
        pace, now = self._pace(), time.perf_counter()
        self._num += draws
        self._num_finished += draws
        self._num_tokens += tokens
        self._last = now
        if self._is_terminal:
            self._bar.set_postfix_str(self._rates(), refresh=False)
            self._bar.update(draws)
        elif now - self._said >= _LINE_SECONDS:
            self._said = now
            left = [] if pace is None else [f"about {(self._total - self._num) * pace:.0f} s left"]
            said = ", ".join([self._rates(), *left])
            tell(f"run: {self._num}/{self._total} {self._unit}s, {said}")

    def _pace(self) -> float | None:
        """Seconds a draw, up to the last one that is counted; None where it says little yet.

        Draws of a batch finish together: at the first of them the whole batch has taken its time.
        And of those that run together the short ones finish first.
        """
        if self._num_finished < max(2 * (self._running() or 0), 1):
            return None
        return (self._last - self._began) / self._num_finished

    def _running(self) -> int | None:
        return None if self._engine is None else self._engine.num_running

    def _rates(self) -> str:
        seconds, running = max(self._last - self._began, 1e-9), self._running()
        return ", ".join(
            [
                f"{self._num_tokens / seconds:.0f} tokens/s",
                f"{self._num_tokens / self._num_finished:.0f} tokens each",
                *([] if running is None else [f"{running} running"]),
            ]
        )
