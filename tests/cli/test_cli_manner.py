"""--quiet, --json, colours and exit codes: what a script may rely on, of every command."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from helpers.run_folders import DRAWS, Maker
from seqproc.cli import exit_codes
from seqproc.cli.app import COMMANDS, app
from seqproc.cli.command import command
from seqproc.cli.display import console, print_error
from seqproc.cli.manner import give_result
from seqproc.errors import ConfigError, EngineError, RunMismatchError, Terminated

NAMES = [function.__name__ for functions in COMMANDS.values() for function in functions]
COMMON = ["command", "exit_code", "error", "details"]
NAN = float("nan")

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(Maker().complete(tmp_path_factory.mktemp("made") / "run").url)


def strict(text: str) -> dict[str, Any]:
    """JSON as the standard has it: no NaN, no Infinity, one object and nothing else."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    value = json.loads(text, parse_constant=refuse)
    assert list(value)[:4] == COMMON
    return value


def one_command(function: Callable[..., None]) -> typer.Typer:
    """An application with a command of its own, and a second, so that names are needed."""
    made = typer.Typer()
    made.command("test")(command(function))
    made.command("other")(lambda: None)
    return made


# ---------------------------------------------------------------------- --quiet and --json


@pytest.mark.parametrize("name", NAMES)
def test_every_command_can_be_quiet_and_give_json(run: Run, name: str) -> None:
    shown = run(name, "--help").stdout
    assert "--quiet" in shown
    assert "--json" in shown


def test_the_words_of_finished_runs(run: Run, made: Path) -> None:
    for arguments, word in (
        (["status", made], "complete"),
        (["inspect", made], "complete"),
        (["verify", made], "sound"),
        (["models"], "smollm2-135m"),
        (["datasets"], "arithmetic\ngsm8k\ngsm8k_r1_template\nhf\njsonl"),
    ):
        found = run(*arguments, "--quiet")
        assert (found.exit_code, found.stdout, found.stderr) == (0, f"{word}\n", "")


def test_the_json_of_finished_runs(run: Run, made: Path) -> None:
    for name, key in (("status", "num_draws_done"), ("verify", "num_rows")):
        found = strict(run(name, made, "--json").stdout)
        assert (found["command"], found["exit_code"], found["error"]) == (name, 0, None)
        assert found[key] == DRAWS
        assert found["run"] == str(made)
    rows = strict(run("inspect", made, "--json", "--rows", 2).stdout)["rows"]
    assert [row["draw"] for row in rows] == [0, 1]
    models = strict(run("models", "--json").stdout)["models"]
    assert [model["name"] for model in models] == ["smollm2-135m"]
    datasets = strict(run("datasets", "--json").stdout)["datasets"]
    assert {"name", "description", "splits"} == set(datasets[0])


def test_faults_are_in_the_json_with_the_exit_code(run: Run, tmp_path: Path) -> None:
    path = Path(Maker().complete(tmp_path / "run").url)
    (path / "samples/rows-1-00000.parquet").write_bytes(b"")
    found = run("verify", path, "--json")
    told = strict(found.stdout)
    assert found.exit_code == told["exit_code"] == 1
    assert told["is_sound"] is False
    assert told["faults"][0]["file"] == "samples/rows-1-00000.parquet"
    assert "fault: samples" in found.stderr
    assert run("verify", path, "--quiet").stdout == f"{len(told['faults'])} faults\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "none"], "there is no run in none"),
        (["status"], "Missing argument 'RUN'"),
        (["statsu"], "No such command 'statsu'. Did you mean 'status'?"),
        (["status", "--wach"], "No such option: --wach. Did you mean --watch"),
        (["sample", "--config", "none.toml"], "cannot read the configuration file none.toml"),
        (["sample", "--draws", "many"], "Invalid value for '--draws'"),
    ],
)
def test_an_error_is_in_the_json_and_on_stderr(run: Run, arguments: list[str], said: str) -> None:
    found = run(*arguments, "--json")
    told = strict(found.stdout)
    assert said in told["error"]
    assert told["exit_code"] == found.exit_code != 0
    assert re.sub(r"[\s│]+", " ", said) in re.sub(r"[\s│]+", " ", found.stderr)
    assert run(*arguments).stdout == ""  # and nothing for who did not ask


@pytest.mark.parametrize("name", ["status", "inspect", "verify", "models", "datasets", "doctor"])
def test_the_keys_are_those_of_the_page(run: Run, made: Path, name: str) -> None:
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    rows = page[page.index("Then come the command's own") :].splitlines()
    cell = next(row for row in rows if row.startswith("|") and f"`{name}`" in row.split("|")[1])
    keys = re.findall(r"`(\w+)`", re.sub(r"\(.*?\)|: .*", "", cell.split("|")[2]))
    arguments = [made] if name in ("status", "inspect", "verify") else []
    assert list(strict(run(name, *arguments, "--json").stdout)) == COMMON + keys


def test_what_is_said_is_quiet_or_on_stderr() -> None:
    def speak() -> None:
        console().print("a table")
        print("a library")
        print("a warning", file=sys.stderr)
        give_result({"loss": NAN, "nested": [float("inf")]}, "an \x1b[31manswer")

    runner, made = CliRunner(), one_command(speak)
    plain = runner.invoke(made, ["test"])
    assert plain.stdout == "a table\na library\n"  # so the checks below can fail
    quiet = runner.invoke(made, ["test", "--quiet"])
    assert (quiet.stdout, quiet.stderr) == ("an answer\n", "a library\na warning\n")
    as_json = runner.invoke(made, ["test", "--json"])
    told = strict(as_json.stdout)
    assert (told["loss"], told["nested"]) == ("nan", ["inf"])
    assert as_json.stderr == "a table\na library\na warning\n"
    both = runner.invoke(made, ["test", "--json", "--quiet"])
    assert strict(both.stdout) == told
    assert "a table" not in both.stderr


NOISE = """
import os, subprocess, sys
from seqproc.cli.manner import Manner, give_result, speaking
with speaking(Manner(json={json}), "test"):
    os.write(1, b"noise of C\\n")
    print("noise of Python")
    subprocess.run([sys.executable, "-c", "print('noise of a child')"])
    give_result(dict(value=1), "one")
print("after")
"""


@pytest.mark.parametrize("as_json", [True, False])
def test_libraries_and_child_processes_do_not_reach_the_standard_output(as_json: bool) -> None:
    code = NOISE.format(json=as_json)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("after\n")
    noisy = done.stderr if as_json else done.stdout
    for who in ("C", "Python", "a child"):
        assert f"noise of {who}\n" in noisy
    if as_json:
        assert strict(done.stdout.removesuffix("after\n"))["value"] == 1


def test_progress_is_switched_off_for_children_as_well_and_on_again() -> None:
    seen = []
    made = one_command(lambda: seen.append(os.environ.get("TQDM_DISABLE")))
    for arguments in (["--quiet"], []):
        assert CliRunner().invoke(made, ["test", *arguments]).exit_code == 0
    assert seen == ["1", None]
    assert "TQDM_DISABLE" not in os.environ


# ---------------------------------------------------------------------- exit codes

ENDINGS: list[tuple[int, BaseException | None]] = [
    (exit_codes.SUCCESS, None),
    (exit_codes.FAILURE, EngineError("no engine")),
    (exit_codes.FAILURE, RuntimeError("of whatever kind")),
    (exit_codes.BAD_USAGE, ConfigError("no configuration")),
    (exit_codes.BAD_USAGE, RunMismatchError("another run", ["a: 1, 2"])),
    (exit_codes.DOES_NOT_HOLD, typer.Exit(exit_codes.DOES_NOT_HOLD)),
    (exit_codes.QUARANTINED, typer.Exit(exit_codes.QUARANTINED)),
    (exit_codes.INTERRUPTED, KeyboardInterrupt()),
    (exit_codes.TERMINATED, Terminated()),
]


@pytest.mark.parametrize(("code", "error"), ENDINGS)
def test_each_ending_has_its_exit_code(code: int, error: BaseException | None) -> None:
    def end() -> None:
        if error is not None:
            raise error

    found = CliRunner().invoke(one_command(end), ["test", "--json"])
    told = strict(found.stdout)
    assert (found.exit_code, told["exit_code"]) == (code, code)
    is_said = error is not None and not isinstance(error, typer.Exit)
    assert (told["error"] is not None) == is_said
    assert told["details"] == (["a: 1, 2"] if isinstance(error, RunMismatchError) else [])


def test_any_command_ends_well_by_sigterm() -> None:
    """It is told in JSON, and what the command has open is closed on the way."""
    closed = []

    def end() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            closed.append(True)

    found = CliRunner().invoke(one_command(end), ["test", "--json"])
    assert found.exit_code == strict(found.stdout)["exit_code"] == exit_codes.TERMINATED
    assert closed == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_all_exit_codes_are_tried_shown_and_documented(run: Run) -> None:
    assert {code for code, _ in ENDINGS} == set(exit_codes.MEANINGS)
    shown = " ".join(run("--help").stdout.split())
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    for code, meaning in exit_codes.MEANINGS.items():
        assert f" {code} {meaning}" in shown
        assert f"| {code} | {meaning} |" in page


# ---------------------------------------------------------------------- colours


def on_terminal(arguments: list[str], environment: Mapping[str, str]) -> str:
    """What a process writes to a terminal."""
    master, slave = pty.openpty()
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "seqproc", *arguments],
        stdout=slave,
        stderr=slave,
        stdin=subprocess.DEVNULL,
        env={**inherited, "TERM": "xterm", **environment},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            block = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        shown += block
    process.wait(timeout=60)
    os.close(master)
    return shown.decode()


def in_pipe(arguments: list[str], environment: Mapping[str, str]) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-m", "seqproc", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**inherited, "TERM": "xterm", **environment},
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["status", "none"], ["models", "--help"]])
@pytest.mark.parametrize(
    ("show", "environment", "has_colours"),
    [
        (on_terminal, {}, True),
        (on_terminal, {"NO_COLOR": "1"}, False),
        (on_terminal, {"TERM": "dumb"}, False),
        (in_pipe, {}, False),
        (in_pipe, {"GITHUB_ACTIONS": "true"}, False),
        (in_pipe, {"FORCE_COLOR": "1"}, True),
        (in_pipe, {"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        (in_pipe, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (in_pipe, {"FORCE_COLOR": ""}, False),
    ],
)
def test_colours_are_where_the_environment_wants_them(
    arguments: list[str],
    show: Callable[[list[str], Mapping[str, str]], str],
    environment: Mapping[str, str],
    has_colours: bool,
) -> None:
    assert ("\x1b[" in show(arguments, environment)) is has_colours


def test_an_error_outside_of_a_command_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("alone")
    assert capsys.readouterr().err == "error: alone\n"
