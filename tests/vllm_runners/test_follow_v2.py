"""log q of the whole vocabulary in decode steps of vLLM's runner V2: its trace replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.runner_helpers import FULL, NUCLEUS, PROMPTS, Model, run
from seqproc.engines.answers import followed_by
from seqproc.engines.base import Path
from seqproc.errors import EngineError
from seqproc.parity import Answer, compare_distributions
from seqproc.policy import SamplingPolicy, log_q

Start = Callable[..., AbstractContextManager[Any]]
HOT = SamplingPolicy(temperature=3.0)  # beyond what vLLM's own sampler takes


@pytest.fixture(scope="module")
def engine(start: Start) -> Iterator[Any]:
    with start(max_logprobs=-1, enable_trace_replay="auto") as engine:
        yield engine


def paths_of(model: Model) -> list[Path]:
    """More than are decoded at a time, of several lengths; one has an EOS in it."""
    responses = [(40, 0, 41, 42, 43, 44), tuple(range(50, 62)), (70,)]
    steps = [(0, 1, 2, 5, 6), (3, 11), (0,)]
    return [
        Path(prompt_ids=tuple(model.tokenizer.encode(text)), response_ids=ids, steps=some)
        for text in PROMPTS
        for ids, some in zip(responses, steps, strict=True)
    ]


@pytest.mark.parametrize("policy", [FULL, NUCLEUS, HOT], ids=str)
def test_decode_steps_tell_the_policy_over_hugging_face_logits(
    policy: SamplingPolicy, engine: Any, model: Model
) -> None:
    paths = paths_of(model)
    found = followed_by(engine, paths, policy)
    for path in paths:
        for step in path.steps:
            context = torch.tensor([[*path.prompt_ids, *path.response_ids[:step]]])
            with torch.no_grad():
                logits = model.live(context).logits[0, -1].double()
            due = log_q(logits, policy).numpy()
            np.testing.assert_allclose(next(found).numpy(), due, atol=5e-4, rtol=0)
    assert next(found, None) is None


def test_the_option_changes_no_draw(engine: Any, start: Start, model: Model) -> None:
    assert engine.can_follow
    assert engine.describe()["options"]["enable_trace_replay"] is True
    requests, rule = model.requests(), model.rule()
    with_option = run(engine, requests, FULL, rule)
    list(engine.follow(paths_of(model), FULL))
    assert run(engine, requests, FULL, rule) == with_option


@pytest.mark.skipif(torch.cuda.is_available(), reason="a compiled model keeps its own forward")
def test_a_fault_of_decode_steps_shows_in_a_pair(
    engine: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode steps of vLLM's attention get shifted positions; its prefills are left alone."""
    requests, rule = model.requests(), model.rule()
    answers = [
        Answer(request=request, prompt=request.index, completion=completion)
        for request, completion in zip(
            requests, run(engine, requests, FULL, rule).values(), strict=True
        )
    ]

    def distance(*readings: Any) -> float:
        pair = compare_distributions(
            engine,
            model.hugging_face(),
            answers,
            FULL,
            model.tokenizer,
            num_rows=24,
            readings=readings,
        )
        assert pair.readings[0] == (readings[0] or "decode")
        return pair.total_variation.value

    assert distance("prefill", None) < 1e-4
    assert distance(None, None) < 1e-4
    core = engine._llm.llm_engine.engine_core.engine_core
    vllm_model = core.model_executor.driver_worker.worker.model_runner.get_model()
    attention = type(vllm_model.model.layers[0].self_attn)
    plain = attention.forward

    def shifted(self: Any, positions: Any, hidden_states: Any, *args: Any, **options: Any) -> Any:
        is_decode = int(positions.min() > 0)  # a prefill has a position 0
        return plain(self, positions + is_decode, hidden_states, *args, **options)

    monkeypatch.setattr(attention, "forward", shifted)
    assert distance(None, None) > 0.005
    assert distance("prefill", None) < 1e-4


def test_it_says_what_it_takes(engine: Any, monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    paths = paths_of(model)
    long = replace(paths[0], response_ids=(40,) * 200, steps=(150,))
    with pytest.raises(EngineError, match="request 0 does not fit"):
        engine.follow([long], FULL)
    monkeypatch.setattr(engine._engine.model_config, "enable_trace_replay", False)
    with pytest.raises(EngineError, match=r"cannot decode given tokens.*enable_trace_replay=true"):
        engine.follow(paths, FULL)
