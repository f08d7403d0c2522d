"""The nucleus without a sort against a full sort: ties, plateaus, near thresholds, −∞."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.adversarial import KINDS, adversarial
from helpers.devices import as_on_an_accelerator, everywhere
from seqproc.policy import SamplingPolicy, support
from seqproc.support import nucleus
from seqproc.support import top_logits as ranking

NEG_INF = float("-inf")
ROWS_PER_KIND = 3_600  # 7 kinds x 2 dtypes x 2 vocabularies: 100,800 rows


def full_sort(
    logits: torch.Tensor, temperature: float, top_p: np.ndarray | np.float64
) -> np.ndarray:
    """The definition by a full sort of each row, in numpy's extended precision."""
    scaled = logits.double().numpy().astype(np.longdouble) / np.longdouble(temperature)
    order = np.argsort(-scaled, axis=-1, kind="stable")
    falling = np.take_along_axis(scaled, order, axis=-1)
    weights = np.exp(falling - falling[:, :1])
    mass = np.cumsum(weights, axis=-1)
    before = np.concatenate([np.zeros_like(mass[:, :1]), mass[:, :-1]], axis=-1) / mass[:, -1:]
    kept = (before < top_p) & (falling > NEG_INF)
    mask = np.zeros_like(kept)
    np.put_along_axis(mask, order, kept, axis=-1)
    return mask


def near_thresholds(logits: torch.Tensor, temperature: float, gap: float) -> np.ndarray:
    """For each row a top_p that lies ``gap`` below or above the mass before one of its tokens."""
    rng = np.random.default_rng(5)
    scaled = np.sort(-logits.double().numpy().astype(np.longdouble) / temperature, axis=-1)
    mass = np.cumsum(np.exp(scaled[:, :1] - scaled), axis=-1)
    at = rng.integers(0, np.maximum(1, np.sum(scaled < np.inf, axis=-1) // 2))
    before = mass[np.arange(len(mass)), at] / mass[:, -1]
    return np.clip(before + rng.choice([-gap, gap], size=len(mass)), 1e-6, 1 - 1e-9)


@pytest.mark.parametrize("vocabulary", [260, 903])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_thousand_adversarial_rows(monkeypatch, kind, dtype, vocabulary):
    """The larger vocabulary is seen through groups of 2, as a real one is through larger ones."""
    monkeypatch.setattr(ranking, "_MIN_GROUP", everywhere(2))
    logits = adversarial(kind, ROWS_PER_KIND, vocabulary, dtype)
    for part, temperature in zip(logits.split(ROWS_PER_KIND // 3), (1.0, 0.7, 2.5), strict=True):
        for third, top_p in zip(part.split(len(part) // 3), (0.3, 0.95, 0.999), strict=True):
            policy = SamplingPolicy(temperature=temperature, top_p=top_p)
            wanted = full_sort(third, temperature, np.float64(top_p))
            assert np.array_equal(support(third, policy).numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_accelerator_s_way_finds_the_same(monkeypatch, kind, dtype):
    as_on_an_accelerator(monkeypatch)
    logits = adversarial(kind, 300, 2_500, dtype)  # more than it takes for candidates
    for part, top_p in zip(logits.split(100), (0.3, 0.95, 0.999), strict=True):
        wanted = full_sort(part, 0.7, np.float64(top_p))
        found = support(part, SamplingPolicy(temperature=0.7, top_p=top_p))
        assert np.array_equal(found.numpy(), wanted)


def test_sums_in_float64_settle_what_float32_leaves_open(monkeypatch):
    row = adversarial("gaussian", 1, 2_500, torch.float32)
    share = row.double().softmax(-1).sort(descending=True).values.cumsum(-1)
    top_p = float(share[0, 20]) + 1e-8
    assert not bool(first_look(row, 1.0, top_p, 192)[2])
    as_on_an_accelerator(monkeypatch)
    assert bool(first_look(row, 1.0, top_p, 192)[2])


@pytest.mark.parametrize("gap", [1e-4, 1e-6, 1e-8, 1e-10])
@pytest.mark.parametrize("kind", ["gaussian", "plateaus", "geometric"])
def test_cuts_that_almost_miss_a_token(kind, gap):
    logits = adversarial(kind, 150, 700, torch.float32)
    top_p = near_thresholds(logits, 0.9, gap)
    wanted = full_sort(logits, 0.9, top_p[:, None])
    for row, mass, kept in zip(logits, top_p, wanted, strict=True):
        policy = SamplingPolicy(temperature=0.9, top_p=float(mass))
        assert np.array_equal(support(row, policy).numpy(), kept)


def test_the_comparison_notices_a_tie_broken_the_other_way():
    logits = adversarial("plateaus", 300, 260, torch.float32)
    policy = SamplingPolicy(top_p=0.3)
    flipped = support(logits.flip(-1), policy).flip(-1).numpy()
    assert not np.array_equal(flipped, full_sort(logits, 1.0, np.float64(0.3)))


def first_look(logits: torch.Tensor, temperature: float, top_p: float, width: int) -> Any:
    rows = torch.arange(len(logits))
    attempt = nucleus._Search(logits, rows, temperature, top_p, [width]).attempt()
    return attempt.nuclei, attempt.in_reach, attempt.beyond_rounding


def test_a_float32_sum_alone_would_miss_cuts():
    """The margin of certainty is needed: without it a first look at 64 candidates goes wrong."""
    logits = adversarial("gaussian", 2_000, 700, torch.float32)
    top_p = near_thresholds(logits, 1.0, 1e-9)
    wanted = full_sort(logits, 1.0, top_p[:, None])
    wrong = 0
    for row, mass, kept in zip(logits, top_p, wanted, strict=True):
        found, within, certain = first_look(row[None], 1.0, float(mass), 64)
        mask = torch.zeros(1, 700, dtype=torch.bool).scatter(-1, found.ids, found.kept).numpy()
        if bool(within) and not np.array_equal(mask[0], kept):
            wrong += 1
            assert not bool(certain)
    assert wrong > 20


@pytest.mark.parametrize("width", [64, 512])
def test_ties_beyond_the_candidates_are_never_settled(width):
    logits = torch.zeros(3, 2_000)
    logits[:, 7] = 1.0
    assert not first_look(logits, 1.0, 0.01, width)[1].any()
    kept = support(logits, SamplingPolicy(top_p=0.01))[0]  # mass of e + 18 of e + 1,999
    assert kept.nonzero().flatten().tolist() == list(range(19))


def test_a_cut_through_a_tie_keeps_smaller_ids():
    logits = torch.full((1, 300), -20.0)
    logits[0, [250, 9, 120, 40, 80]] = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.0])
    (found,) = nucleus.nuclei(logits, 1.0, 0.5)
    assert found.ids.shape == (1, 192)
    assert found.ids[0, :5].tolist() == [250, 9, 40, 120, 80]
    assert found.kept[0, :5].tolist() == [True, True, False, False, False]


def test_groups_hold_every_row_once_and_grow():
    logits = adversarial("gaussian", 300, 9_000, torch.float32)
    groups = list(nucleus.nuclei(logits, 1.0, 0.95))
    assert len({g.ids.shape[-1] for g in groups}) >= 3
    assert sorted(torch.cat([g.rows for g in groups]).tolist()) == list(range(300))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_mass_outside_and_inside_make_the_whole(dtype):
    logits = torch.randn(5, 300, dtype=dtype, generator=torch.Generator().manual_seed(3))
    peak = logits.double().amax(-1, keepdim=True)
    whole = ((logits.double() - peak) / 1.7).exp().sum(-1)
    for found in nucleus.nuclei(logits, 1.7, 0.9):
        total = found.shifted.exp().sum(-1) + found.outside
        rtol = 1e-6 if dtype == torch.float32 else 1e-13
        torch.testing.assert_close(total, whole[found.rows], rtol=rtol, atol=0)


def test_parts_of_any_size_give_the_same_nuclei(monkeypatch):
    logits = adversarial("gaussian", 40, 3_000, torch.float32)
    policy = SamplingPolicy(top_p=0.9)
    whole = support(logits, policy)
    monkeypatch.setattr(nucleus, "_BLOCK_ELEMENTS", everywhere(7_000))  # two rows
    monkeypatch.setattr(nucleus, "_COPIED_ELEMENTS", everywhere(10_000))  # three
    monkeypatch.setattr(nucleus, "_LOOK_ELEMENTS", everywhere(500))
    assert torch.equal(support(logits, policy), whole)


def test_a_look_holds_no_more_candidates_and_rows_than_it_may(monkeypatch):
    looks = []

    def attempt(search):
        looks.append((len(search.logits), search.widths[0]))
        return original(search)

    original = nucleus._Search.attempt
    monkeypatch.setattr(nucleus._Search, "attempt", attempt)
    monkeypatch.setattr(nucleus, "_LOOK_ELEMENTS", everywhere(1 << 14))
    monkeypatch.setattr(nucleus, "_COPIED_ELEMENTS", everywhere(60_000))
    logits = torch.zeros(100, 20_000)  # one great tie: every row in full
    logits[:50] = adversarial("peaked", 50, 20_000, torch.float32)
    list(nucleus.nuclei(logits, 1.0, 0.95))
    assert {width for _, width in looks} >= {192, 20_000}
    assert all(rows == 1 or rows * width <= 1 << 14 for rows, width in looks)
    assert all(rows <= 3 for rows, width in looks if width > 192)


def test_exponentials_in_float32_are_as_good_as_their_arguments():
    x = -torch.linspace(0, 87, 200_001)
    exact = np.exp(x.numpy().astype(np.longdouble))
    error = np.abs(nucleus.exponential(x).numpy() / exact - 1).astype(float)
    allowed = 2.0**-23 * (1 + x.abs().numpy())  # rounding x itself moves exp(x) by half of that
    assert (error <= allowed).all()
    assert not (error <= allowed / 8).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("number", [1_000, 49_152, 151_936])
def test_sums_in_float32_are_within_their_bound(number, temperature):
    """Near and far from the largest logit, many alike, so that roundings do not cancel out."""
    worst = 0.0
    for depth in (0.1, 1.0, 5.0, 17.0, 29.99):
        for spread in (0.0, 0.5, 1.0):
            below = depth * (1 - spread * torch.linspace(0, 0.999, number))
            rows = torch.cat([torch.tensor([37.1]), 37.1 - temperature * below])[None]
            ids, (found,) = nucleus._candidates(rows, temperature, 1)
            x = (rows[0].numpy().astype(np.longdouble) - rows[0, 0].item()) / temperature
            exact = np.exp(np.delete(x, int(ids))).sum()
            worst = max(worst, abs(float(np.longdouble(found.item()) / exact) - 1))
    assert 5e-7 < worst < nucleus._SUM_ERROR[torch.float32] / 2


@pytest.mark.parametrize("depth", [30.0, 45.0, 80.0])
def test_what_lies_deeper_is_wrong_by_too_little_to_matter(depth):
    """A million tokens, more than 30 below the largest: their error, of the mass of the row."""
    deeper = 37.1 - depth * torch.linspace(1, 1.05, 1_000_000)
    rows = torch.cat([torch.tensor([37.1]), deeper])[None]
    ids, (found,) = nucleus._candidates(rows, 1.0, 1)
    exact = np.exp(np.delete(rows[0].numpy().astype(np.longdouble), int(ids)) - rows[0, 0].item())
    assert ids.item() == 0
    assert abs(float(np.longdouble(found.item()) - exact.sum())) < nucleus._SUM_ERROR[torch.float64]


def test_exponentials_in_float64_are_exp():
    x = -torch.linspace(0, 700, 1_001, dtype=torch.float64)
    assert torch.equal(nucleus.exponential(x), x.exp())
