"""What people look at: the page of a run. Reads runs; samples and scores nothing.

Starts no engine, and needs no torch but for the tokenizer of the token view. Texts of a run are
untrusted wherever they are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

__all__ = ["ShownSequence", "render_page", "show_draw", "show_sequence", "write_page"]

if TYPE_CHECKING:
    from seqproc.report.page import render_page, write_page
    from seqproc.report.sequence import ShownSequence, show_draw, show_sequence

_HOMES = {name: ".page" if name.endswith("_page") else ".sequence" for name in __all__}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
