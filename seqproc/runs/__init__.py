"""Runs: many draws from a plan, sampled, scored and kept in a folder that can be read back.

Knows plans, files and manifests; not how an engine decodes or a scorer batches. Reading a run
needs neither torch nor an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

# Where each name lives, imported when first used: `open_run` should not wait for torch.
_HOMES = {
    "DEFAULT_TOKEN_COLUMNS": ".format.schema",
    "Draw": ".plan",
    "Failed": ".format.quarantine",
    "Fault": ".verify.verify",
    "Manifest": ".format.manifest",
    "ROWS_SCHEMA": ".format.schema",
    "Run": ".reader",
    "RunResult": ".result",
    "RunSpec": ".plan",
    "RunSummary": ".format.summary",
    "TOKEN_COLUMNS": ".format.schema",
    "ScoreSet": ".format.score_set",
    "add_scores": ".adding_scores",
    "merge_runs": ".shards.merge",
    "open_run": ".reader",
    "plan_draws": ".plan",
    "sample_run": ".sample",
    "score_run": ".score",
    "verify_run": ".verify.verify",
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
    from seqproc.runs.format.manifest import Manifest
    from seqproc.runs.format.quarantine import Failed
    from seqproc.runs.format.schema import DEFAULT_TOKEN_COLUMNS, ROWS_SCHEMA, TOKEN_COLUMNS
    from seqproc.runs.format.score_set import ScoreSet
    from seqproc.runs.format.summary import RunSummary
    from seqproc.runs.plan import Draw, RunSpec, plan_draws
    from seqproc.runs.reader import Run, open_run
    from seqproc.runs.result import RunResult
    from seqproc.runs.sample import sample_run
    from seqproc.runs.score import score_run
    from seqproc.runs.shards.merge import merge_runs
    from seqproc.runs.verify.verify import Fault, verify_run

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
