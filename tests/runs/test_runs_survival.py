"""Whatever stops a run, the same call goes on, and ends with the rows of one that nothing stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers import kill_harness, kill_vllm
from helpers.stores import BUCKET, s3_server
from seqproc import SequenceProcessor
from seqproc.engines import Completion, Engine, Request, ScriptedEngine
from seqproc.errors import (
    EngineError,
    EngineMemoryError,
    PromptError,
    RunError,
    RunMismatchError,
    ScoringError,
    Terminated,
)
from seqproc.runs import RunSpec, merging, open_run, sample_run, scoring, verify_run
from seqproc.runs.asking import MOST_GIVEN_UP
from seqproc.runs.format.events import Events
from seqproc.runs.format.manifest import to_json
from seqproc.runs.store.folder import open_folder
from seqproc.runs.store.local import LocalFolder
from seqproc.runs.store.lock import RunLock

CONFIG = {"generation": {"max_new_tokens": 6, "top_p": 0.9, "tf_batch_size": 4}}
DRAWS = 20

MakeProcessor = Callable[..., SequenceProcessor]


@pytest.fixture
def make(tiny_llama: Any, tiny_tokenizer: Any) -> MakeProcessor:
    model = tiny_llama()

    def make(engine: str | Engine = "hf", config: Any = CONFIG) -> SequenceProcessor:
        return SequenceProcessor(model, tiny_tokenizer, config=config, engine=engine)

    return make


def spec(**fields: Any) -> RunSpec:
    return RunSpec(**{"dataset": "arithmetic", "draws": DRAWS, "seed": 5, **fields})


class Faulty(ScriptedEngine):
    """Responses of one to four tokens, a function of the seed; may raise before some draws."""

    def __init__(self, tokenizer: Any, raises: Callable[[Faulty, Request], None] | None = None):
        super().__init__(lambda request: words(tokenizer, request), tokenizer)
        self.raises = raises
        self.num_asked = 0
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def _complete(self, request: Request, stopping: Any) -> Completion:
        self.num_asked += 1
        if self.raises is not None:
            self.raises(self, request)
        return super()._complete(request, stopping)


def words(tokenizer: Any, request: Request) -> list[int]:
    rng = np.random.default_rng(request.seed)
    drawn: list[int] = rng.integers(2, 250, size=rng.integers(1, 5)).tolist()
    return [*drawn, tokenizer.eos_token_id]


@pytest.fixture
def whole(make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path) -> pa.Table:
    """The rows of the run that nothing stops."""
    return sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "whole").open().rows()


def once(error: BaseException, index: int) -> Callable[[Faulty, Request], None]:
    """Raises the first time that a draw is asked for."""
    raised: list[int] = []

    def raises(_: Faulty, request: Request) -> None:
        if request.index == index and not raised:
            raised.append(1)
            raise error

    return raises


def always(*indices: int) -> Callable[[Faulty, Request], None]:
    def raises(_: Faulty, request: Request) -> None:
        if request.index in indices:
            raise EngineError(f"cannot make draw {request.index}")

    return raises


# ---------------------------------------------------------------------- stopped, and on again


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated("SIGTERM")])
def test_what_was_finished_when_it_was_interrupted_is_kept(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table, error: BaseException
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(type(error)) as caught:
        sample_run(make(Faulty(tiny_tokenizer, once(error, 10))), spec(), folder, chunk_size=4)
    assert "10 of 20 draws are kept" in caught.value.__notes__[0]
    assert "the same command goes on from there" in caught.value.__notes__[0]
    manifest = open_run(folder).manifest
    assert (manifest.state, manifest.error) == ("interrupted", None)
    engine = Faulty(tiny_tokenizer)
    result = sample_run(make(engine), spec(), folder, chunk_size=4)
    assert engine.num_asked == 10  # two more than 8 were finished, and not yet scored
    assert result.open().rows().equals(whole)
    assert result.manifest.state == "complete"
    assert result.summary.num_draws == DRAWS


def test_a_complete_run_is_not_made_again(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    first = sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run")
    engine = Faulty(tiny_tokenizer)
    again = sample_run(make(engine), spec(), tmp_path / "run")
    assert engine.num_asked == 0
    assert again.summary.num_draws == first.summary.num_draws == DRAWS
    assert to_json(again.manifest) == to_json(first.manifest)


@pytest.mark.parametrize("table", ["samples", "scores/policy"])
def test_a_file_of_a_complete_run_that_was_damaged_is_made_again(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table, table: str
) -> None:
    folder = tmp_path / "run"
    sample_run(make(Faulty(tiny_tokenizer)), spec(), folder)
    (file,) = (folder / table).glob("*.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:100] + b"x" + content[101:])
    engine = Faulty(tiny_tokenizer)
    assert sample_run(make(engine), spec(), folder).open().rows().equals(whole)
    assert engine.num_asked == (DRAWS if table == "samples" else 0)
    assert len(list(folder.glob(f"{table}/*.parquet"))) == 1


def test_parts_that_a_merge_did_not_come_to_remove_are_removed(
    make: MakeProcessor,
    tiny_tokenizer: Any,
    tmp_path: Path,
    whole: pa.Table,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: Any,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(merging, "drop_merged", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run", chunk_size=4)
    assert len(list((tmp_path / "run/parts").rglob("*.parquet"))) == 10
    assert open_run(tmp_path / "run").rows().equals(whole)  # no row counts twice
    (tmp_path / "run/samples/.rows-1-00000.json.0123456789ab.tmp").touch()
    engine = Faulty(tiny_tokenizer)
    assert sample_run(make(engine), spec(), tmp_path / "run").open().rows().equals(whole)
    assert engine.num_asked == 0
    assert not list((tmp_path / "run/parts").rglob("*.parquet"))
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert "set aside" not in caplog.text


@pytest.mark.parametrize("removed", [0, 1, 10, 17, 19])
def test_a_merge_that_is_stopped_at_any_file_it_removes_leaves_none(
    make: MakeProcessor,
    tiny_tokenizer: Any,
    tmp_path: Path,
    whole: pa.Table,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: Any,
    removed: int,
) -> None:
    """Also the last one: then every draw is done, and only the file is left to be removed."""
    left = [removed]

    def remove(folder: LocalFolder, name: str) -> None:
        if name.startswith("parts/"):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        real(folder, name)

    real = LocalFolder.remove
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            sample_run(make(Faulty(tiny_tokenizer)), spec(), folder, chunk_size=4)
    engine = Faulty(tiny_tokenizer)
    assert sample_run(make(engine), spec(), folder).open().rows().equals(whole)
    assert engine.num_asked == 0
    assert not verify_run(folder)
    assert "set aside" not in caplog.text


def test_samples_without_scores_are_scored_and_not_sampled_again(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table, monkeypatch: Any
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(scoring.ScoringStage, "add", lambda *_: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):  # noqa: PT011 - any
            sample_run(make(Faulty(tiny_tokenizer)), spec(), folder, chunk_size=DRAWS)
    assert open_run(folder).num_rows == 0
    engine = Faulty(tiny_tokenizer)
    assert sample_run(make(engine), spec(), folder).open().rows().equals(whole)
    assert engine.num_asked == 0


@pytest.mark.parametrize("when", ["now", "later", "overlap"])
def test_when_draws_are_scored_changes_no_row(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table, when: Any
) -> None:
    found = sample_run(
        make(Faulty(tiny_tokenizer)), spec(), tmp_path / when, chunk_size=3, score=when
    )
    assert found.open().rows().equals(whole)


def test_a_run_of_another_policy_or_model_is_refused_by_name(
    make: MakeProcessor, tiny_tokenizer: Any, tiny_llama: Any, tmp_path: Path
) -> None:
    sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run")
    other = {"generation": {**CONFIG["generation"], "top_p": 0.8}}
    with pytest.raises(RunMismatchError, match="holds another run") as caught:
        sample_run(make("hf", config=other), spec(seed=6), tmp_path / "run")
    assert {line.split(":")[0] for line in caught.value.differences} >= {
        "spec.seed",
        "policy.top_p",
    }
    sample_run(make("hf"), spec(), tmp_path / "hf")
    moved = tiny_llama(seed=1)
    with pytest.raises(RunMismatchError, match=r"engine\.weights"):
        sample_run(SequenceProcessor(moved, tiny_tokenizer, config=CONFIG), spec(), tmp_path / "hf")


def test_a_fresh_start_keeps_the_old_rows_aside(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table
) -> None:
    folder = tmp_path / "run"
    sample_run(make(Faulty(tiny_tokenizer)), spec(seed=6), folder)
    result = sample_run(make(Faulty(tiny_tokenizer)), spec(), folder, fresh=True)
    assert result.open().rows().equals(whole)
    (aside,) = (folder / "set-aside").iterdir()
    assert open_run(aside).manifest.spec["seed"] == 6


def test_a_second_process_is_refused_and_told_who_is_there(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    told = rf"in use by process {os.getpid()} on"
    with RunLock(open_folder(folder)), pytest.raises(RunError, match=told):
        sample_run(make(Faulty(tiny_tokenizer)), spec(), folder)


def test_a_full_disk_is_told_and_the_run_goes_on_once_there_is_room(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table, monkeypatch: Any
) -> None:
    write, left = LocalFolder.write, [9]

    def full(folder: LocalFolder, name: str, content: Any) -> None:
        left[0] -= 1

        def some(file: Any) -> None:
            content(file)
            if left[0] < 0:
                raise OSError(28, "No space left on device")

        write(folder, name, some)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", full)
        with pytest.raises(RunError, match="No space left on device") as caught:
            sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run", chunk_size=4)
    assert any("cannot write" in note for note in caught.value.__notes__)
    run = sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run", chunk_size=4).open()
    assert run.rows().equals(whole)
    assert not list((tmp_path / "run").rglob("*.tmp"))


# ---------------------------------------------------------------------- engines that fail


def test_an_engine_that_fails_once_is_asked_again(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table
) -> None:
    engine = Faulty(tiny_tokenizer, once(EngineError("a hiccup"), 7))
    result = sample_run(make(engine), spec(), tmp_path / "run", chunk_size=4)
    assert result.open().rows().equals(whole)
    assert not result.quarantined


def test_an_engine_that_died_is_started_again(
    make: MakeProcessor,
    tiny_tokenizer: Any,
    tmp_path: Path,
    whole: pa.Table,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started: list[int] = []

    def dies(engine: Faulty, request: Request) -> None:
        if request.index == 7 and len(started) == 1:
            engine.alive = False
            raise EngineError("the engine process was killed")

    class Started(Faulty):
        @classmethod
        def from_source(cls, source: Any, **_: Any) -> Started:
            started.append(1)
            return cls(source.tokenizer, dies)

    processor = make("hf")
    processor.sampler._choice = "started"
    processor.sampler._engine = Started.from_source(processor.source)
    restart = Started.from_source

    def restarted() -> None:
        processor.sampler._engine = restart(processor.source)

    processor.sampler.restart = restarted  # type: ignore[method-assign]
    result = sample_run(processor, spec(), tmp_path / "run", chunk_size=4)
    assert (
        result.open()
        .rows()
        .drop_columns(["engine_logqs"])
        .equals(whole.drop_columns(["engine_logqs"]))
    )
    assert len(started) == 2
    assert "the engine process was killed; starting the engine again" in caplog.text


def test_an_engine_that_dies_again_and_again_ends_the_run(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def dies(engine: Faulty, _: Request) -> None:
        engine.alive = False
        raise EngineError("killed")

    processor = make(Faulty(tiny_tokenizer, dies))
    restarts: list[int] = []
    processor.sampler.restart = lambda: restarts.append(1)  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="killed") as caught:
        sample_run(processor, spec(), tmp_path / "run")
    assert len(restarts) == 3
    assert "started again 3 times" in " ".join(caught.value.__notes__)
    assert open_run(tmp_path / "run").manifest.error == "EngineError: killed"


def test_an_engine_out_of_memory_goes_on_with_smaller_batches(
    make: MakeProcessor,
    tiny_tokenizer: Any,
    tmp_path: Path,
    whole: pa.Table,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Faulty(tiny_tokenizer)
    engine.batch_size = 8

    def too_large(engine: Faulty, _: Request) -> None:
        assert engine.batch_size is not None
        if engine.batch_size > 2:
            raise EngineMemoryError("out of memory")

    engine.raises = too_large
    result = sample_run(make(engine), spec(), tmp_path / "run")
    assert result.open().rows().equals(whole)
    assert engine.batch_size == 2
    assert caplog.text.count("going on with smaller batches") == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), RunError("disk full")])
def test_what_fails_after_a_commit_does_not_commit_the_same_draws_again(
    make: MakeProcessor,
    tiny_tokenizer: Any,
    tmp_path: Path,
    whole: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    tell = Events.tell

    def failing(events: Events, event: Any, **details: Any) -> None:
        tell(events, event, **details)
        if event == "committed":
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(Events, "tell", failing)
        with pytest.raises(type(error)):
            sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run", chunk_size=4)
    assert not (tmp_path / "run/parts/samples/part-000001.json").exists()
    assert verify_run(tmp_path / "run") == []
    result = sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run", chunk_size=4)
    assert result.open().rows().equals(whole)
    assert not (tmp_path / "run/set-aside").exists()


# ---------------------------------------------------------------------- draws that always fail


def test_a_draw_that_always_fails_is_left_out_and_the_rest_goes_on(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table
) -> None:
    folder = tmp_path / "run"
    result = sample_run(make(Faulty(tiny_tokenizer, always(3, 17))), spec(), folder, chunk_size=4)
    assert [(one.draw, one.step, one.reason) for one in result.quarantined] == [
        (3, "generation", "cannot make draw 3"),
        (17, "generation", "cannot make draw 17"),
    ]
    assert result.manifest.state == "complete"
    assert (result.manifest.num_draws_done, result.manifest.num_quarantined) == (18, 2)
    kept = whole.filter(~np.isin(whole["draw"].to_numpy(), [3, 17]))
    assert result.open().rows().equals(kept)

    again = sample_run(make(Faulty(tiny_tokenizer)), spec(), folder)
    assert len(again.quarantined) == 2
    retried = sample_run(make(Faulty(tiny_tokenizer)), spec(), folder, retry_quarantined=True)
    assert not retried.quarantined
    assert retried.open().rows().equals(whole)


def test_an_engine_that_fails_on_everything_is_at_fault_and_no_draw(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="cannot make draw"):
        sample_run(make(Faulty(tiny_tokenizer, always(0, 1))), spec(draws=2), tmp_path / "two")
    assert not open_run(tmp_path / "two").quarantined
    many = 2 * MOST_GIVEN_UP
    with pytest.raises(EngineError, match="cannot make draw") as caught:
        sample_run(
            make(Faulty(tiny_tokenizer, always(*range(many)))), spec(draws=many), tmp_path / "many"
        )
    assert f"failed on {MOST_GIVEN_UP} draws in a row" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("failing", [(7,), tuple(range(2, 3 + MOST_GIVEN_UP))])
def test_draws_that_fail_when_they_are_tried_again_go_back_to_quarantine(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, failing: tuple[int, ...]
) -> None:
    """Nothing else is left to be made then: that the engine works is told by what it made."""
    folder = tmp_path / "run"
    for retry in (False, True):
        result = sample_run(
            make(Faulty(tiny_tokenizer, always(*failing))),
            spec(),
            folder,
            chunk_size=1,
            retry_quarantined=retry,
        )
        assert result.manifest.state == "complete"
        assert [one.draw for one in result.quarantined] == list(failing)
        assert verify_run(folder) == []


def test_an_engine_that_works_no_more_is_at_fault_when_draws_are_tried_again(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table
) -> None:
    folder = tmp_path / "run"
    sample_run(make(Faulty(tiny_tokenizer, always(7))), spec(), folder)
    broken = make(Faulty(tiny_tokenizer, always(*range(DRAWS))))
    with pytest.raises(EngineError, match="cannot make draw 7"):
        sample_run(broken, spec(), folder, retry_quarantined=True)
    assert not open_run(folder).quarantined
    assert sample_run(make(Faulty(tiny_tokenizer)), spec(), folder).open().rows().equals(whole)


def test_a_draw_that_cannot_be_scored_is_left_out(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table
) -> None:
    processor = make(Faulty(tiny_tokenizer))
    score = processor.teacher_force_logprobs_with_diagnostics
    broken = whole["response_ids"][4].as_py()

    def scored(sequences: Any, **options: Any) -> Any:
        for b in range(sequences.num_prompts):
            if sequences.response_ids(b, 0).tolist() == broken:
                raise ScoringError(f"sequence {b}: logprobs of generated token 0 is nan")
        return score(sequences, **options)

    processor.teacher_force_logprobs_with_diagnostics = scored  # type: ignore[method-assign, assignment]
    result = sample_run(processor, spec(), tmp_path / "run", chunk_size=7)
    (one,) = result.quarantined
    assert (one.draw, one.step) == (4, "scoring")
    assert "is nan" in one.reason
    kept = whole.filter(whole["draw"].to_numpy() != 4)
    assert result.open().rows().equals(kept)


class Rewarding:
    """A reward that fails on some texts, as long as it is told to."""

    def __init__(self) -> None:
        self.fails_on: set[str] | None = set()  # None: on all

    def __call__(self, texts: Sequence[str], entry: Any) -> list[float]:
        if self.fails_on is None or self.fails_on & set(texts):
            raise ZeroDivisionError("no answer in the text")
        return [float(len(text)) for text in texts]


@pytest.fixture
def rewarding(tiny_llama: Any, tiny_tokenizer: Any) -> tuple[SequenceProcessor, Rewarding]:
    """A processor, and its reward."""
    reward, engine = Rewarding(), Faulty(tiny_tokenizer)
    processor = SequenceProcessor(
        tiny_llama(), tiny_tokenizer, config=CONFIG, engine=engine, reward=reward
    )
    return processor, reward


def test_a_draw_whose_reward_fails_is_left_out_and_made_when_it_no_longer_does(
    rewarding: tuple[SequenceProcessor, Rewarding], tmp_path: Path
) -> None:
    processor, reward = rewarding
    whole = sample_run(processor, spec(), tmp_path / "whole").open().rows()
    reward.fails_on = {whole["response_text"][4].as_py()}
    failing = np.isin(whole["response_text"].to_pylist(), list(reward.fails_on))
    result = sample_run(processor, spec(), tmp_path / "run", chunk_size=7)
    assert [one.draw for one in result.quarantined] == np.flatnonzero(failing).tolist()
    assert {(one.step, one.reason) for one in result.quarantined} == {
        ("reward", "no answer in the text")
    }
    assert result.open().rows().equals(whole.filter(~failing))
    reward.fails_on = set()
    retried = sample_run(processor, spec(), tmp_path / "run", retry_quarantined=True)
    assert retried.open().rows().equals(whole)


def test_a_reward_that_fails_on_all_that_is_left_is_not_at_fault_if_it_rewards_what_is_there(
    rewarding: tuple[SequenceProcessor, Rewarding], tmp_path: Path
) -> None:
    processor, reward = rewarding
    texts = sample_run(processor, spec(), tmp_path / "whole").open().rows()["response_text"]
    reward.fails_on = {texts[DRAWS - 1].as_py()}
    assert texts.to_pylist().count(texts[DRAWS - 1].as_py()) == 1
    for retry in (False, True):
        result = sample_run(
            processor,
            spec(),
            tmp_path / "run",
            chunk_size=DRAWS - 1,  # so that the last draw is committed alone
            retry_quarantined=retry,
        )
        assert result.manifest.state == "complete"
        assert [(one.draw, one.step) for one in result.quarantined] == [(DRAWS - 1, "reward")]
        assert verify_run(tmp_path / "run") == []
    reward.fails_on = None
    with pytest.raises(ZeroDivisionError):
        sample_run(processor, spec(), tmp_path / "run", retry_quarantined=True)


def test_a_reward_that_fails_on_everything_is_at_fault_and_no_draw(
    rewarding: tuple[SequenceProcessor, Rewarding], tmp_path: Path
) -> None:
    processor, reward = rewarding
    reward.fails_on = None
    with pytest.raises(ZeroDivisionError) as caught:
        sample_run(processor, spec(), tmp_path / "run", chunk_size=7)
    assert "the reward failed on each of 7 draws" in " ".join(caught.value.__notes__)
    assert not open_run(tmp_path / "run").quarantined
    reward.fails_on = set()
    assert sample_run(processor, spec(), tmp_path / "run").manifest.num_draws_done == DRAWS


def test_prompts_that_are_too_long_are_left_out(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "short"}\n' + json.dumps({"prompt": "long " * 400}) + "\n")
    result = sample_run(
        make(Faulty(tiny_tokenizer)), spec(dataset=f"jsonl:{file}"), tmp_path / "run"
    )
    assert {one.prompt_index for one in result.quarantined} == {1}
    assert {one.step for one in result.quarantined} == {"prompt"}
    assert "exceeds the context of 512 tokens" in result.quarantined[0].reason
    rows = result.open().rows()
    assert set(rows["prompt_index"].to_pylist()) == {0}
    assert rows.num_rows + len(result.quarantined) == DRAWS
    file.write_text(json.dumps({"prompt": "long " * 400}) + "\n")
    with pytest.raises(PromptError, match="none can be read"):
        sample_run(make(Faulty(tiny_tokenizer)), spec(dataset=f"jsonl:{file}"), tmp_path / "no")


def test_responses_without_tokens_or_all_cut_off_give_a_summary_without_nan(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    engine = ScriptedEngine(lambda _: [tiny_tokenizer.eos_token_id], tiny_tokenizer)
    cut = ScriptedEngine(lambda _: [5] * 6, tiny_tokenizer)
    greedy = {"generation": {"max_new_tokens": 6, "do_sample": False}}  # the support is not [5]
    for name, one, config in (
        ("ends at once", engine, CONFIG),
        ("cut off", cut, CONFIG),
        ("outside the support", cut, greedy),
    ):
        result = sample_run(make(one, config), spec(), tmp_path / name)
        text = (tmp_path / name / "manifest.json").read_text()
        assert '"nan"' not in text.lower()  # which is how strict JSON would spell it
        assert result.summary.num_draws == DRAWS
    assert result.summary.num_out_of_support == result.summary.num_tokens
    assert result.summary.logq_per_token.mean is None


# ---------------------------------------------------------------------- signals and kills


def test_sigterm_raises_in_a_run_and_nowhere_else(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    def kill(_: Faulty, request: Request) -> None:
        if request.index == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        sample_run(make(Faulty(tiny_tokenizer, kill)), spec(), tmp_path / "run", chunk_size=4)
    assert open_run(tmp_path / "run").manifest.state == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_run_in_a_thread_leaves_signals_alone(
    make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path, whole: pa.Table
) -> None:
    processor = make(Faulty(tiny_tokenizer))
    thread = threading.Thread(target=sample_run, args=(processor, spec(), tmp_path / "run"))
    thread.start()
    thread.join()
    assert open_run(tmp_path / "run").rows().equals(whole)


def last_line(*command: Any) -> dict[str, Any]:
    """What a harness prints."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_rows(tmp_path: Path) -> None:
    """25 times with SIGKILL, at random times and right before random operations on files."""
    assert last_line(kill_harness.__file__, tmp_path, "--kills", 25)["kills"] >= 25


@pytest.mark.slow
def test_a_run_in_an_object_store_that_is_killed_ends_with_the_same_rows(tmp_path: Path) -> None:
    with s3_server():
        found = last_line(kill_harness.__file__, f"s3://{BUCKET}/{tmp_path.name}", "--kills", 6)
    assert found["kills"] >= 6


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize("sampler", ["coupled", "native"])
def test_a_run_of_vllm_that_is_killed_is_whole_in_the_end(tmp_path: Path, sampler: str) -> None:
    """Coupled it has the same rows, and native every draw once, from the right distribution."""
    found = last_line(kill_vllm.__file__, tmp_path, "--kills", 1, "--sampler", sampler)
    assert found["kills"] >= 1
    assert found.get("parity_holds", True)


def test_a_lost_manifest_is_named(make: MakeProcessor, tiny_tokenizer: Any, tmp_path: Path) -> None:
    sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run")
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(RunError, match=r"its manifest\.json is lost"):
        sample_run(make(Faulty(tiny_tokenizer)), spec(), tmp_path / "run")
