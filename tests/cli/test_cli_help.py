"""Help, examples, and what a shell completes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from seqproc.cli import complete
from seqproc.cli.app import COMMANDS, app
from seqproc.cli.examples import EXAMPLES
from seqproc.engines import engine_names
from seqproc.models.embedded import EMBEDDED_MODELS
from seqproc.prompts import dataset_names

NAMES = [function.__name__ for functions in COMMANDS.values() for function in functions]
LINES = [" ".join(parts) for examples in EXAMPLES.values() for _, parts in examples]


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_with_examples_as_they_are_written(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"]).stdout
    assert "Examples" in shown
    for _, parts in EXAMPLES[name]:
        for part in parts:
            assert part in shown  # on a line of its own, in 80 columns


@pytest.mark.parametrize("line", LINES)
def test_examples_parse(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('model = "m"\ndataset = "arithmetic"\ndraws = 3\n')
    program, name, *arguments = shlex.split(line.partition(" > ")[0])
    assert program == "seqproc"
    group = typer.main.get_command(app)
    context = group.make_context("seqproc", [name, *arguments])
    group.commands[name].make_context(name, arguments, parent=context)  # type: ignore[attr-defined]


def test_options_stand_in_panels() -> None:
    shown = CliRunner().invoke(app, ["sample", "--help"]).stdout
    panels = ("Model", "Draws", "Policy and scoring", "Responses", "Engine", "The run", "Output")
    for panel in panels:
        assert f"╭─ {panel} ─" in shown
    engine = shown[shown.index("╭─ Engine ─") :]
    assert "--engine-option" in engine[: engine.index("╰")]
    assert "--max-new-tokens" not in engine[: engine.index("╰")]  # of the class that it inherits


# ---------------------------------------------------------------------- completion


def completed(words: str, tmp_path: Path) -> tuple[list[str], str]:
    """What bash is offered for the last word, and whether torch was imported for it."""
    code = (
        "import sys\nfrom seqproc.cli.app import app\ntry:\n    app(prog_name='seqproc')\n"
        "finally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    position = str(len(words.split(" ")) - 1)
    told = {"COMP_WORDS": words, "COMP_CWORD": position, "_SEQPROC_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, **told},
    )
    return done.stdout.split(), done.stderr.strip()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("seqproc sam", ["sample"]),
        ("seqproc sample --model sm", ["smollm2-135m"]),
        ("seqproc sample --dataset ari", ["arithmetic"]),
        ("seqproc sample --engine v", ["vllm"]),
        ("seqproc parity --engines hf,v", ["hf,vllm"]),
        ("seqproc sample --score o", ["overlap"]),
        ("seqproc sample --dtype fl", ["float16", "float32", "float64"]),
        ("seqproc sample --executor r", ["ray"]),
        ("seqproc sample --print", ["--print-config"]),
        ("seqproc sample --model nothing-of-ours", []),
    ],
)
def test_a_shell_completes_names(words: str, offered: list[str], tmp_path: Path) -> None:
    assert completed(words, tmp_path) == (offered, "False")


def test_all_names_are_completed() -> None:
    assert complete.models("") == sorted(EMBEDDED_MODELS)
    assert complete.dataset_specs("") == dataset_names()
    assert set(complete.engines("")) <= set(engine_names())
    assert {"hf", "vllm"} <= set(complete.engines(""))


def test_completion_can_be_installed() -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "--install-completion" in shown
    assert "--show-completion" in shown
