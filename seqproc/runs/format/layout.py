"""Where things are in a run's folder.

    manifest.json                     what made the run, and how far it is; written first
    parts/samples/part-000000.*       samples as they finished: a Parquet file and its note
    parts/scores/policy/part-000000.* their scores
    samples/rows-1-00000.*            at the end: few files, in the order of the draws
    scores/policy/rows-1-00000.*
    quarantine.parquet                draws that always fail, and why
    events.jsonl                      what happened, and when
    report.html                       the page about it, once `seqproc report` has written one
    set-aside/                        what was found broken, or was replaced by a fresh start
    shards/00-of-08/                  runs that are to become this one

Each file appears whole. What is committed is never changed, only moved together at the end.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from seqproc._util.clock import utc_now
from seqproc.runs.store.folder import LOCK_PREFIX, Folder

MANIFEST = "manifest.json"
SAMPLES, SCORES = "samples", "scores/policy"  # tables, as `Parts` calls them
ASIDE = "set-aside"
SHARDS = "shards"
REPORT = "report.html"  # the page of the run, which nothing reads


def set_aside(folder: Folder, names: Iterable[str]) -> None:
    """Move files, where they are there, to a place where nothing reads them."""
    for name in names:
        if folder.exists(name):
            folder.move(name, f"{ASIDE}/{utc_now().replace(':', '')}-{secrets.token_hex(3)}/{name}")


def is_beside_a_run(name: str) -> bool:
    """Whether a file is of the lock, or was set aside."""
    return name.startswith(f"{ASIDE}/") or ("/" not in name and name.startswith(LOCK_PREFIX))


def is_of_a_shard(name: str) -> bool:
    """Whether a file is of a run that is to become this one."""
    return name.startswith(f"{SHARDS}/")
