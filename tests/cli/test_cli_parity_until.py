"""`seqproc parity --until`: it ends when engines are certified or rejected, or undecided."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.parity_command import Run, report


def test_until_it_is_certified(run_parity: Run, tmp_path: Path) -> None:
    result = run_parity("hf", "--until", 0.5, "--draws", 640)
    assert result.exit_code == 0, result.output
    assert "look 1: " in result.output
    assert "certified: " in result.output
    found = report(tmp_path)
    assert found["is_decided"] is True
    (one,) = found["checks"]["hf"]
    assert one["num_draws"] < 640
    assert one["certificate"]["is_given"] is True
    assert one["certificate"]["num_ruled_out"] > 50
    assert one["certificate"]["left"] == []


def test_until_it_is_rejected(run_parity: Run, tmp_path: Path) -> None:
    result = run_parity("hot", "--temperature", 0.7, "--until", 0.01, "--draws", 640)
    assert result.exit_code == 3, result.output
    assert "rejected by " in result.output
    assert "cause, policy: temperature" in result.output
    assert report(tmp_path)["checks"]["hot"][0]["num_draws"] < 640


def test_what_is_not_decided_by_all_draws_is_neither_right_nor_wrong(
    run_parity: Run, tmp_path: Path
) -> None:
    result = run_parity("hf", "--until", 1e-6)
    assert result.exit_code == 1, result.output
    assert "not decided: " in result.output
    assert "parity holds" not in result.output
    assert "all in all: not decided" in result.output
    found = report(tmp_path)
    assert (found["holds"], found["is_decided"]) == (True, False)


@pytest.mark.parametrize(
    "options", [("--until", 0), ("--until", 0.1, "--level", 2), ("--level", 0.1)], ids=str
)
def test_a_rule_that_is_none_is_bad_usage(run_parity: Run, options: tuple[object, ...]) -> None:
    assert run_parity("hf", *options).exit_code == 2


def test_engines_that_were_decided_at_different_looks_are_compared_as_far_as_both_go(
    run_parity: Run, tmp_path: Path
) -> None:
    result = run_parity("hf,hf:batch_size=7", "--until", 0.5, "--draws", 640)
    assert result.exit_code == 0, result.output
    (one,) = report(tmp_path)["comparisons"]
    assert one["num_draws"] == report(tmp_path)["checks"]["hf"][0]["num_draws"]
