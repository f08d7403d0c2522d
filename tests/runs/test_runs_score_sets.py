"""Scores that are added to a run: what made them is recorded, and samples stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from seqproc import SequenceProcessor
from seqproc.errors import ConfigError, OverrideError, RunError, RunMismatchError, ScoringError
from seqproc.runs import RunSpec, add_scores, open_run, sample_run, verify_run
from seqproc.runs.format.parts import Parts
from seqproc.runs.format.score_set import read_score_set
from seqproc.runs.store.folder import open_folder

CONFIG = {"generation": {"max_new_tokens": 6, "top_p": 0.9}}
DRAWS = 9

MakeProcessor = Callable[..., SequenceProcessor]


@pytest.fixture
def make(tiny_llama: Any, tiny_tokenizer: Any) -> MakeProcessor:
    model = tiny_llama()

    def make(config: Any = CONFIG) -> SequenceProcessor:
        return SequenceProcessor(model, tiny_tokenizer, config=config)

    return make


@pytest.fixture
def folder(make: MakeProcessor, tmp_path: Path) -> Path:
    spec = RunSpec(dataset="arithmetic", draws=DRAWS, seed=2)
    return sample_run(make(), spec, tmp_path / "run", chunk_size=4).path


@pytest.fixture
def direction(make: MakeProcessor, tmp_path: Path) -> Path:
    drawn = torch.Generator().manual_seed(0)
    model = make().model
    v = {name: torch.randn(p.shape, generator=drawn) for name, p in model.named_parameters()}
    save_file(v, tmp_path / "v.safetensors")
    return tmp_path / "v.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_scores_at_an_override_are_the_processors(
    make: MakeProcessor, folder: Path, direction: Path
) -> None:
    before = contents(folder)
    found = add_scores(make(), folder, "eta-0.01", override=direction, eta=0.01, chunk_size=4)
    assert (found.num_draws_done, found.is_complete) == (DRAWS, True)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    run, processor = open_run(folder), make()
    assert run.score_sets == ["eta-0.01"]
    rows = run.scores("eta-0.01")
    assert rows["draw"].to_pylist() == list(range(DRAWS))
    shifted = processor.build_params_override(load_file(direction), 0.01)
    sequences = run.to_batched_sequences()
    expected = processor.teacher_force_logprobs(sequences, params_override=shifted)
    for logqs, (one,) in zip(rows["logqs"].to_pylist(), expected.token_logqs, strict=True):
        assert logqs == one.double().tolist()
    assert rows["sequence_logq"].to_pylist() != run.rows()["sequence_logq"].to_pylist()
    assert verify_run(folder) == []


def test_another_policy_and_columns_of_ones_choice(make: MakeProcessor, folder: Path) -> None:
    warm = make({"generation": {"temperature": 2.0, "max_new_tokens": 6}})
    add_scores(warm, folder, "warm", token_columns=["margin", "logqs"])
    rows = open_run(folder).scores("warm")
    assert {"margin", "logqs"} < set(rows.column_names)
    assert "head_mass" not in rows.column_names
    made_by = json.loads((folder / "scores/warm/set.json").read_text())["made_by"]
    assert made_by["policy"] == {"temperature": 2.0, "top_p": 1.0, "do_sample": True}
    assert made_by["override"] is None


def test_the_same_call_goes_on_and_another_is_refused(
    make: MakeProcessor, folder: Path, direction: Path, monkeypatch: Any
) -> None:
    processor = make()
    scored: list[int] = []
    score = processor.teacher_force_logprobs_with_diagnostics

    def stopped(sequences: Any, **options: Any) -> Any:
        if len(scored) == 1:
            raise KeyboardInterrupt
        scored.append(sequences.num_prompts)
        return score(sequences, **options)

    with monkeypatch.context() as patch:
        patch.setattr(processor, "teacher_force_logprobs_with_diagnostics", stopped)
        with pytest.raises(KeyboardInterrupt):
            add_scores(processor, folder, "late", override=direction, eta=0.5, chunk_size=4)
    with pytest.raises(RunError, match="are not complete"):
        open_run(folder).scores("late")
    with pytest.raises(RunMismatchError, match="made by something else") as caught:
        add_scores(make(), folder, "late", override=direction, eta=0.25)
    assert list(caught.value.differences) == [
        "override.eta: the folder has 0.5, asked for was 0.25"
    ]
    add_scores(make(), folder, "late", override=direction, eta=0.5, chunk_size=4)
    add_scores(make(), folder, "whole", override=direction, eta=0.5)
    run = open_run(folder)
    assert run.scores("late").equals(run.scores("whole"))
    assert verify_run(folder) == []


def test_draws_that_cannot_be_scored_so_are_named(
    make: MakeProcessor, folder: Path, monkeypatch: Any
) -> None:
    processor = make()
    score = processor.teacher_force_logprobs_with_diagnostics
    seed = open_run(folder).rows(["seed"])["seed"][3].as_py()

    def scored(sequences: Any, **options: Any) -> Any:
        if [seed] in sequences.seeds:
            raise ScoringError("not a number")
        return score(sequences, **options)

    monkeypatch.setattr(processor, "teacher_force_logprobs_with_diagnostics", scored)
    found = add_scores(processor, folder, "some")
    assert [dict(one) for one in found.failed] == [{"draw": 3, "reason": "not a number"}]
    assert 3 not in open_run(folder).scores("some")["draw"].to_pylist()


def test_what_cannot_be_is_refused(make: MakeProcessor, folder: Path, tmp_path: Path) -> None:
    for name in ("policy", "../out", "", "a/b", ".x"):
        with pytest.raises(RunError, match="name"):
            add_scores(make(), folder, name)
    with pytest.raises(ConfigError, match="eta is a step along a direction"):
        add_scores(make(), folder, "x", eta=0.1)
    with pytest.raises(OverrideError, match=r"cannot read .*none.safetensors as safetensors"):
        add_scores(make(), folder, "x", override=tmp_path / "none.safetensors", eta=0.1)
    (tmp_path / "pickled.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(OverrideError, match="as safetensors"):
        add_scores(make(), folder, "x", override=tmp_path / "pickled.safetensors", eta=0.1)
    save_file({"nope": torch.zeros(2)}, tmp_path / "nope.safetensors")
    with pytest.raises(OverrideError, match="nope"):
        add_scores(make(), folder, "x", override=tmp_path / "nope.safetensors")
    with pytest.raises(RunError, match="has no scores 'x'; it has none"):
        open_run(folder).scores("x")


def test_a_changed_set_is_found(make: MakeProcessor, folder: Path) -> None:
    add_scores(make(), folder, "again")
    file = folder / "scores/again/rows-1-00000.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:200] + bytes([content[200] ^ 1]) + content[201:])
    (fault,) = verify_run(folder)
    assert fault.file == "scores/again/rows-1-00000.parquet"
    file.write_bytes(content)
    note = folder / "scores/again/set.json"
    note.write_text(note.read_text().replace('"temperature": 1.0', '"temperature": 0.9'))
    assert "scores/again/set.json" in [fault.file for fault in verify_run(folder)]
    assert np.isfinite(open_run(folder).rows()["sequence_logprob"].to_numpy()).all()


@pytest.mark.parametrize("gone", ["nothing", "part-000000.json"])
def test_a_set_killed_before_it_removed_what_it_had_merged_has_each_draw_once(
    make: MakeProcessor, folder: Path, gone: str
) -> None:
    """What a kill between the merge and the end leaves: merged parts, and parts beside them."""
    add_scores(make(), folder, "killed", chunk_size=4)
    expected = open_run(folder).scores("killed")
    parts = folder / "parts/scores/killed"
    key = read_score_set(open_folder(folder), "killed").key  # type: ignore[union-attr]
    writer = Parts(open_folder(folder), "scores/killed", key)
    for number, start in enumerate(range(0, DRAWS, 4)):
        writer.write(f"part-{number:06d}", [expected.slice(start, 4)])
    (parts / gone).unlink(missing_ok=True)
    assert open_run(folder).scores("killed").equals(expected)
    assert verify_run(folder) == []
    found = add_scores(make(), folder, "killed", chunk_size=4)
    assert found.num_draws_done == DRAWS
    assert list(parts.iterdir()) == []
    assert open_run(folder).scores("killed").equals(expected)
    assert verify_run(folder) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows-1-00000.parquet", b"PAR1"),
        ("rows-1-00000.parquet", None),
        ("rows-1-00000.json", b"{"),
        ("rows-1-00000.json", None),
    ],
)
def test_the_same_call_mends_a_set(
    make: MakeProcessor, folder: Path, name: str, content: bytes | None
) -> None:
    add_scores(make(), folder, "mended")
    expected = open_run(folder).scores("mended")
    file = folder / "scores/mended" / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert verify_run(folder)
    with pytest.raises(RunError):
        open_run(folder).scores("mended")
    add_scores(make(), folder, "mended", chunk_size=4)
    assert open_run(folder).scores("mended").equals(expected)
    assert verify_run(folder) == []


def test_a_set_whose_file_is_gone_altogether_is_not_complete(
    make: MakeProcessor, folder: Path
) -> None:
    add_scores(make(), folder, "lost")
    for file in (folder / "scores/lost").glob("rows-*"):
        file.unlink()
    (fault,) = verify_run(folder)
    assert fault.file == "scores/lost/set.json"
    assert "draws from 0 to 8 are not all in the set" in fault.wrong
    with pytest.raises(RunError, match="not complete: give the command again"):
        open_run(folder).scores("lost")


@pytest.mark.parametrize(
    "changes",
    [
        {"merge": "1"},
        {"merge": -1},
        {"merge": None},
        {"num_draws_done": "x"},
        {"failed": None},
        {"failed": [1]},
        {"failed": [{"draw": "x"}]},
        {"updated": None},
        {"more": 1},
    ],
)
def test_a_set_that_says_what_no_set_says_is_refused(
    make: MakeProcessor, folder: Path, changes: dict[str, Any]
) -> None:
    add_scores(make(), folder, "edited")
    note = folder / "scores/edited/set.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | changes))
    assert "scores/edited/set.json" in [fault.file for fault in verify_run(folder)]
    with pytest.raises(RunError, match="is not what was written"):
        open_run(folder).scores("edited")
    with pytest.raises(RunError, match="is not what was written"):
        add_scores(make(), folder, "edited")


def test_a_set_nested_too_deeply_is_refused(make: MakeProcessor, folder: Path) -> None:
    add_scores(make(), folder, "deep")
    (folder / "scores/deep/set.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="is not what was written"):
        open_run(folder).scores("deep")
    assert verify_run(folder)


def test_a_set_whose_file_is_a_link_to_nowhere_is_a_fault(
    make: MakeProcessor, folder: Path
) -> None:
    add_scores(make(), folder, "linked")
    note = folder / "scores/linked/set.json"
    note.unlink()
    note.symlink_to("nowhere")
    assert "scores/linked/set.json" in [fault.file for fault in verify_run(folder)]
