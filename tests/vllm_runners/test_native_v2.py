"""sampler="native" on model runner V2: vLLM's own sampler, with a nucleus too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.runner_helpers import (
    FULL,
    NUCLEUS,
    Model,
    Recorded,
    moved_weights,
    require_replayed,
    run,
)
from seqproc.errors import EngineError
from seqproc.policy import SamplingPolicy


@pytest.fixture(scope="module")
def engine(start: Any) -> Iterator[Any]:
    with start(sampler="native") as engine:
        yield engine


def test_a_nucleus_is_the_replay(engine: Any, model: Model) -> None:
    """Its log q may be off: vLLM's kernel misses the cut of some rows by a token."""
    check = model.check(engine, NUCLEUS, model.requests(1))
    require_replayed(check)
    assert set(check.verdict.failed) <= {"reported log q"}, check.findings


def test_other_seeds_are_not_the_replay(engine: Any, model: Model) -> None:
    """The check can fail: tokens of the seeds of other draws are not the ones due."""
    requests = model.requests(2)
    answers = run(engine, requests, FULL, model.rule(6))
    swapped = {r.index: replace(answers[r.index ^ 1], index=r.index, logqs=None) for r in requests}
    check = model.check(Recorded(engine, swapped), FULL, requests, limit=6)
    assert check.replay is not None
    assert check.replay.num_wrong > 0.5 * check.replay.num_tokens
    assert "replay" in check.verdict.failed


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=["top_p=1", "top_p=0.9"])
def test_replaced_weights_are_those_of_the_replay(
    engine: Any, model: Model, policy: SamplingPolicy
) -> None:
    moved, requests = moved_weights(model.live), model.requests(1)
    engine.load_weights(moved)
    recorded = Recorded(engine, run(engine, requests, policy, model.rule(4)))
    engine.load_weights(None)
    require_replayed(model.check(recorded, policy, requests, limit=4, override=moved))
    own = model.check(recorded, policy, requests, limit=4)
    assert own.replay is not None
    assert own.replay.num_wrong > 0


@pytest.mark.parametrize("policy", [FULL, NUCLEUS], ids=["top_p=1", "top_p=0.9"])
def test_ends(engine: Any, model: Model, policy: SamplingPolicy) -> None:
    """A stop string and a list of EOS ids cut a response, and change no token before."""
    requests = model.requests(1)[:2]
    free = run(engine, requests, policy, model.rule(5))
    ids = free[0].token_ids
    eos = run(engine, requests, policy, model.rule(5, eos_token_ids=(0, ids[2])))
    assert eos[0].token_ids == ids[: ids.index(ids[2]) + 1]
    assert eos[0].finish_reason == "eos"
    text = model.tokenizer.decode(free[1].token_ids[3:5])
    stopped = run(engine, requests, policy, model.rule(5, stop=(text,)))
    assert stopped[1].finish_reason == "stop"
    assert text in stopped[1].text
    assert stopped[1].token_ids == free[1].token_ids[: len(stopped[1].token_ids)]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.skipif(torch.cuda.is_available(), reason="seen in the interpreter; not on a GPU yet")
def test_a_nucleus_that_the_kernel_masks_whole_is_an_error(engine: Any, model: Model) -> None:
    with pytest.raises(EngineError, match=r"left no token to draw at step \d+ of request \d+"):
        run(engine, model.requests(1), SamplingPolicy(top_p=1e-9), model.rule(3))
    assert len(run(engine, model.requests(1)[:1], FULL, model.rule(2))) == 1


def test_the_description_says_what_is_refused(engine: Any, model: Model) -> None:
    assert list(engine.describe()["sampled_by"].values()) == ["native", "native", "refused"]
    with pytest.raises(EngineError, match=r"from 0\.01 to 2\.0 only, not at 2\.5"):
        run(engine, model.requests(1), SamplingPolicy(temperature=2.5), model.rule(2))
