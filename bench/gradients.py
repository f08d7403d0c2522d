"""Benchmark of gradients per sequence, beside a plain forward and backward pass for each.

    python bench/gradients.py [--sequences 64] [--kernel 9] [--repeats 3]

In float32, of Σ log p. The baseline calls the model on one sequence at a time, takes log p from its
logits and differentiates. Prints a table per part and one line of JSON. Parts:

- gradients: one gradient per sequence.
- kernel: their Gram matrix, of three responses to each prompt.

Errors are the largest difference to autograd in float64, relative to the largest element.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from typing import Any

import torch
from _data import RESPONSE_TOKENS, data_arguments, sample
from _measuring import Row, timed_rows
from _report import json_line, table
from rich.console import Console
from torch import Tensor, nn

from seqproc.models import load_model
from seqproc.policy import SamplingPolicy
from seqproc.scorers import (
    Float64Lift,
    TeacherForcingScorer,
    TokenSequence,
    gradient_gram,
    keep_freed_memory,
    sequence_gradients,
)

POLICY = SamplingPolicy()
BASE = "forward and backward, one at a time"
CHECKED = 2  # sequences whose float64 gradient is computed


def plain(model: nn.Module, sequence: TokenSequence) -> tuple[Tensor, ...]:
    """By autograd through the whole model."""
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])[None].to(_device(model))
    logits = model(input_ids=ids, use_cache=False).logits
    logits = logits[0, len(sequence.prompt_ids) - 1 : -1]
    at = sequence.response_ids[:, None].to(logits.device)
    value = logits.log_softmax(-1).gather(-1, at).sum()
    return torch.autograd.grad(value, list(model.parameters()))


def plain_gram(model: nn.Module, sequences: list[TokenSequence]) -> Tensor:
    """All gradients kept, and multiplied."""
    rows = [torch.cat([g.flatten() for g in plain(model, s)]) for s in sequences]
    return torch.stack([torch.stack([a @ b for b in rows]) for a in rows])


def exact(model: nn.Module, sequence: TokenSequence) -> tuple[Tensor, ...]:
    """The same in float64."""
    with Float64Lift():
        return plain(copy.deepcopy(model).double(), sequence)


def gradients(model: nn.Module, sequences: list[TokenSequence], repeats: int) -> list[Row]:
    """One gradient per sequence."""
    scorer = TeacherForcingScorer(model)

    def ours() -> Iterator[dict[str, Tensor]]:
        return sequence_gradients(scorer, sequences, POLICY)

    runs = {
        BASE: lambda: [None for s in sequences if plain(model, s)],
        "sequence_gradients": lambda: [None for g in ours() if g],
    }
    rows = timed_rows("gradients", runs, repeats, BASE)
    gradients: dict[str, Iterator[tuple[Tensor, ...]]] = {
        BASE: (plain(model, s) for s in sequences),
        "sequence_gradients": (tuple(gradient.values()) for gradient in ours()),
    }
    for name, each in gradients.items():
        rows[name].values["error"] = max(
            _error(gradient, exact(model, s))
            for gradient, s in zip(each, sequences[:CHECKED], strict=False)
        )
    return list(rows.values())


def kernel(model: nn.Module, sequences: list[TokenSequence], repeats: int) -> list[Row]:
    """The Gram matrix."""
    scorer = TeacherForcingScorer(model)
    runs = {
        BASE: lambda: [None for s in sequences if plain(model, s)],
        "gradient_gram": lambda: gradient_gram(scorer, sequences, POLICY),
        "every gradient kept, then multiplied": lambda: plain_gram(model, sequences),
    }
    rows = timed_rows("kernel", runs, repeats, BASE)
    found = gradient_gram(scorer, sequences[:CHECKED], POLICY)
    own = [torch.cat([g.flatten() for g in exact(model, s)]) for s in sequences[:CHECKED]]
    expected = torch.stack([torch.stack([a @ b for b in own]) for a in own])
    rows["gradient_gram"].values["error"] = _error((found,), (expected.cpu(),))
    return list(rows.values())


def _error(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    pairs = list(zip(found, expected, strict=True))
    largest = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a.double() - b).abs().max()) for a, b in pairs) / largest


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    data_arguments(parser)
    parser.add_argument("--sequences", type=int, default=64, help="of the part gradients")
    parser.add_argument("--kernel", type=int, default=9, help="sequences of the part kernel")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, after a warm-up")
    return parser.parse_args()


def main() -> None:
    """Measure, show a table per part, and end with one line of JSON."""
    options, console = parse(), Console(width=150)
    keep_freed_memory()
    model, tokenizer = load_model(options.model, device=options.device)
    data: dict[str, Any] = {
        "prompt_tokens": options.prompt_tokens,
        "gsm8k": options.gsm8k,
        "seed": options.seed,
    }
    singles = sample(model, tokenizer, num_prompts=options.sequences, **data)
    prompts = max(1, options.kernel // 3)
    families = sample(model, tokenizer, num_prompts=prompts, num_responses=3, **data)
    parts = {
        "gradients": gradients(model, singles, options.repeats),
        "kernel": kernel(model, families[: options.kernel], options.repeats),
    }
    for part, rows in parts.items():
        console.print(table(part, rows))
    settings = vars(options) | {"gsm8k": bool(options.gsm8k), "dtype": "float32"}
    rows = [row for found in parts.values() for row in found]
    print(json_line(settings | {"response_tokens": RESPONSE_TOKENS}, rows))


if __name__ == "__main__":
    main()
