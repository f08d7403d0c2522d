"""A page takes the place of an earlier page, and of nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helpers import report_runs
from seqproc.compare import compare_runs
from seqproc.compare import write_page as write_comparison
from seqproc.errors import ConfigError
from seqproc.report import write_page
from seqproc.report.place import require_place
from seqproc.runs import open_run, verify_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.sampled(tmp_path_factory.mktemp("place") / "run", 8)


@pytest.mark.parametrize("name", ["manifest.json", "samples/rows-1-00000.parquet", "events.jsonl"])
def test_a_page_replaces_no_file_of_a_run(folder: Path, name: str) -> None:
    before, run = (folder / name).read_bytes(), open_run(folder)
    with pytest.raises(ConfigError, match="is no page: it is not replaced"):
        write_page(run, folder / name)
    with pytest.raises(ConfigError, match="is no page: it is not replaced"):
        write_comparison(compare_runs(run, run), folder / name)
    assert (folder / name).read_bytes() == before
    assert not verify_run(folder)


def test_a_page_replaces_a_page_and_an_empty_file(folder: Path, tmp_path: Path) -> None:
    run, page = open_run(folder), tmp_path / "page.html"
    page.touch()
    first = write_page(run, page, tokens=False)
    write_comparison(compare_runs(run, run), page)
    assert write_page(run, page, tokens=False) == pytest.approx(first, abs=100)


def test_a_page_is_a_file_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for page, words in (
        (tmp_path, "is a folder: try"),
        (tmp_path / "none/page.html", "a folder that is not there: make it first"),
        (tmp_path / "file/page.html", "a folder that is a file"),
        (tmp_path / "file", "is no page: it is not replaced"),
    ):
        with pytest.raises(ConfigError, match=words):
            require_place(page)
    os.mkfifo(tmp_path / "pipe")  # is not even opened, which would wait for a writer
    with pytest.raises(ConfigError, match="is no page"):
        require_place(tmp_path / "pipe")
