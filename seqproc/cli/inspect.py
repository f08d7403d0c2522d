"""`seqproc inspect`: the totals of a run, some of its rows, and its quarantine.

What a run holds is untrusted: all of it is shown as `display.printable` makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqproc.cli.display import console, printable
from seqproc.cli.manner import current_manner, give_result
from seqproc.cli.options import RunPath

if TYPE_CHECKING:
    from seqproc.runs import Failed, Run

Rows = Annotated[int, typer.Option(min=0, help="How many rows to show.")]
OneDraw = Annotated[int | None, typer.Option("--draw", help="Show this draw alone, and all of it.")]
Columns = Annotated[
    str | None, typer.Option(metavar="A,B", help="Which columns, with commas between them.")
]

_SHOWN = (
    "draw",
    "prompt_index",
    "seed",
    "finish_reason",
    "gen_len",
    "reward",
    "sequence_logprob",
    "sequence_logq",
    "rb_entropy_sum",
    "prompt_text",
    "response_text",
)
_MAX_CHARS = 400  # of a text, and
_MAX_NUMBERS = 8  # of a list, where several rows are shown


def inspect(
    run: RunPath,
    rows: Rows = 3,
    draw: OneDraw = None,
    columns: Columns = None,
) -> None:
    """Show the totals of a run, some of its rows, and the draws in quarantine.

    With --json rows have all columns, and the whole manifest stands beside them.
    """
    from seqproc.runs import open_run

    opened, as_json = open_run(run), current_manner().json
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    if names is None and not as_json and draw is None:
        names = list(_SHOWN)
    chosen = [opened.row(draw, names)] if draw is not None else list(_first(opened, rows, names))
    give_result(_result(opened, chosen), opened.manifest.state)
    if as_json:
        return
    if draw is not None:
        _print_row(chosen[0], whole=True)
    else:
        _print_totals(opened)
        for row in chosen:
            console().print()
            _print_row(row, whole=False)
        _print_quarantine(opened.quarantined)


def _first(run: Run, num: int, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The first rows."""
    for batch in run.batches(columns, batch_size=max(num, 1)):
        yield from batch.slice(0, num).to_pylist()
        num -= batch.num_rows
        if num <= 0:
            return


def _result(run: Run, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "run": run.url,
        "manifest": dataclasses.asdict(run.manifest),
        "rows": rows,
        "quarantined": [dataclasses.asdict(one) for one in run.quarantined],
    }


def _print_totals(run: Run) -> None:
    from seqproc.cli.run_summary import print_lines, summary_lines
    from seqproc.runs.format.summary import summary_of

    manifest = run.manifest
    planned = f"{run.num_rows} of {manifest.num_own_draws} draws"
    console().print(f"A {manifest.kind} run, {manifest.state}: {planned}.\n")
    if manifest.summary is not None:
        print_lines(summary_lines(summary_of(manifest.summary)))


def _print_row(row: Mapping[str, Any], *, whole: bool) -> None:
    from seqproc.cli.run_summary import print_lines

    print_lines((name, _shown(value, whole=whole)) for name, value in row.items())


def _shown(value: Any, *, whole: bool) -> str:
    """A value of a row; of several rows, only the beginning of what is long."""
    if isinstance(value, list):
        shown = value if whole else value[:_MAX_NUMBERS]
        more = "" if len(shown) == len(value) else f", … {len(value)} in all"
        return f"[{', '.join(_number(x) for x in shown)}{more}]"
    if isinstance(value, str):
        is_long = not whole and len(value) > _MAX_CHARS
        return f"{value[:_MAX_CHARS]}… ({len(value)} characters)" if is_long else value
    return "" if value is None else _number(value)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print_quarantine(quarantined: Sequence[Failed]) -> None:
    from rich.table import Table

    if not quarantined:
        return
    table = Table("draw", "prompt", "failed", "time", "reason", box=None, pad_edge=False)
    table.columns[-1].overflow = "fold"
    for one in quarantined:
        row = (str(one.draw), str(one.prompt_index), one.step, one.time, one.reason)
        table.add_row(*map(printable, row))
    console().print(f"\n{len(quarantined)} draws are in quarantine:\n")
    console().print(table)
