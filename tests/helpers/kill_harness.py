"""Kills a run with SIGKILL again and again, and starts it anew each time until it is complete.

    python kill_harness.py FOLDER --kills 25 --seed 0

FOLDER is a local one, or the URL of a prefix in an object store. Each attempt is a forked process
that is killed after a random time, or right before a random operation on a local file: a write, a
sync, a rename, a link, a removal. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import torch
from transformers import LlamaConfig

from helpers.tiny import byte_tokenizer, random_model
from seqproc import SequenceProcessor
from seqproc.runs import RunSpec, open_run, sample_run, verify_run

CONFIG = {"generation": {"max_new_tokens": 24, "top_p": 0.9, "gen_batch_size": 4}}
FIELDS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
DRAWS = 96
FILE_OPERATIONS = ("fsync", "rename", "replace", "link", "unlink")


def processor() -> SequenceProcessor:
    tokenizer = byte_tokenizer()
    model = random_model(LlamaConfig, tokenizer, 0, FIELDS)
    return SequenceProcessor(model, tokenizer, config=CONFIG)


def sample(processor: SequenceProcessor, folder: str, seed: int) -> None:
    spec = RunSpec(dataset="arithmetic", draws=DRAWS, seed=seed)
    sample_run(processor, spec, folder, chunk_size=8, commit_seconds=0.3)


def live() -> None:
    """Let it live."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(seconds: float) -> None:
    threading.Timer(seconds, die).start()


def die_at_file_operation(number: int) -> None:
    """Count operations on files, and die right before the one of this number."""
    left = number

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                die()
            return operation(*given, **named)

        return run

    for name in FILE_OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def attempt(work: Callable[[], None], arm: Callable[[], None]) -> bool:
    """Run the work in a forked process; whether it lived to the end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            arm()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if os.waitstatus_to_exitcode(status):
        sys.exit("an attempt failed by itself, see above")
    return True


def killed_until_complete(folder: str, drawn: random.Random, seed: int, most: int) -> int:
    """How often it was killed."""
    run, kills, is_remote = processor(), 0, "://" in folder
    while True:
        arm: Callable[[], None] = partial(die_after, drawn.uniform(0.02, 4 if is_remote else 1.5))
        if kills >= most:
            arm = live
        elif not is_remote and drawn.random() < 0.5:
            arm = partial(die_at_file_operation, drawn.randrange(60))
        if attempt(partial(sample, run, folder, seed), arm):
            return kills
        kills += 1


def differences(expected: pa.Table, found: pa.Table) -> list[str]:
    """The columns that are not the same to the last bit.

    What the hf engine reports of log q is rounded by its batches, which are others after a kill.
    """
    differing = [n for n in expected.column_names if not found[n].equals(expected[n])]
    one, other = (np.concatenate(t["engine_logqs"].to_numpy()) for t in (expected, found))
    if "engine_logqs" in differing and np.allclose(one, other, rtol=0, atol=1e-5):
        differing.remove("engine_logqs")
    return differing


def require_same(whole: str, killed: str) -> None:
    """Exit with a message unless two runs have the same rows and the second one is sound."""
    if differing := differences(open_run(whole).rows(), open_run(killed).rows()):
        sys.exit(f"{killed} differs from the run that was not killed, in {differing}")
    if faults := verify_run(killed):
        sys.exit(f"{killed}: {faults[0]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    drawn, kills, runs = random.Random(options.seed), 0, 0
    begin, lost = time.perf_counter(), 0.0
    while kills < options.kills:
        whole, killed = f"{options.folder}/whole-{runs}", f"{options.folder}/killed-{runs}"
        start = time.perf_counter()
        attempt(partial(sample, processor(), whole, runs), live)
        middle = time.perf_counter()
        kills += killed_until_complete(killed, drawn, runs, options.kills - kills)
        lost += (time.perf_counter() - middle) - (middle - start)
        attempt(partial(require_same, whole, killed), live)  # stores have threads of their own
        runs += 1
    found: dict[str, float] = {"kills": kills, "runs": runs, "draws": runs * DRAWS}
    found |= {"seconds": round(time.perf_counter() - begin, 1)}
    print(json.dumps(found | {"seconds_lost_per_kill": round(lost / kills, 2)}))


if __name__ == "__main__":
    main()
