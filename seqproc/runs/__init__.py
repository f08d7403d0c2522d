"""Runs: many draws from a plan, sampled, scored and kept in a folder that can be read back.

Knows plans, files and manifests; not how an engine decodes or a scorer batches. Reading a run
needs neither torch nor an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

# Where each name lives, imported when first used: `open_run` should not wait for torch.
_HOMES = {
    "Draw": ".plan",
    "Manifest": ".manifest",
    "ROWS_SCHEMA": ".schema",
    "Run": ".reader",
    "RunResult": ".result",
    "RunSpec": ".plan",
    "RunSummary": ".summary",
    "RunWriter": ".writer",
    "SummaryAccumulator": ".summary",
    "open_run": ".reader",
    "plan_draws": ".plan",
    "require_free": ".writer",
    "rows_table": ".rows",
    "sample_run": ".sample",
    "score_run": ".score",
}

__all__ = [
    "ROWS_SCHEMA",
    "Draw",
    "Manifest",
    "Run",
    "RunResult",
    "RunSpec",
    "RunSummary",
    "RunWriter",
    "SummaryAccumulator",
    "open_run",
    "plan_draws",
    "require_free",
    "rows_table",
    "sample_run",
    "score_run",
]

if TYPE_CHECKING:
    from seqproc.runs.manifest import Manifest
    from seqproc.runs.plan import Draw, RunSpec, plan_draws
    from seqproc.runs.reader import Run, open_run
    from seqproc.runs.result import RunResult
    from seqproc.runs.rows import rows_table
    from seqproc.runs.sample import sample_run
    from seqproc.runs.schema import ROWS_SCHEMA
    from seqproc.runs.score import score_run
    from seqproc.runs.summary import RunSummary, SummaryAccumulator
    from seqproc.runs.writer import RunWriter, require_free

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
