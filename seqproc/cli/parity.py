"""`seqproc parity`: do these engines sample from the distribution that the scorer scores?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqproc.cli.build import build_processor, parse_engine_options
from seqproc.cli.complete import engine_lists
from seqproc.cli.display import console, duration, printable
from seqproc.cli.exit_codes import DOES_NOT_HOLD, FAILURE
from seqproc.cli.manner import give_result
from seqproc.cli.options import Chat, DrawOptions, ModelOptions, PolicyOptions, ResponseOptions
from seqproc.cli.pair import PairOptions, compare_pair, parse_readings
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from seqproc.parity import Check
    from seqproc.parity.betting.certificate import Certificate
    from seqproc.parity.run import EngineChoice, ParityReport
    from seqproc.parity.sequential import Look, Until
    from seqproc.parity.worst import WorstToken
    from seqproc.policy import SamplingPolicy
    from seqproc.processor import SequenceProcessor

_SHOWN_OPEN = 3  # distributions that are not ruled out
_SHOWN_TIES = 5  # of a check; parity.json lists them

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
    if pair is not None:
        _refuse_tests(false_alarms=false_alarms, until=until, level=level, suspect=suspect)
    choices = _choices(engines, pair, of_pair)
    rule = _until(until, level)
    measured = parse_policies(policies or [])
    _refuse_two_policies(policies, policy)
    if pair is not None:
        _require_folder(out)
        texts = _prompts(draw)
        with _opened(model, policy, response, texts, chat) as (processor, prompts):
            policies_of = measured or [processor.policy]
            compare_pair(processor, choices, prompts, policies_of, model, draw, of_pair, out)
        return

    from seqproc.parity.sampler import require_scipy

    require_scipy()  # this, and the folder, before anything is sampled for nothing
    _require_folder(out)
    path = out / "parity.json"

    def on_check(label: str, check: Check, so_far: ParityReport) -> None:
        write_report(so_far, path)  # first: printing can fail, or be interrupted
        print_check(label, check)

    texts = _prompts(draw)
    with _opened(model, policy, response, texts, chat) as (processor, prompts):
        from seqproc.cli.suspects import load_suspects
        from seqproc.parity.run import run_parity, to_json
        from seqproc.parity.verdict import FALSE_ALARMS

        report = run_parity(
            processor,
            choices,
            prompts,
            measured or [processor.policy],
            num_draws=draw.draws,
            seed=draw.seed,
            false_alarms=FALSE_ALARMS if false_alarms is None else false_alarms,
            on_start=lambda nothing_yet: write_report(nothing_yet, path),  # for an earlier one
            on_check=on_check,
            until=rule,
            on_look=print_look,
            suspects=load_suspects(suspect or [], model, processor.model),
        )
    write_report(report, path)
    print_comparisons(report)
    console().print(f"written to {printable(str(path))}")
    answer = "holds" if report.holds else "does not hold"
    give_result(
        {"file": str(path), **json.loads(to_json(report))},
        answer if report.is_decided or not report.holds else "not decided",
    )
    if not report.holds:
        raise typer.Exit(DOES_NOT_HOLD)
    if not report.is_decided:
        raise typer.Exit(FAILURE)


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


def _choices(engines: str | None, pair: str | None, of_pair: PairOptions) -> list[EngineChoice]:
    """What is tested, or the two that are compared.

    Raises:
        ConfigError: see `parse_engines` and `parse_pair`; or not one of the two options is given,
            or an option without the one that it goes with.
    """
    if pair is not None and engines is None:
        first, second = parse_readings(of_pair.read)
        return parse_pair(pair, is_read_in_two_ways=first != second)
    if engines is None or pair is not None:
        raise ConfigError(
            "give either --engines, to test engines against the scorer, or --pair, to put two side "
            "by side"
        )
    if of_pair.given:
        raise ConfigError(
            f"{of_pair.given[0]} goes with --pair; with --engines every token is tested"
        )
    return parse_engines(engines)


def _refuse_tests(**options: object) -> None:
    """Raise `ConfigError` for an option of tests beside a pair."""
    for name, value in options.items():
        if value is not None and value != []:
            goes_with = "--engines and --until" if name == "level" else "--engines"
            option = name.replace("_", "-")
            raise ConfigError(
                f"--{option} goes with {goes_with}; a pair is compared, and not tested"
            )


def _until(within: float | None, level: float | None) -> Until | None:
    """When to stop, as far as it was asked for.

    Raises:
        ConfigError: a level alone, or what `Until` refuses.
    """
    from seqproc.parity.sequential import Until

    if within is None:
        if level is not None:
            raise ConfigError("--level goes with --engines and --until, which is not given")
        return None
    return Until(within=within) if level is None else Until(within=within, level=level)


def parse_engines(
    text: str,
    given_as: str = "--engines",
    others: Sequence[str] = (),
    *,
    may_repeat: bool = False,
) -> list[EngineChoice]:
    """``hf,vllm:sampler=coupled`` as names and options.

    Args:
        text: the engines.
        given_as: the option of the command line that errors name.
        others: names that stand for something else than an engine, and are taken as well.
        may_repeat: whether one may come twice.

    Raises:
        ConfigError: an engine that there is not, one that comes twice, or an option that is none.
    """
    from seqproc.engines import engine_names
    from seqproc.engines.registry import GROUP
    from seqproc.parity.run import EngineChoice, require_choices

    choices, known = [], [*engine_names(), *others]
    for part in text.split(","):
        name, *options = part.strip().split(":")
        if name not in known:
            raise ConfigError(
                f"{given_as} names {name!r}; expected some of {', '.join(known)}, with commas "
                f"between; an installed package adds one under the entry-point group {GROUP}"
            )
        choices.append(
            EngineChoice(
                name=name,
                options=dict(parse_engine_options(options, f"an option of {name} in {given_as}")),
            )
        )
    if not may_repeat:
        require_choices(choices)
    return choices


def parse_pair(text: str, *, is_read_in_two_ways: bool = False) -> list[EngineChoice]:
    """``hf,vllm`` or ``hf,scorer`` as two choices; one engine twice, where it reads in two ways.

    Raises:
        ConfigError: see `parse_engines`; or they are not two.
    """
    from seqproc.parity.pair_run import SCORER

    choices = parse_engines(text, "--pair", [SCORER], may_repeat=is_read_in_two_ways)
    if len(choices) != 2:
        raise ConfigError(f"--pair takes two engines with a comma between, got {text!r}")
    return choices


def parse_policies(texts: list[str]) -> list[SamplingPolicy]:
    """``0.7,0.95`` as T = 0.7 and top_p = 0.95.

    Raises:
        ConfigError: not two numbers, not those of a policy, or a policy twice.
    """
    from seqproc.policy import SamplingPolicy

    policies = []
    for text in texts:
        try:
            temperature, top_p = (float(number) for number in text.split(","))
        except ValueError as error:
            raise ConfigError(f"--policy must be T,TOP_P such as 0.7,0.95, got {text!r}") from error
        policy = SamplingPolicy(temperature=temperature, top_p=top_p)
        if policy in policies:
            raise ConfigError(
                f"--policy {text} is given twice, or is an earlier one: leave one out"
            )
        policies.append(policy)
    return policies


def _refuse_two_policies(policies: list[str] | None, policy: PolicyOptions) -> None:
    others = {
        "--temperature": policy.temperature is not None,
        "--top-p": policy.top_p is not None,
        "--greedy": policy.greedy,
    }
    both = [name for name, is_given in others.items() if is_given]
    if policies and both:
        raise ConfigError(
            f"--policy stands in place of {' and '.join(both)}, and both are given: leave one out"
        )


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


def print_look(label: str, policy: SamplingPolicy, look: Look) -> None:
    """One line: how far a check that goes on until it is decided has come, and the time left."""
    certificate = look.certificate
    if not look.verdict.holds:
        state = f"rejected by {', '.join(look.verdict.failed)}"
    elif certificate.is_given:
        state = "certified"
    else:
        state = (
            f"{len(certificate.left):,} distributions left, such as {certificate.left[0].name}; "
            f"about {look.draws_left:,} draws and {duration(look.seconds_left)} to go"
        )
    engine = f"{label} at T = {policy.temperature:g}, top_p = {policy.top_p:g}"
    done = f"{look.num_draws:,} draws, {look.num_tokens:,} tokens, {duration(look.seconds)}"
    console().print(printable(f"{engine}, look {look.number}: {done}: {state}"))


def print_check(label: str, check: Check) -> None:
    """One engine under one policy: every test, the mismatch, the verdict and its causes."""
    out, policy, verdict = console(), check.policy, check.verdict
    measure = f"T = {policy.temperature:g}, top_p = {policy.top_p:g}"
    out.print(
        f"\n[bold]{printable(label)}[/] at {measure if policy.do_sample else 'greedy'}: "
        f"{check.num_draws:,} draws of {check.num_prompts:,} prompts, {check.num_tokens:,} tokens"
    )
    out.print(f"[dim]{printable(_how_it_samples(check))}[/]")
    if check.assumed is not None:
        out.print(f"[yellow]{printable(check.assumed)}[/]")
    out.print(_findings_table(check))
    if check.mismatch is not None:
        out.print(_mismatch_table(check))
    for token in () if check.replay is None else check.replay.near_ties[:_SHOWN_TIES]:
        out.print(
            f"  near-tie: draw {token.index} step {token.step}, {token.sampled} for {token.due}, "
            f"{token.margin:.2g} nats"
        )
    for cause in check.causes:
        detail = f" ({cause.detail})" if cause.detail else ""
        out.print(printable(f"cause, {cause.link}: {cause.description}{detail}"))
    for worst in check.worst:
        out.print(worst_line(worst))
    said = "[green]parity holds[/]" if verdict.holds else "[bold red]parity does not hold[/]"
    if verdict.holds and check.certificate is not None and not check.certificate.is_given:
        said = "[yellow]nothing fails yet[/]"
    how = "Holm" if check.certificate is None else "all looks together"
    out.print(f"{said} ({verdict.num_tests} tests, false alarms {verdict.false_alarms:g}, {how})")
    if check.certificate is not None and verdict.holds:
        out.print(printable(_certified(check.certificate)))


def worst_line(token: WorstToken) -> str:
    """One of the worst tokens on a line of markup. Its texts are quoted, line ends spelt out."""
    told = "" if token.engine_log_q is None else f", {token.engine_log_q:.4g} by the engine"
    return printable(
        f"worst ({token.why}): prompt {token.prompt} draw {token.index} step {token.step}, after "
        f"{token.context!r}: {token.text!r} (id {token.token_id}), log q {token.log_q:.4g}{told}, "
        f"mass before it {token.mass_before:.6g}; most likely was {token.first_text!r}"
    )


def _certified(certificate: Certificate) -> str:
    """What is certified, or what is left to rule out."""
    said = (
        f"{certificate.num_ruled_out:,} distributions of the catalogue are ruled out at the level "
        f"{certificate.level:g}, {certificate.num_near:,} lie within {certificate.within:g} nats "
        "per token"
    )
    said += "".join(f"; {name}: {state}" for name, state in certificate.suspects.items())
    if certificate.is_given:
        return f"certified: {said}"
    left = "; ".join(
        f"{one.name} ({one.distance:.2g} nats per token, e^{one.log_evidence:.1f} against it)"
        for one in certificate.left[:_SHOWN_OPEN]
    )
    return f"not decided: {said}, {len(certificate.left):,} are left, such as {left}"


def _how_it_samples(check: Check) -> str:
    """Versions, and what decides which tokens come out, on a line."""
    engine = check.engine
    versions = engine.get("versions")
    named = versions if isinstance(versions, dict) else {"versions": versions} if versions else {}
    facts = {
        "model runner": engine.get("model_runner"),
        "sampler": engine.get("sampler"),
        "noise": check.noise,
        "top-p": engine.get("top_p_backend"),
        "logprobs_mode": engine.get("logprobs_mode"),
        "seeds": engine.get("seeds"),
    }
    told = [f"{name} {value}" for name, value in facts.items() if value is not None]
    return "; ".join([", ".join(f"{name} {v}" for name, v in named.items()), *told])


def _findings_table(check: Check) -> Table:
    from rich.table import Table

    table = Table("link", "test", "statistic", "p", "", box=None, pad_edge=False)
    for one in check.findings:
        failed = one.name in check.verdict.failed
        table.add_row(
            one.link,
            one.name,
            "" if one.statistic is None else f"{one.statistic:.4g}",
            "" if one.p_value is None else f"{one.p_value:.3g}",
            printable(one.detail),
            style="red" if failed else None,
        )
    return table


def _mismatch_table(check: Check) -> Table:
    from rich.table import Table

    table = Table("log q, engine against scorer", "", box=None, pad_edge=False)
    for name, metric in (check.mismatch or {}).items():
        table.add_row(name, f"{metric.value:.4g} ± {metric.standard_error:.2g}")
    return table


def print_comparisons(report: ParityReport) -> None:
    """Where coupled engines part, and whether rounding explains it."""
    out = console()
    for one in report.comparisons:
        first, second = map(printable, one.engines)
        explained = sum(d.is_explained for d in one.divergences)
        out.print(
            f"\n{first} and {second}, coupled: {one.num_identical:,} of {one.num_draws:,} draws "
            f"identical; {explained:,} of {len(one.divergences):,} divergences explained"
        )
        for d in one.divergences:
            word = "near-tie" if d.is_explained else "[bold red]unexplained[/]"
            out.print(f"  draw {d.index} step {d.step}: {d.tokens}, gap {d.gap:.2g} nats, {word}")
    out.print(f"\n[bold]all in all:[/] {_in_all(report)}")


def _in_all(report: ParityReport) -> str:
    if not report.holds:
        return "[bold red]parity does not hold[/]"
    if not report.is_decided:
        return "[yellow]not decided[/]"
    return "[green]parity holds[/]"
