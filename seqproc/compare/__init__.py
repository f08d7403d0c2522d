"""Two runs side by side: engines, temperatures, checkpoints, θ against θ + η·v.

Reads runs; samples and scores nothing. Everything is A minus B. Texts of a run are untrusted
wherever they are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

__all__ = ["Comparison", "compare_runs", "write_page"]

if TYPE_CHECKING:
    from seqproc.compare.compare import Comparison, compare_runs
    from seqproc.compare.page import write_page

_HOMES = {"Comparison": ".compare", "compare_runs": ".compare", "write_page": ".page"}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
