"""`seqproc parity --pair`: what it prints and writes of two engines, and what is no pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from helpers.parity_command import Run, cannot_print
from seqproc._util.progress import progress_bar
from seqproc.engines import HFEngine, register_engine
from seqproc.engines.base import Path as ResponsePath
from seqproc.errors import EngineError
from seqproc.policy import SamplingPolicy

STOPS_AT, FAILS_AT = 0.25, 0.125  # temperatures


class Tepid(HFEngine):
    """It would sample at twice the temperature."""

    name = "tepid"

    def follow(self, paths: Sequence[ResponsePath], policy: SamplingPolicy) -> Iterator[Tensor]:
        if policy.temperature == STOPS_AT:
            raise KeyboardInterrupt
        if policy.temperature == FAILS_AT:
            raise EngineError("out of order")
        return super().follow(paths, replace(policy, temperature=2.0))


register_engine("tepid", Tepid)


def pair(run_parity: Run, engines: str, *arguments: object) -> Any:
    """The same command with a pair."""
    return run_parity(None, "--pair", engines, "--draws", 24, *arguments)


def pairs_of(tmp_path: Path) -> dict[str, Any]:
    """Strict JSON."""
    text = (tmp_path / "out" / "pair.json").read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


def test_a_pair_is_compared_under_every_policy(run_parity: Run, tmp_path: Path) -> None:
    result = pair(run_parity, "hf:batch_size=7,scorer", "--policy", "1,1", "--policy", "0.7,0.9")
    assert result.exit_code == 0, result.output
    assert result.output.count("KL(first ‖ second)") == 2
    assert "hf:batch_size=7 and scorer at T = 0.7, top_p = 0.9: 256 contexts" in result.output
    assert "pair.json" in result.output
    found = json.loads((tmp_path / "out" / "pair.json").read_text())
    assert [one["policy"]["top_p"] for one in found["pairs"]] == [1.0, 0.9]
    assert all(one["total_variation"]["value"] < 1e-4 for one in found["pairs"])
    assert len(found["pairs"][0]["worst"]) == 10
    assert not (tmp_path / "out" / "parity.json").exists()


def test_a_pair_that_differs_is_no_failure(run_parity: Run, tmp_path: Path) -> None:
    result = pair(run_parity, "hf,tepid", "--rows", 30)
    assert result.exit_code == 0, result.output
    (one,) = json.loads((tmp_path / "out" / "pair.json").read_text())["pairs"]
    assert one["engines"] == ["hf", "tepid"]
    assert (one["num_rows"], one["num_prompts"]) == (30, 6)
    assert one["kl"]["value"] > 0.05
    told = json.loads(pair(run_parity, "hf,tepid", "--rows", 30, "--json").stdout)
    assert told["file"] == str(tmp_path / "out" / "pair.json")
    assert told["pairs"] == json.loads((tmp_path / "out" / "pair.json").read_text())["pairs"]


def test_a_pair_of_before_does_not_outlive_a_failure(run_parity: Run, tmp_path: Path) -> None:
    assert pair(run_parity, "hf,scorer").exit_code == 0
    assert pairs_of(tmp_path)["is_complete"]
    assert pair(run_parity, "failing,scorer").exit_code == 1
    found = pairs_of(tmp_path)
    assert (found["is_complete"], found["pairs"]) == (False, [])


@pytest.mark.parametrize(
    ("temperature", "code", "words"),
    [(STOPS_AT, 130, "interrupted"), (FAILS_AT, 1, "out of order")],
)
def test_what_is_compared_outlives_a_failure_and_an_interruption(
    run_parity: Run, tmp_path: Path, temperature: float, code: int, words: str
) -> None:
    """The second engine fails under the second policy, or the user stops it there."""
    result = pair(run_parity, "hf,tepid", "--policy", "1,1", "--policy", f"{temperature},1")
    assert result.exit_code == code, result.output
    assert words in result.output
    found = pairs_of(tmp_path)
    assert [engine["name"] for engine in found["engines"]] == ["hf", "tepid"]
    (one,) = found["pairs"]
    assert one["policy"]["temperature"] == 1
    assert one["total_variation"]["value"] > 0.01
    assert not found["is_complete"]


def test_contexts_are_read_as_is_asked_and_it_is_told(run_parity: Run, tmp_path: Path) -> None:
    result = pair(run_parity, "hf,scorer")
    assert "contexts are read by hf in decode, scorer in prefill" in result.output
    result = pair(run_parity, "hf,hf:batch_size=3", "--read", "decode,prefill")
    assert result.exit_code == 0, result.output
    assert "read by hf in decode, hf:batch_size=3 in prefill" in " ".join(result.output.split())
    assert pairs_of(tmp_path)["pairs"][0]["readings"] == ["decode", "prefill"]
    result = pair(run_parity, "hf,hf", "--read", "decode,prefill")
    assert result.exit_code == 0, result.output
    assert pairs_of(tmp_path)["pairs"][0]["readings"] == ["decode", "prefill"]
    assert pair(run_parity, "hf,hf:batch_size=3", "--read", "prefill").exit_code == 0
    assert pairs_of(tmp_path)["pairs"][0]["readings"] == ["prefill", "prefill"]


def test_the_module_in_which_another_model_parts_is_named(
    run_parity: Run, tmp_path: Path, tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    other = tiny_llama(initializer_range=0.5)
    other.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 5] += 1
    folder = tmp_path / "other"
    other.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    result = pair(run_parity, "hf,scorer", "--layers", folder)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "the first that differs is model.layers.1.mlp.up_proj (Linear)" in words
    assert "parameters in it that differ: model.layers.1.mlp.up_proj.weight; 1 in" in words
    (found,) = pairs_of(tmp_path)["layers"]
    assert found["difference"]["module"] == "model.layers.1.mlp.up_proj"
    assert found["second"] == str(folder)


@pytest.mark.parametrize("engines", ["hf,scorer", "hf,tepid"])
def test_a_pair_whose_engines_tell_no_layers_is_compared_all_the_same(
    run_parity: Run, tmp_path: Path, engines: str
) -> None:
    result = pair(run_parity, engines, "--rows", 30, "--layers", "engines")
    assert result.exit_code == 0, result.output
    assert "not compared: " in result.output
    found = pairs_of(tmp_path)
    assert (found["is_complete"], len(found["pairs"])) == (True, 1)
    asked = [name for name in engines.split(",") if name != "scorer"]
    assert [one["second"] for one in found["layers"]] == asked
    assert all("layers" in one["not_told"] for one in found["layers"])


def test_progress_of_a_pair_is_told(run_parity: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int | None]] = []

    def bar(total: int | None, title: str, *, unit: str) -> Any:
        told.append((title, total))
        return progress_bar(total, title, unit=unit)

    monkeypatch.setattr("seqproc.parity.draws.progress_bar", bar)
    monkeypatch.setattr("seqproc.parity.side_by_side.pair.progress_bar", bar)
    assert pair(run_parity, "hf,scorer", "--rows", 30).exit_code == 0
    assert told == [
        ("sampling with hf", 24),
        ("contexts by hf, decode", 30),
        ("contexts by scorer, prefill", 30),
    ]


@pytest.mark.parametrize("printed", ["print_pair", "print_layers"])
def test_a_comparison_that_cannot_be_printed_is_written(
    run_parity: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    monkeypatch.setattr(f"seqproc.cli.pair.{printed}", cannot_print)
    assert pair(run_parity, "hf,scorer", "--layers", tmp_path / "model").exit_code == 1
    found = pairs_of(tmp_path)
    assert len(found["pairs"]) == 1
    assert found["is_complete"] is (printed == "print_layers")


@pytest.mark.parametrize(
    ("engines", "arguments", "code", "words"),
    [
        ("hf", (), 2, "--pair takes two engines"),
        ("hf,nobody", (), 2, "--pair names 'nobody'; expected some of"),
        ("hf,hf", (), 2, "names an engine twice"),
        ("scorer,hf", (), 2, "'scorer' does not sample"),
        ("hf,scorer", ("--engines", "hf"), 2, "give either --engines"),
        ("hf,scorer", ("--rows", 0), 2, "num_rows must be"),
        ("hf,scorer", ("--until", 0.1), 2, "--until goes with --engines"),
        ("hf,scorer", ("--level", 0.1), 2, "--level goes with --engines and --until"),
        ("hf,scorer", ("--false-alarms", 0.001), 2, "--false-alarms goes with --engines"),
        ("hf,scorer", ("--policy", "1,1", "--policy", "1.0,1"), 2, "is given twice"),
        ("hf,hf", ("--read", "decode,decode"), 2, "names an engine twice"),
        ("hf,hf:batch_size", (), 2, "an option of hf in --pair must be KEY=VALUE"),
        ("hf,repeating", (), 1, "'repeating' does not tell the distributions"),
        ("hf,scorer:a=1", (), 2, "'scorer' is no engine and takes no options"),
        ("hf,hf:colour=red", (), 2, "engine 'hf' has no option colour"),
        ("hf:colour=red,scorer", (), 2, "engine 'hf' has no option colour"),
        ("hf,scorer", ("--greedy",), 2, "a greedy policy puts all probability on one token"),
        ("hf,scorer", ("--read", "aloud"), 2, "--read takes decode or prefill"),
        ("hf,scorer", ("--read", "decode,prefill,decode"), 2, "--read takes decode or prefill"),
        ("hf,scorer", ("--layers", "/nowhere/at/all"), 1, "/nowhere/at/all"),
    ],
)
def test_what_is_no_pair(
    run_parity: Run, engines: str, arguments: tuple[object, ...], code: int, words: str
) -> None:
    result = pair(run_parity, engines, *arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())


def test_neither_engines_nor_a_pair_is_bad_usage(run_parity: Run) -> None:
    assert run_parity(None).exit_code == 2
    result = run_parity("hf", "--rows", 3)
    assert result.exit_code == 2
    assert "--rows goes with --pair" in " ".join(result.output.split())
    result = run_parity("hf", "--read", "decode")
    assert result.exit_code == 2
    assert "--read goes with --pair" in " ".join(result.output.split())
