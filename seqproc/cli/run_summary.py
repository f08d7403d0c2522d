"""Shows a finished run: its summary, its folder, and how to open it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import typer

from seqproc.cli.display import console, print_error, printable
from seqproc.cli.exit_codes import QUARANTINED
from seqproc.cli.manner import give_result

if TYPE_CHECKING:
    from rich.table import Table

    from seqproc.runs import RunResult, RunSummary
    from seqproc.runs.format.summary import Estimate


def end_run(result: RunResult) -> None:
    """Show a run's result; leave with another exit code where draws are in quarantine."""
    print_result(result)
    if not result.quarantined:
        return
    first = result.quarantined[0]
    print_error(
        f"{len(result.quarantined)} draws always failed and are in quarantine.parquet, the first "
        f"of them draw {first.draw} ({first.step}): {first.reason}; --retry-quarantined tries them "
        "again"
    )
    raise typer.Exit(QUARANTINED)


def print_result(result: RunResult) -> None:
    """The summary table, the run's folder, and two lines of Python that open it."""
    manifest = result.manifest
    give_result(
        {
            "run": result.url,
            "state": manifest.state,
            "num_draws": manifest.num_own_draws,
            "num_draws_done": manifest.num_draws_done,
            "quarantined": [dataclasses.asdict(one) for one in result.quarantined],
            "summary": dataclasses.asdict(result.summary),
        },
        result.url,
    )
    out = console()
    out.print(summary_table(result.summary))
    out.print(f"\nThe run is in [bold]{printable(result.url)}[/]. To open it in Python:\n")
    out.print("    from seqproc.runs import open_run")
    out.print(f"    rows = open_run({printable(repr(result.url))}).rows()")


def summary_table(summary: RunSummary) -> Table:
    """Two columns: what, and how much."""
    from rich.table import Table

    table = Table("", "", show_header=False, box=None, pad_edge=False)
    for name, value in summary_lines(summary):
        table.add_row(name, printable(value))
    return table


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Names and values, a line each; a value is made harmless, and never cut or wrapped."""
    shown = [(name, printable(value)) for name, value in lines]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        indented = value.replace("\n", "\n" + " " * (width + 2))
        console().print(f"{name:<{width}}  {indented}".rstrip())


def summary_lines(s: RunSummary) -> Iterator[tuple[str, str]]:
    """What a summary says: what, and how much."""
    yield "draws", f"{s.num_draws}"
    yield "tokens", f"{s.num_tokens}"
    if s.generation_tokens_per_second is not None:
        yield "generation", f"{s.generation_tokens_per_second:.0f} tokens/s"
    if s.scoring_tokens_per_second is not None:
        yield "scoring", f"{s.scoring_tokens_per_second:.0f} tokens/s"
    if s.length_mean is not None:
        yield "length", f"{s.length_mean:.1f} tokens ({s.length_min} to {s.length_max})"
    yield "finish reasons", ", ".join(f"{k} {n}" for k, n in s.finish_reasons.items())
    yield "log p", _estimate(s.logprob_per_token, " nats per token")
    yield "log q", _estimate(s.logq_per_token, " nats per token")
    yield "RB entropy", _estimate(s.rb_entropy_per_token, " nats per token")
    yield "", _estimate(s.rb_entropy_per_sequence, " nats per sequence")
    if s.num_rewarded:
        yield "reward", _estimate(s.reward, f" over {s.num_rewarded} draws with an answer")
    yield "out of support", f"{s.num_out_of_support} tokens"


def _estimate(estimate: Estimate, unit: str) -> str:
    if estimate.mean is None:
        return "undetermined"
    if estimate.standard_error is None:
        return f"{estimate.mean:.4f}{unit}"
    return f"{estimate.mean:.4f} ± {estimate.standard_error:.4f}{unit}"
