"""Runs on a local Ray cluster of two actors, against the run in one process.

    python ray_harness.py FOLDER [--kill]

With --kill an actor is killed with SIGKILL in the middle of its shard. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ray
import torch
from transformers import LlamaConfig

from helpers.kill_harness import FIELDS, differences
from helpers.tiny import byte_tokenizer, random_model
from seqproc import SequenceProcessor
from seqproc.runs import RunSpec, open_run, sample_run

CONFIG = {"generation": {"max_new_tokens": 24, "top_p": 0.9, "gen_batch_size": 4}}
DRAWS, SHARDS = 64, 4


def save_model(folder: Path) -> str:
    tokenizer = byte_tokenizer()
    random_model(LlamaConfig, tokenizer, 0, FIELDS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def kill_one(shards: Path, killed: list[int]) -> None:
    """Kill the first actor that has committed a part, and has not committed them all."""
    while not killed:
        for shard in shards.glob("*-of-*/"):
            begun = list(shard.glob("parts/samples/*.json"))
            lock = shard / "lock.json"
            if 0 < len(begun) < DRAWS // SHARDS // 4 and lock.exists():
                killed.append(json.loads(lock.read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # or Ray keeps one in the home folder
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    model = save_model(options.folder / "model")
    processor = SequenceProcessor.from_pretrained(model, engine="hf", config=CONFIG)
    spec = RunSpec(dataset="arithmetic", draws=DRAWS, seed=0)
    sample_run(processor, spec, options.folder / "whole")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
    out, killed = options.folder / "out", list[int]()
    if options.kill:
        watch = threading.Thread(target=kill_one, args=(out / "shards", killed), daemon=True)
        watch.start()
    result = sample_run(
        processor, spec, out, executor="ray", num_workers=2, num_shards=SHARDS, chunk_size=4
    )
    report = {
        "differences": differences(open_run(options.folder / "whole").rows(), result.open().rows()),
        "state": result.manifest.state,
        "same_key": result.manifest.key == open_run(options.folder / "whole").manifest.key,
        "killed": len(killed),
        "left": sum(path.is_file() for path in (out / "shards").rglob("*")),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
