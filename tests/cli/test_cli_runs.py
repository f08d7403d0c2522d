"""`seqproc verify`, `status` and `inspect`: what they show of a run, and their exit codes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.run_folders import CHUNK, DRAWS, SPEC, Maker, edit, rewrite, with_column
from seqproc._util import strict_json
from seqproc._util.processes import process_start
from seqproc.cli.app import app
from seqproc.errors import EngineError
from seqproc.runs import open_run, sample_run
from seqproc.runs.format.events import Events
from seqproc.runs.store.holder import this_process
from seqproc.runs.store.local import LocalFolder
from seqproc.runs.watch.status import Session, run_status

Command = Callable[..., Any]
SAMPLES = "samples/rows-1-00000"


@pytest.fixture
def command() -> Command:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run without draw 3, and one stopped after 20 draws, 16 of them scored."""
    maker, folder = Maker(), tmp_path_factory.mktemp("runs")
    processor = maker.processor(3, lambda: EngineError("never \x1b[31mworks[/bold]"))
    sample_run(processor, SPEC, folder / "complete", chunk_size=CHUNK)
    maker.stopped(folder / "stopped")
    return folder


def hold(run: Path, **changes: Any) -> None:
    """Leave the lock of a process in a run's folder."""
    holder = dataclasses.replace(this_process("a" * 32), **changes)
    (run / "lock.json").write_bytes(holder.to_json())


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---------------------------------------------------------------------- verify


def test_verify_says_that_a_run_is_sound(command: Command, complete: Path, stopped: Path) -> None:
    result = command("verify", complete)
    assert (result.exit_code, result.stdout) == (0, f"2 parts, {DRAWS - 1} rows: sound\n")
    result = command("verify", stopped, "--verbose")
    assert result.exit_code == 0
    assert "parts/samples/part-000000.parquet: 8 rows, as written\n" in result.stdout
    assert result.stdout.endswith("5 parts, 16 rows: sound\n")


def test_verify_names_each_fault_and_exits_with_1(command: Command, complete: Path) -> None:
    (complete / f"{SAMPLES}.parquet").write_bytes(b"")
    (complete / "samples" / "x[bold]\x1b[2J").touch()
    (complete / "mine").touch()
    result = command("verify", complete)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "note: mine: nothing reads it"
    assert lines[1].startswith(f"fault: {SAMPLES}.parquet: has 0 bytes, and had")
    assert "To mend it, run the same command again" in lines[1]
    assert (
        lines[2]
        == "fault: samples/x[bold]: it belongs to nothing. To mend it, move it out of the folder"
    )
    assert lines[3] == f"2 parts, {DRAWS - 1} rows: 2 faults"


@pytest.mark.parametrize("name", ["verify", "status", "inspect"])
def test_what_is_no_run_is_one_line(command: Command, tmp_path: Path, name: str) -> None:
    for path in (tmp_path, tmp_path / "none"):
        result = command(name, path)
        assert result.exit_code == 1
        assert result.stderr == (
            f"error: there is no run in {path}: it has no manifest.json. Name the folder that "
            "--out named\n"
        )
    assert not (tmp_path / "none").exists()
    (tmp_path / "manifest.json").write_text("{")
    result = command(name, tmp_path)
    assert result.exit_code == 1
    assert "the manifest is not valid JSON" in result.output


# ---------------------------------------------------------------------- status


def shown(result: Any) -> dict[str, str]:
    """The lines of a table, by their first word."""
    assert result.exit_code == 0, result.output
    lines = [line.split("  ", 1) for line in result.stdout.splitlines() if "  " in line]
    return {name.strip(): value.strip() for name, value in lines}


def test_status_of_a_complete_run(command: Command, complete: Path) -> None:
    lines = shown(command("status", complete))
    assert lines["state"] == "complete"
    assert lines["draws"] == f"{DRAWS - 1} of {DRAWS} done, 1 in quarantine"
    assert lines["process"] == "none is at work"
    assert "tokens/s" in lines["generation"]
    assert "nats per token" in lines["log p"]
    assert "left" not in lines


def test_status_of_a_run_that_was_stopped(command: Command, stopped: Path) -> None:
    lines = shown(command("status", stopped))
    assert lines["state"] == "interrupted; the same command goes on"
    assert lines["draws"] == f"16 of {DRAWS} done, 4 sampled and not scored"
    edit(stopped / "manifest.json", state="failed", error="Oh [bold]no\x1b[31m")
    lines = shown(command("status", stopped))
    assert lines["state"] == "failed (Oh [bold]no); the same command goes on"


def test_a_run_whose_process_is_gone_was_stopped_without_a_word(
    command: Command, stopped: Path
) -> None:
    edit(stopped / "manifest.json", state="running")
    killed = "stopped without a word; the same command goes on"
    assert shown(command("status", stopped))["state"] == killed
    hold(stopped, pid=dead_pid())
    lines = shown(command("status", stopped, "--watch", 60))
    assert lines["state"] == killed
    assert lines["process"].endswith(": dead")


def test_a_run_that_goes_on_says_who_is_at_work_and_how_long_it_takes(
    command: Command, stopped: Path
) -> None:
    edit(stopped / "manifest.json", state="running")
    hold(stopped)
    lines = shown(command("status", stopped))
    assert lines["state"] == "running"
    assert lines["process"].endswith(": alive")
    assert "since 2" in lines["process"]
    assert lines["left"].startswith("about 0 min")
    hold(stopped, host="else[b]where")
    lines = shown(command("status", stopped))
    assert lines["state"] == "running"
    assert "on else[b]where" in lines["process"]
    assert "elsewhere" in lines["process"]


def test_watch_goes_on_until_nothing_is_at_work(command: Command, stopped: Path) -> None:
    edit(stopped / "manifest.json", state="running")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1.5)"]) as process:
        hold(stopped, pid=process.pid, process_started=process_start(process.pid) or "")
        result = command("status", stopped, "--watch", 0.3)
    assert result.stdout.count(": alive") >= 1
    assert result.stdout.count(": dead") == 1


def test_watch_may_wait_for_ever(
    command: Command, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(stopped)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        (stopped / "lock.json").unlink()

    monkeypatch.setattr("seqproc.cli.status.time.sleep", sleep)
    assert command("status", stopped, "--watch", "inf").exit_code == 0
    assert slept == [threading.TIMEOUT_MAX]


def test_a_summary_that_was_edited_is_an_error(command: Command, complete: Path) -> None:
    edit(complete / "manifest.json", summary={"num": 3})
    for name in ("status", "inspect"):
        result = command(name, complete)
        assert result.exit_code == 1
        assert "the manifest's summary is not one that seqproc writes" in result.stderr


def test_the_time_left_is_that_of_this_session() -> None:
    def at(second: int, event: str, **details: Any) -> dict[str, Any]:
        return {"time": f"2026-01-01T00:00:{second:02d}+00:00", "event": event, **details}

    events = [
        at(0, "started", draws=100),
        at(1, "committed", rows=50),
        at(20, "resumed", sampled=50, done=0),
        at(25, "committed", rows=20),
        at(30, "committed", rows=20),
        at(40, "scored", rows=10),
    ]
    session = Session.of(events)
    assert session.sampled == 90
    assert session.sampled_per_second == pytest.approx(40 / 10)
    assert session.scored_per_second == pytest.approx(10 / 20)
    assert Session.of([]).scored_per_second is None
    assert Session.of([at(0, "started"), at(0, "scored", rows=3)]).scored_per_second is None
    strange: list[dict[str, Any]] = [
        {"time": "x", "event": "resumed", "sampled": "y"},
        {"time": [], "event": "scored"},
    ]
    assert Session.of(strange).sampled == 0


def test_time_left_of_a_run_that_samples_first(stopped: Path) -> None:
    edit(stopped / "manifest.json", state="running", num_draws_done=0)
    hold(stopped)
    events = Events(LocalFolder(stopped))
    events.tell("resumed", sampled=20, done=0)
    assert run_status(stopped).seconds_left is None
    events.tell("committed", rows=2)
    status = run_status(stopped)
    assert status.session.sampled == 22
    if status.session.sampled_per_second is not None:
        expected = (DRAWS - 22) / status.session.sampled_per_second
        assert status.seconds_left == pytest.approx(expected)


# ---------------------------------------------------------------------- inspect


def test_inspect_shows_totals_rows_and_the_quarantine(command: Command, complete: Path) -> None:
    result = command("inspect", complete, "--rows", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"A sample run, complete: {DRAWS - 1} of {DRAWS} draws.\n")
    assert result.stdout.count("response_text") == 2
    assert "logprobs" not in result.stdout
    assert "1 draws are in quarantine" in result.stdout
    assert "never works[/bold]" in result.stdout
    assert "\x1b" not in result.stdout
    nothing = command("inspect", complete, "--rows", 0)
    assert nothing.stdout.count("response_text") == 0


def test_inspect_shows_one_draw_whole(command: Command, complete: Path) -> None:
    row = open_run(complete).row(7)
    result = command("inspect", complete, "--draw", 7)
    lines = shown(result)
    assert lines["draw"] == "7"
    assert lines["response_ids"] == str(row["response_ids"])
    assert lines["logprobs"].count(",") == len(row["logprobs"]) - 1
    result = command("inspect", complete, "--draw", 3)
    assert result.exit_code == 1
    assert "has no row of draw 3: it is in quarantine, its generation failed" in result.stderr
    assert "has no row of draw 24\n" in command("inspect", complete, "--draw", 24).stderr
    assert "has no row of draw -1\n" in command("inspect", complete, "--draw", -1).stderr


def test_inspect_shows_the_columns_that_are_asked_for(command: Command, complete: Path) -> None:
    result = command("inspect", complete, "--columns", "gen_len, logprobs", "--rows", 1)
    assert result.exit_code == 0
    assert "response_text" not in result.stdout
    assert "gen_len" in result.stdout
    result = command("inspect", complete, "--columns", "gen_le")
    assert result.exit_code == 1
    assert "did you mean 'gen_len'" in result.stderr


def test_inspect_as_json_is_the_rows(command: Command, complete: Path) -> None:
    result = command("inspect", complete, "--json", "--rows", 5)
    value = json.loads(result.stdout)
    assert [row["draw"] for row in value["rows"]] == [0, 1, 2, 4, 5]
    assert value["rows"] == json.loads(strict_json.dumps(open_run(complete).rows().to_pylist()[:5]))
    assert value["manifest"]["state"] == "complete"
    assert [one["draw"] for one in value["quarantined"]] == [3]
    result = command("inspect", complete, "--json", "--draw", 1, "--columns", "gen_len")
    assert list(json.loads(result.stdout)["rows"][0]) == ["gen_len"]


@pytest.mark.parametrize("options", [(), ("--draw", 0), ("--json",)])
def test_text_of_a_model_can_do_nothing_to_a_terminal(
    command: Command, complete: Path, options: tuple[object, ...]
) -> None:
    hostile = "\x1b[2J\x1b]0;title\x07[bold]x[/bold]\u202e" + "y" * 1000
    rewrite(complete, SAMPLES, with_column("response_text", lambda texts: [hostile] * len(texts)))
    result = command("inspect", complete, *options)
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\x07", "\u202e"} & set(result.stdout)
    assert "[bold]x[/bold]" in result.stdout
    assert ("y" * 500 in result.stdout) == bool(options)


def test_a_run_that_goes_on_is_inspected(command: Command, stopped: Path) -> None:
    result = command("inspect", stopped)
    assert result.exit_code == 0
    assert f"A sample run, interrupted: 16 of {DRAWS} draws" in result.stdout
