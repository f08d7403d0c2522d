"""`seqproc models` and `seqproc datasets`: what there is to name."""

from __future__ import annotations

import dataclasses

from seqproc.cli.display import console, printable
from seqproc.cli.manner import give_result


def models() -> None:
    """List the embedded models."""
    from rich.table import Table

    from seqproc.models.embedded import list_models

    table = Table("name", "description", "licence", "cached", box=None, pad_edge=False)
    table.columns[-1].overflow = "fold"  # a path is of no use without its end
    records = list_models()
    values = [dataclasses.asdict(record) for record in records]
    give_result({"models": values}, "\n".join(record.name for record in records))
    for record in records:
        cached = "no (converted on first use)"
        if record.cached:
            cached = f"{(record.size or 0) / 1e6:.0f} MB in {record.path}"
        row = (record.name, record.description, record.licence, cached)
        table.add_row(*map(printable, row))
    console().print(table)
    console().print("\nAny local folder or Hugging Face hub id works as well.")


def datasets() -> None:
    """List the datasets."""
    from rich.table import Table

    from seqproc.prompts import describe_datasets

    table = Table("name", "splits", "description", box=None, pad_edge=False)
    infos = describe_datasets()
    values = [dataclasses.asdict(info) for info in infos]
    give_result({"datasets": values}, "\n".join(info.name for info in infos))
    for info in infos:
        splits = ", ".join(info.splits) or "as in the source"
        table.add_row(*map(printable, (info.name, splits, info.description)))
    console().print(table)
