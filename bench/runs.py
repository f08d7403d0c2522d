"""Benchmark of runs: what keeping draws safe costs beside sampling and scoring them.

    python bench/runs.py [--model smollm2-135m] [--engine vllm] [--draws 256] [--max-new-tokens 64]

Contestants get the same draws, in turns:

- raw: the engine is asked for all draws at once, and the scorer for all their scores. The baseline.
- run: `sample_run`, which also rewards, commits, merges and checks.
- drained: the engine is asked for 256 draws at a time and stands empty at the end of each, as runs
  did before they were a stream.

`--model tiny` is a random model of two layers, for numbers of draws that a larger one is too slow
for. Prints a table, the curves of resident memory and of running requests over the run, and then
one line of JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _measuring import Row, timed_rows
from _report import json_line, table
from rich.console import Console

from seqproc import SequenceProcessor
from seqproc.runs import RunSpec, sample_run
from seqproc.runs.prompts import DrawnPrompts
from seqproc.scorers import TokenSequence, keep_freed_memory

DRAINED = 256  # draws asked for at a time
WARM_UP = 128  # draws, at most
POINTS = 20  # of a curve
_SECONDS = 0.1  # between looks at the process


class Watch:
    """Resident memory [bytes] and running requests while a run goes on."""

    def __init__(self, processor: SequenceProcessor) -> None:
        self._engine = processor.engine
        self.resident: list[int] = []
        self.running: list[int] = []

    def forget(self) -> None:
        """Begin anew."""
        self.resident, self.running = [], []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again, in a thread."""
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_SECONDS):
                self.resident.append(_resident())
                self.running.append(self._engine.num_running or 0)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def growth(self) -> float:
        """Of the resident memory (median) from the run's second tenth to its last."""
        tenth = max(1, len(self.resident) // 10)
        early, late = self.resident[tenth : 2 * tenth], self.resident[-tenth:]
        return statistics.median(late) / statistics.median(early or self.resident) - 1

    def peaks(self) -> list[float]:
        """The most that was resident in each tenth of the run [MB]."""
        tenth = max(1, len(self.resident) // 10)
        starts = range(0, 10 * tenth, tenth)
        return [round(max(self.resident[i : i + tenth], default=0) / 1e6, 1) for i in starts]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def curve(values: list[int], unit: float = 1.0) -> list[float]:
    """A few of the values, evenly spaced."""
    step = max(1, len(values) // POINTS)
    return [round(value / unit, 2) for value in values[::step]]


def raw(processor: SequenceProcessor, prompts: DrawnPrompts, draws: int, chunk: int) -> None:
    """Sample some draws at a time, and score them."""
    for start in range(0, draws, chunk):
        indices = range(start, min(start + chunk, draws))
        requests = {request.index: request for request in prompts.requests(indices)}
        done = list(processor.sampler.stream(list(requests.values()), progress=False))
        sequences = [
            TokenSequence(
                prompt_ids=_ids(requests[one.index].prompt_ids), response_ids=_ids(one.token_ids)
            )
            for one in done
        ]
        processor.scorer.score(sequences, processor.policy)


def _ids(ids: tuple[int, ...]) -> Any:
    import torch

    return torch.tensor(ids)


def open_processor(options: argparse.Namespace) -> SequenceProcessor:
    """The model and engine of the options."""
    config = {
        "generation": {
            "max_new_tokens": options.max_new_tokens,
            "top_p": 0.95,
            "gen_batch_size": options.gen_batch_size,
            "stop": [],
        }
    }
    if options.model != "tiny":
        return SequenceProcessor.from_pretrained(options.model, options.engine, config=config)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from transformers import LlamaConfig

    from helpers.tiny import byte_tokenizer, random_model

    tokenizer = byte_tokenizer()
    fields = {
        "hidden_size": 128,  # heads of 32, which vLLM has on a CPU
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    model = random_model(LlamaConfig, tokenizer, 0, fields)
    return SequenceProcessor(model, tokenizer, config=config, engine=options.engine)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="smollm2-135m", help="name, path, or tiny")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--dataset", default="arithmetic")
    parser.add_argument("--split", default="train")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--gen-batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2, help="rounds, after a warm-up")
    parser.add_argument("--without", nargs="*", default=[], choices=["drained"], metavar="NAME")
    parser.add_argument("--only-run", action="store_true", help="one run, for its curves alone")
    return parser.parse_args()


def main() -> None:
    """Measure, show, and end with one line of JSON."""
    options, console = parse(), Console(width=150)
    keep_freed_memory()
    processor = open_processor(options)
    spec = RunSpec(dataset=options.dataset, split=options.split, draws=options.draws, seed=1)
    prompts = DrawnPrompts(processor, spec)
    processor.scorer  # noqa: B018 - loads the model outside of the time
    watch = Watch(processor)
    folder = Path(tempfile.mkdtemp(prefix="seqproc-bench-"))

    def run(spec: RunSpec) -> None:
        shutil.rmtree(folder)
        watch.forget()
        with watch.watching():
            sample_run(processor, spec, folder)

    def contestants(draws: int) -> dict[str, Callable[[], Any]]:
        these = {
            "raw": lambda: raw(processor, prompts, draws, draws),
            "drained": lambda: raw(processor, prompts, draws, DRAINED),
            "run": lambda: run(dataclasses.replace(spec, draws=draws)),
        }
        return {name: one for name, one in these.items() if name not in options.without}

    if options.only_run:
        start = time.perf_counter()
        run(spec)
        rows = [Row(part="run", name="run", median_s=time.perf_counter() - start)]
    else:
        warm_up = contestants(min(options.draws, WARM_UP))
        timed = timed_rows("run", contestants(options.draws), options.repeats, "raw", warm_up)
        rows = list(timed.values())
    summary = sample_run(processor, spec, folder).summary
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    shutil.rmtree(folder)
    console.print(table("run", rows))
    console.print(f"{summary.num_tokens} tokens, {megabytes:.1f} MB in the folder")
    console.print(f"resident memory (MB): {curve(watch.resident, 1e6)}")
    console.print(f"grows by {watch.growth():.1%} from the second tenth of the run to the last")
    console.print(f"most in each tenth (MB): {watch.peaks()}")
    console.print(f"running requests: {curve(watch.running)}")
    settings = vars(options) | {
        "tokens": summary.num_tokens,
        "megabytes": megabytes,
        "resident_mb": curve(watch.resident, 1e6),
        "resident_growth": watch.growth(),
        "resident_peaks_mb": watch.peaks(),
        "running": curve(watch.running),
    }
    print(json_line(settings, rows))


if __name__ == "__main__":
    main()
