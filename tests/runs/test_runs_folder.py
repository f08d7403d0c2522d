"""A run's folder: what is written is whole, what is read is checked, nothing is overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqproc._util.atomic import write_atomically
from seqproc.errors import RunError
from seqproc.runs import (
    ROWS_SCHEMA,
    Manifest,
    RunWriter,
    SummaryAccumulator,
    open_run,
    require_free,
)
from seqproc.runs.manifest import from_json, to_json

LISTS = {"logprobs", "logqs", "rb_entropies", "head_mass", "engine_logqs"}


def manifest(num_draws: int = 4, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "kind": "sample",
        "spec": {"dataset": "d", "draws": num_draws},
        "model": {"name": "m", "dtype": "float32"},
        "policy": {"temperature": 1.0},
        "stopping": {"stop": ("</answer>",)},
        "precision": {},
        "engine": {"name": "scripted"},
        "versions": {"python": "3"},
        "num_draws": num_draws,
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
    return values | {"seed": 2**64 - 1 - index, "gen_len": 2, "engine_logqs": None}


def rows(*indices: int) -> pa.Table:
    return pa.Table.from_pylist([row(i) for i in indices], schema=ROWS_SCHEMA)


SUMMARY = SummaryAccumulator().result()


def written(folder: Path, num_parts: int = 2) -> Path:
    with RunWriter.create(folder, manifest(2 * num_parts)) as run:
        for part in range(num_parts):
            run.commit(rows(2 * part, 2 * part + 1), SUMMARY)
    return folder


def test_every_column_has_a_unit() -> None:
    assert len(set(ROWS_SCHEMA.names)) == len(ROWS_SCHEMA.names)
    for field in ROWS_SCHEMA:
        assert field.metadata[b"unit"], field.name


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    run = open_run(written(tmp_path / "runs" / "first"))
    assert run.manifest.state == "complete"
    assert run.manifest.num_draws_done == run.num_rows == 4
    assert run.rows().to_pylist() == [row(i) for i in range(4)]
    assert run.rows().schema.equals(ROWS_SCHEMA, check_metadata=True)
    assert [batch.num_rows for batch in run.batches(batch_size=1)] == [1, 1, 1, 1]
    assert run.rows(["seed", "draw"]).column_names == ["seed", "draw"]
    assert sorted(path.name for path in run.path.rglob("*")) == [
        "manifest.json",
        "part-00000.parquet",
        "part-00001.parquet",
        "rows",
    ]
    assert (
        pq.ParquetFile(run.path / "rows/part-00000.parquet")
        .metadata.row_group(0)
        .column(0)
        .compression
        == "ZSTD"
    )


def test_a_manifest_survives_json_whatever_is_in_it() -> None:
    odd = manifest(engine={"limit": float("inf"), "path": Path("/x"), "ids": (1, 2)})
    text = to_json(odd)
    assert json.loads(text, parse_constant=pytest.fail)["engine"] == {
        "limit": "inf",
        "path": "/x",
        "ids": [1, 2],
    }
    assert from_json(text).created == odd.created


def test_an_occupied_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty, and a run overwrites nothing"):
        RunWriter.create(tmp_path, manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert require_free(tmp_path / "empty") == tmp_path / "empty"
    for name in ("file", "dangling"):
        with pytest.raises(RunError, match="is not a folder"):
            require_free(tmp_path / name)
    with pytest.raises(RunError, match="cannot"):
        RunWriter.create(tmp_path / "file" / "run", manifest())


def test_of_two_runs_that_start_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RunWriter.create(folder, manifest())
    (folder / "manifest.json").unlink()  # as if the other had not come to it yet
    with pytest.raises(RunError, match="is not empty"):
        RunWriter.create(folder, manifest())


@pytest.mark.parametrize("error", [ValueError("it\nbroke"), KeyboardInterrupt()])
def test_what_ends_a_run_is_recorded_and_nothing_is_lost(
    tmp_path: Path, error: BaseException
) -> None:
    def run() -> None:
        with RunWriter.create(tmp_path / "run", manifest(9)) as writer:
            writer.commit(rows(0, 1, 2), SUMMARY)
            raise error

    with pytest.raises(type(error)) as caught:
        run()
    assert caught.value.__notes__ == [f"3 of 9 draws are kept in {tmp_path / 'run'}"]
    opened = open_run(tmp_path / "run")
    assert opened.manifest.state == "failed"
    assert opened.manifest.error in ("ValueError: it broke", "KeyboardInterrupt")
    assert opened.manifest.num_draws_done == 3
    assert opened.rows()["draw"].to_pylist() == [0, 1, 2]


def test_a_run_that_was_killed_still_reads(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", manifest(9))
    writer.commit(rows(0, 1), SUMMARY)
    (tmp_path / "run" / "rows" / ".part-00001.parquet.0a.tmp").write_bytes(b"half a p")
    opened = open_run(tmp_path / "run")
    assert opened.manifest.state == "running"
    assert opened.rows()["draw"].to_pylist() == [0, 1]


def test_a_write_that_fails_is_an_error_and_leaves_no_litter(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", manifest())
    (tmp_path / "run" / "rows").rmdir()
    with pytest.raises(RunError, match=r"cannot write .*part-00000.parquet: No such file"):
        writer.commit(rows(0), SUMMARY)

    def half(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(target, half)
    assert target.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_the_first_error_is_reported_when_the_manifest_cannot_be_written_either(
    tmp_path: Path,
) -> None:
    def run() -> None:
        with RunWriter.create(tmp_path / "run", manifest()):
            (tmp_path / "run").rename(tmp_path / "moved")
            raise ValueError("first")

    with pytest.raises(ValueError, match="first") as caught:
        run()
    assert any("cannot write" in note for note in caught.value.__notes__)


def test_no_run_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(RunError, match=r"there is no run in .* has no manifest.json"):
            open_run(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2, and this seqproc .* reads version 1"),
        ({"format_version": None}, "format version None"),
        ({"extra": 1}, "lacks or does not know the keys extra"),
        ({"state": "paused"}, "state 'paused'"),
        ({"num_draws": -1}, "counts of draws"),
        ({"policy": 3}, "'policy' must be an object"),
        ("[]", "must be a JSON object"),
        ("{", "not valid JSON"),
        (b"\xff", "cannot read"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    file = written(tmp_path / "run") / "manifest.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(file.read_text()) | change)
    file.write_bytes(change.encode() if isinstance(change, str) else change)
    with pytest.raises(RunError, match=message):
        open_run(tmp_path / "run")


def test_lost_and_damaged_parts_are_noticed(tmp_path: Path) -> None:
    parts = written(tmp_path / "run", num_parts=3) / "rows"
    last = (parts / "part-00002.parquet").read_bytes()
    (parts / "part-00002.parquet").unlink()
    with pytest.raises(RunError, match="says that it has 6 rows, but 4 are there"):
        open_run(tmp_path / "run")
    (parts / "part-00002.parquet").write_bytes(last)
    (parts / "part-00001.parquet").rename(parts / "part-00009.parquet")
    with pytest.raises(RunError, match=r"lacks part-00001.parquet"):
        open_run(tmp_path / "run")
    (parts / "part-00009.parquet").unlink()
    (parts / "part-00001.parquet").write_bytes(last[:40])
    with pytest.raises(RunError, match=r"cannot read .*part-00001.parquet"):
        open_run(tmp_path / "run")
    pq.write_table(pa.table({"draw": [1, 2]}), parts / "part-00001.parquet")
    with pytest.raises(RunError, match="does not have the columns of a run"):
        open_run(tmp_path / "run")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    parts = written(tmp_path / "run") / "rows"
    (parts / "part-00001.parquet").rename(tmp_path / "elsewhere.parquet")
    (parts / "part-00001.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(RunError, match="leads out of the run's folder"):
        open_run(tmp_path / "run")
    (tmp_path / "linked").symlink_to(written(tmp_path / "other"))
    assert open_run(tmp_path / "linked").num_rows == 4


def test_a_column_that_is_not_there_is_refused(tmp_path: Path) -> None:
    run = open_run(written(tmp_path / "run"))
    with pytest.raises(RunError, match="no column 'logprob'; its columns are draw, "):
        run.rows(["logprob"])


def test_reading_a_run_does_not_import_torch() -> None:
    code = "import sys; from seqproc.runs import open_run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_without_a_name_is_refused() -> None:
    with pytest.raises(RunError, match="empty name"):
        require_free("")
