"""Kills runs of vLLM with SIGKILL until they are complete, and says what is left of them.

    python kill_vllm.py FOLDER --kills 25 --sampler coupled

Each attempt is a forked process, killed a random time after the run is begun or taken up, or right
before a random operation on a file. With the coupled sampler the rows are compared with those of a
run that was not killed; with vLLM's own the rows are given to the parity test. Prints a line of
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
from transformers import LlamaConfig

from helpers.kill_harness import attempt, die, die_at_file_operation, live
from helpers.tiny import byte_tokenizer, random_model
from seqproc import SequenceProcessor
from seqproc.engines import ScriptedEngine
from seqproc.parity import Check, check_engine
from seqproc.runs import RunSpec, open_run, sample_run, verify_run
from seqproc.runs.prompts import DrawnPrompts

CONFIG = {"generation": {"max_new_tokens": 32, "top_p": 0.9, "temperature": 0.8}}
FIELDS = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SPEC = RunSpec(dataset="arithmetic", draws=192, max_prompts_pool=6, seed=3)


def save_model(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    random_model(LlamaConfig, tokenizer, 0, FIELDS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def opened(model: Path, sampler: str) -> SequenceProcessor:
    options = {"sampler": sampler, "max_num_seqs": 8}
    return SequenceProcessor.from_pretrained(
        str(model), "vllm", engine_options=options, config=CONFIG
    )


def sample(model: Path, sampler: str, folder: Path) -> None:
    with opened(model, sampler) as processor:
        sample_run(processor, SPEC, folder, chunk_size=16, commit_seconds=0.5)


def begun(folder: Path) -> int:
    """How often the run was begun or taken up."""
    try:
        text = (folder / "events.jsonl").read_text()
    except FileNotFoundError:
        return 0
    return text.count('"event": "started"') + text.count('"event": "resumed"')


def die_when_it_runs(folder: Path, seconds: float) -> None:
    before = begun(folder)

    def wait() -> None:
        while begun(folder) == before:
            time.sleep(0.01)
        time.sleep(seconds)
        die()

    threading.Thread(target=wait, daemon=True).start()


def killed_until_complete(model: Path, sampler: str, folder: Path, most: int, seed: int) -> int:
    """How often it was killed."""
    drawn, kills = random.Random(seed), 0
    while True:
        arm: Callable[[], None] = partial(die_when_it_runs, folder, drawn.uniform(0.0, 2.0))
        if kills >= most:
            arm = live
        elif drawn.random() < 0.5:
            arm = partial(die_at_file_operation, drawn.randrange(40))
        if attempt(partial(sample, model, sampler, folder), arm):
            return kills
        kills += 1


def differing(expected: pa.Table, found: pa.Table) -> list[str]:
    return [name for name in expected.column_names if not found[name].equals(expected[name])]


def parity(model: Path, folder: Path) -> Check:
    """Whether the rows are draws of what the scorer scores."""
    with opened(model, "native") as processor:
        rows = open_run(folder).rows()
        responses, logqs = (rows[name].to_pylist() for name in ("response_ids", "engine_logqs"))
        engine = ScriptedEngine(
            dict(enumerate(responses)),
            processor.tokenizer,
            logqs=lambda request, _: logqs[request.index],
        )
        prompts = DrawnPrompts(processor, SPEC)
        return check_engine(
            engine,
            processor.scorer,
            processor.tokenizer,
            list(prompts.requests(range(SPEC.draws))),
            [prompts.draw(i).prompt_index for i in range(SPEC.draws)],
            processor.policy,
            processor.stopping,
            logit_error=0.05,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--sampler", choices=["coupled", "native"], default="coupled")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    model, run_killed, whole = (options.folder / name for name in ("model", "killed", "whole"))
    attempt(partial(save_model, model), live)
    begin, kills, runs, lost = time.perf_counter(), 0, 0, 0.0
    found: dict[str, object] = {"sampler": options.sampler}
    attempt(partial(sample, model, options.sampler, whole), live)
    seconds_whole = time.perf_counter() - begin
    expected = open_run(whole).rows()
    while kills < options.kills:
        folder, start = run_killed.with_name(f"killed-{runs}"), time.perf_counter()
        kills += killed_until_complete(
            model, options.sampler, folder, options.kills - kills, seed=runs
        )
        lost += time.perf_counter() - start - seconds_whole
        rows = open_run(folder).rows()
        if faults := verify_run(folder):
            sys.exit(f"run {runs}: {faults[0]}")
        if not np.array_equal(rows["draw"].to_numpy(), np.arange(SPEC.draws)):
            sys.exit(f"run {runs} does not have every draw once")
        if options.sampler == "coupled" and (columns := differing(expected, rows)):
            sys.exit(f"run {runs} differs from the one that was not killed, in {columns}")
        runs += 1
    found |= {"kills": kills, "runs": runs, "seconds": round(time.perf_counter() - begin, 1)}
    found |= {"seconds_lost_per_kill": round(lost / kills, 2)}
    if options.sampler == "native":
        check = parity(model, folder)
        found |= {"parity_holds": check.verdict.holds, "tokens": check.num_tokens}
        found["reasons"] = [str(finding) for finding in check.findings][:3]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
