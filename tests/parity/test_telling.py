"""What an engine tells of its distributions, at once and in decode steps, against numpy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.pair_engines import HALF, NUCLEUS, RAW, Forgetful, Telling, answers_of, probabilities
from helpers.parity_range import STOPPING, Range
from seqproc.engines import HFEngine, ScriptedEngine
from seqproc.engines.answers import distributions_of, followed_by
from seqproc.engines.base import Path
from seqproc.errors import EngineError, SequenceError
from seqproc.parity import Pair, ScorerDistributions, compare_distributions, spread_places
from seqproc.policy import SamplingPolicy

# ---------------------------------------------------------------- what an engine tells


@pytest.mark.parametrize("policy", [RAW, NUCLEUS, SamplingPolicy(do_sample=False)], ids=str)
def test_an_engine_tells_what_it_samples_from(
    policy: SamplingPolicy, engine: HFEngine, small: Range
) -> None:
    contexts = [place.ids for place in spread_places(answers_of(engine), 20)]
    for teller in (engine, ScorerDistributions(small.scorer)):
        found = list(distributions_of(teller, contexts, policy))
        assert len(found) == len(contexts)
        for context, log_q in zip(contexts, found, strict=True):
            greedy = replace(policy, top_p=1e-9) if not policy.do_sample else policy
            due = probabilities(small.model, context, greedy)
            np.testing.assert_allclose(log_q.exp().numpy(), due, atol=2e-5, rtol=0)


def test_what_is_told_is_what_is_drawn_from(engine: HFEngine) -> None:
    """The reported log q of every token stands in the distribution of its place."""
    answers = answers_of(engine, NUCLEUS)
    places = spread_places(answers, 50)
    told = distributions_of(engine, [place.ids for place in places], NUCLEUS)
    for place, log_q in zip(places, told, strict=True):
        completion = place.answer.completion
        assert completion.logqs is not None
        own = float(log_q[completion.token_ids[place.step]])
        assert own == pytest.approx(completion.logqs[place.step], abs=1e-4)


def test_loaded_weights_are_those_that_are_told_of(engine: HFEngine, small: Range) -> None:
    other = {"lm_head.weight": 2 * small.model.lm_head.weight.detach()}
    engine.load_weights(other)
    (found,) = engine.distributions([(40, 41)], RAW)
    due = probabilities(small.model, (40, 41), SamplingPolicy(temperature=0.5))  # twice the logits
    np.testing.assert_allclose(found.exp().numpy(), due, atol=2e-5, rtol=0)
    (same,) = distributions_of(ScorerDistributions(small.scorer, other), [(40, 41)], RAW)
    np.testing.assert_allclose(same.exp().numpy(), due, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "gave a NoneType; expected an iterator"),
        ([HALF], "gave 1 distributions for 2 contexts"),
        ([HALF] * 3, "gave more distributions than the 2 contexts"),
        ([HALF, torch.zeros(2, 2)], r"gave \[2, 2\] for context 1"),
        ([HALF, [0.0]], "gave list for context 1"),
        ([HALF, HALF + 0.1], "sum to 1.10517, and not 1"),
        ([HALF, HALF * math.nan], "sum to nan"),
    ],
)
def test_what_is_no_distribution_is_refused(given: Any, words: str) -> None:
    with pytest.raises(EngineError, match=f"engine 'telling' broke its contract.*{words}"):
        list(distributions_of(Telling(given), [(1,), (2,)], RAW))


def test_an_engine_that_cannot_tell_says_what_remains(small: Range) -> None:
    scripted = ScriptedEngine(lambda _: (60, 0), small.tokenizer)
    with pytest.raises(EngineError, match=r"does not tell.*log q that it reports"):
        scripted.distributions([(40,)], RAW)


@pytest.mark.parametrize("context", [(), (40,) * 512])
def test_a_context_without_room_is_refused_at_the_call(
    context: tuple[int, ...], small: Range
) -> None:
    engine = HFEngine(small.model, small.tokenizer, max_context=512)
    with pytest.raises(EngineError, match="request 0"):
        engine.distributions([context], RAW)


# ---------------------------------------------------------------- decode steps


PATHS = [
    Path(prompt_ids=(40, 41, 42), response_ids=(50, 51, 0, 52, 53), steps=(0, 1, 3, 5)),
    Path(prompt_ids=(43,), response_ids=(60,), steps=(0,)),
    Path(prompt_ids=(44, 45), response_ids=(61, 62, 63, 64, 65, 66, 67), steps=(4, 7)),
    Path(prompt_ids=(46,) * 9, response_ids=(70, 71), steps=(2,)),
]


@pytest.mark.parametrize("policy", [RAW, NUCLEUS], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_what_decoding_tells_is_what_the_model_says_of_the_whole_context(
    batch_size: int, policy: SamplingPolicy, small: Range
) -> None:
    """Against a forward of each context alone, in batches of prompts of several lengths."""
    engine = HFEngine(small.model, small.tokenizer, batch_size=batch_size)
    found = list(followed_by(engine, PATHS, policy))
    contexts = [(*p.prompt_ids, *p.response_ids[:step]) for p in PATHS for step in p.steps]
    assert len(found) == len(contexts) == 8
    for context, log_q in zip(contexts, found, strict=True):
        due = probabilities(small.model, context, policy)
        np.testing.assert_allclose(log_q.exp().numpy(), due, atol=2e-5, rtol=0)


def test_decoding_is_what_sampling_does(engine: HFEngine) -> None:
    """Equal to the last bit to the log q of the tokens that were sampled, in the same batches."""
    answers = answers_of(engine)
    for batch in ([0, 2, 4], [1, 3]):
        requests = [replace(answers[i].request, index=n) for n, i in enumerate(batch)]
        drawn = {c.index: c for c in engine.generate(requests, RAW, STOPPING)}
        paths = [
            Path(
                prompt_ids=request.prompt_ids,
                response_ids=drawn[request.index].token_ids,
                steps=tuple(range(len(drawn[request.index].token_ids))),
            )
            for request in requests
        ]
        told = iter(list(followed_by(engine, paths, RAW)))
        for path, request in zip(paths, requests, strict=True):
            own = [float(next(told)[token]) for token in path.response_ids]
            assert own == pytest.approx(drawn[request.index].logqs, abs=1e-12)


def test_a_fault_of_decode_steps_shows_in_them_and_nowhere_else(
    engine: HFEngine, small: Range
) -> None:
    forgetful = Forgetful(small.model, small.tokenizer, batch_size=7)
    answers = answers_of(engine)

    def compared(*readings: Any) -> Pair:
        return compare_distributions(
            engine, forgetful, answers, RAW, small.tokenizer, num_rows=60, readings=readings
        )

    at_once = compared("prefill", "prefill")
    assert at_once.readings == ("prefill", "prefill")
    assert at_once.total_variation.value < 1e-6
    decoded = compared(None, None)
    assert decoded.readings == ("decode", "decode")
    assert decoded.total_variation.value > 0.05
    assert all(row.step > 0 for row in decoded.worst)
    # And of the faulty engine alone, its decode steps against its prefills.
    own = compare_distributions(
        forgetful,
        forgetful,
        answers,
        RAW,
        small.tokenizer,
        num_rows=60,
        readings=("decode", "prefill"),
    )
    assert own.total_variation.value == pytest.approx(decoded.total_variation.value, rel=1e-3)


def test_places_at_the_first_step_are_of_the_prefill(small: Range) -> None:
    forgetful = Forgetful(small.model, small.tokenizer)
    path = Path(prompt_ids=(40, 41, 42), response_ids=(50, 51), steps=(0, 1))
    first, later = followed_by(forgetful, [path], RAW)
    for log_q, context, is_right in ((first, (40, 41, 42), True), (later, (40, 41, 42, 50), False)):
        due = probabilities(small.model, context, RAW)
        assert (np.abs(log_q.exp().numpy() - due).max() < 2e-5) == is_right


@pytest.mark.parametrize("steps", [(), (-1,), (3,), (1, 1), (2, 1)])
def test_steps_of_a_path_rise_within_its_response(steps: tuple[int, ...]) -> None:
    with pytest.raises(SequenceError, match="rising numbers from 0 to its 2 tokens"):
        Path(prompt_ids=(40,), response_ids=(41, 42), steps=steps)


def test_an_engine_that_cannot_decode_given_tokens_says_so(engine: HFEngine, small: Range) -> None:
    class AtOnce(HFEngine):
        name = "at once"
        can_follow = False

    scripted = ScriptedEngine(lambda _: (60, 0), small.tokenizer)
    with pytest.raises(EngineError, match=r"'scripted' cannot decode given tokens"):
        scripted.follow(PATHS, RAW)
    other, answers = AtOnce(small.model, small.tokenizer), answers_of(engine)
    pair = compare_distributions(engine, other, answers, RAW, small.tokenizer, num_rows=9)
    assert pair.readings == ("decode", "prefill")
    with pytest.raises(EngineError, match="'at once' cannot decode given tokens"):
        compare_distributions(
            engine, other, answers, RAW, small.tokenizer, readings=(None, "decode")
        )


def test_a_last_step_needs_room_for_a_token(small: Range) -> None:
    short = HFEngine(small.model, small.tokenizer, max_context=8)
    (path, *_) = PATHS
    assert len(list(short.follow([replace(path, steps=(4,))], RAW))) == 1
    with pytest.raises(EngineError, match="request 0 does not fit"):
        short.follow([path], RAW)
