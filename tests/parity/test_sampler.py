"""The statistical tests: right engines give uniform p-values, wrong ones small ones.

Deterministic (fixed seeds). Where a p-value of p-values is asked for, the false-alarm rate of that
assertion is ALARM.
"""

from __future__ import annotations

import functools
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.gallery import crossing_token_excluded, top_k_50, top_p_before_temperature
from helpers.synthetic import synthetic
from seqproc.parity import Draws, Finding, decide, sampler_findings
from seqproc.parity.findings.sampler import lengths, tail, uniformity
from seqproc.parity.positions import place
from seqproc.policy import SamplingPolicy, log_q

ALARM = 1e-6
NUM_NULL_RUNS = 150
TESTS = (
    "uniformity",
    "tail",
    "ranks",
    "surprisal",
    "last kept",
    "lengths",
    "draws of one prompt",
    "draws of two prompts",
    "steps of one draw",
)


@functools.cache
def null_p_values() -> dict[str, list[float]]:
    """Of every test, over runs of a right engine."""
    runs = [sampler_findings(synthetic(seed, num_prompts=60)) for seed in range(NUM_NULL_RUNS)]
    found: dict[str, list[float]] = {name: [] for name in TESTS}
    for findings in runs:
        for one in findings:
            assert one.p_value is not None, one
            found[one.name].append(one.p_value)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTS)
def test_p_values_of_a_right_engine_are_uniform(name: str) -> None:
    p_values = null_p_values()[name]
    assert stats.kstest(p_values, "uniform").pvalue > ALARM
    rejected = sum(p < 0.05 for p in p_values)
    assert stats.binomtest(rejected, len(p_values), 0.05).pvalue > ALARM


def failing(draws: Draws) -> set[str]:
    return set(decide(sampler_findings(draws)).failed)


def changed(**values: float) -> Any:
    return lambda logits, policy: log_q(logits, replace(policy, **values))


def test_a_right_engine_passes() -> None:
    assert failing(synthetic(1, num_prompts=200)) == set()


@pytest.mark.parametrize(
    ("draws_from", "expected"),
    [
        (changed(temperature=1.0), {"uniformity", "surprisal", "ranks"}),
        (changed(temperature=0.8 * 1.06), {"surprisal"}),
        (changed(top_p=0.87), {"last kept", "tail"}),
        (crossing_token_excluded, {"last kept", "tail"}),
        (top_p_before_temperature, {"tail"}),
    ],
)
def test_another_distribution_fails(draws_from: Any, expected: set[str]) -> None:
    found = failing(synthetic(1, draws_from=draws_from, num_prompts=800))
    assert expected <= found


def test_top_k_left_on_empties_the_last_bin_of_ranks() -> None:
    policy = SamplingPolicy()
    draws = synthetic(1, policy=policy, draws_from=top_k_50, num_prompts=400, vocabulary=300)
    assert "ranks" in failing(draws)
    found = {one.name: one for one in sampler_findings(draws)}
    assert "ranks from 50 on 0 tokens" in found["ranks"].detail


def test_an_end_that_never_comes_fails_the_lengths() -> None:
    def without_eos(logits: Any, policy: SamplingPolicy) -> Any:
        masked = logits.clone()
        masked[:, 0] = -math.inf
        return log_q(masked, policy)

    assert "lengths" in failing(synthetic(1, draws_from=without_eos, num_prompts=400))


def test_noise_shared_by_draws_fails_their_independence() -> None:
    """Draws 2k and 2k + 1 of a prompt have the same uniforms."""

    def twins(rng: np.random.Generator, num_draws: int, step: int) -> Any:
        return np.repeat(rng.random(num_draws // 2), 2)

    assert failing(synthetic(1, uniforms=twins)) == {"draws of one prompt"}


def test_noise_shared_by_prompts_fails_their_independence() -> None:
    def same(rng: np.random.Generator, num_draws: int, step: int) -> Any:
        return np.tile(rng.random(4), num_draws // 4)

    found = failing(synthetic(1, uniforms=same))
    assert "draws of two prompts" in found


def test_noise_used_again_at_each_step_fails_their_independence() -> None:
    noise = np.random.default_rng(3).random(160)

    def again(rng: np.random.Generator, num_draws: int, step: int) -> Any:
        return noise

    assert "steps of one draw" in failing(synthetic(1, uniforms=again))


def two_tokens(num_rare: int, total: int) -> Draws:
    """One draw of tokens of probability 3/4 and, ``num_rare`` times, 1/4."""
    tokens = torch.tensor([1] * num_rare + [0] * (total - num_rare))
    placed = place(torch.tensor([[0.75, 0.25]]).double().log().expand(total, -1), tokens)
    return Draws(
        prompts=np.array([0]),
        lengths=np.array([total]),
        ended_by_eos=np.array([False]),
        randomiser=np.full(total, 0.5),
        **{f.name: getattr(placed, f.name).numpy() for f in fields(placed)},
    )


@pytest.mark.parametrize("num_rare", [230, 250, 280])
def test_of_two_tokens_every_statistic_is_that_of_a_binomial(num_rare: int) -> None:
    """The rare token is the last kept, its surprisal the larger, and its rank 1 of two bins."""
    found = {one.name: one for one in sampler_findings(two_tokens(num_rare, 1_000))}
    z = (num_rare - 250) / math.sqrt(1_000 * 3 / 16)
    assert found["surprisal"].statistic == pytest.approx(z)
    assert found["last kept"].statistic == pytest.approx(z)
    assert found["ranks"].statistic == pytest.approx(z * z)
    for name in ("surprisal", "last kept", "ranks"):
        assert found[name].p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))


@pytest.mark.parametrize("test", [uniformity, tail])
def test_too_few_tokens_are_left_undecided(test: Any) -> None:
    found: Finding = test(synthetic(0, num_prompts=2, per_prompt=2))
    assert found.p_value is None
    assert "too little to decide" in found.detail


def test_greedy_leaves_every_test_undecided() -> None:
    draws = synthetic(0, policy=SamplingPolicy(do_sample=False))
    assert all(one.p_value is None for one in sampler_findings(draws))


def test_lengths_of_draws_that_eos_could_not_end_say_nothing() -> None:
    """A nucleus without EOS, and one in which some draws come to it: p-values of 60 are uniform."""
    small = SamplingPolicy(temperature=0.8, top_p=0.6)
    p_values = []
    for seed in range(60):
        draws = synthetic(seed, policy=small, num_prompts=40)
        is_open = [
            bool(((part > 0) & (part < 1)).any())
            for part in np.split(draws.eos_probs, draws.starts[1:])
        ]
        assert 20 < sum(is_open) < len(is_open)
        p_values.append(lengths(draws).p_value)
    assert stats.kstest(np.array(p_values, dtype=float), "uniform").pvalue > 1e-3


def test_without_truncation_the_last_token_decides_nothing() -> None:
    found = {one.name: one for one in sampler_findings(synthetic(0, policy=SamplingPolicy()))}
    assert found["last kept"].p_value is None
    assert found["uniformity"].p_value is not None
