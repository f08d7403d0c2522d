"""`seqproc sample --shard` and `seqproc merge`: what they print, and how they fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seqproc.cli.app import app
from seqproc.runs import open_run


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def sample(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")

    def sample(out: str, *options: object) -> Any:
        return run(
            *("sample", "--model", tmp_path / "model", "--dataset", "arithmetic"),
            *("--engine", "hf", "--draws", 5, "--max-new-tokens", 4, "--out", tmp_path / out),
            *options,
        )

    return sample


def test_shards_are_merged(sample: Callable[..., Any], tmp_path: Path) -> None:
    for i in (0, 1):
        result = sample(f"{i}", "--shard", f"{i}/2")
        assert result.exit_code == 0, result.output
    assert open_run(tmp_path / "1").rows()["draw"].to_pylist() == [1, 3]
    lacking = run("merge", tmp_path / "all", tmp_path / "1")
    assert lacking.exit_code == 1
    assert "1 of 2 shards are not among the folders: 0/2" in lacking.stderr
    assert not (tmp_path / "all").exists()
    merged = run("merge", tmp_path / "all", tmp_path / "1", tmp_path / "0")
    assert merged.exit_code == 0, merged.output
    assert f"open_run('{tmp_path / 'all'}').rows()" in merged.stdout
    assert open_run(tmp_path / "all").rows()["draw"].to_pylist() == [0, 1, 2, 3, 4]
    whole = sample("all")
    assert whole.exit_code == 0, whole.output


def test_shards_of_other_plans_are_told_line_by_line(
    sample: Callable[..., Any], tmp_path: Path
) -> None:
    sample("0", "--shard", "0/2")
    sample("1", "--shard", "1/2", "--seed", 3)
    result = run("merge", tmp_path / "all", tmp_path / "0", tmp_path / "1")
    assert result.exit_code == 2
    assert "the shards are not of one plan" in result.stderr
    assert "spec.seed: the first has 0, this one 3" in result.stderr


@pytest.mark.parametrize("shard", ["8/8", "x", "1/0"])
def test_what_is_no_shard_is_refused_before_a_model_is_opened(shard: str, tmp_path: Path) -> None:
    result = run(
        *("sample", "--model", tmp_path / "nothing", "--dataset", "arithmetic", "--draws", 5),
        *("--out", tmp_path / "out", "--shard", shard),
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --shard must be ")
    assert f"{shard}" in result.stderr


def test_numbers_of_an_executor_need_one(sample: Callable[..., Any]) -> None:
    result = sample("out", "--num-workers", 2)
    assert result.exit_code == 2
    assert "num_workers is of an executor such as 'ray'" in result.stderr
