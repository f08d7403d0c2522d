"""Rows as a table for people and as a line of JSON, with what the numbers depend on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from _measuring import Row
from rich.table import Table

PACKAGES = ("torch", "transformers", "peft", "trl", "lm_eval", "seqproc")


def table(part: str, rows: Iterable[Row]) -> Table:
    """The rows of a part for people."""
    shown = Table(title=part, title_justify="left", title_style="bold")
    shown.add_column("what", overflow="fold")
    for column in ("median s", "min-max s", "ratio", "tensors MB", "process MB"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("errors (nats), other", overflow="fold")
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def _cells(row: Row) -> list[str]:
    found = [f"{name} {value:.3g}" for name, value in (row.max_error | row.values).items()]
    return [
        row.name,
        _number(row.median_s, ".3f"),
        "" if row.min_s is None else f"{row.min_s:.3f}-{row.max_s:.3f}",
        _number(row.ratio, ".3f"),
        _number(row.tensor_peak_bytes, ",.1f", 1e6),
        _number(row.high_water_bytes, ",.0f", 1e6),
        "; ".join([*found, *([row.note] if row.note else [])]),
    ]


def _number(value: float | None, spec: str, unit: float = 1.0) -> str:
    return "" if value is None else format(value / unit, spec)


def json_line(settings: dict[str, Any], rows: Iterable[Row]) -> str:
    """Everything, with versions and hardware."""
    return json.dumps(
        {**_surroundings(), "settings": settings, "rows": [row.as_json() for row in rows]}
    )


def _surroundings() -> dict[str, Any]:
    return {
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
