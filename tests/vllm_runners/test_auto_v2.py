"""sampler="auto" on model runner V2: vLLM's own sampler at top_p = 1, ours below."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from helpers.runner_helpers import FULL, NUCLEUS, Model, require_replayed, run, tokens
from seqproc.engines.gumbel import seed_tensor
from seqproc.engines.vllm.options import request_seeds
from seqproc.policy import SamplingPolicy

MASK = (1 << 64) - 1


def seed_that_mixes_to_minus_one() -> int:
    """Found backwards through SplitMix64's finaliser."""
    bits = MASK
    for shift, multiplier in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        unshifted = bits
        for _ in range(64 // shift):
            unshifted = bits ^ (unshifted >> shift)
        bits = unshifted * pow(multiplier, -1, 1 << 64) & MASK
    return bits


@pytest.fixture(scope="module")
def engine(start: Any) -> Iterator[Any]:
    with start() as engine:
        yield engine


def test_the_description_tells_what_runs(engine: Any) -> None:
    description = engine.describe()
    assert description["model_runner"] == "V2"
    assert description["top_p_backend"] == "triton"
    assert description["sampler"] == "auto"
    assert description["sampled_by"] == {
        "top_p = 1": "native",
        "top_p < 1": "coupled",
        "T < 0.01 or T > 2": "coupled",
    }
    assert description["logprobs_mode"] == "processed_logprobs"


def test_a_native_run_is_the_replay_and_passes_every_test(engine: Any, model: Model) -> None:
    seeds = [0, (1 << 64) - 1, 1 << 63, seed_that_mixes_to_minus_one()]
    check = model.check(engine, FULL, model.requests(2, seeds))
    require_replayed(check)
    assert check.noise == "vLLM V2's murmur3"
    assert check.verdict.holds, check.findings
    assert check.mismatch is not None
    assert check.mismatch["max_abs"].value < 1e-4


def test_a_nucleus_is_coupled_exact_and_told_of_once(
    engine: Any, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    requests, rule = model.requests(2), model.rule(8)
    with caplog.at_level(logging.WARNING, logger="seqproc"):
        found = run(engine, requests, NUCLEUS, rule)
        run(engine, requests[:1], NUCLEUS, rule)
    assert tokens(found) == tokens(run(model.hugging_face(), requests, NUCLEUS, rule))
    assert all(one.logqs is None for one in found.values())
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "model runner V2" in told[0]
    assert "approximate kernel" in told[0]


def test_a_temperature_that_vllm_would_change_is_coupled(engine: Any, model: Model) -> None:
    hot, requests, rule = SamplingPolicy(temperature=2.5), model.requests(1), model.rule(6)
    found = run(engine, requests, hot, rule)
    assert tokens(found) == tokens(run(model.hugging_face(), requests, hot, rule))


def test_greedy(engine: Any, model: Model) -> None:
    greedy, requests, rule = SamplingPolicy(do_sample=False), model.requests(1), model.rule()
    found = run(engine, requests, greedy, rule)
    assert tokens(found) == tokens(run(model.hugging_face(), requests, greedy, rule))


def global_states() -> tuple[Any, ...]:
    """Of numpy's generator and of torch's."""
    numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 (the global one is meant)
    return numpy_state["pos"], numpy_state["key"].tolist(), torch.get_rng_state().tolist()


def test_numpys_and_torchs_generators_play_no_part_and_are_left_alone(
    engine: Any, model: Model
) -> None:
    found = []
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002 (the global one is meant)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = global_states()
            found.append(run(engine, model.requests(1), NUCLEUS, model.rule(3)))
            after = global_states()
        assert before == after
    assert found[0] == found[1]


def test_the_seed_that_vllm_would_take_for_none_is_another() -> None:
    sent = request_seeds(seed_tensor([seed_that_mixes_to_minus_one(), 0, 7])).tolist()
    assert sent[0] == -2
    assert -1 not in sent
