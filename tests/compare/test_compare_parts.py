"""The parts of a comparison on rows made by hand, where numbers are missing or infinite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from seqproc.compare.numbers import QUANTITIES, Difference, differences, paired_difference
from seqproc.compare.pairing import common_prefix, paired
from seqproc.compare.tokens import k3, responses, token_gap

NAN, INF = math.nan, math.inf


def table(**columns: list[Any]) -> pa.Table:
    """Rows of a run: what is not given is plain."""
    num = len(next(iter(columns.values())))
    ones = dict.fromkeys(
        ("sequence_logprob", "sequence_logq", "inside_logq", "rb_entropy_sum", "reward"),
        [1.0] * num,
    )
    plain = {
        "draw": list(range(num)),
        "prompt_index": list(range(num)),
        "gen_len": [4] * num,
        "finish_reason": ["eos"] * num,
        "answer": ["1"] * num,
        "out_of_support": [0] * num,
        **ones,
    }
    return pa.table({**plain, **columns})


def number_of(name: str, a: pa.Table, b: pa.Table, **options: Any) -> Difference:
    given = {"is_paired": True, "by_prompt": False, "all_rewarded": (False, False), **options}
    return {one.name: one for one in differences(a, b, **given)}[name]


def test_reward_is_over_the_pairs_that_both_have_one() -> None:
    a = table(reward=[1.0, 0.0, 1.0, 1.0], answer=["1", "2", None, "4"])
    b = table(reward=[0.0, 0.0, 0.0, 1.0], answer=["1", "2", "3", "4"])
    one = number_of("reward", a, b)
    assert (one.a.value, one.b.value) == (2 / 3, 1 / 3)
    assert one.difference == pytest.approx(1 / 3)
    assert one.standard_error == pytest.approx(stats.sem([1, 0, 0]))
    assert one.num_left_out == 1
    rewarded = number_of("reward", a, b, all_rewarded=(True, True))
    assert rewarded.difference == pytest.approx(0.5)
    assert rewarded.num_left_out == 0
    alone = number_of("reward", a, b, is_paired=False)
    assert (alone.a.num_draws, alone.b.num_draws, alone.num_left_out) == (3, 4, 1)
    assert alone.standard_error == pytest.approx(
        math.hypot(stats.sem([1, 0, 1]), stats.sem([0, 0, 0, 1]))
    )


def test_what_no_draw_has_is_undetermined() -> None:
    one = number_of("reward", table(answer=[None] * 3), table(answer=["1"] * 3))
    assert one.a is None
    assert math.isnan(one.difference)
    assert math.isnan(one.p)
    assert one.num_left_out == 3


def test_numbers_that_are_not_finite_are_left_out_and_counted() -> None:
    a = table(sequence_logprob=[-4.0, -INF, -8.0, -8.0])
    b = table(sequence_logprob=[-4.0, -4.0, NAN, -4.0])
    one = number_of("log p", a, b)
    assert one.difference == pytest.approx(-12 / 8 + 8 / 8)
    assert one.num_left_out == 2


def test_one_pair_has_no_error_and_a_constant_difference_none_to_doubt() -> None:
    one = number_of("reward", table(reward=[1.0]), table(reward=[0.0]))
    assert one.difference == 1
    assert math.isnan(one.standard_error)
    assert math.isnan(one.p)
    always = number_of("reward", table(reward=[1.0] * 3), table(reward=[0.0] * 3))
    assert always.standard_error == 0
    assert (always.z, always.p) == (INF, 0)


def test_every_number_has_a_name_of_its_own() -> None:
    assert len({name for name, _, _ in QUANTITIES}) == len(QUANTITIES)


def test_z_of_pairs_is_standard_normal_where_nothing_differs() -> None:
    """600 comparisons of 200 pairs. Bounds are 5 standard errors: 6e-7 of false alarms each."""
    rng = np.random.default_rng(1)
    z, z_unpaired = [], []
    for _ in range(600):
        prompts = rng.normal(size=200)
        tokens = rng.integers(5, 30, size=(2, 200)).astype(float)
        sums = tokens * (2 + prompts + 0.3 * rng.normal(size=(2, 200)))
        (t_a, t_b), (h_a, h_b) = tokens, sums
        value, error = paired_difference((h_a, t_a), (h_b, t_b), None)
        z.append(value / error)
        apart = paired_difference((h_a, t_a), (np.roll(h_b, 1), np.roll(t_b, 1)), None)
        z_unpaired.append(value / apart[1])
    reach = 5 / math.sqrt(600)
    assert abs(np.mean(z)) < reach
    assert abs(np.std(z) - 1) < reach / math.sqrt(2)
    assert np.std(z_unpaired) < 1 - reach / math.sqrt(2)  # pairing is what makes it so


def test_tiny_differences_keep_their_digits() -> None:
    rng = np.random.default_rng(2)
    t = rng.integers(5, 30, size=50).astype(float)
    h = -t * 1e6
    value, _ = paired_difference((h + 1e-9 * t.max(), t), (h, t), None)
    added = (h + 1e-9 * t.max()) - h
    assert value == pytest.approx(added.sum() / t.sum(), rel=1e-12)


# ---------------------------------------------------------------------- pairs and tokens


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1, 2, 3], [1, 2, 3], 3), ([1, 2], [1, 2, 3], 2), ([1, 9, 3], [1, 2, 3], 1), ([], [1], 0)],
)
def test_common_prefix(a: list[int], b: list[int], expected: int) -> None:
    assert common_prefix(np.array(a), np.array(b)) == expected


def test_one_other_prompt_is_enough_not_to_pair() -> None:
    a = pa.table({"draw": [0, 1, 2], "prompt_ids": [[1], [2, 3], [4]]})
    b = pa.table({"draw": [1, 2, 5], "prompt_ids": [[2, 3], [4], [9]]})
    assert paired(a, b).draws.tolist() == [1, 2]
    other = b.set_column(1, "prompt_ids", pa.array([[2, 3], [4, 4], [9]]))
    found = paired(a, other)
    assert not found.is_paired
    assert "of 2 draws of the same index only 1 have" in found.said
    alone = b.set_column(0, "draw", pa.array([7, 8, 9]))
    assert "no draw of the same index" in paired(a, alone).said


def test_a_response_that_ends_early_parts_where_it_ends() -> None:
    a = pa.table({"response_ids": [[1, 2], [1, 2], []]})
    b = pa.table({"response_ids": [[1, 2, 3], [1, 2], []]})
    found = responses(a, b)
    assert found.is_identical.tolist() == [False, True, True]
    assert found.partings.tolist() == [2]


def test_silent_engines_and_infinite_numbers_are_left_out() -> None:
    a = pa.table({"draw": [4, 7, 9], "engine_logqs": [[-1.0, -INF], None, [-3.0, -4.0]]})
    b = pa.table({"draw": [4, 7, 9], "engine_logqs": [[-1.5, -2.0], [-1.0], [-3.0, -9.0]]})
    gap = token_gap("engine_logqs", a, b, np.array([2, 1, 1]), None)
    assert gap.num_tokens == 2
    assert gap.num_left_out == 1
    assert gap.mean.value == 0.25
    assert (gap.largest, gap.largest_draw, gap.largest_position) == (0.5, 4, 0)
    assert gap.k3.value == pytest.approx((math.exp(-0.5) - 1 + 0.5) / 2)
    assert token_gap("engine_logqs", a, b, np.array([0, 0, 0]), None) is None


def test_k3_estimates_the_divergence_of_what_drew_the_tokens() -> None:
    """20,000 tokens of three; within 5 standard errors, and not the divergence turned around."""
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    drawn = np.random.default_rng(3).choice(3, size=20_000, p=p)
    values = k3(np.log(p / q)[drawn])
    error = 5 * stats.sem(values)
    assert (values >= 0).all()
    assert abs(values.mean() - stats.entropy(p, q)) < error
    assert abs(values.mean() - stats.entropy(q, p)) > error
