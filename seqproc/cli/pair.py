"""`seqproc parity --pair`: the distributions of two engines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqproc.cli.display import console, printable
from seqproc.cli.options import DrawOptions

if TYPE_CHECKING:
    from rich.table import Table

    from seqproc.parity.pair import Pair, Row
    from seqproc.parity.run import EngineChoice
    from seqproc.policy import SamplingPolicy
    from seqproc.processor import SequenceProcessor

PAIR_FILE = "pair.json"
_SHOWN_ROWS = 5  # of a comparison; the file has more


def compare_pair(
    processor: SequenceProcessor,
    choices: Sequence[EngineChoice],
    prompts: Sequence[str],
    policies: Sequence[SamplingPolicy],
    draw: DrawOptions,
    rows: int | None,
    out: Path,
) -> None:
    """Compare two engines, print a table for each policy, and write the file."""
    from seqproc._util.atomic import write_atomically
    from seqproc.parity.pair import NUM_ROWS
    from seqproc.parity.pair_run import run_pair

    report = run_pair(
        processor,
        choices,
        prompts,
        policies,
        num_draws=draw.draws,
        num_rows=NUM_ROWS if rows is None else rows,
        seed=draw.seed,
        on_pair=print_pair,
    )
    path = out / PAIR_FILE
    write_atomically(path, lambda file: file.write(report.to_json().encode()))
    console().print(f"\nwritten to {printable(str(path))}")


def print_pair(pair: Pair) -> None:
    """Two engines under one policy: distances, and the contexts where they are the largest."""
    out, policy = console(), pair.policy
    first, second = map(printable, pair.engines)
    measure = f"T = {policy.temperature:g}, top_p = {policy.top_p:g}"
    out.print(
        f"\n[bold]{first}[/] and [bold]{second}[/] at "
        f"{measure if policy.do_sample else 'greedy'}: {pair.num_rows:,} contexts from "
        f"{pair.num_draws:,} draws of {pair.num_prompts:,} prompts, by {first}"
    )
    out.print(_distances(pair))
    for row in pair.worst[:_SHOWN_ROWS]:
        out.print(_told(row))


def _distances(pair: Pair) -> Table:
    from rich.table import Table

    table = Table("distance of distributions", "", box=None, pad_edge=False)
    table.add_row(
        "KL(first ‖ second), nats per token", "∞ everywhere" if pair.kl is None else str(pair.kl)
    )
    if pair.num_infinite:
        left = f"{pair.num_infinite:,} of {pair.num_rows:,} contexts"
        table.add_row("left out of it: KL is ∞", left)
    table.add_row("total variation", str(pair.total_variation))
    table.add_row("largest difference of log q, nats", f"{pair.largest_gap:.3g}")
    table.add_row("same support", f"{pair.num_same_support:,} of {pair.num_rows:,} contexts")
    return table


def _told(row: Row) -> str:
    """A row on a line: where, how far apart, and the tokens with the probabilities of both."""
    tokens = (f"{one.text!r} {one.first:.4g}, {one.second:.4g}" for one in row.tokens)
    return printable(
        f"  draw {row.index} step {row.step}: total variation {row.total_variation:.2g}, "
        f"KL {row.kl:.2g}, after {row.context!r}: {'; '.join(tokens)}"
    )
