"""The time that is left: said where it can be known, and then near what it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seqproc.runs.watch import progress


class Clock:
    """Time goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, list[str]]:
    clock = Clock()
    lines: list[str] = []
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "tell", lines.append)
    monkeypatch.setattr(progress, "is_switched_off", lambda: True)
    return clock, lines


def run(num_draws: int) -> Any:
    manifest = SimpleNamespace(num_own_draws=num_draws)
    return SimpleNamespace(is_sampled=np.zeros(num_draws, dtype=bool), manifest=manifest)


def test_draws_of_a_batch_count_once_the_batch_is_done(told: Any) -> None:
    """Two batches of 32 of 100 s each: at the first draw of the first one nothing is known."""
    clock, lines = told
    with progress.Progress(run(64)) as bar:
        for _ in range(2):
            clock.now += 100
            for _ in range(32):
                bar.advance(1, 10)
    assert [line.split(",")[0] for line in lines] == ["run: 1/64 draws", "run: 33/64 draws"]
    assert "left" not in lines[0]
    assert lines[1].endswith("about 97 s left")  # as slow as the batch before


def test_of_draws_that_run_together_many_have_to_end_first(told: Any) -> None:
    clock, lines = told
    engine: Any = SimpleNamespace(num_running=8)
    with progress.Progress(run(40), engine) as bar:
        for _ in range(20):
            clock.now += 61
            bar.advance(1, 10)
    assert ["left" in line for line in lines] == [False] * 16 + [True] * 4
    assert lines[-1].endswith(f"about {20 * 61} s left")
