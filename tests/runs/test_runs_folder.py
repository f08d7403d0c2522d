"""A run's folder: what is written is whole, what is read is checked, nothing is overwritten."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqproc._util.atomic import write_atomically
from seqproc.errors import RunError, RunMismatchError
from seqproc.runs import ROWS_SCHEMA, Manifest, open_run
from seqproc.runs.format.manifest import from_json, to_json, with_key
from seqproc.runs.format.quarantine import failed
from seqproc.runs.format.schema import (
    DEFAULT_TOKEN_COLUMNS,
    TOKEN_COLUMNS,
    rows_schema,
    samples_schema,
    scores_schema,
)
from seqproc.runs.going_on import going_on
from seqproc.runs.merging import merge_parts
from seqproc.runs.opening import open_for_writing
from seqproc.runs.plan import Draw
from seqproc.runs.run_folder import RunFolder
from seqproc.runs.store.folder import open_folder
from seqproc.runs.store.lock import RunLock

LISTS = {"logprobs", "logqs", "rb_entropies", "head_mass", "engine_logqs"}
FLIPS = 40


def manifest(num_draws: int = 4, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "sample",
        "spec": {"dataset": "d", "draws": num_draws},
        "num_draws": num_draws,
        "prompts": "0123",
        "model": {"name": "m", "dtype": "float32"},
        "policy": {"temperature": 1.0},
        "stopping": {"stop": ("</answer>",)},
        "precision": {},
        "engine": {"name": "scripted"},
        "reward": {"name": "tag_pref"},
        "token_columns": list(DEFAULT_TOKEN_COLUMNS),
        "versions": {"python": "3"},
    }
    return Manifest(**{**fields, **changes})


def row(index: int) -> dict[str, Any]:
    """A row with a value of the right type in every column."""
    values: dict[str, Any] = {}
    for field in ROWS_SCHEMA:
        if pa.types.is_list(field.type):
            values[field.name] = [float("-inf"), -0.5] if field.name in LISTS else [1, 2]
        elif pa.types.is_string(field.type):
            values[field.name] = f"{field.name} {index}"
        else:
            values[field.name] = index
    values |= {"seed": 2**64 - 1 - index, "gen_len": 2, "engine_logqs": None}
    return values | {"finish_reason": ("eos", "stop", "length")[index % 3]}


def tables(*draws: int) -> tuple[pa.Table, pa.Table]:
    """Samples and their scores."""
    some = [row(draw) for draw in draws]
    schemas = (samples_schema(), scores_schema())
    samples, scores = (
        pa.Table.from_pylist([{n: one[n] for n in schema.names} for one in some], schema)
        for schema in schemas
    )
    return samples, scores


def commit(run: RunFolder, *draws: int) -> None:
    samples, scores = tables(*draws)
    part = run.add_samples(samples, {"generation": 1.0})
    run.add_scores(part, scores, {"scoring": 0.5})


def write(folder: Path, *parts: tuple[int, ...], merge: bool = True, **changes: Any) -> Path:
    """A run with these draws in its parts, in this order."""
    planned = manifest(**{"num_draws": sum(map(len, parts)), **changes})
    with RunLock(open_folder(folder)) as lock:
        run = open_for_writing(open_folder(folder), planned, lock)
        for draws in parts:
            commit(run, *draws)
        if merge:
            merge_parts(run, rows_in_memory=2)
            run.update(state="complete")
    return folder


def resumed(folder: Path, num_draws: int) -> RunFolder:
    """The run as another process would find it; the lock is let go."""
    with RunLock(open_folder(folder)) as lock:
        return open_for_writing(open_folder(folder), manifest(num_draws), lock)


def files(folder: Path) -> list[str]:
    found = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(found)


@pytest.mark.parametrize("columns", [DEFAULT_TOKEN_COLUMNS, TOKEN_COLUMNS])
def test_every_column_has_a_unit(columns: tuple[str, ...]) -> None:
    schema = rows_schema(columns)
    assert len(set(schema.names)) == len(schema.names)
    assert set(columns) <= set(schema.names)
    for field in schema:
        assert field.metadata[b"unit"], field.name


def test_what_is_written_is_read_back_in_the_order_of_the_draws(tmp_path: Path) -> None:
    """Also where draws of one part lie between those of another."""
    run = open_run(write(tmp_path / "runs" / "first", (1, 4), (0, 3), (2,)))
    assert run.manifest.state == "complete"
    assert run.manifest.num_draws_done == run.num_rows == 5
    assert run.rows().to_pylist() == [row(i) for i in range(5)]
    assert run.rows().schema.equals(ROWS_SCHEMA, check_metadata=True)
    assert [batch.num_rows for batch in run.batches(batch_size=1)] == [1] * 5
    assert run.rows(["seed", "draw"]).column_names == ["seed", "draw"]
    assert run.rows(["logqs"]).column_names == ["logqs"]
    assert files(run.path) == [
        "events.jsonl",
        "manifest.json",
        "samples/rows-1-00000.json",
        "samples/rows-1-00000.parquet",
        "scores/policy/rows-1-00000.json",
        "scores/policy/rows-1-00000.parquet",
    ]
    file = pq.ParquetFile(run.path / "samples/rows-1-00000.parquet")
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.num_row_groups == 3
    assert file.schema_arrow.metadata[b"seqproc.run"].decode() == run.manifest.key


def test_a_run_that_goes_on_shows_what_is_scored(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", (3, 5), (0, 1), merge=False)
    samples, _ = tables(2, 4)
    with RunLock(open_folder(folder)) as lock:
        open_for_writing(open_folder(folder), manifest(4), lock).add_samples(samples, {})
    run = open_run(folder)
    assert run.manifest.state == "running"
    assert run.rows()["draw"].to_pylist() == [0, 1, 3, 5]
    assert [b["draw"].to_pylist() for b in run.batches()] == [[3, 5], [0, 1]]


def test_draws_in_quarantine_are_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    samples, scores = tables(0, 1, 2)
    with RunLock(open_folder(folder)) as lock:
        run = open_for_writing(open_folder(folder), manifest(4), lock)
        part = run.add_samples(samples, {})
        bad = Draw(index=1, prompt_index=7, seed=9)
        run.add_failed([failed(bad, "scoring", ValueError("NaN\nlogits"))])
        run.add_scores(part, scores.take([0, 2]), {})
        assert run.todo().tolist() == [3]
        assert open_run(folder).rows()["draw"].to_pylist() == [0, 2]
        merge_parts(run)
    opened = open_run(folder)
    assert opened.rows()["draw"].to_pylist() == [0, 2]
    (one,) = opened.quarantined
    assert dataclasses.asdict(one) | {"time": ""} == {
        "draw": 1,
        "prompt_index": 7,
        "seed": 9,
        "step": "scoring",
        "reason": "NaN logits",
        "time": "",
    }
    again = resumed(folder, 4)
    assert again.todo().tolist() == [3]


def test_what_is_left_to_do_is_the_plan_without_what_is_committed(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", (3, 5), (0, 1), merge=False, num_draws=8)
    run = resumed(folder, 8)
    assert run.todo().tolist() == [2, 4, 6, 7]
    assert run.num_done == 4
    assert run.summary.result().num_draws == 4
    assert run.summary.result().generation_seconds == 2.0


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", (0, 1), merge=False)
    asked = manifest(2, policy={"temperature": 0.7}, versions={"python": "3", "torch": "9"})
    with (
        RunLock(open_folder(folder)) as lock,
        pytest.raises(RunMismatchError, match="holds another run") as caught,
    ):
        open_for_writing(open_folder(folder), asked, lock)
    assert list(caught.value.differences) == [
        "policy.temperature: the folder has 1.0, asked for was 0.7",
        'versions.torch: the folder has nothing, asked for was "9"',
    ]
    assert open_run(folder).num_rows == 2


def test_a_fresh_start_sets_everything_aside(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", (0, 1), merge=False)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with RunLock(open_folder(folder)) as lock:
        run = open_for_writing(
            open_folder(folder), manifest(3, policy={"temperature": 2.0}), lock, fresh=True
        )
        assert run.todo().tolist() == [0, 1, 2]
    kept = [name for name in files(folder) if name.startswith("set-aside/")]
    assert {name.split("/", 2)[2]: (folder / name).read_bytes() for name in kept} == before


def test_a_manifest_survives_json_whatever_is_in_it() -> None:
    odd = with_key(manifest(engine={"limit": float("inf"), "path": Path("/x"), "ids": (1, 2)}))
    text = to_json(odd)
    assert json.loads(text, parse_constant=pytest.fail)["engine"] == {
        "limit": "inf",
        "path": "/x",
        "ids": [1, 2],
    }
    assert from_json(text).created == odd.created


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with (
        RunLock(open_folder(tmp_path)) as lock,
        pytest.raises(RunError, match=r"is not empty and holds no run \('notes.txt' is in it\)"),
    ):
        open_for_writing(open_folder(tmp_path), manifest(), lock)
    assert files(tmp_path) == ["notes.txt"]


def test_a_folder_without_a_manifest_that_a_killed_start_left_is_taken(tmp_path: Path) -> None:
    (tmp_path / "parts" / "samples").mkdir(parents=True)
    (tmp_path / ".manifest.json.0123456789ab.tmp").write_text("{")
    assert resumed(tmp_path, 4).todo().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("it\nbroke"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_what_ends_a_run_is_recorded_and_nothing_is_lost(
    tmp_path: Path, error: BaseException, state: str
) -> None:
    def work(run: RunFolder) -> None:
        with going_on(run):
            commit(run, 0, 1, 2)
            raise error

    folder = open_folder(tmp_path / "run")
    with RunLock(folder) as lock, pytest.raises(type(error)) as caught:
        work(open_for_writing(folder, manifest(9), lock))
    assert f"3 of 9 draws are kept in {tmp_path / 'run'}" in caught.value.__notes__[0]
    opened = open_run(tmp_path / "run")
    assert opened.manifest.state == state
    assert opened.manifest.error == ("ValueError: it broke" if state == "failed" else None)
    assert opened.manifest.num_draws_done == 3
    assert opened.rows()["draw"].to_pylist() == [0, 1, 2]


def test_the_first_error_is_reported_when_the_manifest_cannot_be_written_either(
    tmp_path: Path,
) -> None:
    def work(run: RunFolder) -> None:
        with going_on(run):
            (tmp_path / "run").rename(tmp_path / "moved")
            raise ValueError("first")

    folder = open_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="first") as caught, RunLock(folder) as lock:
        work(open_for_writing(folder, manifest(), lock))
    assert any("lost the lock" in note for note in caught.value.__notes__)


def test_a_write_that_fails_is_an_error_and_leaves_no_litter(tmp_path: Path) -> None:
    def half(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(target, half)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_run_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RunError, match=r"there is no run in .* has no manifest.json"):
            open_run(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, "format version 1, and this seqproc .* reads version 2"),
        ({"format_version": None}, "format version None"),
        ({"extra": 1}, "lacks or does not know the keys extra"),
        ({"state": "paused"}, "manifest's state: Input should be 'running'"),
        ({"num_draws_done": -1}, "manifest's num_draws_done: .* greater than or equal to 0"),
        ({"policy": 3}, "manifest's policy: Input should be an object"),
        ({"policy": {"temperature": -3}}, "was changed after it was written"),
        ({"num_draws": 3}, "was changed after it was written"),
        ("[]", "must be a JSON object"),
        ("{", "not valid JSON"),
        (b"\xff", "invalid start byte"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    file = write(tmp_path / "run", (0, 1)) / "manifest.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(file.read_text()) | change)
    file.write_bytes(change.encode() if isinstance(change, str) else change)
    with pytest.raises(RunError, match=message):
        open_run(tmp_path / "run")


def test_lost_and_damaged_parts_are_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", (0, 1), (2, 3))
    part = folder / "samples/rows-1-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:40])
    with pytest.raises(RunError, match=r"cannot read .*rows-1-00000.parquet"):
        open_run(folder).rows()
    pq.write_table(pa.table({"draw": [1, 2, 3, 4]}), part)
    with pytest.raises(RunError, match="prompt_index"):
        open_run(folder).rows()
    part.write_bytes(content)
    (folder / "scores/policy/rows-1-00000.json").unlink()
    with pytest.raises(RunError, match="says that it has 4 rows, but 0 are there"):
        open_run(folder)


def test_a_flipped_byte_is_never_taken_in(tmp_path: Path) -> None:
    """Wherever it is: a run that goes on makes the part's draws again, and keeps the broken one."""
    folder = write(tmp_path / "run", (0, 1), (2, 3), merge=False)
    file = folder / "parts/samples/part-000000.parquet"
    note = file.with_suffix(".json").read_bytes()
    content = file.read_bytes()
    for at in range(0, len(content), len(content) // FLIPS):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        run = resumed(folder, 4)
        assert run.todo().tolist() == [0, 1]
        assert run.num_done == 2
        assert not file.exists()
        file.with_suffix(".json").write_bytes(note)
    assert len(list(folder.glob("set-aside/*/parts/samples/*.parquet"))) >= FLIPS


@pytest.mark.parametrize("fault", ["exchanged", "copied", "of another run", "no file", "torn note"])
def test_parts_that_are_not_what_was_committed_are_made_again(tmp_path: Path, fault: str) -> None:
    folder = write(tmp_path / "run", (0, 1), (2, 3), merge=False)
    other = write(tmp_path / "other", (0, 1), (2, 3), merge=False, policy={"temperature": 0.5})
    here = folder / "parts/samples"
    first, second = here / "part-000000", here / "part-000001"
    content, note = (first.with_suffix(e).read_bytes() for e in (".parquet", ".json"))
    left = [0, 1]
    if fault == "exchanged":
        first.with_suffix(".parquet").write_bytes(second.with_suffix(".parquet").read_bytes())
        second.with_suffix(".parquet").write_bytes(content)
        left = [0, 1, 2, 3]
    elif fault == "copied":
        (here / "part-000005.parquet").write_bytes(content)
        (here / "part-000005.json").write_bytes(note.replace(b"part-000000", b"part-000005"))
        left = []
    elif fault == "of another run":
        strange = other / "parts/samples/part-000000"
        for ending in (".parquet", ".json"):
            first.with_suffix(ending).write_bytes(strange.with_suffix(ending).read_bytes())
    elif fault == "no file":
        first.with_suffix(".parquet").unlink()
    else:
        first.with_suffix(".json").write_bytes(note[:50])
    run = resumed(folder, 4)
    assert run.todo().tolist() == left
    taken = sorted(int(draw) for part in run.sampled for draw in part.indices())
    assert taken == sorted({0, 1, 2, 3} - set(left))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", (0, 1))
    file = folder / "samples/rows-1-00000.parquet"
    file.rename(tmp_path / "elsewhere.parquet")
    file.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(RunError, match="link that leads out of the folder"):
        open_run(folder).rows()
    (tmp_path / "linked").symlink_to(write(tmp_path / "other", (0, 1)))
    assert open_run(tmp_path / "linked").num_rows == 2


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    run = open_run(write(tmp_path / "run", (0, 1)))
    with pytest.raises(RunError, match="no column 'logprob'; did you mean 'logprobs'"):
        run.rows(["logprob"])
    with pytest.raises(RunError, match="columns must be a list of names"):
        run.rows("draw")


def test_a_merge_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    """Files of a merge that the manifest does not speak of are no rows."""
    folder = write(tmp_path / "run", (2, 3), (0, 1))
    merged = {name: (folder / name).read_bytes() for name in files(folder) if "rows-1" in name}
    again = write(tmp_path / "again", (2, 3), (0, 1), merge=False)
    for name, content in merged.items():
        (again / name).parent.mkdir(parents=True, exist_ok=True)
        (again / name).write_bytes(content)
    assert open_run(again).num_rows == 4
    run = resumed(again, 4)
    assert run.todo().tolist() == []
    assert len(run.sampled) == 2


def test_reading_a_run_does_not_import_torch() -> None:
    code = "import sys, seqproc.runs.reader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_without_a_name_is_refused() -> None:
    with pytest.raises(RunError, match="empty name"):
        open_run("")


def test_rows_become_sequences_again(tmp_path: Path) -> None:
    run = open_run(write(tmp_path / "run", (2, 0), (1,)))
    batch = run.to_batched_sequences([2, 0])
    assert [batch.seeds[b][0] for b in range(2)] == [2**64 - 3, 2**64 - 1]  # type: ignore[index]
    assert batch.response_ids(0, 0).tolist() == [1, 2]
    assert run.to_batched_sequences().num_prompts == 3
    with pytest.raises(RunError, match="no row of draw 7"):
        run.to_batched_sequences([7])


def test_rows_become_data_frames_and_datasets(tmp_path: Path) -> None:
    run = open_run(write(tmp_path / "run", (1, 0)))
    assert run.to_arrow(["draw"])["draw"].to_pylist() == [0, 1]
    assert run.to_dataset(["draw", "logqs"])[1] == {"draw": 1, "logqs": [float("-inf"), -0.5]}
