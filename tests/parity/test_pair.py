"""Two engines side by side: distances against numpy, against closed forms, and what is refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.pair_engines import HALF, NUCLEUS, RAW, Telling, Warm, answers_of, probabilities
from helpers.parity_range import STOPPING, Range
from seqproc.engines import HFEngine
from seqproc.errors import ConfigError, EngineError
from seqproc.parity import ScorerDistributions, compare_distributions, score_nominal, spread_places
from seqproc.parity.metrics import mismatch
from seqproc.parity.side_by_side.pair import compare_rows
from seqproc.policy import SamplingPolicy


def divergence(p: np.ndarray, r: np.ndarray) -> float:
    inside = p > 0
    if (r[inside] == 0).any():
        return math.inf
    return float((p[inside] * np.log(p[inside] / r[inside])).sum())


# ---------------------------------------------------------------- places


def test_places_lie_evenly_among_all_tokens(engine: HFEngine) -> None:
    answers = answers_of(engine)
    lengths = [len(answer.completion.token_ids) for answer in answers]
    starts = dict(zip((a.request.index for a in answers), np.cumsum([0, *lengths]), strict=False))
    at = [starts[p.answer.request.index] + p.step for p in spread_places(answers, 16)]
    assert len(at) == 16
    assert set(np.diff(at)) <= {sum(lengths) // 16, sum(lengths) // 16 + 1}
    assert at[0] == pytest.approx(sum(lengths) / 32, abs=1)
    every = spread_places(answers, 10**6)
    assert [len(place.ids) - len(place.answer.request.prompt_ids) for place in every] == [
        step for length in lengths for step in range(length)
    ]
    with pytest.raises(ConfigError, match="num_rows"):
        spread_places(answers, 0)


# ---------------------------------------------------------------- distances


@pytest.mark.parametrize("policy", [RAW, NUCLEUS], ids=str)
def test_distances_are_those_of_numpy(
    policy: SamplingPolicy, engine: HFEngine, small: Range
) -> None:
    """Against weights rounded to bfloat16, whose nuclei are others now and then."""
    rounded = copy.deepcopy(small.model).bfloat16().float()
    answers = answers_of(engine, policy)
    pair = compare_distributions(
        engine, HFEngine(rounded, small.tokenizer), answers, policy, small.tokenizer, num_rows=60
    )
    places = spread_places(answers, 60)
    ours = [probabilities(small.model, place.ids, policy) for place in places]
    theirs = [probabilities(rounded, place.ids, policy) for place in places]
    kl = np.array([divergence(p, r) for p, r in zip(ours, theirs, strict=True)])
    finite = np.isfinite(kl)
    assert (pair.num_rows, pair.num_infinite) == (60, int((~finite).sum()))
    assert pair.kl is not None
    assert pair.kl.value == pytest.approx(kl[finite].mean(), rel=1e-3)
    total = np.array([np.abs(p - r).sum() / 2 for p, r in zip(ours, theirs, strict=True)])
    assert pair.total_variation.value == pytest.approx(total.mean(), rel=1e-3)
    same = sum(bool(((p > 0) == (r > 0)).all()) for p, r in zip(ours, theirs, strict=True))
    assert pair.num_same_support == same
    worst = pair.worst[0]
    assert worst.total_variation == pytest.approx(total.max(), rel=1e-3)
    at = int(total.argmax())
    assert (worst.index, worst.step) == (places[at].answer.request.index, places[at].step)
    top = int(np.abs(ours[at] - theirs[at]).argmax())
    assert worst.tokens[0].token == top
    assert worst.tokens[0].first == pytest.approx(ours[at][top], abs=1e-4)
    # And the standard error is that of prompts' sums about the mean.
    owners = np.array([place.answer.prompt for place in places])
    sums = np.bincount(owners, total - total.mean())
    clusters = len(set(owners))
    error = np.sqrt(clusters / (clusters - 1) * (sums**2).sum()) / 60
    assert pair.total_variation.standard_error == pytest.approx(error, rel=1e-2)
    assert pair.num_prompts == clusters


def test_what_is_no_comparison_is_refused(engine: HFEngine, small: Range) -> None:
    answers = answers_of(engine, NUCLEUS)
    readings: Any = ("decode", "at once")
    with pytest.raises(ConfigError, match="a reading must be"):
        compare_distributions(engine, engine, answers, NUCLEUS, small.tokenizer, readings=readings)
    greedy = SamplingPolicy(do_sample=False)
    with pytest.raises(ConfigError, match="greedy decoding has no distribution"):
        compare_distributions(engine, engine, answers, greedy, small.tokenizer)


@pytest.mark.parametrize("apart", [0, 2, 4], ids=["first", "middle", "last"])
def test_the_largest_gap_is_of_the_rows_that_have_one(
    engine: HFEngine, small: Range, apart: int
) -> None:
    """A row of two supports with nothing in common has no gap, wherever it stands."""
    places = spread_places(answers_of(engine, NUCLEUS), 5)
    size = len(small.tokenizer)

    def certain(token: int) -> Tensor:
        return torch.full((size,), -math.inf, dtype=torch.float64).index_fill(
            0, torch.tensor([token]), 0.0
        )

    flat = torch.full((size,), -math.log(size), dtype=torch.float64)
    tilted = torch.linspace(0, 1, size, dtype=torch.float64).log_softmax(0)
    first = [certain(3) if n == apart else flat for n in range(5)]
    second = [certain(4) if n == apart else tilted for n in range(5)]
    pair = compare_rows(
        ("a", "b"), places, first, second, NUCLEUS, small.tokenizer, ("prefill", "prefill")
    )
    assert pair.largest_gap == pytest.approx(float((flat - tilted).abs().max()))


def test_a_row_in_which_nothing_differs_shows_its_likeliest_tokens(
    engine: HFEngine, small: Range
) -> None:
    narrow = SamplingPolicy(top_p=1e-9)
    answers = answers_of(engine, narrow)
    pair = compare_distributions(engine, engine, answers, narrow, small.tokenizer, num_rows=4)
    assert pair.total_variation.value == 0
    assert all(
        [(one.first, one.second) for one in row.tokens] == [(1.0, 1.0)] for row in pair.worst
    )


def test_other_supports_are_counted_and_leave_the_mean_finite(
    engine: HFEngine, small: Range
) -> None:
    """With a nucleus of .9 against the whole vocabulary, KL is −log of the nucleus's mass."""

    class Whole(HFEngine):
        name = "whole"

        def follow(self, paths: Any, policy: SamplingPolicy) -> Iterator[Tensor]:
            return super().follow(paths, replace(policy, top_p=1.0))

    whole = Whole(small.model, small.tokenizer)
    answers = answers_of(engine, NUCLEUS)
    pair = compare_distributions(engine, whole, answers, NUCLEUS, small.tokenizer, num_rows=40)
    flat = replace(NUCLEUS, top_p=1.0)
    masses = [
        probabilities(small.model, p.ids, flat)[probabilities(small.model, p.ids, NUCLEUS) > 0]
        for p in spread_places(answers, 40)
    ]
    due = -np.log([mass.sum() for mass in masses])
    assert pair.kl is not None
    assert pair.kl.value == pytest.approx(due.mean(), rel=1e-4)
    assert pair.num_infinite == 0
    assert pair.num_same_support == sum(len(mass) == len(small.tokenizer) for mass in masses) == 0
    assert all(row.num_second_only and not row.num_first_only for row in pair.worst)
    # The other way round the second excludes tokens everywhere.
    back = compare_distributions(whole, engine, answers, NUCLEUS, small.tokenizer, num_rows=40)
    assert (back.kl, back.num_infinite) == (None, 40)
    assert all(row.kl == math.inf and row.mass_first_only > 0 for row in back.worst)
    assert back.total_variation.value == pytest.approx(pair.total_variation.value, rel=1e-6)
    worst = max(1 - mass.sum() for mass in masses)  # what total variation is for a cut
    assert pair.worst[0].total_variation == pytest.approx(worst, rel=1e-4)


def test_another_temperature_has_the_divergence_that_is_known(
    engine: HFEngine, small: Range
) -> None:
    warm = Warm(small.model, small.tokenizer)
    answers = answers_of(engine)
    pair = compare_distributions(engine, warm, answers, RAW, small.tokenizer, num_rows=40)
    hot = SamplingPolicy(temperature=2)
    due = [
        divergence(probabilities(small.model, p.ids, RAW), probabilities(small.model, p.ids, hot))
        for p in spread_places(answers, 40)
    ]
    assert pair.kl is not None
    assert pair.kl.value == pytest.approx(np.mean(due), rel=1e-4)
    assert pair.kl.value > 10 * pair.kl.standard_error > 0


def test_an_engine_does_not_differ_from_its_scorer(engine: HFEngine, small: Range) -> None:
    """KL keeps the digits in which the logits of two batchings agree."""
    answers = answers_of(engine)
    pair = compare_distributions(
        engine, ScorerDistributions(small.scorer), answers, RAW, small.tokenizer
    )
    assert pair.engines == ("hf", "scorer")
    assert pair.kl is not None
    assert 0 <= pair.kl.value < 1e-10
    assert pair.total_variation.value < 1e-5
    assert (pair.num_same_support, pair.num_rows) == (256, 256)
    same = compare_distributions(engine, engine, answers, RAW, small.tokenizer)
    assert same.kl is not None
    assert same.kl.value == same.total_variation.value == same.largest_gap == 0


def test_the_sampled_estimate_is_of_the_same_divergence_and_varies_more(
    engine: HFEngine, small: Range
) -> None:
    """k1 on the sampled tokens, at every place. A right pair fails 6 in 10⁵ times."""
    rounded = copy.deepcopy(small.model).bfloat16().float()
    other = Range(
        model=rounded,
        tokenizer=small.tokenizer,
        scorer=type(small.scorer)(rounded, STOPPING.eos_token_ids),
    )
    answers = answers_of(engine)
    pair = compare_distributions(
        engine,
        ScorerDistributions(other.scorer),
        answers,
        RAW,
        small.tokenizer,
        num_rows=10**6,
    )
    draws, nominal = score_nominal(answers, other.scorer, RAW, 0.1, bets=False)
    assert nominal.engine_logqs is not None
    sampled = mismatch(draws, nominal.engine_logqs)["kl_k1"]
    assert pair.kl is not None
    error = math.hypot(sampled.standard_error, pair.kl.standard_error)
    assert abs(sampled.value - pair.kl.value) < 4 * error
    assert pair.kl.standard_error < sampled.standard_error / 3


def test_other_vocabularies_do_not_compare(engine: HFEngine, small: Range) -> None:
    other = Telling([HALF] * 256)
    with pytest.raises(EngineError, match="telling one of 2"):
        compare_distributions(engine, other, answers_of(engine), RAW, small.tokenizer)
