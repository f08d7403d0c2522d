"""The generated problems: right, distinct, and the same for ever."""

import hashlib
import re

import pytest

from seqproc.prompts import load_prompts, r1_prompt


def digest(entries):
    lines = "\n".join(f"{entry.question}\t{entry.answer}" for entry in entries)
    return hashlib.sha256(lines.encode()).hexdigest()


def solved_by_reading(question):
    """The answer from the words of the question, which the generator never looks at."""
    first, second = map(int, re.findall(r"\d+", question))
    if "gives away" in question or " - " in question:
        return first - second
    if "each" in question or " * " in question:
        return sum([first] * second)
    assert "more" in question or " + " in question
    return first + second


@pytest.fixture(scope="module")
def splits():
    return {split: load_prompts("arithmetic", split) for split in ("train", "test")}


def test_sizes(splits):
    assert len(splits["train"]) == 4096
    assert len(splits["test"]) == 512


def test_no_question_comes_twice_in_or_across_splits(splits):
    questions = [entry.question for entries in splits.values() for entry in entries]
    assert len(set(questions)) == len(questions) == 4608


def test_golds_are_right_integers(splits):
    for entries in splits.values():
        for entry in entries:
            assert entry.answer == str(solved_by_reading(entry.question))
            assert int(entry.answer) >= 0


def test_the_reading_can_fail():
    assert solved_by_reading("Ada has 9 coins and gives away 2 of them.") != 11


def test_text_is_the_r1_template(splits):
    assert all(entry.text == r1_prompt(entry.question) for entry in splits["test"])


def test_every_operation_is_common(splits):
    for entries in splits.values():
        operations = [entry.meta["operation"] for entry in entries]
        assert all(operations.count(sign) > len(entries) / 6 for sign in "+-*")


def test_the_problems_never_change(splits):
    assert splits["train"][0].question == (
        "Chiara has 25 coins and finds 16 more. How many coins does Chiara have now?"
    )
    assert digest(splits["train"]) == (
        "f074848dd41cb4efe760897fc219fb9f1d3bd3e124c414ac2e8fd39dbdae41c1"
    )
    assert digest(splits["test"]) == (
        "2501c4fdc66d5460c265f8b8fa22552dc917331c59e931181f6c95b471f48b54"
    )
    assert load_prompts("arithmetic", "test") == splits["test"]
