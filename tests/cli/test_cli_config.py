"""--config and --print-config: options from a file, and back."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seqproc.cli import config_file
from seqproc.cli.app import app
from seqproc.cli.options import PolicyOptions, ResponseOptions
from seqproc.config import load_config
from seqproc.runs import open_run

FILE = """\
model = "smollm2-135m"

[sample]
dataset = "arithmetic"
draws = 5
out = "runs/first"

[score]
source = "runs/first"
name = "again"

[parity]
engines = "hf"
dataset = "gsm8k"
draws = 7
policy = ["1,1", "0.7,0.9"]

[generation]
temperature = 2
stop = [
    "a",
]

[precision.tf_nograd]
dtype = "float64"
"""

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


def printed(result: Any) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return tomllib.loads(result.stdout)


def test_one_file_serves_all_commands(run: Run, file: Path) -> None:
    sample = printed(run("sample", "--config", file, "--print-config"))
    score = printed(run("score", "--config", file, "--print-config"))
    parity = printed(run("parity", "--config", file, "--print-config"))
    for found in (sample, score, parity):
        assert found["model"] == "smollm2-135m"
        assert found["generation"]["temperature"] == 2
        assert found["generation"]["stop"] == ["a"]
        assert found["precision"]["tf_nograd"]["dtype"] == "float64"
        assert found["precision"]["tf_withgrad"]["dtype"] == "float32"  # the default
    assert (sample["dataset"], sample["draws"], sample["out"]) == ("arithmetic", 5, "runs/first")
    assert (score["source"], score["name"]) == ("runs/first", "again")
    assert (parity["dataset"], parity["draws"], parity["engines"]) == ("gsm8k", 7, "hf")
    assert parity["policy"] == ["1,1", "0.7,0.9"]


def test_what_is_given_wins_over_the_table_and_that_over_the_top(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'model = "m"\ndataset = "d"\nout = "o"\nseed = 1\ndraws = 1\nsplit = "a"\n'
        "[sample]\ndraws = 2\nsplit = 'b'\n[generation]\ntop_p = 0.5\ntemperature = 0.5\n"
    )
    given = ("--split", "c", "--temperature", 0.7, "--greedy", "--reward-weights", "0,1")
    found = printed(run("sample", "--config", file, "--print-config", *given))
    assert (found["seed"], found["draws"], found["split"]) == (1, 2, "c")
    generation = found["generation"]
    assert (generation["top_p"], generation["temperature"]) == (0.5, 0.7)
    assert (generation["do_sample"], generation["reward_weights"]) == (False, [0.0, 1.0])


COMMANDS = {
    "sample": (
        *("sample", "--model", 'a "quoted" \\ model', "--dataset", "jsonl:ü\n.jsonl"),
        *("--draws", 3, "--out", "o", "--engine-option", "a=1", "--engine-option", 'b="x"'),
        *("--top-p", 0.1, "--tf-token-budget", 70, "--entropy-fp64", "--no-tf-share-prompts"),
        *("--num-gpus", 0.5, "--shard", "0/2", "--token-column", "logqs", "--chat", "--fresh"),
        *("--stop", "</a>", "--stop", "\t", "--score", "later"),
    ),
    "score": (
        *("score", "given.jsonl", "--model", "m", "--name", "n", "--override", "v.safetensors"),
        *("--eta", 1e-9, "--greedy", "--dtype", "float64"),
    ),
    "parity": (
        *("parity", "--model", "m", "--dataset", "d", "--draws", 9, "--pair", "hf,scorer"),
        *("--rows", 3, "--policy", "1,1", "--max-new-tokens", 4, "--false-alarms", 1e-6),
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_printed_configuration_is_read_as_the_same(run: Run, tmp_path: Path, name: str) -> None:
    first = run(*COMMANDS[name], "--print-config")
    assert first.exit_code == 0, first.output
    file = tmp_path / "printed.toml"
    file.write_text(first.stdout)
    again = run(name, "--config", file, "--print-config")
    assert again.stdout == first.stdout
    assert again.stderr == ""
    told = json.loads(run(name, "--config", file, "--print-config", "--json").stdout)
    assert tomllib.loads(first.stdout) == _without_none(told["config"])
    quiet = run(name, "--config", file, "--print-config", "--quiet").stdout
    assert tomllib.loads(quiet) == tomllib.loads(first.stdout)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }


def test_every_option_reaches_the_printed_configuration(run: Run) -> None:
    found = printed(run(*COMMANDS["sample"], "--print-config"))
    assert found["model"] == 'a "quoted" \\ model'
    assert found["dataset"] == "jsonl:ü\n.jsonl"
    assert found["engine_option"] == ["a=1", 'b="x"']
    assert (found["num_gpus"], found["shard"], found["score"]) == (0.5, "0/2", "later")
    assert (found["chat"], found["fresh"], found["token_column"]) == (True, True, ["logqs"])
    generation = found["generation"]
    assert (generation["top_p"], generation["tf_token_budget"]) == (0.1, 70)
    assert (generation["stop"], generation["tf_share_prompts"]) == (["</a>", "\t"], False)
    assert found["precision"]["entropy_fp64"] is True
    score = printed(run(*COMMANDS["score"], "--print-config"))
    assert (score["eta"], score["source"], score["dtype"]) == (1e-9, "given.jsonl", "float64")
    assert score["generation"]["do_sample"] is False


def test_the_printed_settings_are_those_of_the_library(run: Run, file: Path) -> None:
    found = printed(run("sample", "--config", file, "--print-config"))
    tables = {name: found[name] for name in ("generation", "precision")}
    assert load_config(tables) == config_file.read_settings(file)
    assert load_config(None) == config_file.read_settings(None)


def test_a_run_is_made_from_a_file_alone(run: Run, tmp_path: Path, tiny_llama: Any) -> None:
    file, prompts = tmp_path / "run.toml", tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "What is 1 + 1?"}\n')
    model = tmp_path / "model"
    tiny_llama().save_pretrained(model)
    _tokenizer().save_pretrained(model)
    out = tmp_path / "run"
    file.write_text(
        f'model = "{model}"\ndataset = "jsonl:{prompts}"\nengine = "hf"\nout = "{out}"\ndraws = 3\n'
        "[generation]\nmax_new_tokens = 2\ntop_p = 0.5\n"
    )
    found = run("sample", "--config", file, "--draws", 2)
    assert found.exit_code == 0, found.output
    manifest = open_run(out).manifest
    assert (manifest.num_draws, manifest.policy["top_p"]) == (2, 0.5)
    assert manifest.stopping["max_new_tokens"] == 2


def _tokenizer() -> Any:
    from helpers.tiny import byte_tokenizer

    return byte_tokenizer()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nmodle = 1", "line 2: unknown key 'modle': known for sample are model, "),
        ("\nmodle = 1", "; did you mean 'model'?"),
        ("draws = 'many'", "line 1: draws must be an integer, got 'many'"),
        ("draws = true", "line 1: draws must be an integer, got True"),
        ("draws = 1.0", "line 1: draws must be an integer, got 1.0"),
        ("chat = 1", "line 1: chat must be true or false, got 1"),
        ("num_gpus = false", "line 1: num_gpus must be a number, got False"),
        ("model = 1", "line 1: model must be a string, got 1"),
        ("engine_option = 'a=1'", "line 1: engine_option must be a list of strings"),
        ("engine_option = [1]", "line 1: engine_option must be a list of strings"),
        ("temperature = 1.0", "line 1: 'temperature' belongs in the table generation"),
        ("greedy = true", "'greedy' belongs in the table generation, as do_sample = false"),
        ("engines = 'hf'", "'engines' is an option of parity, and not of sample: put it in the"),
        ("json = true", "line 1: unknown key 'json'"),
        ("config = 'other.toml'", "line 1: unknown key 'config'"),
        ("generation = 3", "line 1: generation must be a table, got 3"),
        ("parity = 3", "line 1: parity must be a table, got 3"),
        ("[generations]", "line 1: unknown table 'generations': known are generation, "),
        ("[generations]", "; did you mean 'generation'?"),
        ("[sample]\ndraw = 1", "line 2: unknown key 'draw': known for sample"),
        ("[parity]\n\nengine = 'hf'", "line 3: unknown key 'engine': known for parity are"),
        ("[score]\neta = 'x'", "line 2: eta must be a number, got 'x'"),
        ("model = ?", "is not valid TOML: Invalid value (at line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(
    run: Run, tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    arguments = ("--model", "m", "--dataset", "d", "--draws", 1, "--out", tmp_path / "out")
    found = run("sample", *arguments, "--config", file)
    assert found.exit_code == 2
    assert found.stderr.startswith(f"error: {file}")
    assert message in found.stderr
    assert (found.stdout, found.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[generation]\n\ntempature = 1", ["line 3: unknown key 'tempature'", "'temperature'?"]),
        (
            "[generation]\ntop_p = 2\ntemperature = 'x'",
            ["line 2: GenerationConfig.top_p", "line 3"],
        ),
        ("[precision.tf_nograd]\ndtype = 'f'", ["line 2: NoGradProfile.dtype"]),
        ("[precision]\ntf_nograd = 3", ["line 2: section 'tf_nograd' must be a mapping"]),
        ("[precision.nope]\na = 1", ["line 2: "]),
    ],
)
def test_settings_that_are_not_valid_are_said_with_their_lines(
    run: Run, tmp_path: Path, text: str, messages: list[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    arguments = ("--model", "m", "--dataset", "d", "--draws", 1, "--out", tmp_path / "out")
    found = run("sample", *arguments, "--config", file)
    assert found.exit_code == 2
    for message in messages:
        assert message in found.stderr
    assert found.stderr.count("\n") == 1


def test_each_option_has_one_place_in_a_file() -> None:
    groups = (PolicyOptions, ResponseOptions)
    settings = {field.name for group in groups for field in dataclasses.fields(group)}
    settings -= {"config", "print_config"}
    assert set(config_file._PLACES) == settings | {"reward_weights"}
