"""The examples run as they stand, and show what they say."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from seqproc.runs import open_run

pytestmark = pytest.mark.slow

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
    result = python(*command)
    assert result.returncode == 0, result.stderr
    return result.stdout


def python(*command: object, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python on this checkout, and on other folders that hold packages."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path))),
            "OMP_NUM_THREADS": "1",  # the tiny model's quickest
        },
    )


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


def test_common_random_numbers(model: Path) -> None:
    """Both estimates agree, and the same seeds gain at least tenfold where η is small.

    The seeds are fixed; with others, the two would be 5 standard errors apart in 6 of 10⁷ runs.
    """
    printed = example(
        "common_random_numbers.py", model, "--draws", 64, "--max-new-tokens", 8, "--eta", 1e-3
    )
    coupled, independent = (
        tuple(map(float, re.findall(rf"{seeds} seeds: +(\S+) ± (\S+) ", printed)[0]))
        for seeds in ("same", "independent")
    )
    assert abs(coupled[0] - independent[0]) < 5 * math.hypot(coupled[1], independent[1])
    gain = float(printed.rsplit(maxsplit=1)[-1])
    assert gain == pytest.approx((independent[1] / coupled[1]) ** 2, rel=0.1)  # 2 digits are shown
    assert gain > 10
    same, other = map(int, re.findall(r": (\d+) with the same seeds, (\d+) with", printed)[0])
    assert other < 8 < 56 < same


@pytest.fixture
def installed(tmp_path: Path) -> tuple[Path, ...]:
    """Folders in which Python finds the wrapper engine and its metadata, as if installed."""
    package = ROOT / "examples" / "wrapper_engine"
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    name = project["name"].replace("-", "_")
    metadata = tmp_path / "site" / f"{name}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    points = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(points))
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    return package, tmp_path / "site"


def check_parity(engines: str, model: Path, out: Path, path: tuple[Path, ...]) -> tuple[int, Any]:
    """Exit code and report of `seqproc parity` at T = 0.7."""
    # fmt: off
    result = python(
        "-m", "seqproc", "parity", "--engines", engines, "--model", model,
        "--dataset", "arithmetic", "--draws", 64, "--max-new-tokens", 8,
        "--temperature", 0.7, "--device", "cpu", "--out", out,
        path=path,
    )
    # fmt: on
    assert (out / "parity.json").is_file(), result.stderr
    return result.returncode, json.loads((out / "parity.json").read_text())


def test_wrapper_engine(model: Path, installed: tuple[Path, ...], tmp_path: Path) -> None:
    """Fixed seeds; a right engine fails with a chance of 10⁻³."""
    log = tmp_path / "requests.jsonl"
    wrapped = f"wrapped:log={log}"
    code, report = check_parity(f"hf,{wrapped}", model, tmp_path / "out", installed)
    assert (code, report["holds"]) == (0, True)
    assert set(report["checks"]) == {"hf", wrapped}
    (check,) = report["checks"][wrapped]
    assert (check["engine"]["name"], check["engine"]["wraps"]) == ("wrapped", "hf")
    assert len(log.read_text().splitlines()) == check["num_draws"] == 64
    (comparison,) = report["comparisons"]
    assert comparison["num_identical"] == 64


def test_wrapper_engine_that_forgets_the_temperature(
    model: Path, installed: tuple[Path, ...], tmp_path: Path
) -> None:
    broken = "wrapped:forget_temperature=true"
    code, report = check_parity(broken, model, tmp_path / "out", installed)
    assert (code, report["holds"]) == (3, False)
    ((check,),) = report["checks"].values()
    assert "temperature" in check["causes"][0]["description"]
