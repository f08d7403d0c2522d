"""Datasets by name: registration, lookup, and what the errors teach."""

import pickle
from pathlib import Path

import pytest

from seqproc.errors import DatasetError, PromptError
from seqproc.prompts import (
    PromptEntry,
    dataset_names,
    describe_datasets,
    load_prompts,
    register_dataset,
    registry,
)


@pytest.fixture(autouse=True)
def registry_restored():
    before = dict(registry._DATASETS)
    yield
    registry._DATASETS.clear()
    registry._DATASETS.update(before)


def entry(text="2 + 2 =", **fields):
    return PromptEntry(text=text, question=text, **fields)


def test_builtin_datasets_are_there():
    assert {"arithmetic", "gsm8k", "gsm8k_r1_template", "hf", "jsonl"} <= set(dataset_names())


def test_descriptions_cover_every_name():
    described = describe_datasets()
    assert [info.name for info in described] == dataset_names()
    assert all(info.description for info in described)
    by_name = {info.name: info for info in described}
    assert by_name["arithmetic"].splits == ("train", "test")
    assert by_name["jsonl"].splits == ()


def test_register_as_decorator_gives_the_loader_back():
    @register_dataset("mine", description="Mine.", splits=("train",))
    def loader(split):
        return [entry(meta={"split": split})]

    assert load_prompts("mine") == [entry(meta={"split": "train"})]
    assert loader("x")[0].meta == {"split": "x"}


def test_register_by_a_call():
    register_dataset("mine", lambda split: [entry()], description="Mine.", splits=("train",))
    assert load_prompts("mine") == [entry()]


@pytest.mark.parametrize("value", [None, 3, [], {}])
def test_names_are_strings(value):
    with pytest.raises(DatasetError, match=r"a dataset is named by a string, got .* Known: 'arith"):
        load_prompts(value)
    with pytest.raises(DatasetError, match="a split is named by a string, got"):
        load_prompts("arithmetic", value)
    with pytest.raises(DatasetError, match="a dataset's name is"):
        register_dataset(value, description="", splits=())
    if value is not None:
        with pytest.raises(DatasetError, match="data_dir must be a path, got"):
            load_prompts("jsonl", data_dir=value)


def test_a_taken_name_needs_replace():
    register_dataset("mine", lambda split: [entry("a")], description="1", splits=("train",))
    with pytest.raises(DatasetError, match="replace=True"):
        register_dataset("mine", lambda split: [entry("b")], description="2", splits=("train",))
    assert load_prompts("mine")[0].text == "a"
    register_dataset(
        "mine", lambda split: [entry("b")], description="3", splits=("train",), replace=True
    )
    assert load_prompts("mine")[0].text == "b"


@pytest.mark.parametrize("name", ["", "with:colon", "with space", "-dash"])
def test_malformed_names_are_refused(name):
    with pytest.raises(DatasetError, match="name is letters"):
        register_dataset(name, lambda split: [entry()], description="", splits=())


def test_splits_given_as_one_string_are_refused():
    with pytest.raises(DatasetError, match="sequence of names"):
        register_dataset("mine", lambda split: [entry()], description="", splits="train")


def test_unknown_dataset_lists_the_known_and_a_close_one():
    with pytest.raises(DatasetError) as caught:
        load_prompts("gsm8")
    message = str(caught.value)
    assert "did you mean 'gsm8k'?" in message
    assert all(repr(name) in message for name in dataset_names())
    assert not message.endswith(".")


def test_unknown_dataset_with_nothing_close_gives_no_hint():
    with pytest.raises(DatasetError) as caught:
        load_prompts("zzzzzzzz")
    assert "did you mean" not in str(caught.value)


def test_unknown_split_lists_the_splits():
    with pytest.raises(DatasetError, match=r"no split 'dev'; it has 'train', 'test'"):
        load_prompts("arithmetic", "dev")


def test_argument_and_data_dir_reach_a_loader_that_takes_them(tmp_path):
    seen = []

    @register_dataset("mine", description="", splits=())
    def loader(split, *, argument=None, data_dir=None):
        seen.append((split, argument, data_dir))
        return [entry()]

    load_prompts("mine")
    load_prompts("mine:a:b", "dev")
    load_prompts("mine", data_dir=tmp_path)
    assert seen == [("train", None, None), ("dev", "a:b", None), ("train", None, str(tmp_path))]


def test_options_that_a_loader_does_not_take_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="takes nothing after its name"):
        load_prompts("arithmetic:hard")
    with pytest.raises(DatasetError, match="leave data_dir out"):
        load_prompts("arithmetic", data_dir=tmp_path)


def test_options_that_a_loader_needs_are_asked_for():
    register_dataset("mine", lambda split, argument: [entry()], description="", splits=())
    with pytest.raises(DatasetError, match="needs something after its name: 'mine:ARGUMENT'"):
        load_prompts("mine")
    assert load_prompts("mine:x") == [entry()]
    register_dataset("far", lambda split, *, data_dir: [entry()], description="", splits=())
    with pytest.raises(DatasetError, match="'far' is read from a folder: name it by data_dir"):
        load_prompts("far")


def test_what_a_loader_raises_names_the_dataset():
    def missing(split):
        return Path("/no/such/file").open()

    def broken(split):  # only while its entries are read
        yield entry()
        raise KeyError("question")

    def refusing(split):
        raise PromptError("of seqproc's own")

    for name, loader in [("missing", missing), ("broken", broken), ("refusing", refusing)]:
        register_dataset(name, loader, description="", splits=())
    with pytest.raises(
        DatasetError, match="loader of dataset 'missing' failed at split 'train': FileNotFoundError"
    ) as caught:
        load_prompts("missing")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(DatasetError, match="'broken' failed at split 'dev': KeyError: 'question'"):
        load_prompts("broken", "dev")
    with pytest.raises(PromptError, match="of seqproc's own"):
        load_prompts("refusing")


def test_a_loader_with_keyword_arguments_takes_every_option():
    register_dataset(
        "mine", lambda split, **options: [entry(meta=options)], description="", splits=()
    )
    assert load_prompts("mine:x")[0].meta == {"argument": "x"}


def test_loaders_must_return_entries():
    def strings(split):
        return ["2 + 2"]

    register_dataset("none", lambda split: [], description="", splits=())
    register_dataset("strings", strings, description="", splits=())
    with pytest.raises(DatasetError, match="holds no prompts"):
        load_prompts("none")
    with pytest.raises(DatasetError, match="must return PromptEntry objects, got 'str'"):
        load_prompts("strings")


class TestPromptEntry:
    @pytest.mark.parametrize("text", ["", "  \n"])
    def test_blank_text_is_refused(self, text):
        with pytest.raises(PromptError, match="must hold something"):
            PromptEntry(text=text, question="q")

    @pytest.mark.parametrize(
        "wrong", [{"text": 3}, {"question": None}, {"answer": 4}, {"meta": [1]}]
    )
    def test_wrong_types_are_refused(self, wrong):
        fields = {"text": "t", "question": "q"} | wrong
        with pytest.raises(PromptError, match=f"PromptEntry.{next(iter(wrong))} must be"):
            PromptEntry(**fields)

    def test_is_frozen_keyword_only_and_without_other_fields(self):
        with pytest.raises(AttributeError):
            entry().text = "other"
        with pytest.raises(TypeError):
            PromptEntry("t", "q")  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            PromptEntry(text="t", question="q", gold="4")  # type: ignore[call-arg]

    def test_compares_hashes_and_pickles_by_value(self):
        first, same, other = entry(answer="4"), entry(answer="4"), entry(answer="5")
        assert first == same
        assert first != other
        assert len({first, same, other}) == 2
        assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize("returned", [None, 3, "abc"])
def test_a_loader_that_returns_no_list_is_refused_by_name(returned):
    register_dataset("odd", lambda split: returned, description="", splits=(), replace=True)
    with pytest.raises(DatasetError, match=f"'odd' must return .*got {type(returned).__name__}"):
        load_prompts("odd")
