"""What an engine sends is held against its contract, in sampling and in parity alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from seqproc import SequenceProcessor
from seqproc.engines import Completion, Request, ScriptedEngine
from seqproc.engines.answers import answered
from seqproc.errors import EngineError
from seqproc.parity import draws
from seqproc.policy import SamplingPolicy

REQUESTS = [Request(index=i, prompt_ids=(5, 6, 7), seed=i) for i in (3, 8)]
RIGHT = Completion(
    index=3, token_ids=(4, 9), text="ab", finish_reason="length", logqs=(-1.0, -math.inf)
)
OTHER = dataclasses.replace(RIGHT, index=8, logqs=None)
V = 10


def held(*completions: Any) -> list[Completion]:
    return list(answered(completions, REQUESTS, engine="mine", vocabulary=V))


def changed(**fields: Any) -> Completion:
    return dataclasses.replace(RIGHT, **fields)


def test_what_the_contract_says_passes():
    assert held(RIGHT, OTHER) == [RIGHT, OTHER]
    assert held(OTHER, RIGHT) == [OTHER, RIGHT]


@pytest.mark.parametrize(
    "fields",
    [
        {"token_ids": [4, 9]},
        {"token_ids": torch.tensor([4, 9])},
        {"token_ids": np.array([4, 9])},
        {"token_ids": (np.int64(4), np.int32(9))},
        {"logqs": [-1, -math.inf]},
        {"logqs": torch.tensor([-1.0, -math.inf])},
        {"logqs": (np.float32(-1.0), -np.inf)},
    ],
)
def test_what_means_the_same_is_taken_in(fields):
    (found, _) = held(changed(**fields), OTHER)
    assert found == RIGHT
    assert {type(token) for token in found.token_ids} == {int}
    assert {type(value) for value in found.logqs or ()} == {float}


@pytest.mark.parametrize("prompt", [[5, 6, 7], torch.tensor([5, 6, 7]), np.array([5, 6, 7])])
def test_a_prompt_given_back_as_a_list_is_the_prompt(prompt):
    (found, _) = held(changed(prompt_ids=prompt), OTHER)
    assert found.prompt_ids == REQUESTS[0].prompt_ids


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "id too large": ({"token_ids": (4, 10)}, r"token id 10 for request 3; .* \[0, 10\)"),
    "id negative": ({"token_ids": (-1, 4)}, "token id -1"),
    "id no integer": ({"token_ids": (4.0, 9)}, "gave 4.0 among the token_ids"),
    "id a truth": ({"token_ids": (True, 9)}, "gave True among the token_ids"),
    "id None": ({"token_ids": (4, None)}, "gave None among the token_ids"),
    "ids None": ({"token_ids": None}, "token_ids of type NoneType"),
    "ids a string": ({"token_ids": "49"}, "token_ids of type str"),
    "ids of two dimensions": ({"token_ids": torch.ones(1, 2).long()}, r"shape \[1, 2\]"),
    "a log q of NaN": ({"logqs": (-1.0, math.nan)}, "log q of nan for token 1 for request 3"),
    "all log q NaN": ({"logqs": (math.nan, math.nan)}, "log q of nan for token 0"),
    "a tensor of NaN": ({"logqs": torch.tensor([-1.0, math.nan])}, "log q of nan for token 1"),
    "a log q of None": ({"logqs": (None, -1.0)}, "log q of None for token 0.*logqs=None"),
    "an infinite log q": ({"logqs": (math.inf, -1.0)}, "log q of inf"),
    "a log q of text": ({"logqs": ("-1", -1.0)}, "log q of '-1'"),
    "too few log q": ({"logqs": (-1.0,)}, "reported 1 log q for the 2 tokens for request 3"),
    "log q a number": ({"logqs": -1.0}, "logqs of type float"),
    "text None": ({"text": None}, "text of type NoneType"),
    "text bytes": ({"text": b"ab"}, "text of type bytes"),
    "another reason": ({"finish_reason": "done"}, "finish_reason 'done'.*'eos', 'stop', 'length'"),
    "no reason": ({"finish_reason": None}, "finish_reason None"),
    "prompt of text": ({"prompt_ids": "567"}, "prompt_ids of type str"),
    "prompt of floats": ({"prompt_ids": (5.0, 6, 7)}, "gave 5.0 among the prompt_ids"),
    "a stranger": ({"index": 4}, "answered request 4, which nobody asked for"),
    "an index of text": ({"index": "3"}, "answered request '3', which nobody asked for"),
}


@pytest.mark.parametrize(("fields", "words"), FAULTS.values(), ids=list(FAULTS))
def test_what_breaks_it_is_named(fields, words):
    with pytest.raises(EngineError, match=f"engine 'mine' broke its contract: it .*{words}"):
        held(changed(**fields), OTHER)


def test_an_answer_for_each_request_and_one():
    with pytest.raises(EngineError, match="answered request 3 twice"):
        held(RIGHT, RIGHT, OTHER)
    with pytest.raises(EngineError, match=r"left 1 of 2 requests without an answer, .* 8"):
        held(RIGHT)
    with pytest.raises(EngineError, match="left 2 of 2"):
        held()
    with pytest.raises(EngineError, match="yielded a tuple; expected a Completion"):
        held((3, (4, 9)))


def test_a_vocabulary_that_is_not_known_bounds_nothing():
    fields = {"token_ids": (4, 10**9)}
    found = answered([changed(**fields), OTHER], REQUESTS, engine="mine", vocabulary=None)
    assert next(found).token_ids == (4, 10**9)


class Lying(ScriptedEngine):
    """Changes a field of every completion that it sends."""

    def __init__(self, tokenizer: Any, fields: dict[str, Any]) -> None:
        super().__init__(lambda _: [4, 9], tokenizer)
        self.fields = fields

    def generate(self, requests: Any, policy: Any, stopping: Any) -> Iterator[Completion]:
        for completion in super().generate(requests, policy, stopping):
            yield dataclasses.replace(completion, **self.fields)


@pytest.mark.parametrize("fields", [{"logqs": (math.nan,) * 2}, {"token_ids": (4, 400)}])
def test_sampling_and_parity_refuse_the_same(tiny_llama, tiny_tokenizer, fields):
    engine = Lying(tiny_tokenizer, fields)
    config = {"generation": {"max_new_tokens": 2}}
    processor = SequenceProcessor(tiny_llama(), tiny_tokenizer, config=config, engine=engine)
    with pytest.raises(EngineError, match="broke its contract"):
        processor.generate_batched(["2 + 3?"], G=2)
    requests = processor.sampler.requests(["2 + 3?"], [0, 1], 2)
    with pytest.raises(EngineError, match="broke its contract"):
        draws.sample(engine, requests, [0, 0], SamplingPolicy(), processor.stopping, vocabulary=300)
