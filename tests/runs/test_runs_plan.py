"""The plan of a run: a pure function of the seed and the draw's number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from seqproc.errors import ConfigError, DatasetError
from seqproc.prompts import choose_prompts, draw_seed
from seqproc.runs import RunSpec, plan_draws

POOL = [f"prompt {i}" for i in range(50)]


def test_draws_are_numbered_seeded_and_drawn_with_replacement() -> None:
    draws = list(plan_draws(RunSpec(dataset="d", draws=200, seed=7), POOL))
    assert [draw.index for draw in draws] == list(range(200))
    assert [draw.seed for draw in draws] == [draw_seed(7, i) for i in range(200)]
    chosen = np.random.Generator(np.random.PCG64(7)).integers(0, 50, size=200)
    assert [draw.prompt_index for draw in draws] == chosen.tolist()


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    short = list(plan_draws(RunSpec(dataset="d", draws=20, seed=3), POOL))
    long = list(plan_draws(RunSpec(dataset="d", draws=40, seed=3), POOL))
    assert short == long[:20]


def test_another_seed_is_another_plan() -> None:
    first = list(plan_draws(RunSpec(dataset="d", draws=20, seed=3), POOL))
    other = list(plan_draws(RunSpec(dataset="d", draws=20, seed=4), POOL))
    assert [d.prompt_index for d in first] != [d.prompt_index for d in other]
    assert not {d.seed for d in first} & {d.seed for d in other}


def test_a_smaller_pool_is_chosen_by_the_seed_and_indexed_as_the_split_is() -> None:
    spec = RunSpec(dataset="d", draws=300, seed=11, max_prompts_pool=5)
    drawn = {POOL[draw.prompt_index] for draw in plan_draws(spec, POOL)}
    assert drawn == set(choose_prompts(POOL, 5, seed=11))


def test_a_pool_larger_than_the_split_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"51 prompts .* holds 50"):
        plan_draws(RunSpec(dataset="d", draws=1, max_prompts_pool=51), POOL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draws": 0}, "draws must be an integer >= 1, got 0"),
        ({"draws": True}, "draws must be an integer"),
        ({"max_prompts_pool": 0}, "max_prompts_pool must be an integer >= 1"),
        ({"seed": 2**64}, "seed must fit 64 bits"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"dataset": ""}, "dataset must be a name"),
        ({"split": None}, "split must be a name"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunSpec(**{"dataset": "d", "draws": 1, **fields})  # type: ignore[arg-type]


def test_a_specification_cannot_be_changed() -> None:
    spec = RunSpec(dataset="d", draws=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.draws = 2  # type: ignore[misc]
