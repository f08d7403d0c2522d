"""Benchmark of the optional speed in `scorers/kernels`: what each kernel gains.

    python bench/kernels.py [--sequences 16] [--repeats 5]

In float32. The baseline has every kernel on; a row says how long the same work takes without one of
them, or without all, as a ratio. Rounds are interleaved. Parts:

- score: all statistics at T = 1, top_p = 0.95, of responses of 10 to 100 tokens.
- jvp: derivatives of the same along a direction that moves every parameter.

Prints a table per part, then one line of JSON. A kernel that gains less than 5 % in every part, on
every machine, is to be deleted; see scorers/kernels/README.md.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _data import RESPONSE_TOKENS, data_arguments, sample
from _measuring import Row, system_allocator, timed_rows
from _report import json_line, table
from rich.console import Console

from seqproc._util.kernels import KERNELS
from seqproc.config import PrecisionConfig
from seqproc.models import load_model
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, TokenSequence, jvp, keep_freed_memory

POLICY = SamplingPolicy(top_p=0.95)
SHORTEST = 10  # tokens of a response
BASE = "all kernels"

Work = Callable[[TeacherForcingScorer], Any]


def rows_of(part: str, scorer: TeacherForcingScorer, work: Work, repeats: int) -> list[Row]:
    """The work with all kernels, without each, and without any.

    The allocator is in a part of its own: after a run without it, the next one pays for its pages.
    """

    def run(names: Sequence[str]) -> Callable[[], Any]:
        other = copy.copy(scorer)
        other.precision = PrecisionConfig(kernels=tuple(names))  # type: ignore[arg-type]
        return lambda: work(other)

    def without_allocator() -> None:
        with system_allocator():
            work(scorer)

    used = ["attention", "nucleus", "products", "packing" if part == "score" else "tangents"]
    runs = {BASE: run(KERNELS)}
    runs |= {f"without {k}": run([name for name in KERNELS if name != k]) for k in used}
    rows = timed_rows(part, runs | {"no kernel": run(["allocator"])}, repeats, BASE)
    if part == "score":
        base, other = f"{BASE}, again", "without allocator"
        again = {base: run(KERNELS), other: without_allocator}
        rows |= timed_rows(part, again, repeats, base)
    return list(rows.values())


def uneven(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Responses cut to lengths from `SHORTEST` to whole, in no order."""
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.randint(SHORTEST, RESPONSE_TOKENS + 1, (len(sequences),), generator=drawn)
    return [
        TokenSequence(prompt_ids=s.prompt_ids, response_ids=s.response_ids[:length])
        for s, length in zip(sequences, lengths.tolist(), strict=True)
    ]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data_arguments(parser)
    parser.add_argument("--sequences", type=int, default=16, help="of the part score")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, after a warm-up")
    return parser.parse_args()


def main() -> None:
    """Measure, show a table per part, and end with one line of JSON."""
    options, console = parse(), Console(width=150)
    keep_freed_memory()
    model, tokenizer = load_model(options.model, device=options.device)
    sequences = uneven(
        sample(
            model,
            tokenizer,
            num_prompts=options.sequences,
            prompt_tokens=options.prompt_tokens,
            gsm8k=options.gsm8k,
            seed=options.seed,
        )
    )
    few = sequences[: max(1, len(sequences) // 4)]
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    scorer, rows = TeacherForcingScorer(model), []
    rows += rows_of("score", scorer, lambda s: s.score(sequences, POLICY), options.repeats)
    rows += rows_of("jvp", scorer, lambda s: jvp(s, few, POLICY, direction), options.repeats)
    for part in ("score", "jvp"):
        console.print(table(part, [row for row in rows if row.part == part]))
    print(json_line(vars(options) | {"gsm8k": bool(options.gsm8k), "dtype": "float32"}, rows))


if __name__ == "__main__":
    main()
