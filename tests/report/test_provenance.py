"""The command on a page makes the same run again; defaults that it leaves out are the defaults."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers import report_runs
from seqproc._util import strict_json
from seqproc.cli.app import app
from seqproc.cli.options import ModelOptions
from seqproc.config import DEFAULT_STOP, GenerationConfig, PrecisionConfig
from seqproc.report import provenance
from seqproc.runs import Manifest, open_run
from seqproc.runs.format.manifest import with_key


@pytest.fixture
def model(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "it's a model")
    tiny_tokenizer.save_pretrained(tmp_path / "it's a model")
    return tmp_path / "it's a model"


def seqproc(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


def repeated(folder: Path, again: Path) -> None:
    """Run the command that a page of the run shows."""
    command = provenance.command_of(open_run(folder).manifest)
    name, *words = shlex.split(command.line)
    assert name == "seqproc"
    config = again.parent / "seqproc.toml"
    config.write_text(command.config)
    places = {"RUN": str(again), provenance.CONFIG_FILE: str(config)}
    seqproc([places.get(word, word) for word in words])


SETTINGS: dict[str, tuple[list[str], str]] = {
    "plain": ([], ""),
    "options": (
        [
            *(
                "--seed",
                "7",
                "--temperature",
                "0.7",
                "--top-p",
                "0.8",
                "--stop",
                "x",
                "--stop",
                "y z",
            ),
            *("--max-prompts-pool", "9", "--entropy-fp64", "--reward-weights", "0.25,1"),
            *("--token-column", "margin", "--token-column", "logqs", "--shard", "1/2"),
        ],
        "",
    ),
    "greedy": (["--greedy", "--dtype", "float64"], ""),
    "config": (
        [],
        '[generation]\nstop = []\n[precision]\nkernels = ["packing"]\nallow_tf32 = true\n'
        'tf_nograd = { dtype = "float64" }\n',
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_makes_a_run_of_the_same_key(name: str, model: Path, tmp_path: Path) -> None:
    options, config = SETTINGS[name]
    given = []
    if config:
        (tmp_path / "given.toml").write_text(config)
        given = ["--config", str(tmp_path / "given.toml")]
    arguments = ["sample", "--model", str(model), "--dataset", "arithmetic", "--engine", "hf"]
    sizes = ["--draws", "4", "--max-new-tokens", "4", "--out", str(tmp_path / "run")]
    seqproc([*arguments, *sizes, *options, *given])
    repeated(tmp_path / "run", tmp_path / "again")
    first, second = (open_run(tmp_path / where).manifest for where in ("run", "again"))
    assert first.key == second.key


def test_the_command_scores_again(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "given file.jsonl"
    file.write_text(json.dumps({"prompt": "1 + 1 =", "response": " 2"}) + "\n")
    out = tmp_path / "run"
    seqproc(["score", str(file), "--model", str(model), "--out", str(out), "--top-p", "0.9"])
    repeated(out, tmp_path / "again")
    assert open_run(out).manifest.key == open_run(tmp_path / "again").manifest.key


def test_defaults_are_those_of_the_configuration() -> None:
    precision = json.loads(strict_json.dumps(dataclasses.asdict(PrecisionConfig())))
    assert precision == {**provenance.PRECISION, "entropy_fp64": False}
    assert tuple(provenance.STOP) == DEFAULT_STOP
    assert GenerationConfig().reward_weights == provenance.REWARD_WEIGHTS
    assert ModelOptions(model="m").dtype == "float32"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = report_runs.sampled(tmp_path_factory.mktemp("provenance") / "run", draws=2)
    return open_run(folder).manifest


def changed(manifest: Manifest, **values: Any) -> Manifest:
    return with_key(dataclasses.replace(manifest, **values))


def test_vllm_is_asked_for_what_it_was_asked_for(manifest: Manifest) -> None:
    options = {"model": "/somewhere", "dtype": "bfloat16", "seed": 0, "revision": None}
    engine = {"name": "vllm", "sampler": "native", "options": {**options, "enforce_eager": True}}
    words = shlex.split(provenance.command_of(changed(manifest, engine=engine)).line)
    given = [words[n + 1] for n, word in enumerate(words) if word == "--engine-option"]
    assert given == ["seed=0", "enforce_eager=true", "sampler=native"]


def test_an_option_is_read_back_as_it_was() -> None:
    from seqproc.cli.build import parse_engine_options

    for value in ("7", "text", "null", "a=b", '"', True, 7, 1.5, [1, "x"], {"a": None}):
        words = list(provenance._engine({"name": "e", "options": {"key": value}}))
        assert parse_engine_options([words[-1]]) == {"key": value}


def test_what_no_command_says_is_told(manifest: Manifest) -> None:
    own = provenance.command_of(changed(manifest, reward={"name": "mine"}))
    assert any("'mine'" in note for note in own.notes)
    assert "--reward-weights" not in own.line


def hostile(value: Any) -> Any:
    """The same structure with the texts in it replaced."""
    if isinstance(value, dict):
        return {name: hostile(one) for name, one in value.items()}
    return "x'; rm -rf / #\n\u202e" if isinstance(value, str) else value


def words_of(manifest: Manifest) -> Iterator[str]:
    yield from shlex.split(provenance.command_of(manifest).line)


def test_texts_stay_words_of_the_shell(manifest: Manifest) -> None:
    broken = changed(manifest, spec=hostile(manifest.spec), model=hostile(manifest.model))
    assert len(list(words_of(broken))) == len(list(words_of(manifest))) + 4  # --dtype and --split
    assert all(isinstance(value, str) for _, value in provenance.facts(broken))
