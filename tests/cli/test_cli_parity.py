"""`seqproc parity`: what it prints and writes, and its exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from helpers.parity_command import Run, cannot_print, report
from seqproc.cli.parity_choices import parse_engines, parse_policies
from seqproc.cli.parity_report import worst_line
from seqproc.engines import Completion, HFEngine, Request, StoppingRule, register_engine
from seqproc.errors import ConfigError
from seqproc.parity.findings.worst import WorstToken
from seqproc.policy import SamplingPolicy


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


register_engine("leaving", Leaving)
register_engine("crashing", Crashing)
register_engine("terse", Terse)


def test_a_right_engine_holds_under_every_policy(run_parity: Run, tmp_path: Path) -> None:
    result = run_parity("hf", "--policy", "1,1", "--policy", "0.7,0.9")
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


def test_coupled_engines_are_compared(run_parity: Run, tmp_path: Path) -> None:
    result = run_parity("hf,hf:batch_size=7", "--top-p", 0.9)
    assert result.exit_code == 0, result.output
    (one,) = report(tmp_path)["comparisons"]
    assert one["engines"] == ["hf", "hf:batch_size=7"]
    assert one["num_identical"] + len(one["divergences"]) == 96
    assert "draws identical" in result.output


def test_a_wrong_engine_fails_and_is_told_why(run_parity: Run, tmp_path: Path) -> None:
    result = run_parity("hot", "--temperature", 0.7)
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
    run_parity: Run, tmp_path: Path, engine: str, code: int, answer: str
) -> None:
    result = run_parity(engine, "--json")
    told = json.loads(result.stdout)
    common = [told.pop(name) for name in ("command", "exit_code", "error", "details", "file")]
    assert common == ["parity", code, None, [], str(tmp_path / "out" / "parity.json")]
    assert (result.exit_code, told) == (code, report(tmp_path))
    assert told["holds"] is (code == 0)
    quiet = run_parity(engine, "--quiet")
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


def test_a_cause_without_detail_has_no_parentheses(run_parity: Run) -> None:
    result = run_parity("repeating")
    assert result.exit_code == 3, result.output
    assert "answers do not depend on seed and prompt" in " ".join(result.output.split())
    assert "()" not in result.output


def test_what_was_found_before_a_failure_is_kept(run_parity: Run, tmp_path: Path) -> None:
    result = run_parity("hf,failing")
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
    run_parity: Run, tmp_path: Path, engine: str, words: str
) -> None:
    result = run_parity(engine)
    assert result.exit_code == 1, result.output
    assert words in " ".join(result.output.split())
    assert "parity" not in result.output
    assert report(tmp_path)["is_complete"] is False


@pytest.mark.parametrize("printed", ["print_check", "print_comparisons"])
def test_a_check_that_cannot_be_printed_is_written(
    run_parity: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str
) -> None:
    monkeypatch.setattr(f"seqproc.cli.parity.{printed}", cannot_print)
    assert run_parity("hf").exit_code == 1
    found = report(tmp_path)
    assert len(found["checks"]["hf"]) == 1
    assert found["is_complete"] is (printed == "print_comparisons")


def test_what_an_engine_tells_of_itself_in_other_ways_is_shown(
    run_parity: Run, tmp_path: Path
) -> None:
    result = run_parity("terse")
    assert result.exit_code == 0, result.output
    assert "versions terse 1.0" in result.output
    assert "dtype 'single precision' is unknown" in " ".join(result.output.split())
    assert "float32" in report(tmp_path)["checks"]["terse"][0]["assumed"]


def test_a_report_of_before_does_not_outlive_a_failure(run_parity: Run, tmp_path: Path) -> None:
    assert run_parity("hf").exit_code == 0
    assert report(tmp_path)["holds"] is True
    assert run_parity("failing").exit_code == 1
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
    run_parity: Run, tmp_path: Path, engines: str | None, arguments: tuple[object, ...]
) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / ("parity.json" if engines else "pair.json")
    file.write_text("earlier")
    result = run_parity(engines, *arguments)
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
def test_bad_usage(run_parity: Run, arguments: tuple[object, ...], words: str) -> None:
    result = run_parity(*arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())


def test_a_folder_that_cannot_be_made_is_told_first(run_parity: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_parity("hf", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "--out must be a folder" in " ".join(result.output.split())
    assert "link" not in result.output


def test_no_prompts_are_not_the_default_number(run_parity: Run) -> None:
    result = run_parity("hf", "--max-prompts-pool", 0)
    assert result.exit_code == 1
    assert "num_prompts must be at least 1" in " ".join(result.output.split())


def test_chat_needs_a_template(run_parity: Run) -> None:
    result = run_parity("hf", "--chat")
    assert result.exit_code == 1
    assert "this tokenizer has no chat template" in " ".join(result.output.split())


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
    run_parity: Run, other: list[str]
) -> None:
    result = run_parity("hf", "--policy", "1,1", *other)
    assert result.exit_code == 2
    assert f"stands in place of {other[0]}" in result.output


def test_temperature_zero_tells_of_greedy(run_parity: Run) -> None:
    assert "--greedy" in run_parity("hf", "--policy", "0,1").output
