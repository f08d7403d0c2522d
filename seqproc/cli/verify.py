"""`seqproc verify`: read a run again, and tell what is not as it was written."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from seqproc.cli.display import console, printable
from seqproc.cli.exit_codes import FAILURE
from seqproc.cli.manner import give_result
from seqproc.cli.options import RunPath

Verbose = Annotated[bool, typer.Option("--verbose", help="A line for each file that is read.")]


def verify(run: RunPath, verbose: Verbose = False) -> None:
    """Read all of a run again, and tell what is not as it was written: exits with 1 if anything is.

    Every file is compared with its checksum, and every row with the plan and with itself.
    """
    from seqproc.runs.verify.verify import examine_run

    out = console()
    found = examine_run(run, lambda line: out.print(printable(line)) if verbose else None)
    for note in found.notes:
        out.print(f"note: {printable(note)}")
    for fault in found.faults:
        out.print(f"[bold red]fault:[/] {printable(str(fault))}")
    give_result(
        {
            "run": run,
            "is_sound": not found.faults,
            "faults": [dataclasses.asdict(fault) for fault in found.faults],
            "notes": found.notes,
            "num_parts": found.num_parts,
            "num_rows": found.num_rows,
        },
        f"{len(found.faults)} faults" if found.faults else "sound",
    )
    verdict = f"{len(found.faults)} faults" if found.faults else "sound"
    out.print(f"{found.num_parts} parts, {found.num_rows} rows: {verdict}")
    if found.faults:
        raise typer.Exit(FAILURE)
