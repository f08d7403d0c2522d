"""The scripted engine: lazy, in any order, failing on cue, logging its calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from seqproc.engines import Completion, Request, ScriptedEngine, StoppingRule
from seqproc.errors import EngineError
from seqproc.policy import SamplingPolicy

POLICY = SamplingPolicy(temperature=0.7)


def requests(count: int) -> list[Request]:
    return [Request(index=i, prompt_ids=(5, 6), seed=i) for i in range(count)]


def rule(tokenizer: Any, limit: int = 4) -> StoppingRule:
    return StoppingRule(max_new_tokens=limit, eos_token_ids=(tokenizer.eos_token_id,))


def test_it_plays_back_a_mapping_cut_where_responses_end(tiny_tokenizer: Any) -> None:
    eos = tiny_tokenizer.eos_token_id
    engine = ScriptedEngine({0: [40, eos, 41], 1: [40] * 9}, tiny_tokenizer)
    first, second = engine.generate(requests(2), POLICY, rule(tiny_tokenizer))
    assert (first.token_ids, first.finish_reason) == ((40, eos), "eos")
    assert (second.token_ids, second.finish_reason) == ((40,) * 4, "length")
    assert first.logqs is None


def test_it_plays_back_a_function_and_reports_log_q(tiny_tokenizer: Any) -> None:
    engine = ScriptedEngine(
        lambda request: [request.seed + 10] * 4,
        tiny_tokenizer,
        logqs=lambda request, ids: [-float(request.index)] * len(ids),
    )
    *_, last = engine.generate(requests(3), POLICY, rule(tiny_tokenizer))
    assert last.token_ids == (12,) * 4
    assert last.logqs == (-2.0,) * 4


def test_it_takes_requests_lazily_and_completes_them_in_the_order_asked(
    tiny_tokenizer: Any,
) -> None:
    taken: list[int] = []

    def stream() -> Iterator[Request]:
        for request in requests(6):
            taken.append(request.index)
            yield request

    engine = ScriptedEngine(
        lambda _: [40] * 4, tiny_tokenizer, in_flight=3, order=lambda window: reversed(window)
    )
    completions = engine.generate(stream(), POLICY, rule(tiny_tokenizer))
    assert taken == []
    assert next(completions).index == 2
    assert taken == [0, 1, 2]
    assert [completion.index for completion in completions] == [1, 0, 5, 4, 3]


def test_it_fails_on_cue_and_logs_what_happened(tiny_tokenizer: Any) -> None:
    engine = ScriptedEngine(lambda _: [40] * 4, tiny_tokenizer, fail_after=3)
    done: list[Completion] = []
    with pytest.raises(EngineError, match="scripted failure after 3"):
        done.extend(engine.generate(requests(5), POLICY, rule(tiny_tokenizer)))
    (call,) = engine.calls
    assert call.policy == POLICY
    assert call.stopping.max_new_tokens == 4
    assert [request.index for request in call.requests] == [0, 1, 2, 3, 4]
    assert call.completed == [0, 1, 2]


def test_sleep_wake_and_close_are_noted_and_a_closed_engine_refuses(tiny_tokenizer: Any) -> None:
    with ScriptedEngine({}, tiny_tokenizer) as engine:
        engine.sleep()
        engine.wake()
    engine.close()
    assert engine.events == ["sleep", "wake", "close", "close"]
    with pytest.raises(EngineError, match="closed"):
        next(engine.generate(requests(1), POLICY, rule(tiny_tokenizer)))


def test_a_request_without_a_line_is_an_error(tiny_tokenizer: Any) -> None:
    engine = ScriptedEngine({0: [40] * 4}, tiny_tokenizer)
    with pytest.raises(EngineError, match="nothing for request 1"):
        list(engine.generate(requests(2), POLICY, rule(tiny_tokenizer)))
