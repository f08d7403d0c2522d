"""An engine that must not start: its name is known, and its start an error."""

from __future__ import annotations

from typing import Any, NoReturn

from seqproc.engines import ScriptedEngine, register_engine
from seqproc.errors import EngineError

NEVER_STARTS = "never-starts"


class _NeverStarts(ScriptedEngine):
    name = NEVER_STARTS

    @classmethod
    def from_source(cls, source: Any, **options: Any) -> NoReturn:
        raise EngineError("this engine must not start")


register_engine(NEVER_STARTS, _NeverStarts)
