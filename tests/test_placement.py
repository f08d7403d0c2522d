"""Placements against sums by hand, and cuts against every logit moved to and fro."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqproc.parity.positions import RANK_EDGES, Placement, cut, place
from seqproc.policy import SamplingPolicy, log_q

LOGITS = torch.tensor([1.0, 3.0, 3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
ORDER = [1, 2, 5, 0, 4, 3]  # falling probability; of the tied 1 and 2 the smaller id first


def every_token(logits: Tensor, policy: SamplingPolicy, eos: tuple[int, ...] = ()) -> Placement:
    """The same row once per token of the vocabulary."""
    rows = log_q(logits, policy).expand(len(logits), -1)
    return place(rows, torch.arange(len(logits)), eos)


def test_rank_and_mass_of_every_token() -> None:
    placed = every_token(LOGITS, SamplingPolicy())
    weights = np.exp(LOGITS.numpy())
    q = weights / weights.sum()
    for rank, token in enumerate(ORDER):
        assert placed.ranks[token] == rank
        assert placed.mass_before[token] == pytest.approx(q[ORDER[:rank]].sum(), abs=1e-15)
        assert placed.mass_below[token] == pytest.approx(q[:token].sum(), abs=1e-15)
        assert placed.logqs[token] == pytest.approx(math.log(q[token]), abs=1e-14)


def test_moments() -> None:
    placed = every_token(LOGITS, SamplingPolicy(), eos=(0, 3))
    q = torch.softmax(LOGITS, -1).numpy()
    surprisals = -np.log(q)
    assert placed.entropies[0] == pytest.approx(q @ surprisals, abs=1e-14)
    variance = q @ surprisals**2 - (q @ surprisals) ** 2
    assert placed.variances[0] == pytest.approx(variance, abs=1e-13)
    assert placed.eos_probs[0] == pytest.approx(q[0] + q[3], abs=1e-15)


def test_the_support_ends_with_its_last_token() -> None:
    """At top_p = 0.5 the tokens 1 and 2 are kept: each has 0.379 of the mass."""
    placed = every_token(LOGITS, SamplingPolicy(top_p=0.5))
    assert placed.is_last.tolist() == [token == 2 for token in range(6)]
    torch.testing.assert_close(placed.last_probs, torch.full((6,), 0.5, dtype=torch.float64))
    outside = [0, 3, 4, 5]
    assert placed.logqs[outside].tolist() == [-math.inf] * 4
    assert placed.mass_before[outside].tolist() == pytest.approx([1.0] * 4)


def test_masses_of_the_bins_of_ranks() -> None:
    torch.manual_seed(0)
    logits = torch.randn(70, dtype=torch.float64) * 2
    placed = place(log_q(logits, SamplingPolicy()).unsqueeze(0), torch.tensor([0]))
    q = np.sort(torch.softmax(logits, -1).numpy())[::-1]
    edges = [0, *RANK_EDGES, 70]
    expected = [q[a:b].sum() for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(placed.rank_masses[0], expected, atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 4, 50, 51])
def test_small_vocabularies_have_empty_bins(size: int) -> None:
    placed = place(torch.full((1, size), -math.log(size)), torch.tensor([size - 1]))
    assert placed.rank_masses.shape == (1, len(RANK_EDGES) + 1)
    assert float(placed.rank_masses.sum()) == pytest.approx(1.0, abs=1e-6)
    expected = [min(b, size) - min(a, size) for a, b in itertools.pairwise([0, *RANK_EDGES, size])]
    np.testing.assert_allclose(placed.rank_masses[0], np.array(expected) / size, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=6),
    st.sampled_from([0.3, 0.7, 0.9, 1.0]),
)
def test_the_randomised_transform_is_uniform(logits: list[int], top_p: float) -> None:
    """P(mass before y + V q(y) ≤ x) = Σ_y q(y) · clip((x − before)/q(y), 0, 1) = x, at any x."""
    placed = every_token(torch.tensor(logits, dtype=torch.float64), SamplingPolicy(top_p=top_p))
    q, before = placed.logqs.exp().numpy(), placed.mass_before.numpy()
    kept = q > 0
    for x in (0.0, 0.1, 0.25, 0.5, 0.77, 1.0):
        below = q[kept] @ np.clip((x - before[kept]) / q[kept], 0, 1)
        assert below == pytest.approx(x, abs=1e-12)


# ---------------------------------------------------------------- the cut


def supports_of_moved_logits(logits: Tensor, policy: SamplingPolicy, error: float) -> list[Tensor]:
    """The support for every way to move each logit up, down or not at all."""
    moves = itertools.product((-error, 0.0, error), repeat=len(logits))
    return [log_q(logits + torch.tensor(move), policy) > -math.inf for move in moves]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=5),
    st.sampled_from([0.2, 0.5, 0.8, 0.95, 1.0]),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([1e-3, 0.05, 0.5]),
    st.booleans(),
)
def test_what_moved_logits_can_keep_is_reachable(
    values: list[float], top_p: float, temperature: float, error: float, do_sample: bool
) -> None:
    """No support that a move reaches is missed; what is settled no move changes in mass."""
    policy = SamplingPolicy(top_p=top_p, temperature=temperature, do_sample=do_sample)
    logits = torch.tensor(values, dtype=torch.float64)
    rows = logits.expand(len(logits), -1)
    found = cut(rows, torch.arange(len(logits)), policy, error)
    reached = torch.stack(supports_of_moved_logits(logits, policy, error)).any(0)
    assert bool((found.is_reachable | ~reached).all())


def test_far_from_the_cut_nothing_else_is_reachable() -> None:
    policy = SamplingPolicy(top_p=0.5)
    found = cut(LOGITS.expand(6, -1), torch.arange(6), policy, 1e-3)
    assert found.is_reachable.tolist() == [False, True, True, False, False, False]
    assert bool(found.is_settled.all())
    assert found.cut_margin[0] == pytest.approx(1.0)  # 3 kept, 2 dropped


def test_a_mass_at_the_threshold_is_not_settled() -> None:
    """Of four equal tokens two are exactly half of the mass: a third may or may not be kept."""
    policy = SamplingPolicy(top_p=0.5)
    found = cut(torch.zeros(4, 4), torch.arange(4), policy, 1e-3)
    assert not found.is_settled.any()
    assert bool(found.is_reachable.all())


def test_an_impossible_token_is_never_reachable() -> None:
    logits = torch.tensor([[0.0, -math.inf]])
    assert not cut(logits, torch.tensor([1]), SamplingPolicy(), 1.0).is_reachable.any()


def test_greedy_is_the_cut_at_nothing() -> None:
    policy = SamplingPolicy(do_sample=False)
    logits = torch.tensor([0.0, 1.0, 0.9995]).expand(3, -1)
    found = cut(logits, torch.arange(3), policy, 1e-3)
    assert found.is_reachable.tolist() == [False, True, True]
    assert cut(logits, torch.arange(3), policy, 1e-4).is_reachable.tolist() == [False, True, False]
