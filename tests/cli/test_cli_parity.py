"""`seqproc parity`: what it prints and writes, and its exit code."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from torch import Tensor
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from seqproc._util.progress import progress_bar
from seqproc.cli.app import app
from seqproc.cli.parity_choices import parse_engines, parse_policies
from seqproc.cli.parity_report import worst_line
from seqproc.engines import (
    Completion,
    HFEngine,
    ModelSource,
    Request,
    ScriptedEngine,
    StoppingRule,
    register_engine,
)
from seqproc.engines.base import Path as ResponsePath
from seqproc.errors import ConfigError, EngineError
from seqproc.parity.findings.worst import WorstToken
from seqproc.policy import SamplingPolicy

Run = Callable[..., Any]


class Hot(HFEngine):
    """It samples at T = 1.5 whatever it is told, and reports that log q."""

    name = "hot"

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        return super().generate(requests, replace(policy, temperature=1.5), stopping)


class Tepid(HFEngine):
    """It would sample at twice the temperature."""

    name = "tepid"

    def follow(self, paths: Sequence[ResponsePath], policy: SamplingPolicy) -> Iterator[Tensor]:
        if policy.temperature == STOPS_AT:
            raise KeyboardInterrupt
        if policy.temperature == FAILS_AT:
            raise EngineError("out of order")
        return super().follow(paths, replace(policy, temperature=2.0))


STOPS_AT, FAILS_AT = 0.25, 0.125  # temperatures


class Failing(HFEngine):
    """It fails whatever it is asked."""

    name = "failing"

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        raise EngineError("out of order")


class Leaving(HFEngine):
    """It ends the program, as if all were well."""

    name = "leaving"

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        sys.exit(0)


class Crashing(HFEngine):
    """Its own code has a fault."""

    name = "crashing"

    def generate(
        self, requests: Iterable[Request], policy: SamplingPolicy, stopping: StoppingRule
    ) -> Iterator[Completion]:
        raise ZeroDivisionError("by nought")


class Terse(HFEngine):
    """It tells its version as text, and its dtype in another way."""

    name = "terse"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "versions": "terse 1.0", "dtype": "single precision"}


class Repeating(ScriptedEngine):
    """It gives every prompt the same answer."""

    name = "repeating"

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> Repeating:
        return cls(lambda request: (60, 61, 62, 63, source.eos_token_ids[0]), source.tokenizer)


register_engine("repeating", Repeating)
register_engine("leaving", Leaving)
register_engine("crashing", Crashing)
register_engine("terse", Terse)
register_engine("hot", Hot)
register_engine("tepid", Tepid)
register_engine("failing", Failing)


@pytest.fixture
def run(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> Run:
    tiny_llama(initializer_range=0.5).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")

    def run(engines: str | None, *arguments: object) -> Any:
        given = [
            *("parity", "--model", tmp_path / "model"),
            *(() if engines is None else ("--engines", engines)),
            *("--dataset", "arithmetic", "--draws", 96, "--max-new-tokens", 12),
            *("--gen-batch-size", 96, "--out", tmp_path / "out", *arguments),
        ]
        return CliRunner().invoke(app, [str(argument) for argument in given])

    return run


def report(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "parity.json").read_text())


def test_a_right_engine_holds_under_every_policy(run: Run, tmp_path: Path) -> None:
    result = run("hf", "--policy", "1,1", "--policy", "0.7,0.9")
    assert result.exit_code == 0, result.output
    assert result.output.count("parity holds") == 3
    found = report(tmp_path)
    assert found["is_complete"] is True
    assert found["holds"] is True
    policies = [one["policy"] for one in found["checks"]["hf"]]
    assert [(p["temperature"], p["top_p"]) for p in policies] == [(1.0, 1.0), (0.7, 0.9)]
    one = found["checks"]["hf"][1]
    assert (one["num_draws"], one["num_prompts"]) == (96, 24)
    assert one["mismatch"]["max_abs"]["value"] < 1e-4
    assert one["engine"]["weights"]
    assert one["noise"] == "seqproc's SplitMix64"
    assert one["replay"]["num_equal"] == one["replay"]["num_tokens"] == one["num_tokens"]
    assert "noise seqproc's SplitMix64" in result.output
    assert {finding["name"] for finding in one["findings"]} >= {"uniformity", "support", "endings"}


def test_coupled_engines_are_compared(run: Run, tmp_path: Path) -> None:
    result = run("hf,hf:batch_size=7", "--top-p", 0.9)
    assert result.exit_code == 0, result.output
    (one,) = report(tmp_path)["comparisons"]
    assert one["engines"] == ["hf", "hf:batch_size=7"]
    assert one["num_identical"] + len(one["divergences"]) == 96
    assert "draws identical" in result.output


def test_a_wrong_engine_fails_and_is_told_why(run: Run, tmp_path: Path) -> None:
    result = run("hot", "--temperature", 0.7)
    assert result.exit_code == 3
    assert "parity does not hold" in result.output
    assert "cause, policy: temperature" in result.output
    (one,) = report(tmp_path)["checks"]["hot"]
    assert one["verdict"]["holds"] is False
    assert one["causes"][0]["link"] == "policy"
    assert 1 <= len(one["worst"]) <= 5
    assert result.output.count("\nworst (") == len(one["worst"])
    first = one["worst"][0]
    assert (
        f"draw {first['index']} step {first['step']}, after {first['context']!r}" in result.output
    )


@pytest.mark.parametrize(
    ("engine", "code", "answer"), [("hf", 0, "holds"), ("hot", 3, "does not hold")]
)
def test_json_has_the_keys_of_the_file_and_quiet_says_whether_it_holds(
    run: Run, tmp_path: Path, engine: str, code: int, answer: str
) -> None:
    result = run(engine, "--json")
    told = json.loads(result.stdout)
    common = [told.pop(name) for name in ("command", "exit_code", "error", "details", "file")]
    assert common == ["parity", code, None, [], str(tmp_path / "out" / "parity.json")]
    assert (result.exit_code, told) == (code, report(tmp_path))
    assert told["holds"] is (code == 0)
    quiet = run(engine, "--quiet")
    assert (quiet.exit_code, quiet.stdout) == (code, f"{answer}\n")


def test_the_text_of_a_worst_token_does_nothing_to_a_terminal() -> None:
    token = WorstToken(
        why="unlikely",
        index=1,
        prompt=0,
        step=2,
        context="a\x1b[2Jb\nparity holds",
        token_id=7,
        text="[red]x[/]\u202e",
        first_id=8,
        first_text="\x9b31m",
        log_q=-3.0,
        mass_before=0.9,
        engine_log_q=-2.5,
    )
    line = worst_line(token)
    assert line.isprintable()
    assert Text.from_markup(line).plain == (
        "worst (unlikely): prompt 0 draw 1 step 2, after 'a\\x1b[2Jb\\nparity holds': "
        "'[red]x[/]\\u202e' (id 7), log q -3, -2.5 by the engine, mass before it 0.9; most likely "
        "was '\\x9b31m'"
    )


def test_until_it_is_certified(run: Run, tmp_path: Path) -> None:
    result = run("hf", "--until", 0.5, "--draws", 640)
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


def test_until_it_is_rejected(run: Run, tmp_path: Path) -> None:
    result = run("hot", "--temperature", 0.7, "--until", 0.01, "--draws", 640)
    assert result.exit_code == 3, result.output
    assert "rejected by " in result.output
    assert "cause, policy: temperature" in result.output
    assert report(tmp_path)["checks"]["hot"][0]["num_draws"] < 640


def test_what_is_not_decided_by_all_draws_is_neither_right_nor_wrong(
    run: Run, tmp_path: Path
) -> None:
    result = run("hf", "--until", 1e-6)
    assert result.exit_code == 1, result.output
    assert "not decided: " in result.output
    assert "parity holds" not in result.output
    assert "all in all: not decided" in result.output
    found = report(tmp_path)
    assert (found["holds"], found["is_decided"]) == (True, False)


@pytest.mark.parametrize(
    "options", [("--until", 0), ("--until", 0.1, "--level", 2), ("--level", 0.1)], ids=str
)
def test_a_rule_that_is_none_is_bad_usage(run: Run, options: tuple[object, ...]) -> None:
    assert run("hf", *options).exit_code == 2


def test_engines_that_were_decided_at_different_looks_are_compared_as_far_as_both_go(
    run: Run, tmp_path: Path
) -> None:
    result = run("hf,hf:batch_size=7", "--until", 0.5, "--draws", 640)
    assert result.exit_code == 0, result.output
    (one,) = report(tmp_path)["comparisons"]
    assert one["num_draws"] == report(tmp_path)["checks"]["hf"][0]["num_draws"]


def test_a_cause_without_detail_has_no_parentheses(run: Run) -> None:
    result = run("repeating")
    assert result.exit_code == 3, result.output
    assert "answers do not depend on seed and prompt" in " ".join(result.output.split())
    assert "()" not in result.output


def test_what_was_found_before_a_failure_is_kept(run: Run, tmp_path: Path) -> None:
    result = run("hf,failing")
    assert result.exit_code == 1
    assert "out of order" in result.output
    found = report(tmp_path)
    assert found["checks"]["hf"][0]["verdict"]["holds"] is True
    assert set(found["checks"]) == {"hf"}
    assert (found["is_complete"], found["holds"]) == (False, False)


@pytest.mark.parametrize(
    ("engine", "words"),
    [("leaving", "something called exit(0)"), ("crashing", "ZeroDivisionError: by nought")],
)
def test_what_could_not_be_tested_is_neither_right_nor_wrong(
    run: Run, tmp_path: Path, engine: str, words: str
) -> None:
    result = run(engine)
    assert result.exit_code == 1, result.output
    assert words in " ".join(result.output.split())
    assert "parity" not in result.output
    assert report(tmp_path)["is_complete"] is False


@pytest.mark.parametrize("printed", ["print_check", "print_comparisons"])
def test_a_check_that_cannot_be_printed_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    monkeypatch.setattr(f"seqproc.cli.parity.{printed}", cannot_print)
    assert run("hf").exit_code == 1
    found = report(tmp_path)
    assert len(found["checks"]["hf"]) == 1
    assert found["is_complete"] is (printed == "print_comparisons")


@pytest.mark.parametrize("printed", ["print_pair", "print_layers"])
def test_a_comparison_that_cannot_be_printed_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    monkeypatch.setattr(f"seqproc.cli.pair.{printed}", cannot_print)
    assert pair(run, "hf,scorer", "--layers", tmp_path / "model").exit_code == 1
    found = pairs_of(tmp_path)
    assert len(found["pairs"]) == 1
    assert found["is_complete"] is (printed == "print_layers")


def cannot_print(*_: object) -> None:
    raise OSError("no space left on device")


def test_what_an_engine_tells_of_itself_in_other_ways_is_shown(run: Run, tmp_path: Path) -> None:
    result = run("terse")
    assert result.exit_code == 0, result.output
    assert "versions terse 1.0" in result.output
    assert "dtype 'single precision' is unknown" in " ".join(result.output.split())
    assert "float32" in report(tmp_path)["checks"]["terse"][0]["assumed"]


def test_a_report_of_before_does_not_outlive_a_failure(run: Run, tmp_path: Path) -> None:
    assert run("hf").exit_code == 0
    assert report(tmp_path)["holds"] is True
    assert run("failing").exit_code == 1
    found = report(tmp_path)
    assert (found["is_complete"], found["holds"], found["checks"]) == (False, False, {})


@pytest.mark.parametrize(
    ("engines", "arguments"),
    [
        ("hf", ("--suspect", "/nowhere/at/all")),
        ("hf", ("--model", "/nowhere/at/all")),
        ("hf", ("--false-alarms", 2)),
        ("hf", ("--draws", 1)),
        ("hf", ("--seed", -(2**64))),
        ("hf", ("--greedy", "--until", 0.1)),
        ("hf:colour=red", ()),
        (None, ("--pair", "hf,scorer", "--layers", "/nowhere/at/all")),
        (None, ("--pair", "hf,scorer", "--model", "/nowhere/at/all")),
        (None, ("--pair", "hf,scorer", "--rows", 0)),
        (None, ("--pair", "hf,scorer", "--greedy")),
        (None, ("--pair", "hf,scorer:a=1")),
        (None, ("--pair", "hf,repeating")),
    ],
    ids=str,
)
def test_what_is_refused_leaves_an_earlier_report_as_it_is(
    run: Run, tmp_path: Path, engines: str | None, arguments: tuple[object, ...]
) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / ("parity.json" if engines else "pair.json")
    file.write_text("earlier")
    result = run(engines, *arguments)
    assert result.exit_code in (1, 2), result.output
    assert file.read_text() == "earlier"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-such-engine",), "--engines names 'no-such-engine'"),
        (("no-such-engine",), "under the entry-point group seqproc.engines"),
        (("hf,hf",), "names an engine twice"),
        (("vllm:sampler",), "an option of vllm in --engines must be KEY=VALUE"),
        pytest.param(
            ("vllm:sampler=bogus",),
            "sampler must be 'auto', 'native' or 'coupled'",
            marks=pytest.mark.vllm,  # imported, to read its options
        ),
        (("hf:batch=3",), "engine 'hf' has no option batch"),
        (("hf", "--policy", "1"), "must be T,TOP_P"),
        (("hf", "--policy", "1,1", "--policy", "1,1"), "is given twice"),
        (("hf", "--policy", "0,1"), "temperature must lie"),
        (("hf", "--max-prompts-pool", 96), "fewer than two of each"),
        (("hf", "--false-alarms", 2), "false_alarms must lie in"),
    ],
)
def test_bad_usage(run: Run, arguments: tuple[object, ...], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())


def test_a_folder_that_cannot_be_made_is_told_first(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("hf", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "--out must be a folder" in " ".join(result.output.split())
    assert "link" not in result.output


def test_no_prompts_are_not_the_default_number(run: Run) -> None:
    result = run("hf", "--max-prompts-pool", 0)
    assert result.exit_code == 1
    assert "num_prompts must be at least 1" in " ".join(result.output.split())


def test_chat_needs_a_template(run: Run) -> None:
    result = run("hf", "--chat")
    assert result.exit_code == 1
    assert "this tokenizer has no chat template" in " ".join(result.output.split())


def pair(run: Run, engines: str, *arguments: object) -> Any:
    """The same command with a pair."""
    return run(None, "--pair", engines, "--draws", 24, *arguments)


def test_a_pair_is_compared_under_every_policy(run: Run, tmp_path: Path) -> None:
    result = pair(run, "hf:batch_size=7,scorer", "--policy", "1,1", "--policy", "0.7,0.9")
    assert result.exit_code == 0, result.output
    assert result.output.count("KL(first ‖ second)") == 2
    assert "hf:batch_size=7 and scorer at T = 0.7, top_p = 0.9: 256 contexts" in result.output
    assert "pair.json" in result.output
    found = json.loads((tmp_path / "out" / "pair.json").read_text())
    assert [one["policy"]["top_p"] for one in found["pairs"]] == [1.0, 0.9]
    assert all(one["total_variation"]["value"] < 1e-4 for one in found["pairs"])
    assert len(found["pairs"][0]["worst"]) == 10
    assert not (tmp_path / "out" / "parity.json").exists()


def test_a_pair_that_differs_is_no_failure(run: Run, tmp_path: Path) -> None:
    result = pair(run, "hf,tepid", "--rows", 30)
    assert result.exit_code == 0, result.output
    (one,) = json.loads((tmp_path / "out" / "pair.json").read_text())["pairs"]
    assert one["engines"] == ["hf", "tepid"]
    assert (one["num_rows"], one["num_prompts"]) == (30, 6)
    assert one["kl"]["value"] > 0.05
    told = json.loads(pair(run, "hf,tepid", "--rows", 30, "--json").stdout)
    assert told["file"] == str(tmp_path / "out" / "pair.json")
    assert told["pairs"] == json.loads((tmp_path / "out" / "pair.json").read_text())["pairs"]


def test_a_pair_of_before_does_not_outlive_a_failure(run: Run, tmp_path: Path) -> None:
    assert pair(run, "hf,scorer").exit_code == 0
    assert pairs_of(tmp_path)["is_complete"]
    assert pair(run, "failing,scorer").exit_code == 1
    found = pairs_of(tmp_path)
    assert (found["is_complete"], found["pairs"]) == (False, [])


@pytest.mark.parametrize(
    ("temperature", "code", "words"),
    [(STOPS_AT, 130, "interrupted"), (FAILS_AT, 1, "out of order")],
)
def test_what_is_compared_outlives_a_failure_and_an_interruption(
    run: Run, tmp_path: Path, temperature: float, code: int, words: str
) -> None:
    """The second engine fails under the second policy, or the user stops it there."""
    result = pair(run, "hf,tepid", "--policy", "1,1", "--policy", f"{temperature},1")
    assert result.exit_code == code, result.output
    assert words in result.output
    found = pairs_of(tmp_path)
    assert [engine["name"] for engine in found["engines"]] == ["hf", "tepid"]
    (one,) = found["pairs"]
    assert one["policy"]["temperature"] == 1
    assert one["total_variation"]["value"] > 0.01
    assert not found["is_complete"]


def test_contexts_are_read_as_is_asked_and_it_is_told(run: Run, tmp_path: Path) -> None:
    result = pair(run, "hf,scorer")
    assert "contexts are read by hf in decode, scorer in prefill" in result.output
    result = pair(run, "hf,hf:batch_size=3", "--read", "decode,prefill")
    assert result.exit_code == 0, result.output
    assert "read by hf in decode, hf:batch_size=3 in prefill" in " ".join(result.output.split())
    assert pairs_of(tmp_path)["pairs"][0]["readings"] == ["decode", "prefill"]
    result = pair(run, "hf,hf", "--read", "decode,prefill")
    assert result.exit_code == 0, result.output
    assert pairs_of(tmp_path)["pairs"][0]["readings"] == ["decode", "prefill"]
    assert pair(run, "hf,hf:batch_size=3", "--read", "prefill").exit_code == 0
    assert pairs_of(tmp_path)["pairs"][0]["readings"] == ["prefill", "prefill"]


def test_the_module_in_which_another_model_parts_is_named(
    run: Run, tmp_path: Path, tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    other = tiny_llama(initializer_range=0.5)
    other.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 5] += 1
    folder = tmp_path / "other"
    other.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    result = pair(run, "hf,scorer", "--layers", folder)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "the first that differs is model.layers.1.mlp.up_proj (Linear)" in words
    assert "parameters in it that differ: model.layers.1.mlp.up_proj.weight; 1 in" in words
    (found,) = pairs_of(tmp_path)["layers"]
    assert found["difference"]["module"] == "model.layers.1.mlp.up_proj"
    assert found["second"] == str(folder)


@pytest.mark.parametrize("engines", ["hf,scorer", "hf,tepid"])
def test_a_pair_whose_engines_tell_no_layers_is_compared_all_the_same(
    run: Run, tmp_path: Path, engines: str
) -> None:
    result = pair(run, engines, "--rows", 30, "--layers", "engines")
    assert result.exit_code == 0, result.output
    assert "not compared: " in result.output
    found = pairs_of(tmp_path)
    assert (found["is_complete"], len(found["pairs"])) == (True, 1)
    asked = [name for name in engines.split(",") if name != "scorer"]
    assert [one["second"] for one in found["layers"]] == asked
    assert all("layers" in one["not_told"] for one in found["layers"])


def test_progress_of_a_pair_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int | None]] = []

    def bar(total: int | None, title: str, *, unit: str) -> Any:
        told.append((title, total))
        return progress_bar(total, title, unit=unit)

    monkeypatch.setattr("seqproc.parity.draws.progress_bar", bar)
    monkeypatch.setattr("seqproc.parity.side_by_side.pair.progress_bar", bar)
    assert pair(run, "hf,scorer", "--rows", 30).exit_code == 0
    assert told == [
        ("sampling with hf", 24),
        ("contexts by hf, decode", 30),
        ("contexts by scorer, prefill", 30),
    ]


def pairs_of(tmp_path: Path) -> dict[str, Any]:
    """Strict JSON."""
    text = (tmp_path / "out" / "pair.json").read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


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
    run: Run, engines: str, arguments: tuple[object, ...], code: int, words: str
) -> None:
    result = pair(run, engines, *arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())


def test_neither_engines_nor_a_pair_is_bad_usage(run: Run) -> None:
    assert run(None).exit_code == 2
    result = run("hf", "--rows", 3)
    assert result.exit_code == 2
    assert "--rows goes with --pair" in " ".join(result.output.split())
    result = run("hf", "--read", "decode")
    assert result.exit_code == 2
    assert "--read goes with --pair" in " ".join(result.output.split())


def test_engines_and_their_options() -> None:
    found = parse_engines("hf, scripted:a=1:b=x")
    assert [(one.name, one.options) for one in found] == [
        ("hf", {}),
        ("scripted", {"a": 1, "b": "x"}),
    ]
    assert [one.label for one in found] == ["hf", "scripted:a=1:b=x"]


def test_policies() -> None:
    assert parse_policies(["0.7,0.95"]) == [SamplingPolicy(temperature=0.7, top_p=0.95)]
    with pytest.raises(ConfigError, match="top_p"):
        parse_policies(["1,2"])


@pytest.mark.parametrize("other", [["--greedy"], ["--temperature", "0.5"], ["--top-p", "0.5"]])
def test_a_policy_beside_the_options_that_it_stands_for_is_refused(
    run: Run, other: list[str]
) -> None:
    result = run("hf", "--policy", "1,1", *other)
    assert result.exit_code == 2
    assert f"stands in place of {other[0]}" in result.output


def test_temperature_zero_tells_of_greedy(run: Run) -> None:
    assert "--greedy" in run("hf", "--policy", "0,1").output


class Stale(HFEngine):
    """It samples with other weights than it was started with."""

    name = "stale"
    checkpoint: Path

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> Stale:
        engine = cls(source.live_model(), source.tokenizer, **options)
        model = AutoModelForCausalLM.from_pretrained(cls.checkpoint)
        engine.load_weights(dict(model.named_parameters()))
        return engine


register_engine("stale", Stale)


def test_a_suspected_checkpoint_is_named(
    run: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    Stale.checkpoint = tmp_path / "before"
    tiny_llama(seed=1, initializer_range=0.5).save_pretrained(tmp_path / "before")
    tiny_tokenizer.save_pretrained(tmp_path / "before")
    result = run("stale", "--suspect", tmp_path / "before")
    assert result.exit_code == 3, result.output
    (cause,) = report(tmp_path)["checks"]["stale"][0]["causes"]
    assert cause["description"] == f"the weights of {tmp_path / 'before'}"
    assert cause["explains"] is True


def test_a_certificate_names_the_suspects(
    run: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    tiny_llama(seed=1, initializer_range=0.5).save_pretrained(tmp_path / "before")
    tiny_tokenizer.save_pretrained(tmp_path / "before")
    result = run("hf", "--until", 0.5, "--suspect", tmp_path / "before")
    name = f"the weights of {tmp_path / 'before'}"
    assert f"{name}: ruled out" in " ".join(result.output.split())
    (one,) = report(tmp_path)["checks"]["hf"]
    assert one["certificate"]["suspects"] == {name: "ruled out"}


@pytest.mark.parametrize(
    ("change", "words"),
    [("theta", "computes something else than"), ("nan", "holds NaN or infinity in 1 parameters")],
)
def test_a_suspect_that_would_be_scored_as_another_model_is_refused(
    run: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any, change: str, words: str
) -> None:
    """Its parameters are scored in the model's own code: what else differs would go unseen."""
    other = tiny_llama(**({"rope_theta": 3.0} if change == "theta" else {}))
    if change == "nan":
        other.lm_head.weight.data[0, 0] = math.nan
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    result = run(None, "--engines", "hf", "--suspect", tmp_path / "other")
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    if change == "theta":
        assert "rope" in result.output


def test_a_suspect_has_to_be_of_the_same_architecture(
    run: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    tiny_llama(hidden_size=16).save_pretrained(tmp_path / "small")
    tiny_tokenizer.save_pretrained(tmp_path / "small")
    result = run("hf", "--suspect", tmp_path / "small")
    assert result.exit_code == 2, result.output
    assert "must have the parameters of" in " ".join(result.output.split())
    assert run(None, "--pair", "hf,scorer", "--suspect", tmp_path / "small").exit_code == 2
