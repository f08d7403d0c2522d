"""Progress of work that takes a while: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_SECONDS = 30.0  # between two lines where there is no terminal; nothing is said before


def progress_bar(total: int | None, title: str, *, unit: str) -> tqdm[Any]:
    """Tells on stderr how much is done and how long the rest will take."""
    wait = 0.0 if sys.stderr.isatty() else _SECONDS
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        leave=False,
        delay=wait,
        mininterval=max(wait, 0.1),
    )
