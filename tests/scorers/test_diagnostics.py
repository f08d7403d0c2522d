"""Diagnostics packs: what they aggregate, over which windows, and the public class."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from seqproc.errors import ConfigError
from seqproc.policy import SamplingPolicy, score_tokens
from seqproc.scorers import DistributionDiagnostics, diagnostics_pack
from seqproc.scorers.diagnostics import aggregate
from seqproc.scorers.measure import empty_scores
from seqproc.types import DiagnosticsPack, SequenceDiagnostics, TokenStepDiagnostics

STEP_FIELDS = [f.name for f in dataclasses.fields(TokenStepDiagnostics)]


def made_up(count: int, dtype: Any = np.float32) -> TokenStepDiagnostics:
    """Step arrays whose aggregates are known: field k holds k + 1, 2 (k + 1), 3 (k + 1), …"""
    ramp = np.arange(1, count + 1, dtype=dtype)
    return TokenStepDiagnostics(**{name: (k + 1) * ramp for k, name in enumerate(STEP_FIELDS)})


def triangle(first: int, last: int) -> float:
    """first + … + last, by counting."""
    return float(sum(range(first, last + 1)))


def of_ramp(name: str, count: int) -> float:
    """An aggregate by its name, such as ``margin_mean``: that of the statistic's ramp."""
    statistic, _, kind = name.rpartition("_")
    factor = STEP_FIELDS.index(statistic) + 1
    total = triangle(1, count)
    return factor * {"sum": total, "mean": total / count, "max": count, "min": 1}[kind]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 40])
def test_aggregates_of_known_ramps(count):
    step = made_up(count)
    got = aggregate(step, np.arange(count, dtype=np.float32))
    early = min(16, count)
    late = (
        triangle(early + 1, count) / (count - early) if count > 16 else triangle(1, early) / early
    )
    want = {
        "T": count,
        "early_rb_entropy_mean": triangle(1, early) / early,
        "late_rb_entropy_mean": late,
        "naive_surprisal_sum": triangle(0, count - 1),
        "naive_surprisal_mean": triangle(0, count - 1) / count,
    }
    others = {f.name for f in dataclasses.fields(SequenceDiagnostics)} - set(want)
    want |= {name: of_ramp(name, count) for name in others}
    assert dataclasses.asdict(got) == pytest.approx(want, rel=1e-14)
    if count > 16:
        assert got.late_rb_entropy_mean != got.early_rb_entropy_mean
    else:
        assert got.late_rb_entropy_mean == got.early_rb_entropy_mean


def test_the_windows_meet_between_steps_16_and_17():
    for spike, early, late in [(15, 1.0, 0.0), (16, 0.0, 16.0)]:
        step = made_up(17)
        step.rb_entropy = np.zeros(17, dtype=np.float32)
        step.rb_entropy[spike] = 16.0
        got = aggregate(step, np.zeros(17))
        assert (got.early_rb_entropy_mean, got.late_rb_entropy_mean) == (early, late)


def test_aggregates_of_nothing_are_zero():
    got = dataclasses.asdict(aggregate(made_up(0), np.zeros(0, dtype=np.float32)))
    assert got == dict.fromkeys(got, 0)
    pack = diagnostics_pack(empty_scores(torch.float32))
    assert pack.seq.T == 0
    assert pack.seq.eos_prob_mean is None
    assert pack.step.rb_entropy.shape == (0,)


def test_sums_of_float32_steps_are_taken_in_float64():
    step = made_up(3)
    step.rb_entropy = np.array([1e8, 1.0, 1.0], dtype=np.float32)
    step.margin = step.rb_entropy
    surprisal = step.rb_entropy
    got = aggregate(step, surprisal)
    assert got.rb_entropy_sum == got.margin_sum == got.naive_surprisal_sum == 1e8 + 2
    assert float(step.rb_entropy.sum(dtype=np.float32)) == 1e8  # the twin


def test_without_eos_ids_there_is_no_eos_mean():
    step = made_up(2)
    step.eos_prob = None
    assert aggregate(step, np.zeros(2)).eos_prob_mean is None


# The public class.

LOGITS = torch.tensor(
    [[0.25, 0.25, 0.5], [0.125, 0.75, 0.125], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64
).log()


def test_a_pack_from_logits_in_closed_form():
    diagnostics = DistributionDiagnostics(top_p=1.0, temperature=1.0, eos_token_id=2)
    pack = diagnostics.compute_from_logits(LOGITS, torch.tensor([2, 0, 1]))
    assert isinstance(pack, DiagnosticsPack)
    two, three = math.log(2), math.log(3)
    entropies = [1.5 * two, 0.25 * 3 * two - 0.75 * math.log(0.75), three]
    assert pack.step.rb_entropy.tolist() == pytest.approx(entropies, abs=1e-14)
    assert pack.step.eos_prob.tolist() == pytest.approx([0.5, 0.125, 1 / 3], abs=1e-14)
    assert pack.step.head_mass.tolist() == [1, 1, 1]
    assert pack.step.cut_margin.tolist() == [math.inf] * 3
    assert pack.seq.T == 3
    assert pack.seq.naive_surprisal_sum == pytest.approx(two + 3 * two + three, abs=1e-14)
    assert pack.seq.rb_entropy_max == pytest.approx(three, abs=1e-14)
    assert pack.seq.eos_prob_mean == pytest.approx((0.5 + 0.125 + 1 / 3) / 3, abs=1e-14)


def test_the_surprisal_is_that_of_the_raw_model_under_any_policy():
    tokens = torch.tensor([2, 0, 1])
    sums = {
        DistributionDiagnostics(top_p=p, temperature=t, do_sample=s)
        .compute_from_logits(LOGITS, tokens)
        .seq.naive_surprisal_sum
        for p, t, s in [(1.0, 1.0, True), (0.5, 0.7, True), (1.0, 1.0, False)]
    }
    assert len(sums) == 1
    entropies = [
        DistributionDiagnostics(temperature=t).compute_from_logits(LOGITS, tokens).seq
        for t in (1.0, 0.7)
    ]
    assert entropies[0].rb_entropy_sum != entropies[1].rb_entropy_sum


@pytest.mark.parametrize(
    ("given", "ids"), [(None, ()), (2, (2,)), ([0, 2], (0, 2)), ((1,), (1,)), ([], ())]
)
def test_eos_ids_in_every_form(given, ids):
    diagnostics = DistributionDiagnostics(eos_token_id=given)
    assert diagnostics.eos_token_ids == ids
    pack = diagnostics.compute_from_logits(LOGITS, torch.tensor([0, 0, 0]))
    if not ids:
        assert pack.step.eos_prob is None
        assert pack.seq.eos_prob_mean is None
    else:
        want = LOGITS.exp()[:, list(ids)].sum(-1).tolist()
        assert pack.step.eos_prob.tolist() == pytest.approx(want, abs=1e-14)


def test_its_arguments_are_a_policy():
    diagnostics = DistributionDiagnostics(0.9, 0.7, 1)
    assert diagnostics.policy == SamplingPolicy(top_p=0.9, temperature=0.7)
    assert not DistributionDiagnostics(do_sample=False).policy.do_sample
    with pytest.raises(ConfigError, match="top_p"):
        DistributionDiagnostics(top_p=0)


def test_greedy_steps_are_certain():
    pack = DistributionDiagnostics(do_sample=False).compute_from_logits(
        LOGITS, torch.tensor([2, 1, 0])
    )
    assert pack.step.rb_entropy.tolist() == [0, 0, 0]
    assert pack.step.head_mass.tolist() == pytest.approx([0.5, 0.75, 1 / 3], abs=1e-14)


def test_packs_are_numpy_in_the_scores_dtype_and_carry_no_graph():
    for dtype, numpy_dtype in [(torch.float32, np.float32), (torch.float64, np.float64)]:
        logits = LOGITS.to(dtype).requires_grad_()
        pack = diagnostics_pack(score_tokens(logits, torch.tensor([0, 1, 2]), SamplingPolicy()))
        for name in STEP_FIELDS:
            value = getattr(pack.step, name)
            assert value is None or (isinstance(value, np.ndarray) and value.dtype == numpy_dtype)
        types = {type(v) for v in dataclasses.asdict(pack.seq).values()}
        assert types <= {int, float, type(None)}
