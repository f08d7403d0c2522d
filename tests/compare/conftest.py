"""The browser's fixtures, and runs of a tiny model, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import report_runs
from helpers.browser import browser, page

__all__ = ["browser", "page"]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a, the same with other scores; cooler, of the same draws; other, of hostile prompts."""
    folder = tmp_path_factory.mktemp("compare")
    report_runs.sampled(folder / "a")
    report_runs.shifted(folder / "a", "moved")
    report_runs.sampled(folder / "cooler", draws=48, temperature=0.7)
    hostile = report_runs.hostile_prompts(folder / "prompts.jsonl")
    report_runs.sampled(folder / "other", draws=30, dataset=hostile)
    report_runs.sampled(folder / "other-cooler", draws=30, dataset=hostile, temperature=0.7)
    return folder
