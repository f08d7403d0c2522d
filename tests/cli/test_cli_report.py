"""`seqproc report`: where the page goes, what is said of it, and how it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers import parity_reports
from helpers.run_folders import Maker
from seqproc.cli.app import app
from seqproc.cli.report import default_page
from seqproc.errors import ConfigError
from seqproc.runs import open_run

Command = Callable[..., Any]


@pytest.fixture
def run() -> Command:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli-report") / "run"
    Maker().complete(path)
    return path


def test_the_page_lies_in_the_run_and_does_not_disturb_it(run: Command, folder: Path) -> None:
    done = run("report", folder)
    assert done.exit_code == 0, done.output
    page = folder / "report.html"
    size = page.stat().st_size
    assert done.stdout == f"The page is {page} ({size / 1e6:.1f} MB): open it in a browser\n"
    assert done.stderr == ""
    assert [file.name for file in folder.iterdir() if file.name.endswith(".tmp")] == []
    verified = run("verify", folder)
    assert verified.exit_code == 0
    assert verified.stdout == "2 parts, 24 rows: sound\n"


def test_options(run: Command, folder: Path, tmp_path: Path) -> None:
    report, page = tmp_path / "p.json", tmp_path / "page.html"
    report.write_text(parity_reports.report("an engine"))
    options = ("-o", page, "--parity", report, "--no-tokens", "--title", "A <title>")
    assert run("report", folder, *options).exit_code == 0
    text = page.read_text()
    assert "<title>A &lt;title&gt;</title>" in text
    assert "PIT an engine" in text
    assert 'id="tokens"' not in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{none}"], 1, "there is no run in"),
        (["{folder}", "-o", "{there}"], 2, "the page must be a file, and"),
        (["{folder}", "-o", "{none}/page.html"], 2, "lies in a folder that is not there"),
        (["{folder}", "--parity", "{none}"], 1, "cannot read"),
        (["{folder}", "--nope"], 2, "No such option: --nope"),
    ],
)
def test_errors(
    arguments: list[str], code: int, said: str, run: Command, folder: Path, tmp_path: Path
) -> None:
    places = {"folder": folder, "there": tmp_path, "none": tmp_path / "none"}
    done = run("report", *(argument.format(**places) for argument in arguments))
    assert done.exit_code == code
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_a_run_in_a_store_needs_a_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_run(folder)
    monkeypatch.setattr(opened, "url", "s3://bucket/run")
    with pytest.raises(ConfigError, match="name the page with -o PAGE"):
        default_page(opened)
