"""Shards and their merge: the rows of the run in one, and every way in which shards do not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import kill_harness, kill_merge
from helpers.kill_harness import differences
from seqproc import SequenceProcessor
from seqproc.engines import Request, ScriptedEngine
from seqproc.errors import ConfigError, RunError, RunMismatchError
from seqproc.runs import RunSpec, merge_runs, open_run, plan_draws, sample_run
from seqproc.runs.format.parts import Parts, as_written
from seqproc.runs.shards import merge
from seqproc.runs.shards.shard import parse_shard, shard_draws
from seqproc.runs.store.local import LocalFolder
from seqproc.runs.verify.verify import verify_run
from seqproc.runs.watch.status import run_status

NUM_DRAWS, NUM_SHARDS = 11, 3


def spec(**fields: Any) -> RunSpec:
    return RunSpec(**{"dataset": "arithmetic", "draws": NUM_DRAWS, "seed": 5, **fields})


@pytest.fixture(scope="module")
def processor() -> SequenceProcessor:
    return kill_harness.processor()


@pytest.fixture(scope="module")
def template(processor: SequenceProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one, and its shards."""
    folder = tmp_path_factory.mktemp("shards")
    sample_run(processor, spec(), folder / "whole")
    for i in range(NUM_SHARDS):
        sample_run(processor, spec(shard=(i, NUM_SHARDS)), folder / f"{i}", chunk_size=2)
    return folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Path:
    """Copies of these, to be damaged."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return tmp_path


def shards(made: Path) -> list[Path]:
    return [made / f"{i}" for i in range(NUM_SHARDS)]


def scripted(processor: SequenceProcessor, stop_at: int | None = None) -> SequenceProcessor:
    """The same model under an engine with a response for each draw; Ctrl-C comes at one of them."""

    def script(request: Request) -> list[int]:
        if request.index == stop_at:
            raise KeyboardInterrupt
        return [2 + request.index % 200, 9, 0]

    engine = ScriptedEngine(script, processor.tokenizer)
    return SequenceProcessor(processor.model, processor.tokenizer, engine=engine)


@pytest.mark.parametrize("num_draws", [0, 1, 7, 8, 100])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_shards_share_out_all_draws(num_draws: int, count: int) -> None:
    dealt = [shard_draws((i, count), num_draws) for i in range(count)]
    assert sorted(np.concatenate(dealt).tolist()) == list(range(num_draws))
    assert all((draws % count == i).all() for i, draws in enumerate(dealt))
    lengths = [len(draws) for draws in dealt]
    assert max(lengths) - min(lengths) <= 1


def test_the_plan_of_a_shard_is_its_part_of_the_whole_plan() -> None:
    pool = [f"prompt {i}" for i in range(50)]
    whole = list(plan_draws(spec(), pool))
    assert list(plan_draws(spec(shard=(1, 3)), pool)) == whole[1::3]


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ((3, 3), r"0 <= i < n, got 3/3"),
        ((-1, 3), "0 <= i < n"),
        ((0, 0), "0 <= i < n"),
        ((0, 1, 2), "pair of integers"),
        ((0.0, 2), "pair of integers"),
        ((False, 2), "pair of integers"),
        ("0/3", "pair of integers"),
    ],
)
def test_what_is_no_shard_is_refused(shard: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(shard=shard)


def test_a_shard_is_written_with_a_slash() -> None:
    assert parse_shard("0/8") == (0, 8)
    assert parse_shard("07/08") == (7, 8)
    for text in ("8/8", "x", "1/0", "", "1", "1/2/3", "-1/2", "1 / 2", "/8", "٣/8"):
        with pytest.raises(ConfigError, match="--shard must be"):
            parse_shard(text)


@settings(deadline=None, max_examples=50)  # files are written
@given(st.sets(st.integers(0, 300)), st.integers(1, 9))
def test_a_note_holds_the_draws_of_its_rows(draws: set[int], step: int) -> None:
    rising = np.array(sorted(draws), dtype=np.int64) * step
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(LocalFolder(Path(folder)), "samples", "key")
        written = parts.write("rows-1-00000", [pa.table({"draw": rising})])
        read = parts.read_note("rows-1-00000")
    assert read == written
    assert read.indices().tolist() == rising.tolist()


def test_the_note_of_a_shard_stays_short() -> None:
    assert as_written(shard_draws((3, 8), 10**6)) == [(3, 999996, 8)]
    assert as_written(np.array([3, 11, 19, 35])) == [(3, 20, 8), (35, 36, 8)]
    assert as_written(np.array([0, 1, 2, 5])) == [(0, 3), (5, 6)]


def test_a_shard_makes_its_draws_and_no_others(made: Path) -> None:
    run, whole = open_run(made / "1"), open_run(made / "whole")
    assert run.manifest.state == "complete"
    assert (run.manifest.num_draws, run.manifest.num_own_draws) == (11, 4)
    assert run.manifest.num_draws_done == run.num_rows == 4
    assert run.manifest.shard == (1, 3)
    assert run.rows()["draw"].to_pylist() == [1, 4, 7, 10]
    assert run.manifest.key != whole.manifest.key
    assert not differences(whole.rows().take([1, 4, 7, 10]), run.rows())


def test_a_shard_goes_on_where_it_was_stopped(processor: SequenceProcessor, tmp_path: Path) -> None:
    broken = scripted(processor, stop_at=11)
    with pytest.raises(KeyboardInterrupt) as caught:
        sample_run(broken, spec(draws=20, shard=(1, 2)), tmp_path / "run", chunk_size=2)
    assert "5 of 10 draws are kept" in caught.value.__notes__[-1]
    assert open_run(tmp_path / "run").manifest.state == "interrupted"
    left = scripted(processor)
    result = sample_run(left, spec(draws=20, shard=(1, 2)), tmp_path / "run")
    assert result.open().rows()["draw"].to_pylist() == list(range(1, 20, 2))
    asked = [request.index for call in left.engine.calls for request in call.requests]  # type: ignore[attr-defined]
    assert set(asked) <= set(range(1, 20, 2))
    assert 11 in asked
    assert 1 not in asked


def test_shards_and_what_is_merged_are_sound(made: Path) -> None:
    merge_runs(shards(made), made / "merged")
    assert [verify_run(folder) for folder in (*shards(made), made / "merged")] == [[]] * 4
    status = run_status(made / "1")
    assert status.num_left == 0


def test_a_draw_of_another_shard_is_a_fault(made: Path) -> None:
    for ending in ("parquet", "json"):
        for table in ("samples", "scores/policy"):
            name = f"{table}/rows-1-00000.{ending}"
            shutil.copy(made / "2" / name, made / "1" / name)
    key = json.loads((made / "1" / "manifest.json").read_text())["key"]
    for table in ("samples", "scores/policy"):
        _edit(made / "1" / f"{table}/rows-1-00000.json", key=key)
    faults = [fault.wrong for fault in verify_run(made / "1")]
    assert "it has draw 2, which is not of shard 1/3" in faults
    assert any("4 draws are neither scored nor in quarantine" in wrong for wrong in faults)
    assert any("the first of them draw 1" in wrong for wrong in faults)


def test_merged_shards_are_the_run_in_one(made: Path) -> None:
    before = kill_merge.digest(shards(made))
    result = merge_runs([made / "2", made / "0", made / "1"], made / "merged")
    whole, merged = open_run(made / "whole"), open_run(made / "merged")
    assert differences(whole.rows(), merged.rows()) == []
    assert merged.rows().schema.equals(whole.rows().schema, check_metadata=True)
    assert merged.manifest.key == whole.manifest.key
    assert merged.manifest.identity() == whole.manifest.identity()
    assert merged.manifest.state == "complete"
    assert merged.manifest.num_draws_done == NUM_DRAWS
    for name in ("num_draws", "num_tokens", "finish_reasons", "length_min", "num_rewarded"):
        assert merged.manifest.summary[name] == whole.manifest.summary[name]  # type: ignore[index]
    for name in ("logprob_per_token", "logq_per_token", "rb_entropy_per_sequence"):
        mean = getattr(result.summary, name).mean
        assert mean == pytest.approx(whole.manifest.summary[name]["mean"], rel=1e-12)  # type: ignore[index]
    seconds = [open_run(p).manifest.summary["scoring_seconds"] for p in shards(made)]  # type: ignore[index]
    assert result.summary.scoring_seconds == pytest.approx(sum(seconds))
    assert kill_merge.digest(shards(made)) == before


def test_the_files_of_the_two_are_named_and_ordered_alike(made: Path) -> None:
    merge_runs(shards(made), made / "merged")
    for table in ("samples", "scores/policy"):
        files = {
            name: sorted(path.name for path in (made / name / table).iterdir())
            for name in ("whole", "merged")
        }
        assert files["whole"] == files["merged"]
        rows = pq.read_table(made / "merged" / table / "rows-1-00000.parquet")
        assert rows["draw"].to_pylist() == list(range(NUM_DRAWS))


def test_a_merge_that_is_done_is_not_made_again(made: Path) -> None:
    merge_runs(shards(made), made / "merged")
    before = kill_merge.digest([made / "merged"])
    merge_runs(shards(made), made / "merged")
    assert kill_merge.digest([made / "merged"]) == before


def test_a_merged_run_is_the_run_that_the_specification_asks_for(
    processor: SequenceProcessor, made: Path
) -> None:
    merge_runs(shards(made), made / "merged")
    before = kill_merge.digest([made / "merged"])
    assert sample_run(processor, spec(), made / "merged").summary.num_draws == NUM_DRAWS
    assert kill_merge.digest([made / "merged"]) == before


def test_a_merge_takes_the_place_of_a_run_in_one_that_was_stopped(
    processor: SequenceProcessor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sample_run(scripted(processor, stop_at=7), spec(), out, chunk_size=2)
    assert open_run(out).num_rows > 0
    folders = [tmp_path / f"{i}" for i in range(2)]
    for i, folder in enumerate(folders):
        sample_run(scripted(processor), spec(shard=(i, 2)), folder)
    result = merge_runs(folders, out)
    assert result.summary.num_draws == NUM_DRAWS
    assert result.open().rows()["draw"].to_pylist() == list(range(NUM_DRAWS))
    assert not [path for path in out.rglob("part-*") if path.is_file()]


def test_merging_goes_block_by_block_and_file_by_file(
    processor: SequenceProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "ROWS_IN_MEMORY", 8)
    monkeypatch.setattr(merge, "ROWS_IN_FILE", 16)
    whole = sample_run(scripted(processor), spec(draws=50), tmp_path / "whole").open().rows()
    folders = [tmp_path / f"{i}" for i in range(3)]
    for i, folder in enumerate(folders):
        sample_run(scripted(processor), spec(draws=50, shard=(i, 3)), folder)
    merged = merge_runs(folders, tmp_path / "merged").open()
    names = sorted(path.name for path in (tmp_path / "merged" / "samples").glob("*.parquet"))
    assert names == [f"rows-1-{i:05d}.parquet" for i in range(4)]
    assert merged.rows().equals(whole)
    file = pq.ParquetFile(tmp_path / "merged" / "samples" / names[0])
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [8, 8]


def test_the_row_groups_of_a_part_are_read_one_by_one(tmp_path: Path) -> None:
    table = pa.table({"draw": np.arange(0, 50, 2)})
    parts = Parts(LocalFolder(tmp_path), "samples", "key")
    part = parts.write("rows-1-00000", [table], rows_in_group=10)
    assert [group.num_rows for group in parts.row_groups(part)] == [10, 10, 5]
    assert pa.concat_tables(list(parts.row_groups(part))).equals(table)


def test_more_shards_than_draws(processor: SequenceProcessor, tmp_path: Path) -> None:
    folders = [tmp_path / f"{i}" for i in range(4)]
    for i, folder in enumerate(folders):
        sample_run(scripted(processor), spec(draws=2, shard=(i, 4)), folder)
    assert open_run(folders[3]).num_rows == open_run(folders[3]).manifest.num_own_draws == 0
    assert open_run(folders[3]).manifest.state == "complete"
    merged = merge_runs(folders, tmp_path / "merged").open()
    assert merged.rows()["draw"].to_pylist() == [0, 1]


def test_draws_in_quarantine_stay_in_quarantine(
    processor: SequenceProcessor, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": text} for text in ("one", "two", "a b c d e f g h " * 100)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields: dict[str, Any] = {"dataset": f"jsonl:{file}", "draws": 12}
    whole = sample_run(scripted(processor), spec(**fields), tmp_path / "whole")
    folders = [tmp_path / f"{i}" for i in range(2)]
    for i, folder in enumerate(folders):
        sample_run(scripted(processor), spec(**fields, shard=(i, 2)), folder)
    merged = merge_runs(folders, tmp_path / "merged")
    assert len(whole.quarantined) > 1

    def timeless(result: Any) -> list[Any]:
        return [dataclasses.replace(one, time="") for one in result.quarantined]

    assert timeless(merged) == timeless(whole)
    assert merged.manifest.num_quarantined == len(whole.quarantined)
    assert merged.open().rows().equals(whole.open().rows())


def _remove(path: Path) -> None:
    shutil.rmtree(path)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SAMPLES, SCORES = "samples/rows-1-00000", "scores/policy/rows-1-00000"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda made: _remove(made / "1"), r"no run in .*/1: it has no manifest"),
        (lambda made: _flip(made / "1" / f"{SAMPLES}.parquet"), "shard 1/3 .* checksum differs"),
        (lambda made: _flip(made / "2" / f"{SCORES}.parquet"), "shard 2/3 .* checksum differs"),
        (lambda made: (made / "1" / f"{SCORES}.parquet").unlink(), "shard 1/3 .* is missing"),
        (lambda made: (made / "1" / f"{SCORES}.json").unlink(), "scores .* draws: 1, 4, 7, 10;"),
        (lambda made: (made / "0" / f"{SAMPLES}.json").unlink(), "samples .* draws: 0, 3, 6, 9;"),
        (
            lambda made: _edit(made / "1" / "manifest.json", state="failed", num_draws_done=3),
            r"1 of 3 shards are not complete: shard 1/3 .*/1 is 'failed', with 3 of 4 draws done",
        ),
        (
            lambda made: _edit(made / "1" / "manifest.json", spec={"seed": 6}),
            "its key is not that of its content",
        ),
        (
            lambda made: shutil.copy(
                made / "1" / f"{SAMPLES}.json", made / "2" / f"{SAMPLES}.json"
            ),
            "of another run",
        ),
    ],
)
def test_damaged_shards_are_refused_and_nothing_is_written(
    made: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(made)
    before = kill_merge.digest([made])
    with pytest.raises(RunError, match=message):
        merge_runs(shards(made), made / "merged")
    assert not (made / "merged").exists()
    assert kill_merge.digest([made]) == before


def test_shards_that_are_not_all_there_or_there_twice(made: Path) -> None:
    with pytest.raises(RunError, match=r"2 of 3 shards are not among the folders: 0/3; 2/3"):
        merge_runs([made / "1"], made / "merged")
    shutil.copytree(made / "1", made / "copy")
    with pytest.raises(RunError, match=r"shard 1/3 is given twice, as .*/1 and .*/copy"):
        merge_runs([*shards(made), made / "copy"], made / "merged")
    with pytest.raises(RunError, match="is no shard"):
        merge_runs([made / "whole"], made / "merged")
    with pytest.raises(RunError, match="nothing to merge"):
        merge_runs([], made / "merged")
    with pytest.raises(RunError, match="must be a list of folders"):
        merge_runs(str(made / "0"), made / "merged")
    assert not (made / "merged").exists()


@pytest.mark.parametrize(
    ("fields", "difference"),
    [
        ({"seed": 6}, "spec.seed: the first has 5, this one 6"),
        ({"draws": 12}, "spec.draws: the first has 11, this one 12"),
        ({"shard": (1, 4)}, 'spec.shard: the first has "one of 3", this one "one of 4"'),
    ],
)
def test_shards_of_other_plans_are_refused(
    processor: SequenceProcessor, made: Path, fields: dict[str, Any], difference: str
) -> None:
    sample_run(processor, spec(**{"shard": (1, 3), **fields}), made / "other")
    with pytest.raises(RunMismatchError) as caught:
        merge_runs([made / "0", made / "other", made / "2"], made / "merged")
    assert difference in caught.value.differences
    assert not (made / "merged").exists()


def test_shards_are_not_merged_into_one_of_them(made: Path) -> None:
    (made / "link").symlink_to(made / "0")
    for out, wrong in (
        (made / "0", "cannot be the new run's folder as well"),
        (made / "link", "cannot be the new run's folder as well"),
        (made, "lies in"),
    ):
        for fresh in (False, True):
            with pytest.raises(RunError, match=wrong):
                merge_runs(shards(made), out, fresh=fresh)
    merge_runs(shards(made), made / "merged")


def test_a_folder_of_another_run_is_refused(processor: SequenceProcessor, made: Path) -> None:
    shutil.copytree(made / "0", made / "other")
    with pytest.raises(RunMismatchError) as caught:
        merge_runs(shards(made), made / "other")
    assert any(line.startswith("spec.shard") for line in caught.value.differences)
    (made / "mine").mkdir()
    (made / "mine" / "notes.txt").touch()
    with pytest.raises(RunError, match="holds no run"):
        merge_runs(shards(made), made / "mine")


def test_shards_that_have_changed_since_are_not_taken_for_merged(made: Path) -> None:
    merge_runs(shards(made), made / "merged")
    short = made / "short"
    shutil.copytree(made / "merged", short)
    manifest = json.loads((made / "0" / "manifest.json").read_text())
    _edit(made / "0" / "manifest.json", num_draws_done=manifest["num_draws_done"] + 1)
    with pytest.raises(RunError, match="which now have 12: begin anew with fresh=True"):
        merge_runs(shards(made), short)
    _edit(made / "0" / "manifest.json", num_draws_done=manifest["num_draws_done"])
    assert merge_runs(shards(made), short, fresh=True).summary.num_draws == NUM_DRAWS
    assert (short / "set-aside").is_dir()


@pytest.mark.slow
def test_a_merge_may_be_killed_at_any_operation_on_a_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, kill_merge.__file__, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] > 25
