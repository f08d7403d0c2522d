"""The R1 template says what the reward looks for."""

import pytest

from seqproc.errors import PromptError
from seqproc.prompts import R1_TEMPLATE, r1_prompt
from seqproc.prompts.templates import plain_prompt


def test_r1_asks_for_both_blocks_and_opens_the_first():
    text = r1_prompt("What is 2 + 3?")
    assert "What is 2 + 3?" in text
    for tag in ("<think>", "</think>", "<answer>", "</answer>"):
        assert tag in text
    assert text.endswith("<think>")
    assert R1_TEMPLATE.count("{question}") == 1


def test_braces_in_a_question_are_left_alone():
    question = r"Simplify \frac{a}{b} for {question} in {0}."
    assert question in r1_prompt(question)
    assert question in plain_prompt(question)


def test_plain_ends_where_the_answer_begins():
    assert plain_prompt(" How many? ") == "Question: How many?\nAnswer:"


@pytest.mark.parametrize("template", [r1_prompt, plain_prompt])
def test_a_question_is_a_string(template):
    with pytest.raises(PromptError, match="question must be a string, got NoneType"):
        template(None)
