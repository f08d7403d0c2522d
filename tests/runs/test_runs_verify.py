"""`verify_run`: passes what was written, and finds whatever was done to it since."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.run_folders import CHUNK, DRAWS, SPEC, Maker, edit, rewrite, with_column
from seqproc.errors import EngineError, RunError
from seqproc.runs import open_run, sample_run, score_run, verify_run
from seqproc.runs.format.manifest import with_key
from seqproc.runs.format.manifest_file import read_manifest, write_manifest
from seqproc.runs.store.folder import open_folder
from seqproc.runs.store.holder import this_process
from seqproc.runs.verify.coverage import Coverage
from seqproc.runs.verify.verify import examine_run

SAMPLES, SCORES = "samples/rows-1-00000", "scores/policy/rows-1-00000"
PART = "parts/samples/part-00000"


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


@pytest.fixture(scope="module")
def made(maker: Maker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    maker.complete(folder / "complete")
    maker.stopped(folder / "stopped")
    return folder


def files(path: Path) -> list[str]:
    return [fault.file for fault in verify_run(path)]


# ---------------------------------------------------------------------- what passes


def test_a_whole_run_is_sound(complete: Path) -> None:
    lines: list[str] = []
    found = examine_run(complete, lines.append)
    assert (found.faults, found.notes) == ([], [])
    assert (found.num_parts, found.num_rows) == (2, DRAWS)
    assert lines == [f"{name}.parquet: {DRAWS} rows, as written" for name in (SAMPLES, SCORES)]


def test_a_stopped_run_and_a_resumed_one_are_sound(maker: Maker, stopped: Path) -> None:
    found = examine_run(stopped)
    assert (found.faults, found.notes) == ([], [])
    assert (found.num_parts, found.num_rows) == (5, 2 * CHUNK)
    maker.complete(stopped)
    assert verify_run(stopped) == []
    assert open_run(stopped).num_rows == DRAWS


def test_a_run_with_all_columns_a_quarantine_and_gaps_is_sound(
    maker: Maker, tmp_path: Path
) -> None:
    columns = ("logprobs", "logqs", "rb_entropies", "margin", "eos_prob", "cut_margin")
    processor = maker.processor(3, lambda: EngineError("this one never works"))
    out = tmp_path / "run"
    result = sample_run(processor, SPEC, out, chunk_size=CHUNK, token_columns=columns)
    assert [one.draw for one in result.quarantined] == [3]
    assert verify_run(out) == []
    score_run(maker.processor(), out, tmp_path / "scored", chunk_size=5)
    assert open_run(tmp_path / "scored").manifest.num_draws == DRAWS - 1
    assert verify_run(tmp_path / "scored") == []
    again = score_run(maker.processor(), out, tmp_path / "scored", chunk_size=5)
    assert (again.manifest.state, again.manifest.merge) == ("complete", 1)


def test_a_source_with_gaps_whose_last_draw_cannot_be_scored_is_scored_again(
    maker: Maker, tmp_path: Path
) -> None:
    """The draws of what is scored reach beyond their number."""
    processor = maker.processor(3, lambda: EngineError("this one never works"))
    source = sample_run(processor, SPEC, tmp_path / "run", chunk_size=CHUNK).path
    seed = open_run(source).row(DRAWS - 1, ["seed"])["seed"]
    out = tmp_path / "scored"
    for _ in range(2):
        result = score_run(maker.unscorable(seed), source, out, chunk_size=5)
        assert [one.draw for one in result.quarantined] == [DRAWS - 1]
        assert verify_run(out) == []
    (out / f"{SAMPLES}.parquet").unlink()
    score_run(maker.unscorable(seed), source, out, chunk_size=5)
    assert verify_run(out) == []
    assert open_run(out).num_rows == DRAWS - 2


def test_draws_that_cannot_be_scored_are_no_fault(maker: Maker, tmp_path: Path) -> None:
    seed = open_run(maker.complete(tmp_path / "whole").path).row(5, ["seed"])["seed"]
    processor = maker.unscorable(seed, at=20)
    with pytest.raises(KeyboardInterrupt):
        sample_run(processor, SPEC, tmp_path / "run", chunk_size=CHUNK)
    assert [one.draw for one in open_run(tmp_path / "run").quarantined] == [5]
    assert verify_run(tmp_path / "run") == []
    retried = Path(shutil.copytree(tmp_path / "run", tmp_path / "retried"))
    maker.complete(tmp_path / "run")
    assert verify_run(tmp_path / "run") == []
    assert open_run(tmp_path / "run").num_rows == DRAWS - 1

    whole = open_run(tmp_path / "whole").rows()
    for path in (retried, tmp_path / "run"):  # before the parts are merged, and after
        maker.complete(path, retry_quarantined=True)
        assert verify_run(path) == []
        assert open_run(path).rows().equals(whole)


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no run in"):
        verify_run(tmp_path)


def test_a_run_in_an_object_store_is_verified(maker: Maker) -> None:
    pytest.importorskip("fsspec")
    url = f"memory://verify-{os.getpid()}/run"
    maker.complete(url)
    assert verify_run(url) == []
    folder = open_folder(url)
    content = folder.read(f"{SCORES}.parquet")
    folder.write(f"{SCORES}.parquet", lambda file: file.write(content[:-1]))
    assert [fault.file for fault in verify_run(url)] == [f"{SCORES}.parquet"]


# ---------------------------------------------------------------------- bytes and files


@pytest.mark.parametrize("name", [SAMPLES, SCORES])
def test_a_flipped_bit_anywhere_is_found(complete: Path, name: str) -> None:
    file = complete / f"{name}.parquet"
    content = file.read_bytes()
    rng = random.Random(0)
    for position in rng.sample(range(len(content)), 40):
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        (fault,) = verify_run(complete)
        assert fault.file == f"{name}.parquet"
        assert "its checksum differs" in fault.wrong
        assert "run the same command again" in fault.mend
    file.write_bytes(content)
    assert verify_run(complete) == []


@pytest.mark.parametrize("name", [SAMPLES, SCORES])
@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_part_is_found(complete: Path, name: str, keep: int) -> None:
    file = complete / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    (fault,) = verify_run(complete)
    assert fault.file == f"{name}.parquet"
    assert "bytes, and had" in fault.wrong


@pytest.mark.parametrize("name", [SAMPLES, SCORES])
def test_a_missing_part_is_found(complete: Path, name: str) -> None:
    (complete / f"{name}.parquet").unlink()
    (fault,) = verify_run(complete)
    assert (fault.file, fault.wrong) == (f"{name}.parquet", "is missing")


@pytest.mark.parametrize("name", [SAMPLES, SCORES])
def test_a_missing_note_is_found(complete: Path, name: str) -> None:
    (complete / f"{name}.json").unlink()
    assert f"{name}.parquet" in files(complete)


def test_parts_that_are_gone_altogether_are_found(complete: Path, stopped: Path) -> None:
    for folder in (complete / "samples", complete / "scores", stopped / "parts"):
        shutil.rmtree(folder)
    said = " ".join(fault.wrong for fault in verify_run(complete))
    assert f"{DRAWS} draws are done, and 0 are there" in said
    assert "24 draws are neither scored nor in quarantine, the first of them draw 0" in said
    (fault,) = verify_run(stopped)
    assert fault.wrong == "it says that 16 draws are done, and 0 are there"


@pytest.mark.parametrize(
    "changes",
    [
        {"num_rows": 7},
        {"draws": [[1, 9]]},
        {"draws": [[0, 10**18]], "num_rows": 10**18},
        {"draws": [[0, 1e400]]},
        {"draws": [[0, 10**30]]},
        {"draws": 5},
        {"seconds": 5},
        {"seconds": {"generation": "x"}},
        {"size": "x"},
        {"sha256": "0" * 64},
        {"key": "0" * 32},
        {"name": "part-000001"},
        {"more": 1},
    ],
)
def test_an_edited_note_is_found(stopped: Path, changes: dict[str, Any]) -> None:
    edit(stopped / f"{PART}0.json", **changes)
    assert any(f"{PART}0" in file for file in files(stopped))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"{}"])
def test_a_broken_note_is_found(stopped: Path, content: bytes) -> None:
    (stopped / f"{PART}0.json").write_bytes(content)
    assert f"{PART}0.json" in files(stopped)


def test_a_part_of_another_run_is_found(maker: Maker, complete: Path, tmp_path: Path) -> None:
    other = Path(maker.complete(tmp_path / "other", replace(SPEC, seed=6)).path)
    key = json.loads((complete / f"{SAMPLES}.json").read_text())["key"]
    for ending in ("parquet", "json"):
        shutil.copy(other / f"{SAMPLES}.{ending}", complete / f"{SAMPLES}.{ending}")
    (fault,) = verify_run(complete)
    assert (fault.file, fault.wrong) == (f"{SAMPLES}.json", "is of another run")
    edit(complete / f"{SAMPLES}.json", key=key)
    (fault,) = verify_run(complete)
    assert fault.file == f"{SAMPLES}.parquet"
    assert "its footer says that it is of the run" in fault.wrong


@pytest.mark.parametrize("endings", [("parquet",), ("json",), ("parquet", "json")])
def test_two_parts_exchanged_are_found(stopped: Path, endings: tuple[str, ...]) -> None:
    for ending in endings:
        one, other = (stopped / f"{PART}{i}.{ending}" for i in (0, 1))
        one.rename(stopped / "aside")
        other.rename(one)
        (stopped / "aside").rename(other)
    found = files(stopped)
    assert all(any(f"{PART}{i}." in file for file in found) for i in (0, 1))


def test_a_part_copied_under_another_name_is_found(complete: Path, stopped: Path) -> None:
    for path, name, copied in (
        (stopped, f"{PART}1", f"{PART}7"),
        (complete, SAMPLES, "samples/rows-1-00001"),
        (complete, SCORES, "scores/policy/rows-1-00001"),
    ):
        for ending in ("parquet", "json"):
            shutil.copy(path / f"{name}.{ending}", path / f"{copied}.{ending}")
        edit(path / f"{copied}.json", name=Path(copied).name)
        faults = {fault.file: fault.wrong for fault in verify_run(path)}
        expected = "draw 8 is in" if path == stopped else "draw 0 is in"
        if not name.startswith("scores"):
            assert expected in faults[f"{copied}.parquet"]
    assert any("rows-1-00001" in file for file in files(complete))


def test_foreign_files_are_faults_among_rows_and_notes_elsewhere(complete: Path) -> None:
    strangers = (
        "samples/mine.txt",
        "scores/other/rows-1-00000.parquet",
        "parts/samples/part-000009.parquet",
        "samples/rows-0-00000.json",
        "samples/rows-1-00000.parquet.bak",
    )
    for name in (*strangers, "README", "samples/.x.0123456789ab.tmp", "set-aside/x", "lock.txt"):
        (complete / name).parent.mkdir(parents=True, exist_ok=True)
        (complete / name).touch()
    found = examine_run(complete)
    assert sorted(fault.file for fault in found.faults) == sorted(strangers)
    assert found.notes == [
        "README: nothing reads it",
        "samples/.x.0123456789ab.tmp: being written, or its writer was killed",
    ]


def test_what_a_killed_process_left_is_a_note(stopped: Path) -> None:
    left = ("samples/rows-1-00000.parquet", f"{PART}9.parquet")
    for name in left:
        (stopped / name).parent.mkdir(exist_ok=True)
        (stopped / name).touch()
    found = examine_run(stopped)
    assert found.faults == []
    assert sorted(found.notes) == [
        f"{name}: unfinished; the same command makes it again" for name in sorted(left)
    ]


def test_parts_that_a_merge_has_replaced_are_a_note(maker: Maker, stopped: Path) -> None:
    """The process was killed when the manifest named the merged files, and the parts were left."""
    before = Path(shutil.copytree(stopped, stopped.with_name("before")))
    maker.complete(stopped)
    shutil.copytree(before / "parts", stopped / "parts", dirs_exist_ok=True)
    assert verify_run(stopped) != []
    edit(stopped / "manifest.json", state="running")
    found = examine_run(stopped)
    assert found.faults == []
    assert len(found.notes) == 3
    assert found.num_rows == DRAWS


# ---------------------------------------------------------------------- the manifest


@pytest.mark.parametrize(
    "changes",
    [
        {"policy__temperature": -3},
        {"policy__top_p": "x"},
        {"policy__temperature": float("nan")},
        {"num_draws": DRAWS - 8},
        {"num_draws": DRAWS + 8},
        {"num_draws": -1},
        {"num_draws_done": DRAWS - 1},
        {"num_draws_done": DRAWS + 1},
        {"num_quarantined": 1},
        {"summary__length_mean": float("nan")},
        {"summary__length_mean": 100.0},
        {"summary__num_draws": 5},
        {"summary__reward__mean": 0.9},
        {"summary": None},
        {"summary": {}},
        {"merge": 0},
        {"merge": 2},
        {"state": "done"},
        {"key": "0" * 32},
        {"token_columns": ["logprobs"]},
        {"format_version": 1},
        {"format_version": float("inf")},
        {"more": 1},
    ],
)
def test_an_edited_manifest_is_found(complete: Path, changes: dict[str, Any]) -> None:
    edit(complete / "manifest.json", **changes)
    faults = verify_run(complete)
    assert faults
    assert all(fault.wrong and fault.mend for fault in faults)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"NaN"])
def test_a_broken_manifest_is_found(complete: Path, content: bytes) -> None:
    (complete / "manifest.json").write_bytes(content)
    assert files(complete) == ["manifest.json"]


def test_an_edited_manifest_with_a_new_key_is_not_that_of_the_parts(stopped: Path) -> None:
    folder = open_folder(stopped)
    manifest = read_manifest(folder)
    assert manifest is not None
    policy = {**manifest.policy, "temperature": -3}
    write_manifest(folder, with_key(replace(manifest, policy=policy)))
    found = verify_run(stopped)
    assert {fault.wrong for fault in found if PART in fault.file} == {"is of another run"}


def test_fewer_draws_than_are_done_are_found_even_under_a_new_key(stopped: Path) -> None:
    folder = open_folder(stopped)
    manifest = read_manifest(folder)
    assert manifest is not None
    changed = with_key(replace(manifest, num_draws=12))
    write_manifest(folder, changed)
    for note in stopped.rglob("part-*.json"):
        edit(note, key=changed.key)
        name = note.relative_to(stopped).as_posix().removesuffix(".json")
        rewrite(stopped, name, lambda table: table, changed.key)
    assert "it has draw 15, and 12 draws are planned" in [f.wrong for f in verify_run(stopped)]


# ---------------------------------------------------------------------- rows


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value(values[0]) if callable(value) else value, *values[1:]]


@pytest.mark.parametrize(
    ("name", "column", "change", "wrong"),
    [
        (SAMPLES, "gen_len", first(99), "draw 0: gen_len is 99, and response_ids holds"),
        (SAMPLES, "response_ids", first([]), "and response_ids holds 0"),
        (SAMPLES, "engine_logqs", first([-1.0] * 9), "and engine_logqs holds 9"),
        (SAMPLES, "prompt_ids", lambda values: [[] for _ in values], "(and 23 other draws)"),
        (SAMPLES, "draw", lambda draws: draws[::-1], "its draws are not those of its note"),
        (SAMPLES, "draw", lambda draws: [0, *draws[:-1]], "its draws are not those of its note"),
        (SCORES, "draw", lambda draws: [0, 2, 1, *draws[3:]], "its draws are not those"),
        (SCORES, "logprobs", first(lambda x: x[:-1]), "and logprobs holds"),
        (SCORES, "logprobs", first(lambda x: [x[0] - 0.001, *x[1:]]), "sequence_logprob is"),
        (SCORES, "sequence_logprob", first(-1e9), "sequence_logprob is -1e+09"),
        (SCORES, "naive_surprisal_sum", first(0.0), "naive_surprisal_sum is 0, and logprobs"),
        (SCORES, "sequence_logq", first(float("nan")), "sequence_logq is nan"),
        (SCORES, "rb_entropy_sum", first(lambda x: x + 1e-4), "rb_entropy_sum is"),
        (SCORES, "inside_logq", first(1.0), "inside_logq is 1, and logqs inside the support"),
        (SCORES, "out_of_support", first(77), "out_of_support is 77, and"),
    ],
)
def test_rows_that_do_not_agree_with_themselves_are_found(
    complete: Path, name: str, column: str, change: Any, wrong: str
) -> None:
    rewrite(complete, name, with_column(column, change))
    faults = verify_run(complete)
    assert any(wrong in fault.wrong and fault.file == f"{name}.parquet" for fault in faults)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda table: table.drop_columns(["reward"]), "its columns are"),
        (lambda table: table.select(table.column_names[::-1]), "its columns are"),
        (
            lambda table: table.set_column(0, "draw", table["draw"].cast(pa.int32())),
            "its column draw is",
        ),
        (lambda table: table.slice(0, 20), "it has 20 rows, and 24 by its note"),
        (lambda table: table.replace_schema_metadata({}), "its footer says"),
    ],
)
def test_a_file_of_another_shape_is_found(complete: Path, change: Any, wrong: str) -> None:
    rewrite(complete, SAMPLES, change)
    (fault,) = verify_run(complete)
    assert wrong in fault.wrong


def test_a_file_that_is_not_parquet_is_found(complete: Path) -> None:
    (complete / f"{SAMPLES}.parquet").write_bytes(b"hello")
    digest = hashlib.sha256(b"hello").hexdigest()
    edit(complete / f"{SAMPLES}.json", sha256=digest, size=5)
    (fault,) = verify_run(complete)
    assert "it cannot be read as Parquet" in fault.wrong


def test_scores_of_other_draws_than_the_samples_are_found(stopped: Path) -> None:
    scores = "parts/scores/policy/part-00000"
    for ending in ("parquet", "json"):
        shutil.copy(stopped / f"{scores}1.{ending}", stopped / f"{scores}0.{ending}")
    edit(stopped / f"{scores}0.json", name="part-000000")
    wrong = {fault.wrong for fault in verify_run(stopped)}
    assert "it has scores of draws that its samples lack" in wrong
    for ending in ("parquet", "json"):
        (stopped / f"{PART}1.{ending}").unlink()
    assert "the samples of these scores are not there" in {f.wrong for f in verify_run(stopped)}


def test_a_broken_quarantine_is_found(maker: Maker, tmp_path: Path) -> None:
    processor = maker.processor(3, lambda: EngineError("this one never works"))
    sample_run(processor, SPEC, tmp_path / "run", chunk_size=CHUNK)
    file = tmp_path / "run" / "quarantine.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(0, rows.schema.field(0), pa.array([4])), file)
    said = " ".join(f"{fault.file}: {fault.wrong}" for fault in verify_run(tmp_path / "run"))
    assert "quarantine.parquet: draw 4 has scores as well" in said
    assert "1 draws are neither scored nor in quarantine, the first of them draw 3" in said
    file.write_bytes(file.read_bytes()[:50])
    assert "quarantine.parquet" in files(tmp_path / "run")
    file.unlink()
    assert "1 draws are in quarantine; 0 are" in verify_run(tmp_path / "run")[0].wrong


# ---------------------------------------------------------------------- mending


def test_a_quarantine_of_another_run_is_set_aside_and_leaves_no_draw_out(
    maker: Maker, complete: Path, stopped: Path, tmp_path: Path
) -> None:
    """It names draws that this run can make, or some that it has none of."""
    expected = open_run(complete).rows()
    for name, spec, draw in (
        ("seed", replace(SPEC, seed=6), 21),
        ("draws", replace(SPEC, draws=DRAWS + 9), DRAWS + 8),
    ):
        processor = maker.processor(draw, lambda: EngineError("this one never works"))
        sample_run(processor, spec, tmp_path / name, chunk_size=CHUNK)
        folder = tmp_path / f"with-that-of-{name}"
        shutil.copytree(stopped, folder)
        shutil.copy(tmp_path / name / "quarantine.parquet", folder)
        assert {(f.file, f.wrong) for f in verify_run(folder)} == {
            ("quarantine.parquet", "is of another run")
        }
        with pytest.raises(RunError, match=r"quarantine\.parquet is of another run"):
            open_run(folder).quarantined  # noqa: B018 - reads the file
        maker.complete(folder)
        assert open_run(folder).rows().equals(expected)
        assert verify_run(folder) == []


@pytest.mark.parametrize("draw", [-1, -DRAWS - 1, DRAWS])
def test_draws_that_no_run_has_are_not_in_its_quarantine(
    maker: Maker, stopped: Path, draw: int
) -> None:
    processor = maker.processor(20, lambda: EngineError("this one never works"))
    sample_run(processor, SPEC, stopped, chunk_size=CHUNK)
    file = stopped / "quarantine.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(0, rows.schema.field(0), pa.array([draw])), file)
    assert "quarantine.parquet" in files(stopped)
    maker.complete(stopped)
    assert (open_run(stopped).num_rows, verify_run(stopped)) == (DRAWS, [])


def test_a_quarantine_that_cannot_be_read_is_set_aside(maker: Maker, tmp_path: Path) -> None:
    processor = maker.processor(20, lambda: EngineError("this one never works"))
    sample_run(processor, SPEC, tmp_path / "run", chunk_size=CHUNK)
    file = tmp_path / "run" / "quarantine.parquet"
    file.write_bytes(file.read_bytes()[:50])
    sample_run(processor, SPEC, tmp_path / "run", chunk_size=CHUNK)
    assert [one.draw for one in open_run(tmp_path / "run").quarantined] == [20]
    assert verify_run(tmp_path / "run") == []


@pytest.mark.parametrize("name", [SAMPLES, SCORES])
def test_the_same_command_mends_a_complete_run(maker: Maker, complete: Path, name: str) -> None:
    rows = open_run(complete).rows()
    file = complete / f"{name}.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    maker.complete(complete)
    assert verify_run(complete) == []
    assert open_run(complete).manifest.state == "complete"
    assert open_run(complete).rows().equals(rows)


def test_a_run_killed_before_it_counted_its_last_part_ends_with_the_right_counts(
    maker: Maker, complete: Path
) -> None:
    before = json.loads((complete / "manifest.json").read_text())["summary"]
    edit(complete / "manifest.json", state="running", num_draws_done=16, summary=None)
    maker.complete(complete)
    manifest = open_run(complete).manifest
    assert (manifest.num_draws_done, manifest.state) == (DRAWS, "complete")
    assert manifest.summary is not None
    assert manifest.summary["num_tokens"] == before["num_tokens"]
    assert verify_run(complete) == []


def test_a_process_at_work_is_noted(stopped: Path) -> None:
    (stopped / "lock.json").write_bytes(this_process("a" * 32).to_json())
    found = examine_run(stopped)
    assert found.faults == []
    assert "is at work in the folder" in found.notes[0]


# ---------------------------------------------------------------------- ranges of draws


def test_coverage_is_what_sets_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        coverage, sets = Coverage(), []
        for name in range(int(rng.integers(0, 5))):
            draws = np.unique(rng.integers(0, 30, size=rng.integers(0, 8)))
            coverage.add(str(name), [(int(d), int(d) + 1) for d in draws])
            sets.append(set(draws.tolist()))
        union = set().union(*sets)
        gaps = {d for start, stop in coverage.gaps(25) for d in range(start, stop)}
        assert gaps == set(range(25)) - union
        double = {d for d in union if sum(d in one for one in sets) > 1}
        assert {draw for draw, _, _ in coverage.twice()} == double
        start, stop = sorted(rng.integers(0, 30, size=2).tolist())
        assert coverage.holds([(start, stop)]) == (set(range(start, stop)) <= union)


def test_overlaps_of_long_ranges_are_found() -> None:
    coverage = Coverage()
    coverage.add("a", [(0, 100), (200, 300)])
    coverage.add("b", [(100, 200), (250, 260), (290, 310)])
    assert list(coverage.twice()) == [(250, "a", "b"), (290, "a", "b")]
    assert list(coverage.gaps(400)) == [(310, 400)]
    assert coverage.holds([(50, 310)])
    assert not coverage.holds([(50, 311)])
