"""`seqproc parity --pair`: the distributions of two engines side by side."""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from seqproc.cli.display import console, printable
from seqproc.cli.manner import give_result
from seqproc.cli.options import DrawOptions, ModelOptions
from seqproc.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from seqproc.parity.run import EngineChoice
    from seqproc.parity.side_by_side.layers import FirstDifference
    from seqproc.parity.side_by_side.pair import Pair, Reading, Row
    from seqproc.parity.side_by_side.pair_run import Layers, OtherModel, PairReport
    from seqproc.policy import SamplingPolicy
    from seqproc.processor import SequenceProcessor

PAIR_FILE = "pair.json"
ENGINES = "engines"  # in place of a model, for --layers
_SHOWN_ROWS = 5  # of a comparison; the file has more
_SHOWN_PARAMETERS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """How a pair is compared."""

    panel: ClassVar[str] = "Pairs"

    rows: Annotated[
        int | None,
        typer.Option(help="Of --pair: contexts compared under each policy. Default 256."),
    ] = None
    read: Annotated[
        str | None,
        typer.Option(
            metavar="HOW[,HOW]",
            help="Of --pair: how each engine reads contexts, decode or prefill. Default decode "
            "where it can.",
        ),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Of --pair: another model, such as a checkpoint's folder, to tell which module "
            "first differs from --model's; or engines, for what vLLM's layers return.",
        ),
    ] = None

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        values = {"--rows": self.rows, "--read": self.read, "--layers": self.layers}
        return [name for name, value in values.items() if value is not None]


def parse_readings(text: str | None) -> tuple[Reading | None, Reading | None]:
    """``decode``, or ``decode,prefill`` for the first and the second; None where nothing is said.

    Raises:
        ConfigError: anything else.
    """
    from seqproc.parity.side_by_side.pair import Reading

    if text is None:
        return None, None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 2 or not set(parts) <= set(typing.get_args(Reading)):
        raise ConfigError(
            "--read takes decode or prefill, or one for each engine such as decode,prefill; "
            f"got {text!r}"
        )
    first, second = (parts * 2)[:2]
    return typing.cast("Reading", first), typing.cast("Reading", second)


def compare_pair(
    processor: SequenceProcessor,
    choices: Sequence[EngineChoice],
    prompts: Sequence[str],
    policies: Sequence[SamplingPolicy],
    model: ModelOptions,
    draw: DrawOptions,
    pair: PairOptions,
    out: Path,
) -> None:
    """Compare two engines; print a table for each policy, and write the file anew after it."""
    from seqproc.parity.side_by_side.pair import NUM_ROWS
    from seqproc.parity.side_by_side.pair_run import run_pair

    path = out / PAIR_FILE

    def on_pair(found: Pair, so_far: PairReport) -> None:
        write_pairs(so_far, path)  # first: printing can fail, or be interrupted
        print_pair(found)

    report = run_pair(
        processor,
        choices,
        prompts,
        policies,
        num_draws=draw.draws,
        num_rows=NUM_ROWS if pair.rows is None else pair.rows,
        seed=draw.seed,
        readings=parse_readings(pair.read),
        other=None if pair.layers in (None, ENGINES) else _other_model(pair.layers, model),
        engine_layers=pair.layers == ENGINES,
        on_start=lambda nothing_yet: write_pairs(nothing_yet, path),  # for an earlier one
        on_pair=on_pair,
    )
    write_pairs(report, path)
    for layers in report.layers:
        print_layers(layers)
    console().print(f"\nwritten to {printable(str(path))}")
    give_result({"file": str(path), **json.loads(report.to_json())}, str(path))


def _other_model(name: str, model: ModelOptions) -> OtherModel:
    from seqproc.models import load_model
    from seqproc.parity.side_by_side.pair_run import OtherModel

    loaded, _ = load_model(
        name,
        dtype=model.dtype,
        device=model.device,
        trust_remote_code=model.trust_remote_code,
    )
    return OtherModel(name=name, model=loaded)


def write_pairs(report: PairReport, path: Path) -> None:
    """The report as it stands, in place of an earlier one.

    Raises:
        RunError: when the operating system refuses.
    """
    from seqproc._util.atomic import write_atomically

    write_atomically(path, lambda file: file.write(report.to_json().encode()))


def print_pair(pair: Pair) -> None:
    """Two engines under one policy: distances, and the contexts where they are the largest."""
    out, policy = console(), pair.policy
    first, second = map(printable, pair.engines)
    measure = f"T = {policy.temperature:g}, top_p = {policy.top_p:g}"
    out.print(
        f"\n[bold]{first}[/] and [bold]{second}[/] at {measure}: {pair.num_rows:,} contexts from "
        f"{pair.num_draws:,} draws of {pair.num_prompts:,} prompts, by {first}"
    )
    how = zip((first, second), pair.readings, strict=True)
    out.print("[dim]contexts are read by {}[/]".format(", ".join(f"{n} in {r}" for n, r in how)))
    out.print(_distances(pair))
    for row in pair.worst[:_SHOWN_ROWS]:
        out.print(_told(row))


def print_layers(layers: Layers) -> None:
    """The module in which two models part, and the parameters in it that differ."""
    names = f"{layers.first} and {layers.second}, module by module"
    found = layers.difference
    if layers.not_told is not None:
        said = f"not compared: {layers.not_told}"
    elif found is None:
        said = f"no output differs on {layers.num_draws} draws"
    else:
        said = _parting(found)
    console().print(printable(f"\n{names}: {said}"))


def _parting(found: FirstDifference) -> str:
    by = f"by {found.difference:.2g} where {found.tolerance:.2g} is allowed"
    if found.shapes is not None:
        by = "with an output of the shape {} in the one and {} in the other".format(*found.shapes)
    said = (
        f"the first that differs is {found.module} ({found.kind}), {by}, after "
        f"{found.num_before:,} that agree"
    )
    if found.num_parameters is None:
        return said
    inside = ", ".join(found.parameters[:_SHOWN_PARAMETERS]) or "none"
    return (
        f"{said}; parameters in it that differ: {inside}; {found.num_parameters:,} in the whole "
        "model"
    )


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
