"""dH/dη in the token view: the differences of what the run has, and close to the derivative."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from helpers import report_runs
from helpers.run_folders import FIELDS
from helpers.tiny import byte_tokenizer, random_model
from helpers.token_rows import read
from seqproc.errors import RunError
from seqproc.report.tokens import token_view
from seqproc.report.tokens.slopes import slopes_of
from seqproc.runs import open_run

ETA = 1e-2
COLUMNS = ("logqs", "rb_entropies")
OPEN: dict[str, Any] = {"top_p": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without a nucleus, scored on both sides of θ, ahead alone, and otherwise."""
    path = report_runs.sampled(tmp_path_factory.mktemp("slopes") / "run", 30, **OPEN)
    report_runs.shifted(path, "ahead", COLUMNS, ETA, **OPEN)
    report_runs.shifted(path, "behind", COLUMNS, -ETA, **OPEN)
    report_runs.shifted(path, "alone", COLUMNS, 2 * ETA, **OPEN)
    report_runs.shifted(path, "no-entropies", ("logqs",), 3 * ETA, **OPEN)
    report_runs.shifted(path, "other-policy", COLUMNS, 4 * ETA, top_p=0.9)
    return path


@pytest.fixture(scope="module")
def shown(folder: Path) -> tuple[Any, dict[str, Any]]:
    data = token_view(open_run(folder), tokenizer=None).data
    header, _ = read(data, "draws")
    return header, read(data, "numbers-0")[1]


def entropies(folder: Path, scores: str) -> Any:
    return np.concatenate([row["rb_entropies"] for row in report_runs.rows_of(folder, scores)])


def test_only_scores_of_the_runs_own_policy_give_a_slope(shown: Any) -> None:
    names = [one["name"] for one in shown[0]["token_columns"]]
    slopes = [name for name in names if name.startswith("dH/dη")]
    assert slopes == ["dH/dη ahead", "dH/dη alone"]
    for one in shown[0]["statistics"]:
        assert one["diverging"] == (one["name"] in [*slopes, "engine_delta"])
    (unit,) = (u["unit"] for u in shown[0]["token_columns"] if u["name"] == "dH/dη ahead")
    assert "(H(q) at θ + 0.01·v − H(q) at θ − 0.01·v) / 0.02" in unit


def test_slopes_are_differences_of_the_rows(folder: Path, shown: Any) -> None:
    ahead, behind = entropies(folder, "ahead"), entropies(folder, "behind")
    both = (ahead - behind) / (2 * ETA)
    alone = (entropies(folder, "alone") - entropies(folder, "policy")) / (2 * ETA)
    np.testing.assert_allclose(shown[1]["dH/dη ahead"], both, rtol=1e-5)
    np.testing.assert_allclose(shown[1]["dH/dη alone"], alone, rtol=1e-5)


def test_slopes_are_the_derivative(folder: Path, shown: Any) -> None:
    """v is the last matrix, so the logits are (1 + η)·z, and dH/dη at 0 is −Var(z) under q."""
    model = random_model(LlamaConfig, byte_tokenizer(), 0, FIELDS).double()
    expected: list[float] = []
    for row in report_runs.rows_of(folder):
        ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row["prompt_ids"]) - 1 : -1]
        q = logits.softmax(-1)
        mean = (q * logits).sum(-1, keepdim=True)
        expected += (-(q * (logits - mean) ** 2).sum(-1)).tolist()
    errors = np.abs(shown[1]["dH/dη ahead"] - np.array(expected))
    assert errors.max() < 2e-3 * np.abs(expected).max()
    assert np.std(expected) > 100 * errors.max()


def test_a_draw_without_scores_there_has_no_slope(folder: Path, monkeypatch: Any) -> None:
    run = open_run(folder)
    whole = type(run).scores
    monkeypatch.setattr(type(run), "scores", lambda self, name: whole(self, name).slice(2))
    header, arrays = read(token_view(run, tokenizer=None).data, "numbers-0")
    assert header["missing"]["dH/dη alone"] == [0, 1]
    num_without = sum(header["lengths"][:2])
    assert np.isnan(arrays["dH/dη alone"][:num_without]).all()
    assert np.isfinite(arrays["dH/dη alone"][num_without:]).all()


def test_scores_of_other_weights_are_of_another_model(folder: Path, monkeypatch: Any) -> None:
    """A checkpoint that was overwritten in place has the name of the one before."""
    run, read_set = open_run(folder), type(open_run(folder)).score_set

    def overwritten(self: Any, name: str) -> Any:
        found = read_set(self, name)
        if name != "behind":
            return found
        model = {**found.made_by["model"], "weights": "0" * 16}
        return dataclasses.replace(found, made_by={**found.made_by, "model": model})

    monkeypatch.setattr(type(run), "score_set", overwritten)
    units = {one.column: one.unit for one in slopes_of(run)}
    assert set(units) == {"dH/dη ahead", "dH/dη behind", "dH/dη alone"}  # and no pair
    assert "(H(q) at θ − 0.01·v − H(q) at θ) / −0.01, if the run was" in units["dH/dη behind"]


@pytest.mark.parametrize(
    "broken",
    [{"eta": "x"}, {"eta": 10**400}, {"eta": 0}, {"token_columns": 0}, {"token_columns": None}],
    ids=str,
)
def test_a_set_that_makes_no_sense_gives_no_slope(
    folder: Path, monkeypatch: Any, broken: dict[str, Any]
) -> None:
    run, read_set = open_run(folder), type(open_run(folder)).score_set

    def damaged(self: Any, name: str) -> Any:
        made_by = dict(read_set(self, name).made_by)
        made_by["override"] = {**made_by["override"], **broken}
        made_by |= {key: value for key, value in broken.items() if key in made_by}
        return dataclasses.replace(read_set(self, name), made_by=made_by)

    monkeypatch.setattr(type(run), "score_set", damaged)
    assert slopes_of(run) == []


def test_sets_that_cannot_be_read_do_not_stop_the_view(folder: Path, monkeypatch: Any) -> None:
    run = open_run(folder)

    def broken(*_: Any) -> Any:
        raise RunError("is not what was written")

    with monkeypatch.context() as patch:
        patch.setattr(type(run), "scores", broken)
        assert slopes_of(run) == []
    monkeypatch.setattr(type(run), "score_set", broken)
    assert slopes_of(run) == []
