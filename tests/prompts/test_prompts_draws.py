"""Draws are pure functions of a seed and an index; their values are part of the format."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqproc.errors import ConfigError, DatasetError
from seqproc.prompts import choose_prompts, draw_seed, replacement_indices

SEEDS = st.integers(-(2**63), 2**64 - 1)


class TestChoosePrompts:
    def test_none_is_all_in_order(self):
        assert choose_prompts("abc", None, 0) == ["a", "b", "c"]

    def test_golden_values(self):
        assert choose_prompts(range(10), 10, 0) == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
        assert choose_prompts(range(10), 4, 7) == [8, 0, 7, 1]

    @given(SEEDS, st.integers(1, 40), st.integers(1, 40))
    def test_without_replacement_and_nested(self, seed, size, count):
        count = min(size, count)
        chosen = choose_prompts(range(size), count, seed)
        assert len(set(chosen)) == count
        assert set(chosen) <= set(range(size))
        assert choose_prompts(range(size), size, seed)[:count] == chosen

    @pytest.mark.parametrize("count", ["x", 2.5, [], {}])
    def test_what_is_no_number(self, count):
        with pytest.raises(ConfigError, match="num_prompts must be an integer, got"):
            choose_prompts("abc", count, 0)
        with pytest.raises(ConfigError, match="pool_size must be an integer, got"):
            replacement_indices(0, count, 1)
        with pytest.raises(ConfigError, match="total must be an integer, got"):
            replacement_indices(0, 3, count)

    def test_too_many_or_too_few(self):
        with pytest.raises(DatasetError, match=r"4 prompts .* holds 3\."):
            choose_prompts("abc", 4, 0)
        for count in (0, -1):
            with pytest.raises(DatasetError, match=f"at least 1.*got {count}"):
                choose_prompts("abc", count, 0)


class TestReplacementIndices:
    def test_golden_values(self):
        assert replacement_indices(0, 7473, 8).tolist() == [
            6356, 4760, 3819, 2016, 2300, 306, 562, 123,
        ]  # fmt: skip
        assert replacement_indices(42, 10, 8).tolist() == [0, 7, 6, 4, 4, 8, 0, 6]
        assert replacement_indices(-1, 2**40, 2).tolist() == [747697240716, 929430107635]

    @given(SEEDS, st.integers(1, 2**62), st.integers(0, 50), st.integers(0, 50))
    def test_a_draw_does_not_depend_on_how_many_there_are(self, seed, pool_size, few, more):
        longer = replacement_indices(seed, pool_size, few + more)
        np.testing.assert_array_equal(longer[:few], replacement_indices(seed, pool_size, few))
        assert longer.dtype == np.int64
        assert ((longer >= 0) & (longer < pool_size)).all()

    def test_every_prompt_is_about_as_likely(self):
        # χ² with 99 degrees of freedom; 200 is passed by chance once in 10⁸.
        def chi_squared(indices):
            counts = np.bincount(indices, minlength=100)
            return ((counts - 1000) ** 2 / 1000).sum()

        indices = replacement_indices(1, 100, 100_000)
        assert chi_squared(indices) < 200
        assert chi_squared(np.where(indices == 0, 1, indices)) > 200

    def test_impossible_sizes(self):
        with pytest.raises(DatasetError, match="at least 1 prompt"):
            replacement_indices(0, 0, 3)
        with pytest.raises(DatasetError, match="cannot be negative"):
            replacement_indices(0, 3, -1)


class TestDrawSeed:
    @pytest.mark.parametrize(
        ("run_seed", "index", "expected"),
        [
            (0, 0, 3627732731546305261),
            (0, 1, 11217271347418387872),
            (1, 0, 13968461589417583455),
            (-1, 7, 135849162124164704),
            (2**64 - 1, 7, 135849162124164704),
            (2**64 - 1, 2**64 - 1, 17253373882799050281),
        ],
    )
    def test_golden_values(self, run_seed, index, expected):
        assert draw_seed(run_seed, index) == expected

    def test_numpy_integers_are_integers(self):
        numpys: tuple[Any, Any] = (np.int64(-1), np.uint32(7))
        assert draw_seed(*numpys) == draw_seed(-1, 7)

    def test_no_collisions_and_every_bit_is_fair(self):
        # 6·10⁴ hashes collide by chance once in 10¹⁰ runs; a fair bit is 6 σ off once in 5·10⁸.
        seeds = [draw_seed(run, index) for run in range(-1, 2) for index in range(20_000)]
        assert len(set(seeds)) == len(seeds)

        def worst_z(values):
            bits = np.unpackbits(np.array(values, dtype=np.uint64).view(np.uint8))
            means = bits.reshape(len(values), 64).mean(axis=0)
            return np.abs(means - 0.5).max() * 2 * np.sqrt(len(values))

        assert worst_z(seeds) < 6
        assert worst_z([seed | 4 for seed in seeds]) > 6

    @pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
    def test_seeds_must_fit_64_bits(self, seed):
        for function in (draw_seed, lambda s, n: replacement_indices(s, 3, n)):
            with pytest.raises(ConfigError, match="fit 64 bits"):
                function(seed, 1)

    @pytest.mark.parametrize("seed", [1.0, "1", None])
    def test_seeds_must_be_integers(self, seed):
        with pytest.raises(ConfigError, match="must be an integer"):
            draw_seed(seed, 0)

    @pytest.mark.parametrize("index", [-1, 2**64])
    def test_an_index_counts_from_zero(self, index):
        with pytest.raises(ConfigError, match="index of a draw"):
            draw_seed(0, index)
