"""How the checks of `seqproc parity` are shown: looks, tests, causes, and the verdict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from seqproc.cli.display import console, duration, printable

if TYPE_CHECKING:
    from rich.table import Table

    from seqproc.parity import Check
    from seqproc.parity.betting.certificate import Certificate, Open
    from seqproc.parity.causes.cause import Cause, Tried
    from seqproc.parity.findings.worst import WorstToken
    from seqproc.parity.run import ParityReport
    from seqproc.parity.sequential import Look
    from seqproc.policy import SamplingPolicy

_SHOWN_OPEN = 3  # distributions that are not ruled out
_SHOWN_TRIED = 3  # distributions that were taken for the cause
_SHOWN_TIES = 5  # of a check; parity.json lists them


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
        out.print(printable(_cause(cause)))
        for tried in () if cause.explains else cause.tried[:_SHOWN_TRIED]:
            out.print(printable(_tried(tried)))
    for worst in check.worst:
        out.print(worst_line(worst))
    said = "[green]parity holds[/]" if verdict.holds else "[bold red]parity does not hold[/]"
    if verdict.holds and check.certificate is not None and not check.certificate.is_given:
        said = "[yellow]nothing fails yet[/]"
    how = "Holm" if check.certificate is None else "all looks together"
    out.print(f"{said} ({verdict.num_tests} tests, false alarms {verdict.false_alarms:g}, {how})")
    if check.certificate is not None and verdict.holds:
        out.print(printable(_certified(check.certificate)))


def _cause(cause: Cause) -> str:
    what = " or ".join([cause.description, *cause.contenders])
    return f"cause, {cause.link}: {what}{f' ({cause.detail})' if cause.detail else ''}"


def _tried(tried: Tried) -> str:
    left = f"fails {', '.join(tried.left)}" if tried.left else "leaves nothing"
    values = "" if tried.interval is None else ", {:.4g} to {:.4g}".format(*tried.interval)
    return f"  taken for true: {tried.description}{values}: e^{tried.log_odds:.1f}, {left}"


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
        f"{one.name} ({_how_far(one)}, e^{one.log_evidence:.1f} against it)"
        for one in certificate.left[:_SHOWN_OPEN]
    )
    return f"not decided: {said}, {len(certificate.left):,} are left, such as {left}"


def _how_far(one: Open) -> str:
    if math.isinf(one.distance):
        return "near at no distance"
    return f"{one.distance:.2g} nats per token"


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
