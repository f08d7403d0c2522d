"""The notebooks in examples/ run from the top, with a small model, and are kept without outputs.

Their code cells are run as they stand, in this process: no kernel is started, and so the tests need
nothing that a notebook is shown with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run_cells(notebook: Path) -> dict[str, Any]:
    """Run the code cells in order with the small model ``tiny``; return their names."""
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells_of(notebook), start=1):
        code = "".join(cell["source"]).replace("smollm2-135m", "tiny")
        exec(compile(code, f"{notebook.name}, cell {number}", "exec"), names)
    return names


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    document = json.loads(notebook.read_text(encoding="utf-8"))
    assert document["nbformat"] == 4
    assert len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    for cell in cells_of(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.fixture
def in_a_folder(docs_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, empty but for the small model."""
    (tmp_path / "tiny").symlink_to(docs_model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_first_run(in_a_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_cells(ROOT / "examples" / "first_run.ipynb")
    assert names["run"].manifest.state == "complete"
    assert len(names["rows"]) == names["run"].num_rows == 24
    # A fixed seed; another one would be as far from 0 in 6 of 10⁵ runs.
    assert abs(names["gain"].z_score) < 4
    summary = names["run"].manifest.summary["rb_entropy_per_sequence"]
    assert names["gain"].rao_blackwell.value == pytest.approx(summary["mean"], rel=1e-6)
    assert names["draw"]["response_text"] in capsys.readouterr().out


@pytest.mark.slow
def test_probe(in_a_folder: Path) -> None:
    """Differences and weights settle to what forward mode gives, and are not there at first."""
    names = run_cells(ROOT / "examples" / "probe.ipynb")
    for values, limit in (("differences", "limit"), ("reweighted", "limit_reweighted")):
        slopes = [x / eta for x, eta in zip(names[values], names["etas"], strict=True)]
        assert slopes[-1] == pytest.approx(names[limit], rel=1e-3)
        assert slopes[0] != pytest.approx(names[limit], rel=1e-3)
