"""Where an engine is wrong: bets of mean 1 on each place, and each place's fault found by its own.

Deterministic (fixed seeds). A right engine fails a verdict with probability 1e-3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.synthetic import independent, synthetic
from seqproc.parity import Draws, decide, sampler_findings
from seqproc.parity.findings.places import place_findings, tokens_of
from seqproc.parity.positions import EXPONENTS, Placement, place
from seqproc.policy import SamplingPolicy, log_q

PLACES = ("by prompt", "by draw", "by step", "by token class")
POLICY = SamplingPolicy()
EOS, STOP, RARE, SPECIAL = 0, 1, 2, 3
LIMIT = 2

# q of the four tokens after nothing, 1, 2 and 3; token 2 is rare.
ROWS = {
    (): [0.3, 0.4995, 0.0005, 0.2],
    (1,): [0.6, 0.1995, 0.0005, 0.2],
    (2,): [0.05, 0.9, 0.0002, 0.0498],
    (3,): [0.1, 0.5, 0.0009, 0.3991],
}
OTHERS = {before: [0.1, 0.3, 0.2, 0.4] for before in ROWS}


def outcomes() -> list[tuple[int, ...]]:
    """All draws of at most two tokens that end at their EOS."""
    return [(EOS,), *itertools.product((1, 2, 3), range(4))]


def chance(rows: dict[Any, list[float]], ids: Sequence[int]) -> float:
    return math.prod(rows[tuple(ids[:step])][token] for step, token in enumerate(ids))


def draws_of(drawn: Sequence[Sequence[int]]) -> Draws:
    """One draw of each of two prompts, placed in ROWS."""
    rows = [ROWS[tuple(ids[:step])] for ids in drawn for step in range(len(ids))]
    tokens = torch.tensor([token for ids in drawn for token in ids])
    log_q_RV = torch.tensor(rows, dtype=torch.float64).log()
    placed = place(log_q_RV, tokens, (EOS,), (SPECIAL,), (STOP,))
    return Draws(
        prompts=np.arange(len(drawn)),
        lengths=np.array([len(ids) for ids in drawn]),
        ended_by_eos=np.array([ids[-1] == EOS for ids in drawn]),
        randomiser=np.full(len(tokens), 0.5),
        **{f.name: getattr(placed, f.name).numpy() for f in fields(Placement)},
    )


def mean_of_bets(rows: dict[Any, list[float]]) -> dict[str, float]:
    """What the bets of each finding come to on average, over all pairs of draws from ``rows``."""
    means = dict.fromkeys(PLACES, 0.0)
    for pair in itertools.product(outcomes(), repeat=2):
        weight = math.prod(chance(rows, ids) for ids in pair)
        for one in place_findings(draws_of(pair), LIMIT):
            assert one.statistic is not None
            means[one.name] += weight * math.exp(one.statistic)
    return means


def test_bets_on_every_place_have_mean_1() -> None:
    """Enumerated: two prompts, and lengths that hang on what is drawn."""
    assert sum(chance(ROWS, ids) for ids in outcomes()) == pytest.approx(1)
    assert mean_of_bets(ROWS) == pytest.approx(dict.fromkeys(PLACES, 1.0), rel=1e-12)


def test_bets_on_tokens_of_another_distribution_have_not() -> None:
    assert all(mean > 1.05 for mean in mean_of_bets(OTHERS).values())


def test_a_cell_is_bet_on_at_other_temperatures() -> None:
    """Two prompts of one token each: the average of softmax(β log q) over q, prompt by prompt."""
    q = torch.tensor(ROWS[()], dtype=torch.float64).log()
    others = [log_q(q[None], SamplingPolicy(temperature=1 / b))[0] for b in EXPONENTS]
    ratios = torch.stack([(other - q).exp()[[EOS, SPECIAL]] for other in others])
    found = {one.name: one for one in place_findings(draws_of([(EOS,), (SPECIAL,)]), LIMIT)}
    expected = math.log(float(ratios.mean()))
    assert found["by prompt"].statistic == pytest.approx(expected, rel=1e-12)


def test_classes_are_bet_on_at_other_odds() -> None:
    found = {one.name: one for one in place_findings(draws_of([(EOS,)]), LIMIT)}
    factors, total = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0, 8.0), 0.0
    for odds in factors:
        for mass, is_hit in ((0.3, True), (0.2, False), (0.4995, False), (0.0005, False)):
            whole = odds * mass + (1 - mass)
            total += (odds if is_hit else 1.0) / whole / len(factors) / 4
    assert math.exp(found["by token class"].statistic or 0.0) == pytest.approx(total, rel=1e-12)


# ---------------------------------------------------------------------- faults


def failing(draws: Draws, limit: int = 16) -> set[str]:
    findings = [*sampler_findings(draws), *place_findings(draws, limit)]
    return set(decide(findings).failed)


def detail_of(name: str, draws: Draws, limit: int = 16) -> str:
    return next(one.detail for one in place_findings(draws, limit) if one.name == name)


class Partly:
    """Samples from another distribution in some rows of some steps; counts the steps."""

    def __init__(
        self,
        other: Callable[[Tensor], Tensor],
        rows: Callable[[Tensor, int], Tensor],
    ) -> None:
        self._other, self._rows, self._step = other, rows, -1

    def __call__(self, logits: Tensor, policy: SamplingPolicy) -> Tensor:
        self._step += 1
        chosen = self._rows(torch.arange(len(logits)), self._step)
        right = log_q(logits, policy)
        return torch.where(chosen[:, None], self._other(right), right)


def at(temperature: float) -> Callable[[Tensor], Tensor]:
    return lambda log_q_RV: (log_q_RV / temperature).log_softmax(-1)


def test_one_prompt_of_32_at_another_temperature_fails_by_prompt() -> None:
    hot = Partly(at(1.5), lambda rows, step: rows // 32 == 5)
    draws = synthetic(1, policy=POLICY, draws_from=hot, num_prompts=32, per_prompt=32)
    assert failing(draws) == {"by prompt", "by draw"}  # they are a batch as well
    assert "most on prompt 5, where surprisal is over entropy by +" in detail_of("by prompt", draws)
    chosen = tokens_of("by prompt", draws, 16)
    assert set(draws.prompts[draws.owners[chosen]]) == {5}
    right = synthetic(1, policy=POLICY, num_prompts=32, per_prompt=32)
    assert failing(right) == set()


def test_the_second_half_of_the_draws_at_another_temperature_fails_by_draw() -> None:
    hot = Partly(at(1.2), lambda rows, step: rows >= 256)
    draws = synthetic(1, policy=POLICY, draws_from=hot, num_prompts=64, per_prompt=8)
    assert "by draw" in failing(draws)
    assert "most on draws 256 to 511" in detail_of("by draw", draws)


def test_the_first_draw_of_each_prompt_at_another_temperature_fails_by_draw_alone() -> None:
    hot = Partly(at(1.35), lambda rows, step: rows % 16 == 0)
    draws = synthetic(2, policy=POLICY, draws_from=hot, num_prompts=64, per_prompt=16)
    assert failing(draws) == {"by draw"}
    assert "most on the first draw of each prompt" in detail_of("by draw", draws)


def test_one_place_in_each_batch_at_another_temperature_fails_by_draw() -> None:
    hot = Partly(at(1.6), lambda rows, step: rows % 10 == 7)
    draws = synthetic(1, policy=POLICY, draws_from=hot, num_prompts=64, per_prompt=8)
    (found,) = (one for one in place_findings(draws, 16, 10) if one.name == "by draw")
    assert found.p_value is not None
    assert found.p_value < 1e-4
    assert "most on draw 7 of each batch" in found.detail
    assert set(draws.owners[tokens_of("by draw", draws, 16, 10)] % 10) == {7}


def test_one_batch_at_another_temperature_fails_by_draw() -> None:
    hot = Partly(at(1.6), lambda rows, step: rows // 32 == 4)
    draws = synthetic(1, policy=POLICY, draws_from=hot, num_prompts=64, per_prompt=8)
    assert "by draw" in failing(draws)
    assert "most on the batch of draws 128 to 159" in detail_of("by draw", draws)


def test_the_last_quarter_of_the_steps_at_another_temperature_fails_by_step() -> None:
    hot = Partly(at(1.25), lambda rows, step: torch.full_like(rows, step >= 12, dtype=torch.bool))
    draws = synthetic(1, policy=POLICY, draws_from=hot, num_prompts=64, per_prompt=8)
    assert "by step" in failing(draws)
    assert "most on steps 12 to 15" in detail_of("by step", draws)


def test_the_last_step_alone_fails_by_step_alone() -> None:
    hot = Partly(at(1.6), lambda rows, step: torch.full_like(rows, step == 15, dtype=torch.bool))
    draws = synthetic(1, policy=POLICY, draws_from=hot, num_prompts=64, per_prompt=8)
    assert failing(draws) == {"by step"}
    assert "most on step 15" in detail_of("by step", draws)


def with_class(draws: Draws, name: str, factor: float, seed: int) -> Draws:
    """As if 2 % of each q were tokens of a class, drawn ``factor`` times as often as that."""
    hits = np.random.default_rng(seed).random(len(draws.logqs)) < 0.02 * factor
    mass = np.full(len(draws.logqs), 0.02)
    return replace(draws, **{f"{name}_probs": mass, f"is_{name}": hits})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("special", "special tokens other than EOS"),
        ("stop", "tokens that may complete a stop string"),
    ],
)
@pytest.mark.parametrize(("factor", "expected"), [(1.0, set()), (2.0, {"by token class"})])
def test_tokens_of_a_class_drawn_too_often_fail_by_class_alone(
    name: str, words: str, factor: float, expected: set[str]
) -> None:
    draws = with_class(synthetic(1, policy=POLICY), name, factor, 7)
    assert failing(draws) == expected
    if expected:
        assert f"most on {words}" in detail_of("by token class", draws)


def test_rare_tokens_drawn_too_often_fail_by_class() -> None:
    def more(log_q_RV: Tensor) -> Tensor:
        rare = log_q_RV < math.log(1e-3)
        return (log_q_RV + rare * math.log(2.5)).log_softmax(-1)

    often = Partly(more, lambda rows, step: rows >= 0)
    draws = synthetic(1, policy=POLICY, draws_from=often, num_prompts=100)
    assert "by token class" in failing(draws)
    assert "most on rare tokens (q < 0.001)" in detail_of("by token class", draws)
    hits = tokens_of("by token class", draws, 16)
    assert (np.exp(draws.logqs[hits]) < 1e-3).all()


# ---------------------------------------------------------------------- right engines


def test_a_place_that_has_no_cells_or_nothing_open_is_left_undecided() -> None:
    """Greedy, so that no outcome is open; and one draw of one prompt."""
    greedy = synthetic(0, policy=SamplingPolicy(do_sample=False))
    assert [one.p_value for one in place_findings(greedy, 16)] == [None] * 4
    one = {f.name: f.p_value for f in place_findings(draws_of([(SPECIAL, 1)]), 1)}
    assert one["by prompt"] is one["by step"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("num_prompts", "per_prompt"), [(40, 2), (6, 20)])
def test_p_values_of_a_right_engine_are_not_too_small(num_prompts: int, per_prompt: int) -> None:
    """Of 300 runs each: the binomial chance of more small p-values than allowed is under 1e-6."""
    found: dict[str, list[float]] = {name: [] for name in PLACES}
    for seed in range(300):
        draws = synthetic(
            seed, uniforms=independent, num_prompts=num_prompts, per_prompt=per_prompt
        )
        for one in place_findings(draws, 16):
            found[one.name].append(one.p_value if one.p_value is not None else 1.0)
    for name, p_values in found.items():
        for level, most in ((0.05, 37), (0.5, 194)):
            assert sum(p <= level for p in p_values) <= most, (name, level)
