"""`seqproc merge`: make one run of the shards that several machines made."""

from __future__ import annotations

from typing import Annotated

import typer

from seqproc.cli.options import Fresh, checked_folder

Merged = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="The new run's folder, or a URL such as s3://bucket/run.",
        parser=checked_folder,
    ),
]
Shards = Annotated[
    list[str],
    typer.Argument(metavar="SHARD_FOLDER", help="The folders of all shards, in any order."),
]


def merge(out: Merged, shards: Shards, fresh: Fresh = False) -> None:
    """Make one run of all the shards of a plan (`seqproc sample --shard`); they stay as they are.

    A merge that was stopped is made again by the same command.
    """
    from seqproc.cli.run_summary import end_run
    from seqproc.runs import merge_runs

    end_run(merge_runs(shards, out, fresh=fresh))
