"""Checks that can only be right or wrong, each on answers that are right and on broken ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.synthetic import synthetic
from seqproc.engines import Completion, Request, StoppingRule, finish
from seqproc.parity import Answer, Finding, NominalScores, structure_findings
from seqproc.parity.findings.structure import support

STOPPING = StoppingRule(max_new_tokens=4, eos_token_ids=(0,), stop=("ab",))


@pytest.fixture
def letters(tiny_tokenizer: Any) -> dict[str, int]:
    return {x: tiny_tokenizer.convert_tokens_to_ids(x) for x in "abc"}


def answer(tokenizer: Any, *ids: int, **changes: Any) -> Answer:
    upto, text, reason = finish(ids, tokenizer, STOPPING)
    assert upto == ids
    completion = Completion(
        index=0, token_ids=ids, text=text, finish_reason=reason, prompt_ids=(5, 6)
    )
    return Answer(
        request=Request(index=0, prompt_ids=(5, 6), seed=1),
        prompt=0,
        completion=replace(completion, **changes),
    )


def found(tokenizer: Any, *answers: Answer) -> dict[str, Finding]:
    return {one.name: one for one in structure_findings(answers, tokenizer, STOPPING)}


def test_right_endings(tiny_tokenizer: Any, letters: dict[str, int]) -> None:
    a, b, c = letters["a"], letters["b"], letters["c"]
    answers = [
        answer(tiny_tokenizer, a, b),
        answer(tiny_tokenizer, c, 0),
        answer(tiny_tokenizer, c, c, c, c),
    ]
    endings = found(tiny_tokenizer, *answers)["endings"]
    assert (endings.p_value, endings.statistic) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("ids", "change", "words"),
    [
        ("c0", {"token_ids": "c"}, "said to end by eos, which is not in its tokens"),
        ("ab", {"token_ids": "a"}, "said to end by stop, which is not in its tokens"),
        ("ab", {"token_ids": "abc"}, "goes on after its stop"),
        ("c0", {"token_ids": "c0c"}, "goes on after its eos"),
        ("cccc", {"token_ids": "ccccc"}, "longer than the limit"),
        ("c0", {"finish_reason": "length"}, "said to end by length, but ends by eos"),
        ("c0", {"text": "d"}, "its text is not that of its tokens"),
    ],
)
def test_wrong_endings(
    tiny_tokenizer: Any, letters: dict[str, int], ids: str, change: dict[str, Any], words: str
) -> None:
    codes = {**letters, "0": 0}
    if "token_ids" in change:
        change = {"token_ids": tuple(codes[x] for x in change["token_ids"])}
    wrong = answer(tiny_tokenizer, *(codes[x] for x in ids), **change)
    endings = found(tiny_tokenizer, wrong)["endings"]
    assert (endings.p_value, endings.statistic) == (0.0, 1.0)
    assert words in endings.detail


def test_prompts(tiny_tokenizer: Any, letters: dict[str, int]) -> None:
    right = answer(tiny_tokenizer, letters["c"], 0)
    assert found(tiny_tokenizer, right)["prompts"].p_value == 1.0
    wrong = answer(tiny_tokenizer, letters["c"], 0, prompt_ids=(1, 5, 6))
    prompts = found(tiny_tokenizer, right, wrong)["prompts"]
    assert (prompts.p_value, prompts.statistic) == (0.0, 1.0)
    assert "2 tokens asked, 3 used" in prompts.detail
    silent = answer(tiny_tokenizer, letters["c"], 0, prompt_ids=None)
    assert found(tiny_tokenizer, silent)["prompts"].p_value is None


def nominal(num_tokens: int, reachable: bool) -> NominalScores:
    values = np.full(num_tokens, 0.5)
    flags = np.full(num_tokens, reachable)
    return NominalScores(
        logprobs=values,
        mass_before=values,
        head_mass=values,
        cut_margin=values,
        is_reachable=flags,
        is_settled=~flags,
        engine_logqs=None,
    )


def test_support() -> None:
    draws = synthetic(0)
    assert support(draws, nominal(len(draws.logqs), False)).p_value == 1.0
    outside = replace(draws, logqs=np.where(np.arange(len(draws.logqs)) < 3, -np.inf, -1.0))
    wrong = support(outside, nominal(len(draws.logqs), False))
    assert (wrong.p_value, wrong.statistic) == (0.0, 3.0)
    moved = support(outside, nominal(len(draws.logqs), True))
    assert moved.p_value == 1.0
    assert "3 more within the error" in moved.detail
