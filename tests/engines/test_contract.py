"""What every engine promises, asked of each."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from seqproc.engines import Request, finish
from seqproc.errors import EngineError
from seqproc.policy import SamplingPolicy

POLICY = SamplingPolicy(temperature=0.9, top_p=0.95)


@pytest.fixture(
    params=[
        "scripted",
        "hf",
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.model]),
    ]
)
def bench(request: pytest.FixtureRequest) -> Any:
    if request.param == "vllm":
        return request.getfixturevalue("vllm_host").bench()
    return request.getfixturevalue(f"{request.param}_bench")


def by_index(completions: Any) -> dict[int, Any]:
    found = list(completions)
    assert len({completion.index for completion in found}) == len(found)
    return {completion.index: completion for completion in found}


def test_every_request_is_answered_once_and_well(bench: Any) -> None:
    requests, rule = bench.requests(8), bench.rule(6)
    found = by_index(bench.engine.generate(requests, POLICY, rule))
    assert set(found) == set(range(8))
    for completion in found.values():
        assert 1 <= len(completion.token_ids) <= 6
        assert completion.prompt_ids == requests[completion.index].prompt_ids
        # It is cut already, its text is that of its tokens, and its reason the shared one.
        again = finish(completion.token_ids, bench.tokenizer, rule)
        assert again == (completion.token_ids, completion.text, completion.finish_reason)
        assert completion.logqs is not None
        assert len(completion.logqs) == len(completion.token_ids)
        assert all(value <= 1e-6 for value in completion.logqs)


def test_a_draw_depends_on_its_prompt_and_seed_alone(bench: Any) -> None:
    requests, rule = bench.requests(8), bench.rule(6)
    together = by_index(bench.engine.generate(requests, POLICY, rule))
    backwards = by_index(bench.engine.generate(requests[::-1], POLICY, rule))
    some = by_index(bench.engine.generate(requests[3:5], POLICY, rule))
    alone = by_index(bench.engine.generate(requests[6:7], POLICY, rule))
    for index, completion in {**backwards, **some, **alone}.items():
        assert completion.token_ids == together[index].token_ids
    others = by_index(bench.engine.generate(bench.requests(8, first_seed=5000), POLICY, rule))
    assert any(others[i].token_ids != together[i].token_ids for i in range(8))


def test_seeds_are_unsigned_64_bit_numbers(bench: Any) -> None:
    prompt = bench.requests(1)[0].prompt_ids
    seeds = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    requests = [Request(index=i, prompt_ids=prompt, seed=seed) for i, seed in enumerate(seeds)]
    found = by_index(bench.engine.generate(requests, POLICY, bench.rule(6)))
    assert len({completion.token_ids for completion in found.values()}) == len(seeds)
    for wrong in (-1, 2**64, 1.5, True, None):
        request = Request(index=0, prompt_ids=prompt, seed=wrong)  # type: ignore[arg-type]
        with pytest.raises(EngineError, match="a seed is an integer"):
            list(bench.engine.generate([request], POLICY, bench.rule(2)))


def test_requests_are_taken_as_needed_and_a_consumer_may_stop(bench: Any) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        one = bench.requests(1)[0]
        for index in itertools.count():
            taken += 1
            yield Request(index=index, prompt_ids=one.prompt_ids, seed=index)

    completions = bench.engine.generate(endless(), POLICY, bench.rule(2))
    assert taken == 0
    first = list(itertools.islice(completions, 3))
    assert len(first) == 3
    assert taken <= 64 + 3
    completions.close()
    # And the engine goes on as if nothing had been.
    assert len(by_index(bench.engine.generate(bench.requests(3), POLICY, bench.rule(2)))) == 3


def test_nothing_to_do_is_done_at_once(bench: Any) -> None:
    assert list(bench.engine.generate([], POLICY, bench.rule(8))) == []


def test_the_length_limit_holds_down_to_one_token(bench: Any) -> None:
    for completion in bench.engine.generate(bench.requests(4), POLICY, bench.rule(1)):
        assert len(completion.token_ids) == 1
        assert completion.finish_reason in ("length", "eos")


def test_what_does_not_fit_the_context_is_refused(bench: Any) -> None:
    assert bench.engine.max_context == 512
    long = Request(index=9, prompt_ids=(40,) * 510, seed=0)
    with pytest.raises(EngineError, match="request 9 does not fit: 510 prompt tokens"):
        list(bench.engine.generate([long], POLICY, bench.rule(3)))
    assert len(list(bench.engine.generate([long], POLICY, bench.rule(2)))) == 1


def test_the_global_generators_are_left_alone(bench: Any) -> None:
    def states() -> tuple[Any, ...]:
        numpy_state = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
        return random.getstate(), numpy_state, torch.random.get_rng_state().tolist()

    before = states()
    list(bench.engine.generate(bench.requests(3), POLICY, bench.rule(3)))
    assert states() == before


def test_sleeping_between_calls_changes_nothing(bench: Any) -> None:
    requests, rule = bench.requests(3), bench.rule(4)
    before = by_index(bench.engine.generate(requests, POLICY, rule))
    bench.engine.sleep()
    bench.engine.wake()
    assert by_index(bench.engine.generate(requests, POLICY, rule)) == before


def test_it_describes_itself_in_json(bench: Any) -> None:
    description = bench.engine.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["name"] == bench.engine.name
    assert "options" in description
