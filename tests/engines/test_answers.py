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
from seqproc.engines import Completion, Request, ScriptedEngine, StoppingRule
from seqproc.engines.answers import (
    answered,
    ask,
    batch_size_of,
    described,
    name_of,
    noise_of,
)
from seqproc.engines.noise import Noise
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
    return [c for _, c in answered(completions, waiting(), engine="mine", vocabulary=V)]


def waiting() -> dict[int, Request]:
    return {request.index: request for request in REQUESTS}


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
        {"token_ids": [torch.tensor(4), np.array(9)]},
        {"logqs": [torch.tensor(-1.0), np.array(-np.inf)]},
        {"index": np.int64(3)},
    ],
)
def test_what_means_the_same_is_taken_in(fields):
    (found, _) = held(changed(**fields), OTHER)
    assert found == RIGHT
    assert {type(token) for token in found.token_ids} == {int}
    assert {type(value) for value in found.logqs or ()} == {float}
    assert type(found.index) is int


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
    "a log q that no float holds": ({"logqs": (-(10**400), -1.0)}, "log q of -1000"),
    "surprisals": ({"logqs": (0.7, -1.0)}, "log q of 0.7 for token 0.*at most 0"),
    "log q without values": ({"logqs": torch.ones(2, device="meta")}, "logqs .* cannot be read"),
    "sparse log q": ({"logqs": torch.ones(2).to_sparse()}, "logqs .* cannot be read"),
    "text torn": ({"text": "\ud800"}, "text for request 3 that is not Unicode"),
    "text None": ({"text": None}, "text of type NoneType"),
    "text bytes": ({"text": b"ab"}, "text of type bytes"),
    "another reason": ({"finish_reason": "done"}, "finish_reason 'done'.*'eos', 'stop', 'length'"),
    "no reason": ({"finish_reason": None}, "finish_reason None"),
    "a reason that compares by element": ({"finish_reason": np.array(["eos"])}, "finish_reason"),
    "prompt of text": ({"prompt_ids": "567"}, "prompt_ids of type str"),
    "prompt of floats": ({"prompt_ids": (5.0, 6, 7)}, "gave 5.0 among the prompt_ids"),
    "a stranger": ({"index": 4}, "answered request 4, which nobody asked for"),
    "an index in a list": ({"index": [3]}, r"answered request \[3\], which nobody asked for"),
    "an index of a float": ({"index": 3.0}, "answered request 3.0, which nobody asked for"),
    "an index of text": ({"index": "3"}, "answered request '3', which nobody asked for"),
}


@pytest.mark.parametrize(("fields", "words"), FAULTS.values(), ids=list(FAULTS))
def test_what_breaks_it_is_named(fields, words):
    with pytest.raises(EngineError, match=f"engine 'mine' broke its contract: it .*{words}"):
        held(changed(**fields), OTHER)


def test_an_answer_for_each_request_and_one():
    with pytest.raises(
        EngineError, match="answered request 3, which nobody asked for or which it had"
    ):
        held(RIGHT, RIGHT, OTHER)
    with pytest.raises(EngineError, match=r"left 1 requests without an answer, .* 8"):
        held(RIGHT)
    with pytest.raises(EngineError, match="left 2 requests"):
        held()
    with pytest.raises(EngineError, match="yielded a tuple; expected a Completion"):
        held((3, (4, 9)))
    wrong: tuple[Any, ...] = (None, RIGHT)
    for what in wrong:
        with pytest.raises(EngineError, match=r"gave a \w+; expected an iterator"):
            list(answered(what, waiting(), engine="mine", vocabulary=V))


def test_rounding_may_lift_a_log_q_above_zero():
    (found, _) = held(changed(logqs=(0.0625, -1.0)), OTHER)
    assert found.logqs == (0.0625, -1.0)


def test_a_vocabulary_that_is_not_known_bounds_nothing():
    fields = {"token_ids": (4, 10**9)}
    found = answered([changed(**fields), OTHER], waiting(), engine="mine", vocabulary=None)
    assert next(found)[1].token_ids == (4, 10**9)


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


class Grabbing(ScriptedEngine):
    """Takes its requests out of the list that it is given, and tells when it ends."""

    ended = False

    def generate(self, requests: Any, policy: Any, stopping: Any) -> Iterator[Completion]:
        taken = [requests.pop() for _ in range(len(requests))]
        try:
            yield from super().generate(taken, policy, stopping)
        finally:
            self.ended = True


def asked(engine: Any) -> Iterator[Completion]:
    rule = StoppingRule(max_new_tokens=2, eos_token_ids=(0,))
    return ask(engine, REQUESTS, SamplingPolicy(), rule, vocabulary=V)


def test_what_an_engine_does_to_its_requests_is_seen_by_nobody_else(tiny_tokenizer):
    engine = Grabbing(lambda _: [4, 9], tiny_tokenizer)
    assert [completion.index for completion in asked(engine)] == [8, 3]
    assert [request.index for request in REQUESTS] == [3, 8]


def test_a_generation_ends_where_its_completions_are_refused(tiny_tokenizer):
    engine = Grabbing(lambda _: [4, V], tiny_tokenizer)
    with pytest.raises(EngineError, match="token id 10") as caught:
        next(asked(engine))
    assert engine.ended, caught  # while the traceback still holds it


def test_responses_to_another_prompt_are_refused_in_sampling(tiny_llama, tiny_tokenizer):
    engine = Lying(tiny_tokenizer, {"prompt_ids": (1, 2, 3)})
    config = {"generation": {"max_new_tokens": 2}}
    processor = SequenceProcessor(tiny_llama(), tiny_tokenizer, config=config, engine=engine)
    with pytest.raises(EngineError, match="another prompt than that of request 0"):
        processor.generate_batched(["2 + 3?"], G=2)


# What an engine tells of itself.


def telling(**methods: Any) -> Any:
    """An engine with some of its methods made anew, which return what is given."""
    replaced = {name: lambda *_, value=value: value for name, value in methods.items()}
    return type("Telling", (ScriptedEngine,), replaced)(lambda _: [4, 9], None)


@pytest.mark.parametrize("value", [None, [1], "mine"])
def test_a_description_is_a_mapping(value):
    with pytest.raises(EngineError, match=r"described itself by a \w+; expected a dict"):
        described(telling(describe=value))


def test_a_description_can_be_written():
    endless: dict[str, Any] = {"name": "mine"}
    endless["self"] = endless
    with pytest.raises(EngineError, match="holds itself"):
        described(telling(describe=endless))


def test_what_is_no_engine_is_named():
    with pytest.raises(EngineError, match="expected an engine, got a dict"):
        described({})  # type: ignore[arg-type]


def noise(values: Any = None, error: Any = 0.0) -> Noise:
    return Noise(name="dice", values=lambda *_: values, error=error)


def values_of(told: Any) -> Any:
    found = noise_of(telling(noise=told), SamplingPolicy())
    assert isinstance(found, Noise)
    three = torch.zeros(3, dtype=torch.int64)
    return found.values(three, three, three, V)


@pytest.mark.parametrize("told", [None, "dice", 0])
def test_noise_is_a_noise_or_none(told):
    with pytest.raises(EngineError, match="expected a Noise or a NotReplayable"):
        values_of(told)


def test_a_noise_that_fails_is_the_engines_fault():
    def fails(*_):
        raise ZeroDivisionError("division by zero")

    with pytest.raises(EngineError, match=r"the noise \(dice\) of engine .* ZeroDivisionError"):
        values_of(Noise(name="dice", values=fails, error=0.0))
    nothing: Any = None
    with pytest.raises(EngineError, match="a noise whose values are a NoneType"):
        values_of(Noise(name="dice", values=nothing, error=0.0))


@pytest.mark.parametrize("size", [0, -1, 8.5, "8", math.nan, True])
def test_a_batch_size_is_a_whole_number_or_none(size):
    engine = telling()
    engine.batch_size = size
    with pytest.raises(EngineError, match=f"has the batch_size {size!r}; expected"):
        batch_size_of(engine)
    for right in (None, 8, np.int64(8)):
        engine.batch_size = right
        assert batch_size_of(engine) == right


@pytest.mark.parametrize("error", [math.nan, math.inf, -1.0, None])
def test_the_error_of_a_noise_is_a_number(error):
    with pytest.raises(EngineError, match=f"a noise with the error {error}"):
        values_of(noise(error=error))


@pytest.mark.parametrize(
    "values", [[0.0], torch.zeros(3), torch.zeros(3, V).long(), torch.full((3, V), math.nan)]
)
def test_the_values_of_a_noise_are_held(values):
    with pytest.raises(EngineError, match=r"a noise \(dice\) .* of shape \[3, 10\]"):
        values_of(noise(values))
    assert values_of(noise(torch.zeros(3, V))).shape == (3, V)


def test_an_engine_without_a_name_goes_by_that_of_its_class():
    assert name_of(telling()) == "scripted"
    assert name_of(type("Nameless", (ScriptedEngine,), {"name": None})({}, None)) == "Nameless"
