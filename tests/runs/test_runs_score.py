"""`score_run`: the same rows from a run's folder, and rows from files of JSON lines."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine_stubs import NEVER_STARTS
from seqproc import SequenceProcessor
from seqproc.errors import DatasetError, RunError, RunMismatchError, SequenceError
from seqproc.runs import RunSpec, open_run, sample_run, score_run

CONFIG = {"generation": {"max_new_tokens": 6, "top_p": 0.9}}
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"

MakeProcessor = Callable[..., SequenceProcessor]


@pytest.fixture
def make(tiny_llama: Any, tiny_tokenizer: Any) -> MakeProcessor:
    def make(
        engine: str = NEVER_STARTS, *, seed: int = 0, tokenizer: Any = None, **config: Any
    ) -> Any:
        generation = {**CONFIG["generation"], **config}
        return SequenceProcessor(
            tiny_llama(seed=seed),
            tokenizer or tiny_tokenizer,
            engine=engine,
            config={"generation": generation},
        )

    return make


@pytest.fixture
def sampled(make: MakeProcessor, tmp_path: Path) -> Path:
    spec = RunSpec(dataset="arithmetic", draws=9, seed=2)
    return sample_run(make("hf"), spec, tmp_path / "sampled", chunk_size=9).path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_a_run_scored_again_gives_the_same_rows(
    make: MakeProcessor, sampled: Path, tmp_path: Path
) -> None:
    result = score_run(make(), sampled, tmp_path / "scored", chunk_size=9)
    assert result.open().rows().equals(open_run(sampled).rows())
    manifest = result.manifest
    assert manifest.kind == "score"
    assert manifest.spec["run"]["spec"]["seed"] == 2
    assert manifest.spec["run"]["policy"]["top_p"] == 0.9
    assert (manifest.engine, manifest.stopping) == ({}, {})
    assert result.summary.generation_seconds is None


def test_a_scored_run_can_be_scored(make: MakeProcessor, sampled: Path, tmp_path: Path) -> None:
    score_run(make(), sampled, tmp_path / "once")
    twice = score_run(make(), tmp_path / "once", tmp_path / "twice").open().rows()
    assert twice["response_ids"].equals(open_run(sampled).rows()["response_ids"])


def test_another_policy_and_another_model_give_other_scores(
    make: MakeProcessor, sampled: Path, tmp_path: Path
) -> None:
    before = open_run(sampled).rows()
    whole = score_run(make(top_p=1.0), sampled, tmp_path / "whole").open().rows()
    np.testing.assert_allclose(whole["sequence_logq"], whole["sequence_logprob"], rtol=1e-5)
    narrow = score_run(make(top_p=0.2), sampled, tmp_path / "narrow")
    assert narrow.summary.num_out_of_support > 0
    assert narrow.manifest.policy["top_p"] == 0.2
    other = score_run(make(seed=1), sampled, tmp_path / "other").open().rows()
    assert other["response_ids"].equals(before["response_ids"])
    assert not np.allclose(other["sequence_logprob"], before["sequence_logprob"])


def test_texts_and_ids_of_the_same_tokens_score_the_same(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    prompt, response = "What is 2 + 3?", " Think, then answer: <answer>5</answer>"
    ids = {
        "prompt_ids": tiny_tokenizer(prompt)["input_ids"],
        "response_ids": tiny_tokenizer(response)["input_ids"],
    }
    file = lines(
        tmp_path / "given.jsonl",
        {"prompt": prompt, "response": response, "answer": 5, "note": "left alone"},
        {**ids, "answer": "6"},
        {"prompt": prompt, "response_ids": [], "question": "Q?"},
    )
    result = score_run(make(), file, tmp_path / "run", chunk_size=2)
    text, tokens, empty = result.open().rows().to_pylist()
    assert text["response_text"] == tokens["response_text"] == response
    assert text["prompt_text"] == tokens["prompt_text"] == prompt
    assert text["prompt_ids"] == ids["prompt_ids"]
    assert text["logprobs"] == tokens["logprobs"]
    assert len(text["logprobs"]) == len(ids["response_ids"])
    assert (text["reward"], tokens["reward"], empty["reward"]) == (1.0, 0.5, 0.0)
    assert (text["seed"], text["finish_reason"], text["engine_logqs"]) == (None, None, None)
    assert (empty["gen_len"], empty["question"], empty["answer"]) == (0, "Q?", None)
    assert result.summary.finish_reasons == {"unknown": 3}
    assert result.summary.num_rewarded == 2
    assert result.manifest.spec["format"] == "jsonl"


def test_scores_of_a_file_are_the_processors(make: MakeProcessor, tmp_path: Path) -> None:
    processor = make("hf")
    batch = processor.generate_batched(["What is 2 + 3?", "How many"], G=1, seed=1)
    expected = processor.teacher_force_logprobs(batch)
    file = lines(
        tmp_path / "given.jsonl",
        *(
            {
                "prompt_ids": batch.prompt_ids(b).tolist(),
                "response_ids": batch.response_ids(b, 0).tolist(),
            }
            for b in range(2)
        ),
    )
    rows = score_run(make(), file, tmp_path / "run").open().rows()
    for b in range(2):
        got = rows["logprobs"][b].as_py()
        np.testing.assert_allclose(got, expected.logprobs[b][0], atol=1e-6)


def test_chat_formatting(make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    file = lines(tmp_path / "given.jsonl", {"prompt": "Hello", "response": " you"})
    run = score_run(make(tokenizer=tokenizer), file, tmp_path / "run", chat=True).open()
    row = run.rows().to_pylist()[0]
    assert row["prompt_text"] == "[user] Hello\n[assistant]"
    assert row["prompt_ids"] == tokenizer(row["prompt_text"])["input_ids"]
    assert row["question"] == "Hello"
    ids = lines(tmp_path / "ids.jsonl", {"prompt_ids": [5], "response": " you"})
    with pytest.raises(DatasetError, match="line 1: chat formatting needs the prompt's text"):
        score_run(make(tokenizer=tokenizer), ids, tmp_path / "other", chat=True)
    with pytest.raises(RunError, match="leave chat off"):
        score_run(make(tokenizer=tokenizer), tmp_path / "run", tmp_path / "other", chat=True)


GOOD = {"prompt": "Hello", "response": " you"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "x"}, "expected the prompt as a string .* found neither"),
        ({"prompt": "x"}, "expected the response .* 'response_ids'; found neither"),
        ({"prompt": ["x"], "response": "x"}, "expected the prompt .* got list"),
        ({"prompt": " \n", "response": "x"}, "the prompt is blank"),
        ({"prompt_ids": [], "response": "x"}, "'prompt_ids' is empty"),
        ({"prompt_ids": "12", "response": "x"}, "'prompt_ids' must be a list of integers"),
        ({"prompt": "x", "response_ids": [1, True]}, "'response_ids' must be a list of integers"),
        ({"prompt": "x", "response_ids": [1.0]}, "'response_ids' must be a list of integers"),
        ({"prompt": "x", "response_ids": [-1]}, "token ids go from -1 to"),
        ({"prompt": "x", "response_ids": [10**30]}, "were they made with another tokenizer"),
        ({"prompt": "x", "response_ids": [9] * 600}, "more than the model's context of 512"),
        ({"prompt": "x", "response": "y", "answer": ["z"]}, "answer must be"),
        ({"prompt": "x", "response": "y", "question": 3}, "question must be"),
        (["x", "y"], "expected a JSON object, got list"),
    ],
)
def test_a_broken_line_is_refused_by_its_number_and_leaves_nothing(
    make: MakeProcessor, tmp_path: Path, row: Any, message: str
) -> None:
    file = lines(tmp_path / "given.jsonl", GOOD, GOOD, row)
    with pytest.raises(DatasetError, match=f"line 3: .*{message}"):
        score_run(make(), file, tmp_path / "run", chunk_size=1)
    assert not (tmp_path / "run").exists()


def test_a_line_that_is_no_json_is_refused_by_its_number(
    make: MakeProcessor, tmp_path: Path
) -> None:
    file = lines(tmp_path / "given.jsonl", GOOD)
    with file.open("a") as out:
        out.write('\n{"prompt": \n')
    with pytest.raises(DatasetError, match="line 3: not valid JSON"):
        score_run(make(), file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_to_score(make: MakeProcessor, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run folder or file"):
        score_run(make(), tmp_path / "nothing", tmp_path / "run")
    with pytest.raises(RunError, match="there is nothing to score in"):
        score_run(make(), lines(tmp_path / "empty.jsonl"), tmp_path / "run")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="there is no run in"):
        score_run(make(), tmp_path / "folder", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_tokenizer_is_refused(
    make: MakeProcessor, sampled: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    other = shutil.copytree(sampled, tmp_path / "other")
    with pytest.raises(RunMismatchError, match='kind: the folder has "sample", asked for was "sc'):
        score_run(make(), sampled, other)
    shuffled = _shuffled(tiny_tokenizer)
    with pytest.raises(RunError, match="the run was made with another tokenizer"):
        score_run(make(tokenizer=shuffled), sampled, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _shuffled(tokenizer: Any) -> Any:
    """The tokenizer with its ids in another order, but for the two special ones."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    count = len(vocabulary)
    state["model"]["vocab"] = {
        token: number if number < 2 else 2 + (number + 50) % (count - 2)
        for token, number in vocabulary.items()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def test_ids_beyond_the_vocabulary_are_refused(make: MakeProcessor, sampled: Path) -> None:
    from seqproc.runs.sources import RunSource

    class SmallModel:
        """Reads ids as the run did, but has fewer of them."""

        vocab_size, max_context, name = 10**9, 5, "small"
        tokenizer = make().tokenizer

    with pytest.raises(SequenceError, match=r"draw 0 of .* more than the model's context of 5"):
        RunSource(open_run(sampled), SmallModel()).check()  # type: ignore[arg-type]
