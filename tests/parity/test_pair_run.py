"""Runs that compare two engines: under every policy, by layers, and what is refused or kept."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.pair_engines import NUCLEUS, RAW
from seqproc import SequenceProcessor
from seqproc.cli.parity_choices import parse_engines
from seqproc.engines import HFEngine, register_engine
from seqproc.errors import ConfigError, EngineError
from seqproc.parity import Pair
from seqproc.parity.side_by_side.pair_run import SCORER, OtherModel, PairReport, run_pair
from seqproc.policy import SamplingPolicy


class Breaking(HFEngine):
    """It samples the whole vocabulary, and fails with a nucleus."""

    name = "breaking"

    def generate(self, requests: Any, policy: SamplingPolicy, stopping: Any) -> Iterator[Any]:
        if policy.top_p < 1:
            raise EngineError("out of order")
        return super().generate(requests, policy, stopping)


class Coloured(HFEngine):
    """It has an option of its own."""

    name = "coloured"

    @classmethod
    def from_source(cls, source: Any, *, colour: str = "red", **options: Any) -> Any:
        return super().from_source(source, **options)


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


register_engine("breaking", Breaking)
register_engine("coloured", Coloured)
register_engine("layered", Layered)
register_engine("shy", Shy)


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


def test_an_option_of_a_subclass_is_no_stranger(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    report = run(tiny_llama, tiny_tokenizer, "hf", "coloured:colour=blue", policies=[RAW])
    assert report.pairs[0].engines == ("hf", "coloured:colour=blue")


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
