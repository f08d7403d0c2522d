"""`seqproc status`: how far a run is, and which process is at work on it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seqproc.cli.display import console, duration
from seqproc.cli.manner import give_result
from seqproc.cli.options import RunPath

if TYPE_CHECKING:
    from seqproc.runs.watch.status import RunStatus

Watch = Annotated[
    float | None,
    typer.Option(min=0.1, metavar="SECONDS", help="Look again and again while the run goes on."),
]


def status(run: RunPath, watch: Watch = None) -> None:
    """Show how far a run is, and which process is at work on it."""
    from seqproc.runs.watch.status import run_status

    while True:
        found = run_status(run)
        give_result(_result(found), found.manifest.state)
        _show(found)
        if watch is None or not found.is_at_work:
            return
        time.sleep(min(watch, threading.TIMEOUT_MAX))
        console().print()


def _result(found: RunStatus) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "run": found.url,
        "state": manifest.state,
        "was_killed": found.was_killed,
        "num_draws": manifest.num_own_draws,
        "num_draws_done": manifest.num_draws_done,
        "num_sampled": found.session.sampled,
        "num_quarantined": manifest.num_quarantined,
        "process": None if found.holder is None else dataclasses.asdict(found.holder),
        "is_process_alive": found.is_holder_alive,
        "seconds_left": found.seconds_left,
        "created": manifest.created,
        "updated": manifest.updated,
        "summary": manifest.summary,
    }


def _show(found: RunStatus) -> None:
    from seqproc.cli.run_summary import print_lines, summary_lines
    from seqproc.runs.format.summary import summary_of

    summary = found.manifest.summary
    means = [] if summary is None else list(summary_lines(summary_of(summary)))
    print_lines([*_lines(found), *(line for line in means if line[0] != "draws")])


def _lines(found: RunStatus) -> Iterator[tuple[str, str]]:
    manifest = found.manifest
    yield "run", found.url
    yield "state", _state(found)
    yield "draws", _draws(found)
    yield "process", _process(found)
    yield "manifest", f"of {manifest.updated}; the run was begun {manifest.created}"
    if found.seconds_left is not None:
        yield "left", f"about {duration(found.seconds_left)}"


def _state(found: RunStatus) -> str:
    manifest = found.manifest
    if found.was_killed:
        return "stopped without a word; the same command goes on"
    if manifest.state == "interrupted":
        return "interrupted; the same command goes on"
    if manifest.state == "failed":
        return f"failed ({manifest.error}); the same command goes on"
    return manifest.state


def _draws(found: RunStatus) -> str:
    manifest = found.manifest
    waiting = found.session.sampled - manifest.num_draws_done
    return ", ".join(
        [
            f"{manifest.num_draws_done} of {manifest.num_own_draws} done",
            *([f"{waiting} sampled and not scored"] if waiting > 0 else []),
            *([f"{manifest.num_quarantined} in quarantine"] if manifest.num_quarantined else []),
        ]
    )


def _process(found: RunStatus) -> str:
    if found.holder is None:
        return "none is at work"
    lives = {
        True: "alive",
        False: "dead",
        None: "elsewhere: alive as long as its last sign of life changes",
    }
    return f"{found.holder.described()}: {lives[found.is_holder_alive]}"
