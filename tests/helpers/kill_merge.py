"""Kills a merge of shards right before every one of its operations on files, and makes it again.

    python kill_merge.py FOLDER

Each time the second attempt has to give the rows that a merge that was not killed gives, and the
shards have to be as they were. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from helpers.kill_harness import attempt, die_at_file_operation, live, processor
from seqproc.runs import RunSpec, merge_runs, open_run, sample_run

DRAWS, SHARDS = 10, 2


def sample(folders: list[Path]) -> None:
    run = processor()
    for i, folder in enumerate(folders):
        spec = RunSpec(dataset="arithmetic", draws=DRAWS, shard=(i, len(folders)))
        sample_run(run, spec, folder)


def merge(folders: list[Path], out: Path) -> None:
    merge_runs(folders, out)


def digest(folders: list[Path]) -> str:
    """Of the names and contents of all files."""
    hashed = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        hashed.update(str(path).encode() + path.read_bytes())
    return hashed.hexdigest()


def names(folder: Path) -> set[str]:
    """Of all files but those that were about to become the lock, which the next one leaves."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith(".lock")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    shards = [folder / f"shard-{i}" for i in range(SHARDS)]
    attempt(partial(sample, shards), live)
    attempt(partial(merge, shards, folder / "whole"), live)
    expected, before = open_run(folder / "whole").rows(), digest(shards)
    kills = 0
    while not attempt(
        partial(merge, shards, folder / f"killed-{kills}"), partial(die_at_file_operation, kills)
    ):
        out = folder / f"killed-{kills}"
        attempt(partial(merge, shards, out), live)
        run = open_run(out)
        if run.manifest.state != "complete" or not run.rows().equals(expected):
            sys.exit(f"the merge that was killed at operation {kills} has other rows")
        if left := names(out) - names(folder / "whole"):
            sys.exit(f"the merge that was killed at operation {kills} left {left}")
        if digest(shards) != before:
            sys.exit(f"the merge that was killed at operation {kills} changed the shards")
        kills += 1
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main()
