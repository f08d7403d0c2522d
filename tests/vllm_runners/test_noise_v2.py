"""The noise that a replay computes, against the kernel of vLLM that draws with it."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from seqproc.engines.vllm.noise import native_noise, native_noise_fp64
from seqproc.policy import SamplingPolicy, log_q

NUM_ROWS, VOCAB = 6, 3000
SEEDS = [0, -2, 2**63 - 1, -(2**63), 12345678901234567, -98765432109876543]
POSITIONS = [0, 1, 7, 511, 70_000, 3]


@pytest.fixture(scope="module")
def gumbel() -> Any:
    """vLLM's module: of the installed version, or of the one that SEQPROC_VLLM names."""
    named = os.environ.get("SEQPROC_VLLM")
    if not named:
        from vllm.v1.worker.gpu.sample import gumbel

        return gumbel
    path = Path(named) / "vllm/v1/worker/gpu/sample/gumbel.py"
    spec = importlib.util.spec_from_file_location("other_gumbel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("is_wide", [False, True], ids=["float32", "float64"])
def test_the_kernel_draws_what_the_noise_says(gumbel: Any, is_wide: bool) -> None:
    """Also over a nucleus, and at a temperature that was applied before."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seeds = torch.tensor(SEEDS, device=device)
    positions = torch.tensor(POSITIONS, device=device)
    noise = (native_noise_fp64 if is_wide else native_noise)(seeds, positions, VOCAB)
    logits = torch.randn(NUM_ROWS, VOCAB, generator=torch.Generator().manual_seed(0)).to(device)
    for policy in (SamplingPolicy(temperature=0.7), SamplingPolicy(top_p=0.8)):
        keys = log_q(logits.double(), policy)
        found = gumbel.gumbel_sample(
            keys.float(),
            torch.arange(NUM_ROWS, device=device, dtype=torch.int32),
            torch.ones(NUM_ROWS, device=device),
            seeds,
            positions,
            apply_temperature=False,
            is_drafting=False,
            use_fp64=is_wide,
        )
        due = (keys + noise).topk(2)
        assert (due.values[:, 0] - due.values[:, 1]).min() > 1e-4  # no near-tie among these
        assert torch.equal(found, due.indices[:, 0])


def test_flat_logits_show_the_noise_itself(gumbel: Any) -> None:
    """With equal logits the token drawn is the one of largest noise, row after row."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seeds = torch.full((40,), 77, device=device)
    positions = torch.arange(40, device=device)
    found = gumbel.gumbel_sample(
        torch.zeros(40, 500, device=device),
        torch.arange(40, device=device, dtype=torch.int32),
        torch.ones(40, device=device),
        seeds,
        positions,
        apply_temperature=False,
        is_drafting=False,
    )
    assert torch.equal(found, native_noise(seeds, positions, 500).argmax(-1))
    assert len(set(found.tolist())) > 30


def test_the_noise_is_standard_gumbel() -> None:
    """Mean γ and variance π²/6, within five standard errors of a million values."""
    noise = native_noise(torch.arange(100), torch.arange(100), 10_000)
    assert abs(float(noise.mean()) - 0.5772156649) < 5 * 1.2825 / 1000
    assert abs(float(noise.var()) - 1.6449340668) < 5 * 3.0 / 1000
