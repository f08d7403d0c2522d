"""The events of a run: what happened is told once, in order, whatever kills the process."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from helpers.run_folders import CHUNK, DRAWS, SPEC, Maker, Scripted
from seqproc import SequenceProcessor
from seqproc.engines import Request, register_engine
from seqproc.errors import EngineError, EngineMemoryError
from seqproc.runs import sample_run
from seqproc.runs.format.events import EVENTS, Events, read_events
from seqproc.runs.store.folder import open_folder
from seqproc.runs.store.local import LocalFolder


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


def names(path: Path | str) -> list[str]:
    return [event["event"] for event in read_events(open_folder(path))]


COMMITS = ["committed", "scored"]


def test_a_run_that_is_stopped_and_goes_on_tells_so(maker: Maker, tmp_path: Path) -> None:
    out = tmp_path / "run"
    maker.stopped(out)
    assert names(out) == ["started", *COMMITS * 2, "committed", "interrupted"]
    maker.complete(out)
    resumed = read_events(LocalFolder(out))[7:]
    assert [event["event"] for event in resumed] == [
        "resumed",
        "committed",
        "scored",
        "scored",
        "merged",
        "complete",
    ]
    assert (resumed[0]["sampled"], resumed[0]["done"], resumed[0]["draws"]) == (20, 16, DRAWS)
    assert (resumed[1]["part"], resumed[1]["rows"]) == ("part-000004", 4)  # one number stays free
    assert resumed[1]["tokens"] > 4
    for event in resumed:
        assert (event["host"], event["pid"]) == (socket.gethostname(), os.getpid())
        assert event["time"].endswith("+00:00")
    maker.complete(out)
    assert len(names(out)) == 13


def test_a_file_of_events_is_a_line_of_json_each(maker: Maker, tmp_path: Path) -> None:
    maker.complete(tmp_path / "run")
    lines = (tmp_path / "run" / EVENTS).read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == names(tmp_path / "run")
    assert names(tmp_path / "run") == ["started", *COMMITS * 3, "merged", "complete"]


def test_what_fails_and_what_is_given_up_is_told(maker: Maker, tmp_path: Path) -> None:
    processor = maker.processor(3, lambda: EngineError("this one\n never works"))
    sample_run(processor, SPEC, tmp_path / "run", chunk_size=CHUNK)
    told = [e for e in read_events(LocalFolder(tmp_path / "run")) if e["event"] == "quarantined"]
    assert [(e["draw"], e["step"], e["reason"]) for e in told] == [
        (3, "generation", "this one never works")
    ]
    with pytest.raises(TypeError):
        sample_run(maker.processor(3, TypeError), SPEC, tmp_path / "failed", chunk_size=CHUNK)
    assert read_events(LocalFolder(tmp_path / "failed"))[-1]["event"] == "failed"
    assert read_events(LocalFolder(tmp_path / "failed"))[-1]["error"] == "TypeError"


class Ailing(Scripted):
    """Runs out of memory once, or dies once."""

    batch_size = 8
    error: EngineError
    lives = True

    @classmethod
    def from_source(cls, source: Any, **options: Any) -> Ailing:
        return cls(source.tokenizer, None, KeyboardInterrupt)

    def _complete(self, request: Request, stopping: Any) -> Any:
        if request.index == 5 and type(self).lives:
            type(self).lives = False
            raise self.error
        return super()._complete(request, stopping)

    def is_alive(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (EngineMemoryError("no memory left"), "smaller_batches"),
        (EngineError("the engine died"), "engine_restarted"),
    ],
)
def test_what_is_done_to_the_engine_is_told(
    maker: Maker, tmp_path: Path, error: EngineError, event: str
) -> None:
    register_engine(f"ailing-{event}", type("Engine", (Ailing,), {"error": error, "name": event}))
    processor = SequenceProcessor(maker.model, maker.tokenizer, engine=f"ailing-{event}")
    sample_run(processor, SPEC, tmp_path / "run")
    told = {e["event"]: e for e in read_events(LocalFolder(tmp_path / "run"))}
    assert told[event]["error"] == str(error)
    assert "complete" in told


def test_a_torn_line_is_left_out_and_the_next_one_is_not_joined_to_it(tmp_path: Path) -> None:
    folder = LocalFolder(tmp_path)
    Events(folder).tell("started", draws=3)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:00:00+00:00", "event": "comm\xff')
    assert names(tmp_path) == ["started"]
    events = Events(folder)
    events.tell("resumed", done=0)
    events.tell("complete")
    assert names(tmp_path) == ["started", "resumed", "complete"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"null\n[]\n{}\n", b"[" * 100_000, b"\x00"])
def test_what_is_no_event_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / EVENTS).write_bytes(content)
    assert read_events(LocalFolder(tmp_path)) == []


def test_text_from_outside_stays_on_one_line(tmp_path: Path) -> None:
    text = 'a"b\nc\u2028\ud800\x1b[0m'
    Events(LocalFolder(tmp_path)).tell("failed", error=text, value=float("nan"))
    (event,) = read_events(LocalFolder(tmp_path))
    assert (event["error"], event["value"]) == (text, "nan")
    assert (tmp_path / EVENTS).read_bytes().count(b"\n") == 1


def test_in_an_object_store_each_process_has_an_object(maker: Maker) -> None:
    pytest.importorskip("fsspec")
    url = f"memory://events-{os.getpid()}/run"
    maker.stopped(url)
    maker.complete(url)
    folder = open_folder(url)
    assert len(folder.names("events")) == 2
    assert names(url)[:2] == ["started", "committed"]
    assert names(url)[6:8] == ["interrupted", "resumed"]
    assert names(url)[-1] == "complete"
    assert not folder.exists(EVENTS)


def test_objects_do_not_grow_for_ever() -> None:
    pytest.importorskip("fsspec")
    folder = open_folder(f"memory://many-events-{os.getpid()}/run")
    events = Events(folder)
    for draw in range(1500):
        events.tell("quarantined", draw=draw)
        if draw % 500 == 0:
            events.tell("committed", rows=1)
    events.tell("complete")
    read = read_events(folder)
    assert [e["draw"] for e in read if e["event"] == "quarantined"] == list(range(1500))
    assert len(folder.names("events")) == 2
