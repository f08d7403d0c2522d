"""The examples run as they stand, and show what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seqproc.runs import open_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def example(name: str, model: Path, *arguments: object) -> str:
    """What an example prints."""
    command = [ROOT / "examples" / name, "--model", model, "--engine", "hf", *arguments]
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        # On one thread, the tiny model's quickest.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_replacement_run(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = example(
        "replacement_run.py", model, "--draws", 6, "--max-new-tokens", 4, "--out", out
    )
    run = open_run(out)
    assert (run.manifest.state, run.num_rows) == ("complete", 6)
    assert run.manifest.summary is not None
    mean = run.manifest.summary["rb_entropy_per_token"]["mean"]
    assert f"RB entropy {mean:.4f} ±" in printed


def test_compare_engines(model: Path) -> None:
    printed = example("compare_engines.py", model, "--draws", 4, "--max-new-tokens", 4)
    assert "4 of 4 responses identical" in printed
    differences = [float(x) for x in re.findall(r"max \|Δ log q\| (\S+),", printed)]
    assert len(differences) == 4
    assert max(differences) < 1e-4


def test_entropy_probe(model: Path) -> None:
    """In true float64 the differences at η = 1e-7 and 1e-8 agree to 4 digits."""
    printed = example("entropy_probe.py", model, "--draws", 2, "--max-new-tokens", 4)
    rows = [line.split() for line in printed.splitlines() if line.startswith("1e-")]
    assert [row[0] for row in rows] == [f"1e-0{k}" for k in range(2, 9)]
    for column in (1, 2):
        before, last = (float(row[column]) for row in rows[-2:])
        assert last != 0
        assert last == pytest.approx(before, rel=1e-4, abs=1e-6)
