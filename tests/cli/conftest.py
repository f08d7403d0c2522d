"""Fixtures of the tests of commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seqproc.cli.app import app


@pytest.fixture
def run_parity(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """`seqproc parity` with a tiny model, as `run_parity(engines, *arguments)`."""
    tiny_llama(initializer_range=0.5).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")

    def run(engines: str | None, *arguments: object) -> Any:
        given = [
            *("parity", "--model", tmp_path / "model"),
            *(() if engines is None else ("--engines", engines)),
            *("--dataset", "arithmetic", "--draws", 96, "--max-new-tokens", 12),
            *("--gen-batch-size", 96, "--out", tmp_path / "out", *arguments),
        ]
        return CliRunner().invoke(app, [str(argument) for argument in given])

    return run
