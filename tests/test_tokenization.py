"""Prompts to token ids: what is taken in, and what is refused before anything runs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from seqproc.errors import PromptError
from seqproc.models.tokenization import encode_prompts, ids_that_write, special_token_ids

PROMPTS = ["What is 2 + 3?", "Natalia sold clips"]


def test_what_gives_prompts_in_order_is_taken_in(tiny_tokenizer: Any) -> None:
    want = [tuple(tiny_tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    forms: list[Any] = [PROMPTS, tuple(PROMPTS), iter(PROMPTS), (p for p in PROMPTS)]
    for form in [*forms, np.array(PROMPTS)]:
        assert encode_prompts(tiny_tokenizer, form) == want


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("What is 2 + 3?", r"got one: put it in a list, \['What is 2 \+ 3\?'\]"),
        (b"bytes", r"got one: put it in a list"),
        (3, r"prompts must be a list of strings, got int"),
        (None, r"got NoneType"),
        ({"a": 1}, r"got dict"),
        ({"a", "b"}, r"got set"),
        ([], r"prompts is empty"),
        (iter([]), r"prompts is empty"),
        (["a", 3], r"prompt 1 must be a string, got int"),
        (["a", ""], r"prompt 1 is empty"),
        (["a", "b \ud83d"], r"prompt 1 holds half of a surrogate pair, '\\ud83d', as character 2"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(
    tiny_tokenizer: Any, prompts: Any, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        encode_prompts(tiny_tokenizer, prompts)


def test_special_tokens_are_those_with_a_role_and_those_added_as_special(
    tiny_tokenizer: Any,
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    assert special_token_ids(tokenizer) == {0, 1}
    tokenizer.add_tokens([AddedToken("<turn>", special=True), AddedToken("<word>", special=False)])
    assert special_token_ids(tokenizer) == {0, 1, tokenizer.convert_tokens_to_ids("<turn>")}


def test_a_tokenizer_that_tells_no_special_tokens_has_none() -> None:
    assert special_token_ids(object()) == set()  # type: ignore[arg-type]


def test_ids_that_write_a_character(tiny_tokenizer: Any) -> None:
    vocabulary = len(tiny_tokenizer)
    found = ids_that_write("n>", tiny_tokenizer, vocabulary)
    assert tiny_tokenizer.convert_tokens_to_ids("n") in found
    texts = [tiny_tokenizer.decode([i]) for i in range(vocabulary)]
    assert found == [i for i, text in enumerate(texts) if "n" in text or ">" in text]
    assert ids_that_write("", tiny_tokenizer, vocabulary) == []
