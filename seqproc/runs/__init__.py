"""Runs: many draws from a plan, sampled, scored and kept in a folder that can be read back.

Knows plans, files and manifests; not how an engine decodes or a scorer batches. Reading a run
needs neither torch nor an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

# Where each name lives, imported when first used: `open_run` should not wait for torch.
_HOMES = {
    "DEFAULT_TOKEN_COLUMNS": ".schema",
    "Draw": ".plan",
    "Failed": ".quarantine",
    "Fault": ".verify",
    "Manifest": ".manifest",
    "ROWS_SCHEMA": ".schema",
    "Run": ".reader",
    "RunResult": ".result",
    "RunSpec": ".plan",
    "RunSummary": ".summary",
    "TOKEN_COLUMNS": ".schema",
    "ScoreSet": ".score_set",
    "add_scores": ".adding_scores",
    "merge_runs": ".shard_merge",
    "open_run": ".reader",
    "plan_draws": ".plan",
    "sample_run": ".sample",
    "score_run": ".score",
    "verify_run": ".verify",
}

__all__ = [
    "DEFAULT_TOKEN_COLUMNS",
    "ROWS_SCHEMA",
    "TOKEN_COLUMNS",
    "Draw",
    "Failed",
    "Fault",
    "Manifest",
    "Run",
    "RunResult",
    "RunSpec",
    "RunSummary",
    "ScoreSet",
    "add_scores",
    "merge_runs",
    "open_run",
    "plan_draws",
    "sample_run",
    "score_run",
    "verify_run",
]

if TYPE_CHECKING:
    from seqproc.runs.adding_scores import add_scores
    from seqproc.runs.manifest import Manifest
    from seqproc.runs.plan import Draw, RunSpec, plan_draws
    from seqproc.runs.quarantine import Failed
    from seqproc.runs.reader import Run, open_run
    from seqproc.runs.result import RunResult
    from seqproc.runs.sample import sample_run
    from seqproc.runs.schema import DEFAULT_TOKEN_COLUMNS, ROWS_SCHEMA, TOKEN_COLUMNS
    from seqproc.runs.score import score_run
    from seqproc.runs.score_set import ScoreSet
    from seqproc.runs.shard_merge import merge_runs
    from seqproc.runs.summary import RunSummary
    from seqproc.runs.verify import Fault, verify_run

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
