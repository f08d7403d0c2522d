"""Prompts that users bring: files with errors that name the line, and the hub's columns."""

import functools
import json

import pytest

from seqproc.errors import DatasetError
from seqproc.prompts import load_prompts
from seqproc.prompts.files import load_hub
from seqproc.prompts.hub import read_hub_rows


@pytest.fixture
def prompts_file(tmp_path):
    def write(content, name="prompts.jsonl"):
        path = tmp_path / name
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    return write


class TestJsonl:
    def test_reads_every_form_and_skips_blank_lines(self, prompts_file):
        rows = [
            {"prompt": "P: 2+2?", "question": "2+2?", "answer": "4"},
            {"text": "Tell a story."},
            {"question": "What is 7?", "answer": 7, "meta": {"level": 1}, "source": "us"},
            {"prompt": "Line\u2028separator", "answer": None},
        ]
        text = "\n\n  \n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        entries = load_prompts(f"jsonl:{prompts_file(text)}")
        assert [entry.text for entry in entries] == [
            "P: 2+2?",
            "Tell a story.",
            "What is 7?",
            "Line\u2028separator",
        ]
        assert [entry.answer for entry in entries] == ["4", None, "7", None]
        assert entries[0].question == "2+2?"
        assert entries[1].question == "Tell a story."
        assert entries[2].meta == {"level": 1, "source": "us"}

    def test_a_byte_order_mark_is_no_part_of_the_first_line(self, prompts_file):
        path = prompts_file(b'\xef\xbb\xbf{"text": "x"}\n')
        assert load_prompts(f"jsonl:{path}")[0].text == "x"

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ('{"prompt": "x"', "not valid JSON"),
            ("[" * 100_000, "not valid JSON"),
            (b'{"prompt": "\xff"}', "not UTF-8"),
            ('["x"]', "expected a JSON object, got list"),
            ('{"Prompt": "x"}', "'prompt', 'text', 'question', got 'Prompt'"),
            ("{}", "got no keys"),
            ('{"prompt": ["x"]}', "'prompt' must be a string, got list"),
            ('{"prompt": null}', "'prompt' must be a string, got NoneType"),
            ('{"prompt": " "}', "must hold something"),
            (r'{"prompt": "x \ud83d"}', "text holds half of a surrogate pair, .*, as character 2"),
            (r'{"prompt": "x", "answer": "\udc00"}', "answer holds half of a surrogate pair"),
            ('{"prompt": "x", "question": 3}', "question must be a string"),
            ('{"prompt": "x", "answer": true}', "'answer' must be a string, a number or null"),
            ('{"prompt": "x", "answer": ["4"]}', "'answer' must be .* got list"),
            ('{"prompt": "x", "meta": 3}', "'meta' must be an object, got int"),
        ],
    )
    def test_a_broken_line_is_named(self, prompts_file, line, problem):
        line = line if isinstance(line, bytes) else line.encode()
        path = prompts_file(b'{"prompt": "fine"}\n\n' + line + b"\n")
        with pytest.raises(DatasetError, match=rf"prompts\.jsonl, line 3: .*{problem}") as caught:
            load_prompts(f"jsonl:{path}")
        assert not str(caught.value).endswith(".")

    @pytest.mark.parametrize("content", ["", "\n \n"])
    def test_an_empty_file_is_refused(self, prompts_file, content):
        with pytest.raises(DatasetError, match="holds no prompts"):
            load_prompts(f"jsonl:{prompts_file(content)}")

    def test_one_file_is_one_split(self, prompts_file):
        path = prompts_file('{"text": "x"}')
        assert load_prompts(f"jsonl:{path}", "all") == load_prompts(f"jsonl:{path}", "train")
        with pytest.raises(DatasetError, match="no split 'test'"):
            load_prompts(f"jsonl:{path}", "test")

    def test_a_folder_has_a_file_for_each_split(self, prompts_file, tmp_path):
        prompts_file('{"text": "a"}', "train.jsonl")
        prompts_file('{"text": "b"}', "dev.jsonl")
        assert load_prompts(f"jsonl:{tmp_path}", "dev")[0].text == "b"
        assert load_prompts("jsonl", data_dir=tmp_path)[0].text == "a"
        with pytest.raises(DatasetError, match="no split 'test'; it has 'dev', 'train'"):
            load_prompts(f"jsonl:{tmp_path}", "test")

    def test_a_folder_without_files_says_so(self, tmp_path):
        with pytest.raises(DatasetError, match=r"it has no \.jsonl files"):
            load_prompts(f"jsonl:{tmp_path}")

    def test_a_path_must_be_named_once_and_exist(self, tmp_path):
        with pytest.raises(DatasetError, match="jsonl:PATH"):
            load_prompts("jsonl")
        with pytest.raises(DatasetError, match="no file or folder"):
            load_prompts(f"jsonl:{tmp_path / 'missing.jsonl'}")
        with pytest.raises(DatasetError, match="named twice"):
            load_prompts("jsonl:a.jsonl", data_dir=tmp_path)


class TestHub:
    @staticmethod
    def serving(*rows):
        calls = []

        def load(name, config, *, split):
            calls.append((name, config, split))
            return list(rows)

        return load, calls

    def test_finds_the_columns(self):
        load, calls = self.serving(
            {"question": "2+2?", "prompt": "P: 2+2?", "solution": "4", "id": 1},
            {"question": "3+3?", "answer": 6},
        )
        entries = load_hub("test", argument="someone/sums@main", load=load)
        assert calls == [("someone/sums", "main", "test")]
        assert [(e.text, e.question, e.answer) for e in entries] == [
            ("P: 2+2?", "2+2?", "4"),
            ("3+3?", "3+3?", "6"),
        ]

    def test_without_a_configuration(self):
        load, calls = self.serving({"text": "x"})
        assert load_hub("train", argument="sums", load=load)[0].answer is None
        assert calls == [("sums", None, "train")]

    def test_no_fitting_column_names_the_columns(self):
        load, _ = self.serving({"instruction": "x", "label": 3})
        with pytest.raises(DatasetError, match=r"row 0: .*'prompt'.*got 'instruction', 'label'"):
            load_hub("train", argument="sums", load=load)

    @pytest.mark.parametrize("argument", [None, "", "@main", "sums@"])
    def test_a_malformed_name_is_refused(self, argument):
        with pytest.raises(DatasetError, match="hf:NAME@CONFIG"):
            load_hub("train", argument=argument, load=self.serving()[0])

    def test_what_goes_wrong_while_loading_is_passed_on(self):
        def load(name, config, *, split):
            raise ConnectionError("no route")

        with pytest.raises(DatasetError, match=r"'test' of .*'a/b@c'.*ConnectionError: no route"):
            read_hub_rows("a/b", "c", "test", load=load)

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("train.csv", "name the folder that holds it: 'hf:{folder}'"),
            ("train.jsonl", "'jsonl:{folder}/train.jsonl' reads it"),
        ],
    )
    def test_a_file_is_told_what_to_name_instead(self, prompts_file, name, words):
        path, (load, calls) = prompts_file("question\n2+2?\n", name), self.serving()
        with pytest.raises(DatasetError, match="is a local file") as caught:
            load_hub("train", argument=str(path), load=load)
        assert words.format(folder=path.parent) in str(caught.value)
        assert calls == []

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("train.jsonl", '{"question": "2+2?", "answer": "4"}\n'),
            ("train.csv", "question,answer\n2+2?,4\n"),
        ],
    )
    def test_reads_what_the_real_library_loads(self, tmp_path_factory, name, content):
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()
        # `datasets` takes a folder called test… for a test split, so not `tmp_path`.
        folder, cache = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("cache")
        (folder / name).write_text(content)
        load = functools.partial(load_dataset, cache_dir=str(cache))
        (entry,) = load_hub("train", argument=str(folder), load=load)
        assert (entry.text, entry.answer) == ("2+2?", "4")
        with pytest.raises(DatasetError, match=r"'other'.*train"):
            load_hub("other", argument=str(folder), load=load)


def test_a_device_is_no_file_of_prompts():
    with pytest.raises(DatasetError, match="it is a device"):
        load_prompts("jsonl:/dev/zero")
