"""The command line as a process: quick to start, and the same under each of its names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.run_folders import Maker
from seqproc import __version__


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("module", ["seqproc", "seqproc.cli"])
def test_python_dash_m(module: str) -> None:
    result = python("-m", module, "--version")
    assert result.returncode == 0
    assert result.stdout.startswith(f"seqproc {__version__} (python ")


@pytest.mark.parametrize("heavy", ["torch", "transformers", "numpy", "pyarrow"])
def test_help_imports_nothing_heavy(heavy: str) -> None:
    code = (
        "import sys; from seqproc.cli.app import app\n"
        "app(['sample', '--help'], standalone_mode=False)\n"
        f"sys.exit({heavy!r} in sys.modules)"
    )
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "--max-new-tokens" in result.stdout


def test_an_error_is_one_line_on_stderr_and_an_exit_code(tmp_path: Path) -> None:
    arguments = ("score", "none.jsonl", "--model", "/none", "--out", str(tmp_path / "out"))
    result = python("-m", "seqproc", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: there is no folder '/none'")
    assert result.stderr.count("\n") == 1


def test_output_that_nobody_reads_to_the_end_is_no_error(tmp_path: Path) -> None:
    Maker().complete(tmp_path / "run")
    command = f"{sys.executable} -m seqproc inspect {tmp_path / 'run'} --rows 24"
    done = subprocess.run(
        f"{command} --columns draw,prompt_text,response_ids | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full: Linux")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["datasets", "--json"], ["datasets", "--quiet"]]
)
def test_output_that_does_not_fit_is_one_line_on_stderr(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "seqproc", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 1
    assert "error: the standard output cannot be written: [Errno 28]" in done.stderr
    assert "Traceback" not in done.stderr
