"""sampler="coupled" on either model runner: the tokens of the Hugging Face engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from helpers.runner_helpers import FULL, NUCLEUS, Model, moved_weights, run, tokens
from seqproc.policy import SamplingPolicy


@pytest.fixture(scope="module")
def engine(start: Any) -> Iterator[Any]:
    with start(sampler="coupled") as engine:
        yield engine


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=["top_p=1", "top_p=0.9"])
def test_the_tokens_are_those_of_hugging_face(
    engine: Any, model: Model, policy: SamplingPolicy
) -> None:
    requests, rule = model.requests(2), model.rule(8)
    found = tokens(run(engine, requests, policy, rule))
    assert found == tokens(run(model.hugging_face(), requests, policy, rule))
    backwards = tokens(run(engine, requests[::-1], policy, rule))
    assert backwards == found
    assert tokens(run(engine, requests[5:6], policy, rule)) == {5: found[5]}


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=["top_p=1", "top_p=0.9"])
def test_ends(engine: Any, model: Model, policy: SamplingPolicy) -> None:
    """A stop string and a list of EOS ids, as in Hugging Face."""
    requests, hf = model.requests(1), model.hugging_face()
    free = run(hf, requests, policy, model.rule())
    text = model.tokenizer.decode(free[1].token_ids[3:5])
    for options in ({"stop": (text,)}, {"eos_token_ids": (0, free[0].token_ids[2])}):
        rule = model.rule(**options)
        expected = run(hf, requests, policy, rule)
        found = run(engine, requests, policy, rule)
        assert {c.finish_reason for c in found.values()} - {"length"}
        for index, one in found.items():
            ours = (one.token_ids, one.text, one.finish_reason)
            other = expected[index]
            assert ours == (other.token_ids, other.text, other.finish_reason)


def test_the_runner_is_the_one_that_was_asked_for(engine: Any, runner: str) -> None:
    description = engine.describe()
    assert description["model_runner"] == runner
    assert set(description["sampled_by"].values()) == {"coupled"}


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=["top_p=1", "top_p=0.9"])
def test_replaced_weights(engine: Any, model: Model, policy: SamplingPolicy) -> None:
    """θ + δ in both engines, and θ again."""
    requests, rule, hf = model.requests(1), model.rule(8), model.hugging_face()
    moved, own = moved_weights(model.live), engine.fingerprint()
    engine.load_weights(moved)
    hf.load_weights(moved)
    found = tokens(run(engine, requests, policy, rule))
    assert found == tokens(run(hf, requests, policy, rule))
    assert engine.fingerprint() != own
    engine.load_weights(None)
    assert engine.fingerprint() == own
    assert tokens(run(engine, requests, policy, rule)) != found
