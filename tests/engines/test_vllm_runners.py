"""Coupled sampling on vLLM's model runners without a GPU.

V2's adapter alone, and the suites of `tests/vllm_runners`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seqproc.engines import gumbel_noise
from seqproc.engines.coupling import choose
from seqproc.engines.gumbel import seed_tensor
from seqproc.engines.registry import require_options
from seqproc.engines.vllm.runner import Runner
from seqproc.errors import ConfigError, SequenceError
from seqproc.policy import SamplingPolicy, log_q
from seqproc.support.nucleus import nuclei

pytest.importorskip("vllm", exc_type=ImportError)
from seqproc.engines.vllm.coupled import CoupledDraw, extra_args

pytestmark = pytest.mark.vllm

NUCLEUS = SamplingPolicy(temperature=0.9, top_p=0.9)
WARM = SamplingPolicy(temperature=1.3)
POLICIES = [SamplingPolicy(), NUCLEUS, WARM, SamplingPolicy(do_sample=False)]
SUITE = Path(__file__).parents[1] / "vllm_runners"


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/vllm_runners runs on the GPU itself")
@pytest.mark.slow
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_the_suite_of_a_model_runner_passes(runner: str) -> None:
    """In a process of its own; V2 in Triton's interpreter."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(SUITE), "-p", "no:cacheprovider", "--durations=5"],
        env={**os.environ, "SEQPROC_TEST_RUNNER": runner},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert " skipped" not in result.stdout


# ---------------------------------------------------------------- the adapter, step by step


@pytest.fixture(autouse=True)
def _buffers_without_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's own worker on a CPU has them."""
    if not torch.cuda.is_available():
        from vllm.v1.worker.cpu import buffer_utils as on_cpu
        from vllm.v1.worker.gpu import buffer_utils

        monkeypatch.setattr(buffer_utils, "UvaBuffer", on_cpu.UvaBuffer)


def make_sampler(num_slots: int = 8) -> Any:
    from vllm.v1.worker.gpu.buffer_utils import UvaBackedTensor

    from seqproc.engines.vllm.coupled import CoupledSampler

    lengths = UvaBackedTensor(num_slots, dtype=torch.int32)
    lengths.np[:] = np.arange(num_slots) + 3  # of the prompts
    lengths.copy_to_uva()
    states = SimpleNamespace(max_num_reqs=num_slots, prompt_len=lengths)
    return CoupledSampler(SimpleNamespace(use_v2_model_runner=True), states)


def params(seed: int, policy: SamplingPolicy) -> Any:
    return SimpleNamespace(extra_args=extra_args(CoupledDraw(seed=seed, policy=policy)))


def context(slots: list[int], positions: list[int]) -> Any:
    return SimpleNamespace(
        expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
        idx_mapping_np=np.array(slots, dtype=np.int32),
        pos=torch.tensor(positions),
    )


def chosen(logits: torch.Tensor, seed: int, step: int, policy: SamplingPolicy) -> int:
    keys = log_q(logits.double(), policy) + gumbel_noise(seed, step, len(logits))
    return int(keys.argmax())


def test_each_row_gets_the_token_of_its_slot_step_and_policy() -> None:
    sampler = make_sampler()
    logits = torch.randn(4, 60, generator=torch.Generator().manual_seed(0))
    assert sampler.add_request(5, params(2**64 - 1, NUCLEUS))
    assert sampler.add_request(0, params(7, WARM))
    assert sampler.add_request(2, params(8, NUCLEUS))
    assert not sampler.add_request(3, SimpleNamespace(extra_args=None))
    sampler.apply_staged_writes()
    # Slot s has a prompt of s + 3 tokens: position s + 2 + t is fed for generated token t.
    out = sampler.apply(logits.clone(), context([2, 3, 5, 0], [4, 9, 9, 6]))
    assert out[0].argmax() == chosen(logits[0], 8, 0, NUCLEUS)
    assert torch.equal(out[1], logits[1])  # not ours
    assert out[2].argmax() == chosen(logits[2], 2**64 - 1, 2, NUCLEUS)
    assert out[3].argmax() == chosen(logits[3], 7, 4, WARM)
    assert (out[[0, 2, 3]] > float("-inf")).sum() == 3


def test_a_slot_forgets_who_had_it_before() -> None:
    sampler = make_sampler()
    logits = torch.randn(1, 60)
    sampler.add_request(1, params(1, NUCLEUS))
    sampler.apply_staged_writes()
    sampler.add_request(1, SimpleNamespace(extra_args={"another": "processor's"}))
    sampler.apply_staged_writes()
    assert torch.equal(sampler.apply(logits.clone(), context([1], [3])), logits)
    sampler.add_request(1, params(2, WARM))
    sampler.apply_staged_writes()
    out = sampler.apply(logits.clone(), context([1], [3]))
    assert out.argmax() == chosen(logits[0], 2, 0, WARM)


def test_the_adapter_is_that_of_the_runner_that_asks() -> None:
    from vllm.v1.sample.logits_processor import LogitsProcessor as ProcessorV1
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorV2

    from seqproc.engines.vllm.coupled import CoupledSampler

    old = CoupledSampler(SimpleNamespace(use_v2_model_runner=False), torch.device("cpu"), False)
    assert issubclass(CoupledSampler, ProcessorV1)
    assert issubclass(CoupledSampler, ProcessorV2)
    assert isinstance(old, ProcessorV1)
    assert isinstance(make_sampler(), ProcessorV2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": "red"}, "no option 'colour'"),
        ({"logprobs_mode": "raw_logprobs"}, "needs logprobs_mode='processed_logprobs'"),
        ({"sampler": "loud"}, "sampler must be 'auto'"),
    ],
)
def test_options_are_refused_before_the_start(options: dict[str, Any], words: str) -> None:
    require_options("vllm", {"sampler": "coupled", "max_num_seqs": 4, "max_logprobs": -1})
    with pytest.raises(ConfigError, match=words):
        require_options("vllm", options)


# ---------------------------------------------------------------- nothing waits for the device


class Crossings(TorchDispatchMode):
    """Operations that move values between the host and the "meta" device, by name.

    Tensors on "meta" have shapes and no values: whatever reads one raises, as it would make the
    host wait for a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [a for a in args if isinstance(a, torch.Tensor) and a.dim()]
        devices = {t.device.type for t in (*given, out) if isinstance(t, torch.Tensor) and t.dim()}
        if len(devices) > 1:
            self.names.append(str(func))
        return out


def on_meta(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to("meta") for tensor in tensors]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_choice_on_a_device_reads_nothing_back(policy: SamplingPolicy) -> None:
    logits, seeds, steps = on_meta(torch.randn(5, 40), seed_tensor([1] * 5), torch.arange(5))
    with Crossings() as crossings:
        tokens, log_qs = choose(logits, policy, seeds, steps)
    assert (tokens.shape, log_qs.shape) == ((5,), (5,))
    assert crossings.names == []


def test_the_check_of_crossings_can_fail() -> None:
    (logits,) = on_meta(torch.randn(5, 40))
    with Crossings() as crossings:
        torch.arange(5).to("meta")
    assert crossings.names
    with pytest.raises((RuntimeError, NotImplementedError)):
        list(nuclei(logits, 1.0, NUCLEUS.top_p))  # which may wait, and does
    with pytest.raises(SequenceError, match="meta"):
        log_q(logits, NUCLEUS)


def test_a_step_of_the_adapter_reads_nothing_back() -> None:
    sampler = make_sampler()
    for slot, policy in ((0, NUCLEUS), (1, WARM), (2, SamplingPolicy())):
        sampler.add_request(slot, params(slot, policy))
    sampler.apply_staged_writes()
    for buffer in (sampler._seeds, sampler._numbers, sampler._prompt_lengths):
        buffer.gpu = buffer.gpu.to("meta")
    there = context([0, 1, 2], [3, 4, 5])
    there.expanded_idx_mapping, there.pos = on_meta(there.expanded_idx_mapping, there.pos)
    (logits,) = on_meta(torch.randn(3, 40))
    with Crossings() as crossings:
        out = sampler.apply(logits, there)
    assert out.shape == (3, 40)
    assert crossings.names == []


# ---------------------------------------------------------------- what is exact


@pytest.mark.parametrize(
    ("runner", "top_p", "temperature", "why"),
    [
        ("V1", "sort", 1.0, None),
        ("V2", "sort", 1.0, None),
        ("V2", "triton", 1.0, "approximate kernel"),
        ("V1", "triton", 1.0, "approximate kernel"),
        ("V1", "sort", 2.5, "temperatures from 0.01 to 2.0"),
    ],
)
def test_which_samplers_are_exact(
    runner: Any, top_p: Any, temperature: float, why: str | None
) -> None:
    running = Runner(model_runner=runner, top_p_backend=top_p, fp64_gumbel=False)
    found = running.inexact(SamplingPolicy(temperature=temperature, top_p=0.9))
    assert (found is None) == (why is None)
    assert why is None or why in str(found)
    full = running.inexact(SamplingPolicy(temperature=temperature))
    assert (full is None) == (temperature == 1.0)
    assert running.inexact(SamplingPolicy(do_sample=False)) is None


def test_a_policy_that_sorts_is_the_policy(make_rows: Callable[[], torch.Tensor]) -> None:
    """`may_wait=False` keeps the tokens that the selection keeps: ties, −∞ and flat rows too."""
    logits = make_rows()
    for policy in (*POLICIES, SamplingPolicy(top_p=1e-6), SamplingPolicy(top_p=0.999)):
        waiting, sorting = log_q(logits, policy), log_q(logits, policy, may_wait=False)
        assert torch.equal(waiting, sorting)


@pytest.fixture
def make_rows() -> Callable[[], torch.Tensor]:
    def rows() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        plain = torch.randn(40, 3000, generator=generator)
        tied = (plain * 3).round()
        masked = plain.masked_fill(torch.rand(plain.shape, generator=generator) < 0.5, -torch.inf)
        return torch.cat([plain, 0.01 * plain, 8 * plain, tied, masked, 0 * plain])

    return rows
