"""GSM8K from a folder that the user names; the real one only where its variable is set."""

import json
import os

import pytest

from seqproc.errors import DatasetError
from seqproc.prompts import load_prompts, r1_prompt
from seqproc.prompts.gsm8k import FOLDER_VARIABLE, gold_answer

REAL_FOLDER = os.environ.get(FOLDER_VARIABLE)

ROWS = {
    "train": [
        {"question": "How many {eggs}?", "answer": "16 - 7 = <<16-7=9>>9.\n#### 9"},
        {"question": "How much?", "answer": "It is $1,234.\n#### 1,234 "},
        {"question": "Why?", "answer": "Nobody marked it."},
    ],
    "test": [{"question": "And?", "answer": "#### -5"}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    for split, rows in ROWS.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def test_the_folder_comes_from_the_spec_data_dir_or_the_variable(folder, monkeypatch):
    by_spec = load_prompts(f"gsm8k:{folder}")
    by_data_dir = load_prompts("gsm8k", data_dir=folder)
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    by_variable = load_prompts("gsm8k")
    assert by_spec == by_data_dir == by_variable
    assert [entry.answer for entry in by_spec] == ["9", "1234", None]
    assert by_spec != load_prompts("gsm8k", "test")


def test_what_is_named_goes_before_the_variable(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    assert len(load_prompts(f"gsm8k:{folder}")) == 3


def test_the_two_datasets_differ_in_the_text_alone(folder):
    plain = load_prompts("gsm8k", data_dir=folder)
    templated = load_prompts("gsm8k_r1_template", data_dir=folder)
    assert plain[0].text == "Question: How many {eggs}?\nAnswer:"
    assert templated[0].text == r1_prompt("How many {eggs}?")
    assert [(e.question, e.answer) for e in plain] == [(e.question, e.answer) for e in templated]


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("… #### 72", "72"),
        ("####1,234,567", "1234567"),
        ("#### 1\n#### 2\n", "2"),
        ("no mark", None),
        ("#### ", None),
        ("", None),
    ],
)
def test_gold_answer(solution, gold):
    assert gold_answer(solution) == gold


def test_a_missing_file_says_how_to_give_a_folder(tmp_path):
    with pytest.raises(DatasetError, match=r"no file .*train\.jsonl.*gsm8k:DIR"):
        load_prompts("gsm8k", data_dir=tmp_path)


def test_two_folders_are_one_too_many(folder):
    with pytest.raises(DatasetError, match="named twice"):
        load_prompts(f"gsm8k:{folder}", data_dir=folder)


def test_an_empty_folder_name_is_refused():
    with pytest.raises(DatasetError, match="empty string"):
        load_prompts("gsm8k:")


def test_a_row_without_the_keys_names_file_and_line(folder):
    with (folder / "test.jsonl").open("a") as file:
        file.write('{"prompt": "x"}\n')
    with pytest.raises(DatasetError, match=r"test\.jsonl, line 2: .*'question'.*got.*'prompt'"):
        load_prompts("gsm8k", "test", data_dir=folder)


@pytest.mark.skipif(not REAL_FOLDER, reason=f"{FOLDER_VARIABLE} names no folder")
@pytest.mark.parametrize(("split", "size"), [("train", 7473), ("test", 1319)])
def test_the_real_gsm8k(split, size):
    entries = load_prompts("gsm8k_r1_template", split, data_dir=REAL_FOLDER)
    assert len(entries) == size
    assert all(entry.answer and float(entry.answer) is not None for entry in entries)
