"""`seqproc parity`: do these engines sample from the distribution that the scorer scores?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqproc.cli.build import build_processor
from seqproc.cli.complete import engine_lists
from seqproc.cli.display import console, printable
from seqproc.cli.exit_codes import DOES_NOT_HOLD, FAILURE
from seqproc.cli.manner import give_result
from seqproc.cli.options import Chat, DrawOptions, ModelOptions, PolicyOptions, ResponseOptions
from seqproc.cli.pair import PairOptions, compare_pair
from seqproc.cli.parity_choices import (
    choices_of,
    parse_policies,
    refuse_tests,
    refuse_two_policies,
    until_of,
)
from seqproc.cli.parity_report import print_check, print_comparisons, print_look
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from seqproc.parity import Check
    from seqproc.parity.run import EngineChoice, ParityReport
    from seqproc.parity.sequential import Until
    from seqproc.policy import SamplingPolicy
    from seqproc.processor import SequenceProcessor

_Engines = Annotated[
    str | None,
    typer.Option(
        help="With commas: hf, vllm, an installed one; options as NAME:KEY=VALUE.",
        autocompletion=engine_lists,
    ),
]
_Pair = Annotated[
    str | None,
    typer.Option(
        metavar="FIRST,SECOND",
        help="In place of --engines: compare the distributions of two; SECOND may be scorer.",
    ),
]
_Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy", metavar="T,TOP_P", help="Replaces --temperature and --top-p; repeatable."
    ),
]
_FalseAlarms = Annotated[
    float | None,
    typer.Option(help="Probability that a right engine fails under one policy. Default 0.001."),
]
_UntilWithin = Annotated[
    float | None,
    typer.Option(
        "--until",
        metavar="NATS",
        help="Sample, up to --draws, until it is decided: rejected, or within so many nats per "
        "token of every other distribution in the catalogue that is not ruled out.",
    ),
]
_Level = Annotated[
    float | None,
    typer.Option(
        help="Of --until: probability that a wrong engine of the catalogue passes. Default 0.01."
    ),
]
_SuspectedCheckpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--suspect",
        metavar="CHECKPOINT",
        help="A checkpoint of the same architecture that an engine may hold instead; repeatable.",
    ),
]
_ParityOut = Annotated[
    Path, typer.Option(help="Folder that parity.json, or pair.json, is written to.")
]


def parity(
    model: ModelOptions,
    draw: DrawOptions,
    policy: PolicyOptions,
    response: ResponseOptions,
    of_pair: PairOptions,
    engines: _Engines = None,
    pair: _Pair = None,
    policies: _Policies = None,
    false_alarms: _FalseAlarms = None,
    until: _UntilWithin = None,
    level: _Level = None,
    suspect: _SuspectedCheckpoints = None,
    out: _ParityOut = Path(),
    chat: Chat = False,
) -> None:
    """Test engines against the scorer, or put two side by side.

    Exit codes: 0 parity holds, or the two are compared; 3 it does not hold; 1 it could not be
    tested or decided; 2 bad usage.
    """
    from seqproc.parity.findings.sampler import require_scipy

    if pair is None:
        require_scipy()
    else:
        refuse_tests(false_alarms=false_alarms, until=until, level=level, suspect=suspect)
    choices = choices_of(engines, pair, of_pair)
    rule = until_of(until, level)
    measured = parse_policies(policies or [])
    refuse_two_policies(policies, policy)
    _require_folder(out)  # before anything is sampled for nothing
    opened = partial(_opened, model, policy, response, _prompts(draw), chat)
    if pair is not None:
        with opened() as (processor, prompts):
            chosen = measured or [processor.policy]
            compare_pair(processor, choices, prompts, chosen, model, draw, of_pair, out)
        return
    report = _tested(opened, choices, measured, model, draw, false_alarms, rule, suspect or [], out)
    if not report.holds:
        raise typer.Exit(DOES_NOT_HOLD)
    if not report.is_decided:
        raise typer.Exit(FAILURE)


def _tested(
    opened: Callable[[], AbstractContextManager[tuple[SequenceProcessor, list[str]]]],
    choices: list[EngineChoice],
    policies: list[SamplingPolicy],
    model: ModelOptions,
    draw: DrawOptions,
    false_alarms: float | None,
    until: Until | None,
    suspects: list[str],
    out: Path,
) -> ParityReport:
    """Test every engine, show what comes out, and write the file after each check."""
    path = out / "parity.json"

    def on_check(label: str, check: Check, so_far: ParityReport) -> None:
        write_report(so_far, path)  # first: printing can fail, or be interrupted
        print_check(label, check)

    with opened() as (processor, prompts):
        from seqproc.cli.suspects import load_suspects
        from seqproc.parity.run import run_parity, to_json
        from seqproc.parity.verdict import FALSE_ALARMS

        report = run_parity(
            processor,
            choices,
            prompts,
            policies or [processor.policy],
            num_draws=draw.draws,
            seed=draw.seed,
            false_alarms=FALSE_ALARMS if false_alarms is None else false_alarms,
            on_start=lambda nothing_yet: write_report(nothing_yet, path),  # for an earlier one
            on_check=on_check,
            until=until,
            on_look=print_look,
            suspects=load_suspects(suspects, model, processor.model),
        )
    write_report(report, path)
    print_comparisons(report)
    console().print(f"written to {printable(str(path))}")
    answer = "holds" if report.holds else "does not hold"
    give_result(
        {"file": str(path), **json.loads(to_json(report))},
        answer if report.is_decided or not report.holds else "not decided",
    )
    return report


@contextmanager
def _opened(
    model: ModelOptions,
    policy: PolicyOptions,
    response: ResponseOptions,
    prompts: list[str],
    chat: bool,
) -> Iterator[tuple[SequenceProcessor, list[str]]]:
    """The processor, and the prompts, in the chat template where that is asked for."""
    with build_processor(model, policy, response=response) as processor:
        from seqproc.models.tokenization import as_chat

        if chat:
            prompts = [as_chat(processor.tokenizer, prompt) for prompt in prompts]
        yield processor, prompts


def _require_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out must be a folder that can be made ({error})") from error
    if not os.access(out, os.W_OK):
        raise ConfigError(f"--out {out} cannot be written to")


def _prompts(draw: DrawOptions) -> list[str]:
    """The prompts' texts: as many as were asked for, or a quarter of the draws."""
    from seqproc.prompts import choose_prompts, load_prompts

    pool = load_prompts(draw.dataset, draw.split, data_dir=draw.data_dir)
    number = draw.max_prompts_pool
    if number is None:
        number = max(1, min(draw.draws // 4, len(pool)))
    return [entry.text for entry in choose_prompts(pool, number, draw.seed)]


def write_report(report: ParityReport, path: Path) -> None:
    """The report as it stands, in place of an earlier one.

    Raises:
        RunError: when the operating system refuses.
    """
    from seqproc._util.atomic import write_atomically
    from seqproc.parity.run import to_json

    write_atomically(path, lambda file: file.write(to_json(report).encode()))
