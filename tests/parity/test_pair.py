"""Two engines side by side: distances against numpy, against closed forms, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.parity_range import STOPPING, Range
from seqproc import SequenceProcessor
from seqproc.cli.parity_choices import parse_engines
from seqproc.engines import Engine, HFEngine, Request, ScriptedEngine, register_engine
from seqproc.engines.answers import distributions_of, followed_by
from seqproc.engines.base import Path
from seqproc.errors import ConfigError, EngineError, SequenceError
from seqproc.parity import (
    Answer,
    Pair,
    ScorerDistributions,
    compare_distributions,
    sample,
    score_nominal,
    spread_places,
)
from seqproc.parity.metrics import mismatch
from seqproc.parity.side_by_side.pair import compare_rows
from seqproc.parity.side_by_side.pair_run import SCORER, OtherModel, PairReport, run_pair
from seqproc.policy import SamplingPolicy
from seqproc.prompts import draw_seed

RAW = SamplingPolicy()
NUCLEUS = SamplingPolicy(temperature=0.7, top_p=0.9)
NUM_PROMPTS = 8
REQUESTS = [
    Request(index=i, prompt_ids=(40 + i % NUM_PROMPTS, 41, 42)[i % 2 :], seed=draw_seed(0, i))
    for i in range(32)
]
OWNERS = [i % NUM_PROMPTS for i in range(32)]


class Warm(HFEngine):
    """It samples at twice the temperature that it is told."""

    name = "warm"

    def follow(self, paths: Sequence[Path], policy: SamplingPolicy) -> Iterator[Tensor]:
        return super().follow(paths, replace(policy, temperature=2 * policy.temperature))


class Forgetful(HFEngine):
    """Its prefill is right. In decode steps each token stands one position too far."""

    name = "forgetful"

    def __init__(self, model: Any, tokenizer: Any, **options: Any) -> None:
        super().__init__(copy.deepcopy(model), tokenizer, **options)
        self._model.register_forward_pre_hook(shifted, with_kwargs=True)


def shifted(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if inputs["input_ids"].shape[1] == 1 and inputs["past_key_values"].get_seq_length():
        inputs = {**inputs, "position_ids": inputs["position_ids"] + 1}
    return args, inputs


class Breaking(HFEngine):
    """It samples the whole vocabulary, and fails with a nucleus."""

    name = "breaking"

    def generate(self, requests: Any, policy: SamplingPolicy, stopping: Any) -> Iterator[Any]:
        if policy.top_p < 1:
            raise EngineError("out of order")
        return super().generate(requests, policy, stopping)


register_engine("breaking", Breaking)
register_engine("warm", Warm)
register_engine("forgetful", Forgetful)


@pytest.fixture
def engine(small: Range) -> HFEngine:
    return HFEngine(small.model, small.tokenizer, batch_size=7)


def answers_of(engine: Engine, policy: SamplingPolicy = RAW) -> list[Answer]:
    return sample(engine, REQUESTS, OWNERS, policy, STOPPING)


def probabilities(model: Any, context: Sequence[int], policy: SamplingPolicy) -> np.ndarray:
    """q by numpy in float64, from a forward of this context alone."""
    with torch.no_grad():
        a = model(torch.tensor([list(context)])).logits[0, -1].double().numpy()
    a = a / policy.temperature
    p = np.exp(a - a.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[np.cumsum(p[order]) - p[order] < policy.top_p]
    q = np.zeros_like(p)
    q[kept] = p[kept] / p[kept].sum()
    return q


def divergence(p: np.ndarray, r: np.ndarray) -> float:
    inside = p > 0
    if (r[inside] == 0).any():
        return math.inf
    return float((p[inside] * np.log(p[inside] / r[inside])).sum())


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


class Telling:
    """It gives what it is made of."""

    name = "telling"

    def __init__(self, given: Any) -> None:
        self.given = given

    def distributions(self, _: Any, __: Any) -> Any:
        return self.given


HALF = torch.tensor([0.5, 0.5]).log()


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


# ---------------------------------------------------------------- places


def test_places_lie_evenly_among_all_tokens(engine: HFEngine) -> None:
    answers = answers_of(engine)
    lengths = [len(answer.completion.token_ids) for answer in answers]
    starts = dict(zip((a.request.index for a in answers), np.cumsum([0, *lengths]), strict=False))
    at = [starts[p.answer.request.index] + p.step for p in spread_places(answers, 16)]
    assert len(at) == 16
    assert set(np.diff(at)) <= {sum(lengths) // 16, sum(lengths) // 16 + 1}
    assert at[0] == pytest.approx(sum(lengths) / 32, abs=1)
    every = spread_places(answers, 10**6)
    assert [len(place.ids) - len(place.answer.request.prompt_ids) for place in every] == [
        step for length in lengths for step in range(length)
    ]
    with pytest.raises(ConfigError, match="num_rows"):
        spread_places(answers, 0)


# ---------------------------------------------------------------- distances


@pytest.mark.parametrize("policy", [RAW, NUCLEUS], ids=str)
def test_distances_are_those_of_numpy(
    policy: SamplingPolicy, engine: HFEngine, small: Range
) -> None:
    """Against weights rounded to bfloat16, whose nuclei are others now and then."""
    rounded = copy.deepcopy(small.model).bfloat16().float()
    answers = answers_of(engine, policy)
    pair = compare_distributions(
        engine, HFEngine(rounded, small.tokenizer), answers, policy, small.tokenizer, num_rows=60
    )
    places = spread_places(answers, 60)
    ours = [probabilities(small.model, place.ids, policy) for place in places]
    theirs = [probabilities(rounded, place.ids, policy) for place in places]
    kl = np.array([divergence(p, r) for p, r in zip(ours, theirs, strict=True)])
    finite = np.isfinite(kl)
    assert (pair.num_rows, pair.num_infinite) == (60, int((~finite).sum()))
    assert pair.kl is not None
    assert pair.kl.value == pytest.approx(kl[finite].mean(), rel=1e-3)
    total = np.array([np.abs(p - r).sum() / 2 for p, r in zip(ours, theirs, strict=True)])
    assert pair.total_variation.value == pytest.approx(total.mean(), rel=1e-3)
    same = sum(bool(((p > 0) == (r > 0)).all()) for p, r in zip(ours, theirs, strict=True))
    assert pair.num_same_support == same
    worst = pair.worst[0]
    assert worst.total_variation == pytest.approx(total.max(), rel=1e-3)
    at = int(total.argmax())
    assert (worst.index, worst.step) == (places[at].answer.request.index, places[at].step)
    top = int(np.abs(ours[at] - theirs[at]).argmax())
    assert worst.tokens[0].token == top
    assert worst.tokens[0].first == pytest.approx(ours[at][top], abs=1e-4)
    # And the standard error is that of prompts' sums about the mean.
    owners = np.array([place.answer.prompt for place in places])
    sums = np.bincount(owners, total - total.mean())
    clusters = len(set(owners))
    error = np.sqrt(clusters / (clusters - 1) * (sums**2).sum()) / 60
    assert pair.total_variation.standard_error == pytest.approx(error, rel=1e-2)
    assert pair.num_prompts == clusters


def test_what_is_no_comparison_is_refused(engine: HFEngine, small: Range) -> None:
    answers = answers_of(engine, NUCLEUS)
    readings: Any = ("decode", "at once")
    with pytest.raises(ConfigError, match="a reading must be"):
        compare_distributions(engine, engine, answers, NUCLEUS, small.tokenizer, readings=readings)
    greedy = SamplingPolicy(do_sample=False)
    with pytest.raises(ConfigError, match="greedy decoding has no distribution"):
        compare_distributions(engine, engine, answers, greedy, small.tokenizer)


@pytest.mark.parametrize("apart", [0, 2, 4], ids=["first", "middle", "last"])
def test_the_largest_gap_is_of_the_rows_that_have_one(
    engine: HFEngine, small: Range, apart: int
) -> None:
    """A row of two supports with nothing in common has no gap, wherever it stands."""
    places = spread_places(answers_of(engine, NUCLEUS), 5)
    size = len(small.tokenizer)

    def certain(token: int) -> Tensor:
        return torch.full((size,), -math.inf, dtype=torch.float64).index_fill(
            0, torch.tensor([token]), 0.0
        )

    flat = torch.full((size,), -math.log(size), dtype=torch.float64)
    tilted = torch.linspace(0, 1, size, dtype=torch.float64).log_softmax(0)
    first = [certain(3) if n == apart else flat for n in range(5)]
    second = [certain(4) if n == apart else tilted for n in range(5)]
    pair = compare_rows(
        ("a", "b"), places, first, second, NUCLEUS, small.tokenizer, ("prefill", "prefill")
    )
    assert pair.largest_gap == pytest.approx(float((flat - tilted).abs().max()))


def test_a_row_in_which_nothing_differs_shows_its_likeliest_tokens(
    engine: HFEngine, small: Range
) -> None:
    narrow = SamplingPolicy(top_p=1e-9)
    answers = answers_of(engine, narrow)
    pair = compare_distributions(engine, engine, answers, narrow, small.tokenizer, num_rows=4)
    assert pair.total_variation.value == 0
    assert all(
        [(one.first, one.second) for one in row.tokens] == [(1.0, 1.0)] for row in pair.worst
    )


def test_other_supports_are_counted_and_leave_the_mean_finite(
    engine: HFEngine, small: Range
) -> None:
    """With a nucleus of .9 against the whole vocabulary, KL is −log of the nucleus's mass."""

    class Whole(HFEngine):
        name = "whole"

        def follow(self, paths: Any, policy: SamplingPolicy) -> Iterator[Tensor]:
            return super().follow(paths, replace(policy, top_p=1.0))

    whole = Whole(small.model, small.tokenizer)
    answers = answers_of(engine, NUCLEUS)
    pair = compare_distributions(engine, whole, answers, NUCLEUS, small.tokenizer, num_rows=40)
    flat = replace(NUCLEUS, top_p=1.0)
    masses = [
        probabilities(small.model, p.ids, flat)[probabilities(small.model, p.ids, NUCLEUS) > 0]
        for p in spread_places(answers, 40)
    ]
    due = -np.log([mass.sum() for mass in masses])
    assert pair.kl is not None
    assert pair.kl.value == pytest.approx(due.mean(), rel=1e-4)
    assert pair.num_infinite == 0
    assert pair.num_same_support == sum(len(mass) == len(small.tokenizer) for mass in masses) == 0
    assert all(row.num_second_only and not row.num_first_only for row in pair.worst)
    # The other way round the second excludes tokens everywhere.
    back = compare_distributions(whole, engine, answers, NUCLEUS, small.tokenizer, num_rows=40)
    assert (back.kl, back.num_infinite) == (None, 40)
    assert all(row.kl == math.inf and row.mass_first_only > 0 for row in back.worst)
    assert back.total_variation.value == pytest.approx(pair.total_variation.value, rel=1e-6)
    worst = max(1 - mass.sum() for mass in masses)  # what total variation is for a cut
    assert pair.worst[0].total_variation == pytest.approx(worst, rel=1e-4)


def test_another_temperature_has_the_divergence_that_is_known(
    engine: HFEngine, small: Range
) -> None:
    warm = Warm(small.model, small.tokenizer)
    answers = answers_of(engine)
    pair = compare_distributions(engine, warm, answers, RAW, small.tokenizer, num_rows=40)
    hot = SamplingPolicy(temperature=2)
    due = [
        divergence(probabilities(small.model, p.ids, RAW), probabilities(small.model, p.ids, hot))
        for p in spread_places(answers, 40)
    ]
    assert pair.kl is not None
    assert pair.kl.value == pytest.approx(np.mean(due), rel=1e-4)
    assert pair.kl.value > 10 * pair.kl.standard_error > 0


def test_an_engine_does_not_differ_from_its_scorer(engine: HFEngine, small: Range) -> None:
    """KL keeps the digits in which the logits of two batchings agree."""
    answers = answers_of(engine)
    pair = compare_distributions(
        engine, ScorerDistributions(small.scorer), answers, RAW, small.tokenizer
    )
    assert pair.engines == ("hf", "scorer")
    assert pair.kl is not None
    assert 0 <= pair.kl.value < 1e-10
    assert pair.total_variation.value < 1e-5
    assert (pair.num_same_support, pair.num_rows) == (256, 256)
    same = compare_distributions(engine, engine, answers, RAW, small.tokenizer)
    assert same.kl is not None
    assert same.kl.value == same.total_variation.value == same.largest_gap == 0


def test_the_sampled_estimate_is_of_the_same_divergence_and_varies_more(
    engine: HFEngine, small: Range
) -> None:
    """k1 on the sampled tokens, at every place. A right pair fails 6 in 10⁵ times."""
    rounded = copy.deepcopy(small.model).bfloat16().float()
    other = Range(
        model=rounded,
        tokenizer=small.tokenizer,
        scorer=type(small.scorer)(rounded, STOPPING.eos_token_ids),
    )
    answers = answers_of(engine)
    pair = compare_distributions(
        engine,
        ScorerDistributions(other.scorer),
        answers,
        RAW,
        small.tokenizer,
        num_rows=10**6,
    )
    draws, nominal = score_nominal(answers, other.scorer, RAW, 0.1, bets=False)
    assert nominal.engine_logqs is not None
    sampled = mismatch(draws, nominal.engine_logqs)["kl_k1"]
    assert pair.kl is not None
    error = math.hypot(sampled.standard_error, pair.kl.standard_error)
    assert abs(sampled.value - pair.kl.value) < 4 * error
    assert pair.kl.standard_error < sampled.standard_error / 3


def test_other_vocabularies_do_not_compare(engine: HFEngine, small: Range) -> None:
    other = Telling([HALF] * 256)
    with pytest.raises(EngineError, match="telling one of 2"):
        compare_distributions(engine, other, answers_of(engine), RAW, small.tokenizer)


# ---------------------------------------------------------------- runs


class Coloured(HFEngine):
    """It has an option of its own."""

    name = "coloured"

    @classmethod
    def from_source(cls, source: Any, *, colour: str = "red", **options: Any) -> Any:
        return super().from_source(source, **options)


register_engine("coloured", Coloured)


def test_an_option_of_a_subclass_is_no_stranger(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    report = run(tiny_llama, tiny_tokenizer, "hf", "coloured:colour=blue", policies=[RAW])
    assert report.pairs[0].engines == ("hf", "coloured:colour=blue")


def run(tiny_llama: Any, tokenizer: Any, *engines: str, **options: Any) -> Any:
    processor = SequenceProcessor(
        tiny_llama(initializer_range=0.5),
        tokenizer,
        config={"generation": {"max_new_tokens": 8, "gen_batch_size": 30}},
    )
    choices = parse_engines(",".join(engines), others=[SCORER])
    prompts = ["What is 2 + 3?", "The answer is"]
    given: dict[str, Any] = {"policies": [RAW, NUCLEUS], "num_draws": 12, "num_rows": 20, **options}
    with processor:
        return run_pair(processor, choices, prompts, **given)


def test_a_run_compares_under_every_policy(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    told: list[Pair] = []
    so_far: list[PairReport] = []

    def on_pair(pair: Pair, report: PairReport) -> None:
        told.append(pair)
        so_far.append(report)

    report = run(tiny_llama, tiny_tokenizer, "hf", "warm", on_pair=on_pair)
    assert tuple(told) == report.pairs
    assert [len(one.pairs) for one in so_far] == [1, 2]
    assert [one.is_complete for one in (*so_far, report)] == [False, False, True]
    assert [pair.policy for pair in report.pairs] == [RAW, NUCLEUS]
    for pair in report.pairs:
        assert pair.engines == ("hf", "warm")
        assert (pair.num_rows, pair.num_prompts) == (20, 2)
        assert pair.total_variation.value > 0.01
    found = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert [engine["name"] for engine in found["engines"]] == ["hf", "warm"]
    assert found["pairs"][0]["kl"]["value"] == report.pairs[0].kl.value
    assert found["pairs"][0]["worst"][0]["tokens"][0]["text"]


def test_a_run_against_the_scorer(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    report = run(tiny_llama, tiny_tokenizer, "hf", "scorer")
    assert report.engines[1] == {"name": "scorer"}
    assert all(pair.total_variation.value < 1e-5 for pair in report.pairs)


def test_a_run_decodes_where_it_can_or_as_it_is_told(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    def first_pair(*readings: Any) -> Pair:
        report = run(tiny_llama, tiny_tokenizer, "forgetful", "scorer", readings=readings)
        pair: Pair = report.pairs[0]
        return pair

    decoded, at_once = first_pair(None, None), first_pair("prefill", None)
    assert decoded.readings == first_pair("decode", "decode").readings == ("decode", "prefill")
    assert at_once.readings == ("prefill", "prefill")
    assert decoded.total_variation.value > 0.01
    assert at_once.total_variation.value < 1e-6


def test_a_run_names_the_module_in_which_another_model_parts(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    other = tiny_llama(initializer_range=0.5)
    same = OtherModel(name="other", model=other)
    report = run(tiny_llama, tiny_tokenizer, "hf", "scorer", other=same)
    (layers,) = report.layers
    assert (layers.second, layers.num_draws, layers.difference) == ("other", 4, None)
    name = "model.layers.1.mlp.up_proj.weight"
    other.get_parameter(name).data[3, 5] += 1
    report = run(tiny_llama, tiny_tokenizer, "hf", "scorer", other=same)
    found = report.layers[0].difference
    assert (found.module, found.parameters) == (name.removesuffix(".weight"), (name,))
    (told,) = json.loads(report.to_json(), parse_constant=pytest.fail)["layers"]
    assert told["difference"]["parameters"] == [name]
    assert run(tiny_llama, tiny_tokenizer, "hf", "scorer").layers == ()


class Layered(HFEngine):
    """It tells what its layers return, with another weight in the MLP of the second."""

    name = "layered"

    def layer_outputs(self, context: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        model: Any = copy.deepcopy(self._model)
        seen: dict[str, Tensor] = {}
        model.model.layers[1].mlp.up_proj.weight.data[3, 5] += 1
        for name in names:

            def keep(_: Any, __: Any, output: Any, name: str = name) -> None:
                seen[name] = output[0] if isinstance(output, tuple) else output

            model.get_submodule(name).register_forward_hook(keep)
        with torch.no_grad():
            model(torch.tensor([list(context)]))
        return {name: values.reshape(len(context), -1) for name, values in seen.items()}


class Shy(Layered):
    """It could tell, and does not."""

    name = "shy"

    def layer_outputs(self, context: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
        raise EngineError("not today")


register_engine("layered", Layered)
register_engine("shy", Shy)


@pytest.mark.parametrize("engines", [("layered", "scorer"), ("layered", "shy"), ("shy", "layered")])
def test_a_run_names_the_layer_in_which_an_engine_parts(
    tiny_llama: Any, tiny_tokenizer: Any, engines: tuple[str, str]
) -> None:
    """And what one of them does not tell keeps nothing else from being compared."""
    report = run(tiny_llama, tiny_tokenizer, *engines, engine_layers=True)
    found = {one.second: one for one in report.layers}
    assert tuple(one.second for one in report.layers) == tuple(
        name for name in engines if name != "scorer"
    )
    difference = found["layered"].difference
    assert (difference.module, difference.kind) == ("model.layers.1.mlp", "LlamaMLP")
    # Before it: attention, MLP and layer 0, and attention 1.
    assert (difference.num_before, difference.num_parameters) == (4, None)
    if "shy" in found:
        assert (found["shy"].difference, found["shy"].not_told) == (None, "not today")
    assert (len(report.pairs), report.is_complete) == (2, True)


def test_what_is_compared_of_the_scorer_outlives_a_failure(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """Under the second policy the first engine fails; the first policy was told before."""
    told: list[PairReport] = []
    with pytest.raises(EngineError, match="out of order"):
        run(tiny_llama, tiny_tokenizer, "breaking", "scorer", on_pair=lambda _, so: told.append(so))
    (so_far,) = told
    assert [pair.policy for pair in so_far.pairs] == [RAW]


@pytest.mark.parametrize(
    ("engines", "options", "error", "words"),
    [
        (("hf",), {}, ConfigError, "a pair is two engines, got 1"),
        (("hf", "warm", "scorer"), {}, ConfigError, "a pair is two engines, got 3"),
        (("hf", "hf"), {}, ConfigError, "names an engine twice"),
        (("scorer", "hf"), {}, ConfigError, "does not sample"),
        (("hf", "warm"), {"policies": []}, ConfigError, "no policy"),
        (
            ("hf", "warm"),
            {"policies": [RAW, SamplingPolicy(do_sample=False)]},
            ConfigError,
            "a greedy policy",
        ),
        (("hf", "scripted"), {}, EngineError, "'scripted' does not tell"),
        (("hf", "warm:colour=red"), {}, EngineError, "no option colour"),
    ],
)
def test_what_is_no_pair_is_refused_before_anything_starts(
    tiny_llama: Any,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    engines: tuple[str, ...],
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    monkeypatch.setattr(HFEngine, "generate", None)
    with pytest.raises(error, match=words):
        run(tiny_llama, tiny_tokenizer, *engines, **options)
