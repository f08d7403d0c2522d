"""The commands: what they print, what they write, and how they fail."""

from __future__ import annotations

import copy
import json
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seqproc import __version__
from seqproc._util.versions import vllm_build
from seqproc.cli.app import app
from seqproc.cli.build import build_config, parse_engine_options
from seqproc.cli.options import EngineOptions, PolicyOptions
from seqproc.engines import ModelSource, Request, ScriptedEngine, register_engine
from seqproc.engines.base import Completion, StoppingRule
from seqproc.errors import ConfigError, EngineError
from seqproc.runs import open_run

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def model(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{file}"


def sample_arguments(model: Path, prompts: str, out: Path) -> list[object]:
    return [
        *("sample", "--model", model, "--dataset", prompts, "--engine", "hf"),
        *("--draws", 6, "--max-new-tokens", 5, "--out", out),
    ]


def test_sample_and_score(run: Run, model: Path, prompts: str, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "first"
    options = ("--seed", 3, "--temperature", 0.7, "--top-p", 0.8, "--stop", "x", "--stop", "y")
    result = run(*sample_arguments(model, prompts, out), *options)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert re.search(r"draws +6 *\n", result.stdout)
    assert f"open_run('{out}').rows()" in result.stdout
    manifest = open_run(out).manifest
    assert manifest.policy == {"temperature": 0.7, "top_p": 0.8, "do_sample": True}
    assert manifest.stopping["stop"] == ["x", "y"]
    assert manifest.stopping["max_new_tokens"] == 5
    assert (manifest.spec["seed"], manifest.spec["dataset"]) == (3, prompts)
    assert manifest.spec["model"] == manifest.model["name"] == str(model)

    scored = run("score", out, "--model", model, "--out", tmp_path / "scored", "--entropy-fp64")
    assert scored.exit_code == 0, scored.output
    assert "Note: the run was sampled from temperature=0.7, top_p=0.8" in scored.stdout
    again = open_run(tmp_path / "scored")
    assert again.manifest.precision["entropy_fp64"] is True
    assert again.rows()["response_ids"].equals(open_run(out).rows()["response_ids"])


def test_runs_give_json_and_a_quiet_run_says_where_it_is(
    run: Run, model: Path, prompts: str, tmp_path: Path
) -> None:
    out = tmp_path / "first"
    result = run(*sample_arguments(model, prompts, out), "--json")
    told = json.loads(result.stdout)
    assert (told["command"], told["exit_code"], told["error"]) == ("sample", 0, None)
    assert (told["run"], told["state"], told["quarantined"]) == (str(out), "complete", [])
    assert told["num_draws"] == told["num_draws_done"] == told["summary"]["num_draws"] == 6
    lengths = open_run(out).rows(["gen_len"])["gen_len"].to_pylist()
    assert told["summary"]["num_tokens"] == sum(lengths)
    assert run(*sample_arguments(model, prompts, out), "--quiet").output == f"{out}\n"

    scoring = ("score", out, "--model", model)
    told = json.loads(run(*scoring, "--name", "again", "--json").stdout)
    own = {key: told[key] for key in ("run", "name", "num_draws_done", "failed")}
    assert own == {"run": str(out), "name": "again", "num_draws_done": 6, "failed": []}
    assert run(*scoring, "--out", tmp_path / "scored", "--quiet").output == f"{tmp_path}/scored\n"
    refused = run(*sample_arguments(model, prompts, out), "--seed", 7, "--json")
    told = json.loads(refused.stdout)
    assert (refused.exit_code, told["exit_code"]) == (2, 2)
    assert "spec.seed: the folder has 0, asked for was 7" in told["details"]


def test_options_override_the_file_and_leave_the_rest_of_it(
    run: Run, model: Path, prompts: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        "[generation]\ntop_p = 0.5\ntemperature = 2.0\nstop = []\n[precision]\nallow_tf32 = true\n"
    )
    out = tmp_path / "out"
    arguments = sample_arguments(model, prompts, out)
    result = run(*arguments, "--config", config, "--top-p", 0.9, "--greedy")
    assert result.exit_code == 0, result.output
    manifest = open_run(out).manifest
    assert manifest.policy == {"temperature": 2.0, "top_p": 0.9, "do_sample": False}
    assert manifest.stopping["stop"] == []
    assert manifest.precision["allow_tf32"] is True


def test_every_option_reaches_the_configuration() -> None:
    policy = PolicyOptions(
        temperature=0.5,
        top_p=0.6,
        greedy=True,
        entropy_fp64=True,
        tf_batch_size=3,
        tf_token_budget=50,
        tf_share_prompts=False,
    )
    engine = EngineOptions(max_new_tokens=7, stop=["a"], gen_batch_size=9)
    config = build_config(policy, engine)
    generation, precision = config["generation"], config["precision"]
    assert (generation.temperature, generation.top_p, generation.do_sample) == (0.5, 0.6, False)
    assert (generation.tf_batch_size, generation.gen_batch_size) == (3, 9)
    assert (generation.tf_token_budget, generation.tf_share_prompts) == (50, False)
    assert (generation.max_new_tokens, generation.stop) == (7, ("a",))
    assert precision.entropy_fp64
    assert build_config(PolicyOptions())["generation"].stop == ("</answer>",)


def test_engine_options_are_json_or_else_strings() -> None:
    given = ["a=1", "b=true", 'c={"x": [1]}', "d=float32", "e=", "f=a=b", 'g="1"']
    expected = {"a": 1, "b": True, "c": {"x": [1]}, "d": "float32", "e": "", "f": "a=b", "g": "1"}
    assert parse_engine_options(given) == expected
    for wrong in (["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="--engine-option"):
            parse_engine_options(wrong)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["--dataset", "arithmetik"], 1, "did you mean 'arithmetic'?"),
        (["--split", "nope"], 1, "has no split 'nope'"),
        (["--max-prompts-pool", 99], 1, "the pool holds 5"),
        (["--engine", "hff"], 1, "there is no engine 'hff'"),
        (["--engine-option", "nope=1"], 2, "engine 'hf' has no option nope"),
        (["--engine-option", "nope"], 2, "--engine-option must be KEY=VALUE"),
        (["--max-new-tokens", 1000], 1, "exceeds the context of 512 tokens"),
        (["--top-p", 1.5], 2, "GenerationConfig.top_p"),
        (["--tf-token-budget", 0], 2, "GenerationConfig.tf_token_budget"),
        (["--temperature", 0], 2, "GenerationConfig.temperature"),
        (["--draws", 0], 2, "draws must be an integer >= 1"),
        (["--seed", 2**64], 2, "seed must fit 64 bits"),
        (["--gen-batch-size", 0], 2, "GenerationConfig.gen_batch_size"),
        (["--model", "no/such/model"], 1, "there is no folder 'no/such/model'"),
        (["--dtype", "float31"], 2, "float31"),
        (["--device", "tpu!"], 2, "tpu!"),
        (["--config", "missing.toml"], 2, "cannot read the configuration file missing.toml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run,
    model: Path,
    prompts: str,
    tmp_path: Path,
    changes: list[object],
    code: int,
    message: str,
) -> None:
    out = tmp_path / "runs" / "out"
    result = run(*sample_arguments(model, prompts, out), *changes)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not out.parent.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample"],
        ["sample", "--draws", "many"],
        ["nope"],
        ["score"],
        ["demo", "--nope"],
    ],
)
def test_bad_usage_exits_with_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_an_occupied_folder_is_refused_before_the_model_is_opened(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    for command in (
        ["sample", "--model", "none", "--dataset", "none", "--draws", 1],
        ["score", "none", "--model", "none"],
        ["demo", "--model", "none"],
    ):
        result = run(*command, "--out", tmp_path)
        assert result.exit_code == 1
        assert "is not empty and holds no run" in result.stderr


def test_a_broken_line_is_named(run: Run, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "given.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    result = run("score", file, "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "given.jsonl, line 2: expected the response" in result.stderr
    assert not (tmp_path / "out").exists()


class _Failing(ScriptedEngine):
    """Fails at the draw of number 300, in the second chunk, in the way it is told."""

    error: BaseException

    @classmethod
    def from_source(cls, source: Any, **options: Any) -> _Failing:
        return cls(lambda request: [5, 0], source.tokenizer)

    def _complete(self, request: Request, stopping: Any) -> Completion:
        if request.index == 300:
            raise self.error
        return super()._complete(request, stopping)


@pytest.mark.parametrize(
    ("name", "error", "code", "message"),
    [
        ("interrupted-on-cue", KeyboardInterrupt(), 130, "error: interrupted"),
        ("broken-on-cue", TypeError("oops"), 1, "error: TypeError: oops (not an error that"),
    ],
)
def test_what_is_done_is_kept_and_said(
    run: Run,
    model: Path,
    prompts: str,
    tmp_path: Path,
    name: str,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    register_engine(name, type("Engine", (_Failing,), {"error": error, "name": name}))
    out = tmp_path / "out"
    result = run(*sample_arguments(model, prompts, out), "--engine", name, "--draws", 310)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith(message)
    kept = f"; 300 of 310 draws are kept in {out}; the same command goes on from there\n"
    assert result.stderr.endswith(kept)
    assert open_run(out).manifest.state == ("interrupted" if code == 130 else "failed")
    assert open_run(out).num_rows == 256


def test_a_command_that_is_given_again_goes_on_and_another_is_refused(
    run: Run, model: Path, prompts: str, tmp_path: Path
) -> None:
    command = (*sample_arguments(model, prompts, tmp_path / "out"), "--engine", "hf", "--draws", 6)
    assert run(*command).exit_code == 0
    rows = open_run(tmp_path / "out").rows()
    assert run(*command).exit_code == 0
    assert open_run(tmp_path / "out").rows().equals(rows)
    other = run(*command, "--seed", 7, "--top-p", 0.5)
    assert other.exit_code == 2
    error, *differing = other.stderr.splitlines()
    assert "holds another run than the one asked for" in error
    assert "  spec.seed: the folder has 0, asked for was 7" in differing
    assert any(line.startswith("  policy.top_p: ") for line in differing)
    fresh = run(*command, "--seed", 7, "--fresh", "--token-column", "logqs", "--score", "later")
    assert fresh.exit_code == 0, fresh.output
    assert open_run(tmp_path / "out").manifest.spec["seed"] == 7
    assert "rb_entropies" not in open_run(tmp_path / "out").columns
    assert run(*command, "--token-column", "logqz").exit_code == 2


def test_scores_are_kept_beside_the_samples_of_a_run(
    run: Run, model: Path, prompts: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(*sample_arguments(model, prompts, out)).exit_code == 0
    scoring = ("score", out, "--model", model, "--temperature", 2)
    result = run(*scoring, "--name", "warm")
    assert result.exit_code == 0, result.output
    assert "6 draws are scored, 0 cannot be" in result.stdout
    assert open_run(out).scores("warm").num_rows == 6
    for refused in (
        (),
        ("--name", "x", "--out", tmp_path / "x"),
        ("--out", tmp_path / "x", "--eta", 1),
    ):
        assert run(*scoring, *refused).exit_code == 2


class _Picky(ScriptedEngine):
    """Cannot make draw 2."""

    name = "picky"

    @classmethod
    def from_source(cls, source: ModelSource, **_: Any) -> _Picky:
        return cls(lambda _: [5, 0], source.tokenizer)

    def _complete(self, request: Request, stopping: StoppingRule) -> Completion:
        if request.index == 2:
            raise EngineError("cannot make this one")
        return super()._complete(request, stopping)


def test_draws_that_always_fail_have_an_exit_code(
    run: Run, model: Path, prompts: str, tmp_path: Path
) -> None:
    register_engine("picky", _Picky)
    out = tmp_path / "out"
    again = ("--engine", "picky", "--draws", 5)
    result = run(*sample_arguments(model, prompts, out), *again)
    assert result.exit_code == 4, result.output
    assert "1 draws always failed" in result.stderr
    assert "draw 2 (generation): cannot make this one" in result.stderr
    told = json.loads(run(*sample_arguments(model, prompts, out), *again, "--json").stdout)
    assert (told["exit_code"], [one["draw"] for one in told["quarantined"]]) == (4, [2])
    assert "1 draws always failed" in told["error"]
    assert open_run(out).num_rows == 4


def test_traceback_shows_where(run: Run, tmp_path: Path) -> None:
    result = run("score", "none", "--model", "/none", "--out", tmp_path / "out", "--traceback")
    assert result.exit_code == 1
    assert "Traceback (most recent call last):" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: there is no folder '/none'")


def test_demo(run: Run, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ("--model", model, "--engine", "hf", "--draws", 4, "--max-new-tokens", 6)
    result = run("demo", *arguments, "--out", out)
    assert result.exit_code == 0, result.output
    manifest = open_run(out).manifest
    assert manifest.spec["chat"] is True
    assert manifest.policy["top_p"] == 0.95
    assert "1. draw 4 arithmetic problems" in result.stdout
    first = open_run(out).rows().to_pylist()[0]
    assert first["question"] in result.stdout
    assert f"reward {first['reward']:g}" in result.stdout
    assert "from seqproc.runs import open_run" in result.stdout
    assert f"The page is {out / 'report.html'} (" in result.stdout
    assert (out / "report.html").exists()
    assert "\x1b" not in result.stdout


def test_version_models_and_datasets(run: Run) -> None:
    told = run("--version").stdout
    assert told.startswith(f"seqproc {__version__} (python {platform.python_version()}, numpy ")
    assert f"torch {metadata.version('torch')}" in told
    vllm = vllm_build()
    assert vllm is None or vllm.split()[1] in told
    models = run("models")
    assert models.exit_code == 0, models.output
    assert "smollm2-135m" in models.stdout
    datasets = run("datasets")
    assert datasets.exit_code == 0, datasets.output
    for name in ("arithmetic", "gsm8k", "jsonl", "hf"):
        assert name in datasets.stdout


# Words.


@pytest.mark.parametrize("command", ["sample", "score"])
def test_an_output_folder_without_a_name_is_refused(run, command, tmp_path):
    first = ["--dataset", "arithmetic", "--draws", "1"] if command == "sample" else [str(tmp_path)]
    found = run(command, *first, "--model", "smollm2-135m", "--out", "")
    assert found.exit_code == 2
    assert "empty name" in found.output


@pytest.mark.parametrize("weights", ["1", "1,2,3", "a,b", "0.5;0.5", "1,nan"])
def test_reward_weights_are_two_numbers(run, weights, tmp_path):
    first = ["--dataset", "arithmetic", "--draws", "1", "--model", "smollm2-135m"]
    out = str(tmp_path / "run")
    found = run("sample", *first, "--out", out, "--reward-weights", weights)
    assert found.exit_code == 2
    assert "reward" in found.output
    assert not (tmp_path / "run").exists()


def test_a_temperature_of_zero_names_the_option(run, tmp_path):
    first = ["--dataset", "arithmetic", "--draws", "1", "--model", "smollm2-135m"]
    found = run("sample", *first, "--out", str(tmp_path / "run"), "--temperature", "0")
    assert found.exit_code == 2
    assert "--greedy" in found.output
