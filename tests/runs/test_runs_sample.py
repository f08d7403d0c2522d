"""`sample_run`: rows are the processor's results; what fails leaves what was done, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine_stubs import NEVER_STARTS
from seqproc import SequenceProcessor, load_prompts
from seqproc.engines import Engine, Request, ScriptedEngine
from seqproc.errors import ConfigError, DatasetError, EngineError, PromptError, RunError
from seqproc.runs import RunSpec, open_run, sample_run

CONFIG = {"generation": {"max_new_tokens": 6, "top_p": 0.9, "tf_batch_size": 4}}
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"

MakeProcessor = Callable[..., SequenceProcessor]


@pytest.fixture
def make(tiny_llama: Any, tiny_tokenizer: Any) -> MakeProcessor:
    model = tiny_llama()

    def make(engine: str | Engine = "hf", config: Any = CONFIG, **options: Any) -> Any:
        tokenizer = options.pop("tokenizer", tiny_tokenizer)
        return SequenceProcessor(model, tokenizer, config=config, engine=engine, **options)

    return make


def spec(draws: int = 10, **fields: Any) -> RunSpec:
    return RunSpec(**{"dataset": "arithmetic", "draws": draws, "seed": 5, **fields})


def scripted(tokenizer: Any, **options: Any) -> ScriptedEngine:
    """Responses of one to four tokens and an EOS, different for every seed."""

    def script(request: Request) -> list[int]:
        rng = np.random.default_rng(request.seed)
        words = rng.integers(2, 250, size=rng.integers(1, 5)).tolist()
        return [*words, tokenizer.eos_token_id]

    return ScriptedEngine(script, tokenizer, **options)


def test_rows_are_what_the_processor_gives_directly(make: MakeProcessor, tmp_path: Path) -> None:
    processor = make()
    result = sample_run(processor, spec(7), tmp_path / "run", chunk_size=7)
    got = result.open().rows().to_pylist()
    sequences, results, diagnostics = processor.generate_with_replacement_sampling(
        7, "arithmetic", seed=5, compute_rb=True
    )
    pool = load_prompts("arithmetic")
    for i, row in enumerate(got):
        entry = pool[row["prompt_index"]]
        assert row["draw"] == i
        assert sequences.seeds is not None
        assert row["seed"] == sequences.seeds[i][0]
        assert (row["prompt_text"], row["question"], row["answer"]) == (
            entry.text,
            entry.question,
            entry.answer,
        )
        assert row["prompt_ids"] == processor.tokenizer(entry.text)["input_ids"]
        assert row["response_ids"] == sequences.response_ids(i, 0).tolist()
        assert row["response_text"] == sequences.responses_text[i][0]
        assert sequences.finish_reasons is not None
        assert row["finish_reason"] == sequences.finish_reasons[i][0]
        assert row["logprobs"] == results.logprobs[i][0].double().tolist()
        assert results.token_logqs is not None
        assert row["logqs"] == results.token_logqs[i][0].double().tolist()
        assert row["rb_entropies"] == results.rb_entropies[i][0].astype(float).tolist()
        assert results.head_mass is not None
        assert row["head_mass"] == results.head_mass[i][0].astype(float).tolist()
        assert results.engine_logqs is not None
        assert (engine_logqs := results.engine_logqs[i][0]) is not None
        assert row["engine_logqs"] == engine_logqs.tolist()
        assert row["sequence_logprob"] == results.sequence_logprobs[i][0]
        assert row["reward"] == results.rewards[i][0]
        aggregates = diagnostics.diagnostics[i][0].seq
        assert row["gen_len"] == aggregates.T == len(row["response_ids"])
        for name in ("rb_entropy_sum", "late_rb_entropy_mean", "eos_prob_mean", "margin_sum"):
            assert row[name] == getattr(aggregates, name)


def test_the_manifest_says_what_the_rows_depend_on(make: MakeProcessor, tmp_path: Path) -> None:
    processor = make()
    result = sample_run(processor, spec(5, split="test"), tmp_path / "run", chunk_size=2)
    manifest = open_run(tmp_path / "run").manifest
    assert manifest.kind == "sample"
    assert manifest.spec["split"] == "test"
    assert manifest.spec["model"] == manifest.model["name"] == processor.source.name
    assert manifest.policy == {"temperature": 1.0, "top_p": 0.9, "do_sample": True}
    assert manifest.stopping["stop"] == ["</answer>"]
    assert manifest.precision["tf_nograd"]["dtype"] == "float32"
    assert manifest.engine["name"] == "hf"
    assert {"python", "torch", "transformers"} <= set(manifest.versions)
    assert (manifest.num_draws, manifest.num_draws_done, manifest.state) == (5, 5, "complete")
    assert manifest.summary is not None
    assert manifest.summary["num_draws"] == result.summary.num_draws == 5
    assert manifest.summary["num_rewarded"] == 5
    assert result.summary.generation_seconds is not None


def test_a_draw_does_not_depend_on_chunks_batches_or_how_many_there_are(
    make: MakeProcessor, tmp_path: Path
) -> None:
    forty = sample_run(make(), spec(40), tmp_path / "forty", chunk_size=16).open().rows()
    twenty = sample_run(make(), spec(20), tmp_path / "twenty", chunk_size=7).open().rows()
    small = copy.deepcopy(CONFIG)
    small["generation"]["gen_batch_size"] = 3
    again = sample_run(make(config=small), spec(40), tmp_path / "again").open().rows()
    identity = ["draw", "prompt_index", "seed", "prompt_ids", "response_ids", "response_text"]
    assert twenty.select(identity).equals(forty.select(identity).slice(0, 20))
    assert again.select(identity).equals(forty.select(identity))
    for one, other in zip(again["logprobs"], forty["logprobs"], strict=True):
        np.testing.assert_allclose(one.as_py(), other.as_py(), atol=1e-5)
    other_seed = sample_run(make(), spec(20, seed=6), tmp_path / "other").open().rows()
    assert other_seed["response_ids"] != twenty["response_ids"]


def test_each_prompt_is_tokenised_once_and_draws_keep_their_numbers(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    engine = scripted(tiny_tokenizer, order=lambda window: list(reversed(window)))
    result = sample_run(make(engine), spec(9, max_prompts_pool=2), tmp_path / "run", chunk_size=4)
    requests = [request for call in engine.calls for request in call.requests]
    assert [request.index for request in requests] == list(range(9))
    assert len(engine.calls) == 1  # the engine is never drained in between
    assert len({request.prompt_ids for request in requests}) == 2
    assert engine.events == ["wake", "sleep"]
    rows = result.open().rows()
    assert rows["engine_logqs"].null_count == 9
    assert set(rows["finish_reason"].to_pylist()) == {"eos"}
    assert rows["response_ids"].to_pylist() == [
        list(engine._lines_of(request)) for request in requests
    ]


def test_tokens_outside_the_support_are_kept_as_they_are(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    greedy = {"generation": {"max_new_tokens": 6, "do_sample": False}}
    processor = make(scripted(tiny_tokenizer), config=greedy)
    result = sample_run(processor, spec(4), tmp_path / "run")
    rows = result.open().rows().to_pylist()
    assert result.summary.num_out_of_support == sum(row["out_of_support"] for row in rows) > 0
    for row in rows:
        assert row["logqs"].count(float("-inf")) == row["out_of_support"]
        assert row["sequence_logq"] == (float("-inf") if row["out_of_support"] else 0.0)


def test_chat_formatting_is_what_the_model_reads(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    processor = make(scripted(tokenizer), tokenizer=tokenizer)
    row = sample_run(processor, spec(1, chat=True), tmp_path / "run").open().rows().to_pylist()[0]
    entry = load_prompts("arithmetic")[row["prompt_index"]]
    assert row["prompt_text"] == f"[user] {entry.text}\n[assistant]"
    assert row["prompt_ids"] == tokenizer(row["prompt_text"])["input_ids"]
    assert row["question"] == entry.question


def test_prompts_without_answers_earn_nothing_and_do_not_count(
    make: MakeProcessor,
    tiny_tokenizer: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one two"}\n{"prompt": "three"}\n')
    processor = make(scripted(tiny_tokenizer))
    result = sample_run(processor, spec(4, dataset=f"jsonl:{file}"), tmp_path / "run")
    assert result.open().rows()["answer"].null_count == 4
    assert result.summary.reward.mean is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"dataset": "arithmetik"}, DatasetError, "did you mean 'arithmetic'"),
        ({"split": "validation"}, DatasetError, "no split 'validation'"),
        ({"max_prompts_pool": 10**6}, DatasetError, "the pool holds 4096"),
        ({"data_dir": "somewhere"}, DatasetError, "not read from a folder"),
        ({"chat": True}, PromptError, "no chat template"),
        ({"model": "another"}, ConfigError, "names the model 'another'"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    make: MakeProcessor,
    tmp_path: Path,
    fields: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    processor = make(NEVER_STARTS)  # which would be the error, were it asked for
    with pytest.raises(error, match=message):
        sample_run(processor, spec(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_too_long_is_refused_before_anything_starts(
    make: MakeProcessor, tmp_path: Path
) -> None:
    processor = make(NEVER_STARTS, config={"generation": {"max_new_tokens": 400}})
    with pytest.raises(PromptError, match=r"drawn from 'arithmetic' .* exceeds the context of 512"):
        sample_run(processor, spec(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_engine_that_does_not_start_leaves_nothing(make: MakeProcessor, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine 'hff'"):
        sample_run(make("hff"), spec(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_refused_first(make: MakeProcessor, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(RunError, match="is not empty"):
        sample_run(make(NEVER_STARTS), spec(dataset="nor this"), tmp_path)
    with pytest.raises(ConfigError, match="chunk_size must be an integer >= 1"):
        sample_run(make(NEVER_STARTS), spec(), tmp_path / "run", chunk_size=0)


def test_rewards_are_recorded_with_the_run(make: MakeProcessor, tmp_path: Path) -> None:
    sample_run(make(), spec(2), tmp_path / "own")
    assert open_run(tmp_path / "own").manifest.reward == {
        "name": "tag_pref",
        "tag": 0.5,
        "answer": 0.5,
    }
    processor = make(reward=lambda texts, entry: [7.0] * len(texts))
    result = sample_run(processor, spec(2), tmp_path / "other")
    assert result.open().rows().column("reward").to_pylist() == [7.0, 7.0]
    assert "lambda" in result.manifest.reward["name"]
