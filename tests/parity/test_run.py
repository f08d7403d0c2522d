"""Several engines and policies in one report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from seqproc import SequenceProcessor
from seqproc.errors import ConfigError, EngineError
from seqproc.parity.run import EngineChoice, ParityReport, run_parity, to_json
from seqproc.policy import SamplingPolicy

POLICIES = [SamplingPolicy(), SamplingPolicy(temperature=0.7, top_p=0.9)]
PROMPTS = ["What is 2 + 3?", "The answer is", "How many clips did she sell?"]


def report(tiny_llama: Any, tiny_tokenizer: Any, **options: Any) -> ParityReport:
    processor = SequenceProcessor(
        tiny_llama(initializer_range=0.5),
        tiny_tokenizer,
        config={"generation": {"max_new_tokens": 8, "gen_batch_size": 30}},
    )
    engines = [EngineChoice(name="hf"), EngineChoice(name="hf", options={"batch_size": 7})]
    with processor:
        return run_parity(processor, engines, PROMPTS, POLICIES, **options)


def test_every_engine_under_every_policy(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    told: list[str] = []
    so_far: list[tuple[int, bool]] = []

    def note(label: str, _: Any, report: ParityReport) -> None:
        told.append(label)
        so_far.append((sum(map(len, report.checks.values())), report.holds))

    found = report(tiny_llama, tiny_tokenizer, num_draws=30, on_check=note)
    assert told == ["hf", "hf", "hf:batch_size=7", "hf:batch_size=7"]
    assert so_far == [(n, False) for n in (1, 2, 3, 4)]
    first, second = found.checks.values()
    assert [one.policy for one in first] == POLICIES
    assert first[0].engine["options"] == {"batch_size": 30}
    assert second[0].engine["options"] == {"batch_size": 7}
    assert [one.num_draws for one in (*first, *second)] == [30] * 4
    assert len(found.comparisons) == 2
    assert found.holds


def test_the_report_is_strict_json(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    found = report(tiny_llama, tiny_tokenizer, num_draws=12)
    text = to_json(found)
    assert json.loads(text, parse_constant=pytest.fail)["checks"]["hf"][0]["num_tokens"] > 0
    assert "What is" not in text


def test_draws_are_dealt_out_evenly_and_not_rounded_up(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    found = report(tiny_llama, tiny_tokenizer, num_draws=10)
    answers = found.checks["hf"][0].answers
    assert [answer.prompt for answer in answers] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_too_few_draws_of_a_prompt_are_refused(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="fewer than two of each"):
        report(tiny_llama, tiny_tokenizer, num_draws=3)


def test_an_engine_that_does_not_start_says_so(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    processor = SequenceProcessor(tiny_llama(), tiny_tokenizer)
    choice = EngineChoice(name="hf", options={"beams": 4})
    with pytest.raises(EngineError, match="no option beams"):
        run_parity(processor, [choice], PROMPTS, POLICIES, num_draws=6)


def test_nothing_to_check_does_not_hold(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    processor = SequenceProcessor(tiny_llama(), tiny_tokenizer)
    hf = EngineChoice(name="hf")
    for engines, policies, words in (
        ([], POLICIES, "no engine to check"),
        ([hf], [], "no policy to sample under"),
        ([hf, EngineChoice(name="hf")], POLICIES, "names an engine twice: hf"),
    ):
        with pytest.raises(ConfigError, match=words):
            run_parity(processor, engines, PROMPTS, policies, num_draws=6)
