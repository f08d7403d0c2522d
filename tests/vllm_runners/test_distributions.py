"""log q of the whole vocabulary from vLLM, on both model runners, against Hugging Face logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch

from helpers.runner_helpers import FULL, NUCLEUS, PROMPTS, Model, run
from seqproc.engines import VLLMEngine
from seqproc.engines.answers import distributions_of
from seqproc.engines.base import Path
from seqproc.errors import EngineError
from seqproc.parity import first_difference_of_engine
from seqproc.policy import SamplingPolicy, log_q

Start = Callable[..., AbstractContextManager[Any]]
HOT = SamplingPolicy(temperature=3.0)  # beyond what vLLM's own sampler takes
GREEDY = SamplingPolicy(do_sample=False)


@pytest.fixture(scope="module")
def engine(start: Start) -> Iterator[Any]:
    with start(**VLLMEngine.distribution_options) as engine:
        yield engine


def contexts_of(model: Model) -> list[tuple[int, ...]]:
    """More than are asked at a time, of several lengths."""
    return [
        (*model.tokenizer.encode(text), *range(40, 40 + extra))
        for text in PROMPTS
        for extra in (0, 1, 7)
    ]


@pytest.mark.parametrize("policy", [FULL, NUCLEUS, HOT, GREEDY], ids=str)
def test_what_is_told_is_the_policy_over_hugging_face_logits(
    policy: SamplingPolicy, engine: Any, model: Model
) -> None:
    contexts = contexts_of(model)
    found = list(distributions_of(engine, contexts, policy))
    assert len(found) == len(contexts)
    for context, told in zip(contexts, found, strict=True):
        with torch.no_grad():
            logits = model.live(torch.tensor([context])).logits[0, -1].double()
        np.testing.assert_allclose(told.numpy(), log_q(logits, policy).numpy(), atol=5e-4, rtol=0)


def test_sampling_goes_on_as_before(engine: Any, model: Model) -> None:
    """What is reported of the sampled tokens stands in what is told; draws repeat around it."""
    requests, rule = model.requests(), model.rule()
    before = run(engine, requests, FULL, rule)
    places = [
        ((*request.prompt_ids, *before[request.index].token_ids[:step]), request.index, step)
        for request in requests
        for step in range(0, len(before[request.index].token_ids), 5)
    ]
    told = distributions_of(engine, [context for context, _, _ in places], FULL)
    for (_, index, step), values in zip(places, told, strict=True):
        completion = before[index]
        assert completion.logqs is not None
        own = float(values[completion.token_ids[step]])
        assert own == pytest.approx(completion.logqs[step], abs=5e-4)
    assert run(engine, requests, FULL, rule) == before


def test_a_reader_may_stop_and_one_at_a_time_is_read(engine: Any, model: Model) -> None:
    contexts = contexts_of(model)
    reading = engine.distributions(contexts, FULL)
    next(reading)
    with pytest.raises(EngineError, match="generating already"):
        next(engine.distributions(contexts, FULL))
    reading.close()
    assert len(list(engine.distributions(contexts[:2], FULL))) == 2


def test_without_the_option_it_says_how(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._engine.model_config, "max_logprobs", 20)
    with pytest.raises(EngineError, match="started with the option max_logprobs=-1"):
        engine.distributions([(40,)], FULL)


def test_runner_v2_alone_decodes_given_tokens(engine: Any, runner: str) -> None:
    """What V2 tells then is held against Hugging Face in `test_follow_v2`."""
    path = Path(prompt_ids=(40,), response_ids=(41, 42), steps=(2,))
    assert engine.can_follow == (runner == "V2")
    if engine.can_follow:
        assert len(list(engine.follow([path], FULL))) == 1
    else:
        with pytest.raises(EngineError, match="decodes them on its model runner V2"):
            engine.follow([path], FULL)


SEQUENCES = [tuple(range(40, 60)), (50, 51, 52)]
eager = pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM compiles its model there")


@eager
def test_layers_return_what_those_of_hugging_face_do(engine: Any, model: Model) -> None:
    assert first_difference_of_engine(model.live, engine, SEQUENCES) is None
    names = ["model.layers.0", "model.layers.1.mlp", "model.layers.7"]
    found = engine.layer_outputs(SEQUENCES[0], names)
    assert list(found) == names[:2]
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        layer = model.live.model.layers[0]
        with layer.register_forward_hook(lambda _, __, output: seen.append(output)):
            model.live(torch.tensor([SEQUENCES[0]]))
    np.testing.assert_allclose(found["model.layers.0"], seen[0][0], atol=1e-4, rtol=1e-4)


@eager
@pytest.mark.parametrize(
    ("weight", "module"),
    [
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn"),
        ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp"),
        ("model.layers.1.post_attention_layernorm.weight", "model.layers.1.mlp"),
    ],
)
def test_the_layer_in_which_vllm_parts_from_other_weights_is_named(
    weight: str, module: str, engine: Any, model: Model
) -> None:
    changed = model.live.get_parameter(weight).detach().clone()
    changed.view(-1)[3] += 1
    found = first_difference_of_engine(model.live, engine, SEQUENCES, override={weight: changed})
    assert found is not None
    assert (found.module, found.parameters, found.num_parameters) == (module, (), None)
    assert found.difference > 100 * found.tolerance


@eager
def test_without_hooks_it_says_what_it_takes(engine: Any) -> None:
    with pytest.raises(EngineError, match="enforce_eager=true and enable_prefix_caching=false"):
        engine.layer_outputs((40, 41), ["model.no_such_module"])
