"""Progress of work that takes a while: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

NO_PROGRESS = "TQDM_DISABLE"  # a variable that tqdm reads as well, once, when it is imported
_SECONDS = 30.0  # between two lines where there is no terminal; nothing is said before


def is_switched_off() -> bool:
    """Whether nothing is to be said of progress: the environment's variable is set."""
    return bool(os.environ.get(NO_PROGRESS))


def tell(line: str) -> None:
    """A line on stderr about work that takes a while."""
    if not is_switched_off():
        print(line, file=sys.stderr)


def progress_bar(total: int | None, title: str, *, unit: str) -> tqdm[Any]:
    """Tells on stderr how much is done and how long the rest will take."""
    wait = 0.0 if sys.stderr.isatty() else _SECONDS
    return tqdm(
        total=total,
        desc=title,
        unit=unit,
        leave=False,
        disable=is_switched_off(),
        delay=wait,
        mininterval=max(wait, 0.1),
    )
