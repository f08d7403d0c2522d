"""`seqproc compare`: its table, its page, its JSON, and how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.run_folders import Maker
from seqproc.cli.app import app
from seqproc.runs import RunSpec

Command = Callable[..., Any]


@pytest.fixture
def run() -> Command:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["compare", *(str(argument) for argument in arguments)])

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of the same dataset, of other seeds."""
    path, maker = tmp_path_factory.mktemp("cli-compare"), Maker()
    maker.complete(path / "a")
    maker.complete(path / "b[red]", RunSpec(dataset="arithmetic", draws=16, seed=6))
    return path / "a", path / "b[red]"


def test_a_run_against_itself(run: Command, folders: tuple[Path, Path]) -> None:
    done = run(folders[0], folders[0])
    assert done.exit_code == 0, done.output
    assert "24 of 24 pairs have the same tokens." in done.stdout
    assert done.stdout.endswith("\nidentical\n")
    line = next(line for line in done.stdout.splitlines() if line.startswith("reward"))
    assert "  0 ± 0  undetermined  undetermined  per rewarded response" in line
    quiet = run(folders[0], folders[0], "--quiet")
    assert quiet.stdout == "identical\n"


def test_other_runs_are_not_paired_and_names_are_harmless(
    run: Command, folders: tuple[Path, Path]
) -> None:
    done = run(*folders)
    assert done.exit_code == 0, done.output
    assert "Not paired: " in done.stdout
    assert "The runs have different seeds." in done.stdout
    assert "spec.seed" in done.stdout
    assert "b[red]" in done.stdout
    assert run(*folders, "--quiet").stdout == "not paired\n"


def test_page_and_json(run: Command, folders: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    done = run(*folders, "-o", page, "--json", "--title", "A <title>", "--clusters", "prompt")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert list(values) == [
        *("command", "exit_code", "error", "details", "a", "b", "verdict", "settings"),
        *("num_same_settings", "is_paired", "pairing", "num_draws", "num_pairs", "clusters"),
        *("notes", "numbers", "paired", "page", "num_bytes"),
    ]
    assert values["a"] == {"run": str(folders[0]), "scores": None}
    assert values["num_draws"] == [24, 16]
    assert values["clusters"] == "prompt"
    assert (values["page"], values["num_bytes"]) == (str(page), page.stat().st_size)
    assert "<title>A &lt;title&gt;</title>" in page.read_text()
    assert json.loads(run(*folders, "--json").stdout)["page"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{a}"], 2, "Missing argument 'RUN_B'"),
        (["{a}", "{none}"], 1, "there is no run in"),
        (["{a}", "{a}", "-o", "{there}"], 2, "the page must be a file, and"),
        (["{a}", "{a}", "-o", "{none}/page.html"], 2, "lies in a folder that is not there"),
        (["{a}", "{a}", "--scores-b", "nope"], 1, "has no scores 'nope'; it has none"),
        (["{a}", "{a}", "--clusters", "seed"], 2, "'seed' is not one of"),
    ],
)
def test_errors(
    arguments: list[str],
    code: int,
    said: str,
    run: Command,
    folders: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    places = {"a": folders[0], "there": tmp_path, "none": tmp_path / "none"}
    done = run(*(argument.format(**places) for argument in arguments))
    assert done.exit_code == code
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
