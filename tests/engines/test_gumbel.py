"""Gumbel noise: bits against an independent integer implementation, and as random numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from seqproc.engines.gumbel import finalise64, gumbel_noise, gumbel_noise_batch, seed_tensor
from seqproc.errors import ConfigError

MASK = 2**64 - 1


class SplitMix64:
    """The generator as published: a state, and a `next`. Python integers, no tensors."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def nth(seed: int, n: int) -> int:
    generator = SplitMix64(seed)
    for _ in range(n):
        generator.next()
    return generator.next()


def independent_noise(seed: int, step: int, token: int) -> float:
    bits = nth(nth(nth(seed, 0), step), token)
    return -math.log(-math.log((2 * (bits >> 12) + 1) / 2**53))


def uniforms(seeds: list[int], steps: list[int], vocab_size: int) -> np.ndarray:
    noise = gumbel_noise_batch(seed_tensor(seeds), torch.tensor(steps), vocab_size)
    return np.exp(-np.exp(-noise.numpy()))


def test_the_reference_generator_is_splitmix64() -> None:
    # The first outputs for seed 1234567, as published with the algorithm.
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_the_finaliser_is_the_step_of_splitmix64() -> None:
    for state in (0, 1, 2**63, 2**64 - 1):
        mixed = int(finalise64(seed_tensor([(state + 0x9E3779B97F4A7C15) & MASK])))
        assert mixed % 2**64 == SplitMix64(state).next()


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("step", [0, 1, 511])
def test_noise_equals_the_independent_implementation(seed: int, step: int) -> None:
    noise = gumbel_noise(seed, step, 40)
    expected = [independent_noise(seed, step, token) for token in range(40)]
    np.testing.assert_allclose(noise.numpy(), expected, rtol=1e-15, atol=4e-16)


def test_golden_values() -> None:
    # Recorded numbers: if they change, every coupled draw of every earlier run changes.
    golden = [
        -0.8200138578676213,
        -0.3832876298708896,
        -0.619454874333944,
        -0.6731666492147751,
        0.960495682120016,
    ]
    np.testing.assert_allclose(gumbel_noise(2**64 - 1, 3, 5).numpy(), golden, rtol=1e-15)


def test_a_batch_is_its_rows_and_a_vocabulary_its_tokens() -> None:
    seeds, steps = [5, 2**64 - 1, 5], [0, 7, 1]
    batch = gumbel_noise_batch(seed_tensor(seeds), torch.tensor(steps), 64)
    assert batch.shape == (3, 64)
    assert batch.dtype == torch.float64
    for row, (seed, step) in enumerate(zip(seeds, steps, strict=True)):
        assert torch.equal(batch[row], gumbel_noise(seed, step, 64))
    assert torch.equal(gumbel_noise(9, 2, 1000)[:64], gumbel_noise(9, 2, 64))


def test_seeds_outside_64_bits_are_refused() -> None:
    for seed in (-1, 2**64, 1.5, True, None):
        with pytest.raises(ConfigError, match=r"\[0, 2\*\*64\)"):
            gumbel_noise(seed, 0, 2)  # type: ignore[arg-type]


# The tests below are deterministic: fixed seeds. Each threshold is that of a false-alarm rate of
# 1e-6 for true random numbers, so a change of the hash that keeps its quality would pass as well.
ALARM = 1e-6


def p_value_uniform(values: np.ndarray) -> float:
    return float(stats.kstest(values.ravel(), "uniform").pvalue)


def test_uniforms_are_uniform_over_tokens_steps_and_seeds() -> None:
    assert p_value_uniform(uniforms([3], [0], 100_000)) > ALARM
    assert p_value_uniform(uniforms([3] * 1000, list(range(1000)), 100)) > ALARM
    assert p_value_uniform(uniforms(list(range(1000)), [0] * 1000, 100)) > ALARM


def test_the_uniformity_test_can_fail() -> None:
    skewed = uniforms([3], [0], 100_000) ** 1.03
    assert p_value_uniform(skewed) < ALARM


@pytest.mark.parametrize("distance", [1, 2, 64, 2**32, 2**63])
def test_neighbouring_seeds_are_uncorrelated(distance: int) -> None:
    first = uniforms([11], [4], 100_000)
    assert correlation_p(first, uniforms([11 + distance], [4], 100_000)) > ALARM


@pytest.mark.parametrize("distance", [1, 2, 31, 4096])
def test_neighbouring_steps_and_tokens_are_uncorrelated(distance: int) -> None:
    first = uniforms([11], [4], 100_000)
    assert correlation_p(first, uniforms([11], [4 + distance], 100_000)) > ALARM
    assert correlation_p(first[:, distance:], first[:, :-distance]) > ALARM


def test_a_seed_is_no_shifted_step() -> None:
    # With S(seed, step) alone, seed + γ at step t would be seed at step t + 1.
    shifted = uniforms([11 + 0x9E3779B97F4A7C15], [4], 100_000)
    assert correlation_p(uniforms([11], [5], 100_000), shifted) > ALARM


def correlation_p(x: np.ndarray, y: np.ndarray) -> float:
    return float(stats.pearsonr(x.ravel(), y.ravel()).pvalue)


def test_gumbel_max_draws_the_distribution() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    noise = gumbel_noise_batch(seed_tensor(list(range(50_000))), torch.zeros(50_000).long(), 5)
    drawn = torch.bincount((logits + noise).argmax(-1), minlength=5).numpy()
    expected = logits.softmax(-1).numpy() * 50_000
    assert stats.chisquare(drawn, expected).pvalue > ALARM
    tempered = (logits / 1.05).softmax(-1).numpy() * 50_000
    assert stats.chisquare(drawn, tempered).pvalue < ALARM  # the test can fail
