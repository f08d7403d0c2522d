"""Every argument of the processor, and every field of what it scores: taken in, or refused by name.

An error of Python's or torch's own, from somewhere inside, names neither the argument nor the mend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from seqproc import SequenceProcessor
from seqproc.errors import (
    ConfigError,
    EngineError,
    ModelError,
    OverrideError,
    PromptError,
    SeqprocError,
    SequenceError,
)
from seqproc.types import BatchedSequences

V = {"lm_head.weight": torch.ones(300, 32)}

METHODS: dict[str, dict[str, Any]] = {
    "sample_prompts": {"dataset_name": "arithmetic", "num_prompts": 2, "seed": 0},
    "generate_batched": {"prompts": ["a"], "G": 1, "seed": 0},
    "generate_with_logprobs": {"prompts": ["a"], "G": 1, "seed": 0},
    "generate_with_replacement_sampling": {
        "total_sequences": 2,
        "dataset_name": "arithmetic",
        "seed": 0,
    },
    "teacher_force_logprobs_with_diagnostics": {"sequences": ...},
    "sweep": {"sequences": ..., "v_named": V, "etas": [0.1]},
    "jvp": {"sequences": ..., "v_named": V},
    "per_sequence_grads": {"sequences": ..., "project": V},
    "weighted_grad": {"sequences": ..., "weights": torch.ones(2, 1)},
    "gradient_gram": {"sequences": ...},
    "compute_rewards": {"sequences": ..., "examples": None},
    "build_params_override": {"v_named": V, "eta": 0.1},
}
STRANGE: list[Any] = [
    None, 3, -1, 2.5, float("nan"), "x", b"x", [], {}, [[]], [None], [3], {"x": 3}, object(),
    torch.ones(2), torch.tensor(3), np.ones((2, 2)), np.array(["x"]), iter([3]), int,
]  # fmt: skip


def batch(**changes: Any) -> BatchedSequences:
    fields: dict[str, Any] = {
        "sequences": torch.tensor([[[5, 6, 7, 8]], [[5, 6, 9, 0]]]),
        "prompt_lens": [2, 2],
        "gen_lens": [[2], [1]],
        "attention_masks": torch.tensor([[[1, 1, 1, 1]], [[1, 1, 1, 0]]]),
        "finish_reasons": [["length"], ["stop"]],
        "engine_logqs": [[torch.zeros(2)], [None]],
        "seeds": [[1], [2]],
    }
    return BatchedSequences(**fields | changes)


@pytest.fixture
def processor(tiny_llama: Any, tiny_tokenizer: Any) -> SequenceProcessor:
    small = {"generation": {"max_new_tokens": 2}}
    return SequenceProcessor(tiny_llama(num_layers=1), tiny_tokenizer, config=small)


def arguments() -> list[tuple[str, str]]:
    """Every argument of every method above."""
    skipped = ("self", "kwargs")
    return [
        (method, name)
        for method in METHODS
        for name in inspect.signature(getattr(SequenceProcessor, method)).parameters
        if name not in skipped
    ]


@pytest.mark.parametrize(("method", "name"), arguments())
def test_no_argument_ends_in_an_error_of_another_kind(
    processor: SequenceProcessor, method: str, name: str
) -> None:
    for value in STRANGE:
        given = {k: batch() if v is ... else v for k, v in METHODS[method].items()} | {name: value}
        with contextlib.suppress(SeqprocError):
            getattr(processor, method)(**given)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(BatchedSequences)])
def test_no_field_ends_in_an_error_of_another_kind(processor: SequenceProcessor, name: str) -> None:
    for value in STRANGE:
        changed = batch()
        setattr(changed, name, value)
        with contextlib.suppress(SeqprocError):
            processor.teacher_force_logprobs(changed)
        for within in (value, [[value], [value]], [[[value]], [[value]]], [value, value]):
            with contextlib.suppress(SeqprocError):
                batch(**{name: within})


TENSORS = [
    *(torch.ones(300, 32, dtype=dtype) for dtype in (torch.int8, torch.bool, torch.complex64)),
    torch.ones(300, 32).to_sparse(),
    torch.ones(300, 32, device="meta"),
    torch.ones(300, 32).to(torch.float8_e5m2),
    torch.nested.as_nested_tensor(torch.ones(300, 32)),
    torch.full((300, 32), torch.nan),
    torch.ones(300, 32, requires_grad=True),
    torch.ones(1, 1).expand(300, 32),
]


@pytest.mark.parametrize("method", ["override", "buffers", "sweep", "jvp"])
def test_no_mapping_ends_in_an_error_of_another_kind(
    processor: SequenceProcessor, method: str
) -> None:
    for value in [*STRANGE, *TENSORS]:
        mapping: Any = {"lm_head.weight": value}
        with contextlib.suppress(SeqprocError):
            if method == "override":
                processor.teacher_force_logprobs(batch(), params_override=mapping)
            elif method == "buffers":
                mapping = {"model.rotary_emb.inv_freq": value}
                processor.teacher_force_logprobs(batch(), buffers_override=mapping)
            elif method == "sweep":
                processor.sweep(batch(), mapping, [0.1])
            else:
                processor.jvp(batch(), mapping)


@pytest.mark.parametrize(
    "name", ["model", "tokenizer", "logger", "config", "engine", "engine_options"]
)
def test_no_part_of_a_processor_ends_in_an_error_of_another_kind(
    processor: SequenceProcessor, name: str
) -> None:
    for value in STRANGE:
        right = {"model": processor.model, "tokenizer": processor.tokenizer}
        given: dict[str, Any] = right | {name: value}
        with contextlib.suppress(SeqprocError):
            SequenceProcessor(**given).generate_batched(["a"], G=1)


Call = Callable[[SequenceProcessor], object]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.generate_batched("What?"), PromptError, r"put it in a list, \['What\?'\]"),
        (
            lambda p: p.generate_batched(3),
            PromptError,
            "prompts must be a list of strings, got int",
        ),
        (
            lambda p: p.sweep(batch(), V, 0.1),
            OverrideError,
            r"etas must be .* 0\.1: put it in a list",
        ),
        (lambda p: p.sweep(batch(), V, [0.1, "x"]), OverrideError, "finite number, got 'x'"),
        (
            lambda p: p.teacher_force_logprobs(batch(), params_override=3),
            OverrideError,
            "params_override must map .* or be a list of such mappings, got int",
        ),
        (
            lambda p: p.teacher_force_logprobs(batch(), params_override=[V, 3]),
            OverrideError,
            r"params_override\[1\] must map .* got int",
        ),
        (
            lambda p: p.compute_rewards(batch(), ["5", "6"]),
            SequenceError,
            "examples must be a list of PromptEntry, got a str in it",
        ),
        (lambda p: p.compute_rewards(3, None), SequenceError, "BatchedSequences, got int"),
        (
            lambda p: SequenceProcessor(p.model, p.tokenizer, logger=cast("Any", 3)),
            ConfigError,
            "logger must be a logging.Logger or None, got int",
        ),
        (
            lambda p: SequenceProcessor(p.model, p.tokenizer, engine_options=cast("Any", 3)),
            ConfigError,
            "engine_options must map names of options to values, got int",
        ),
        (
            lambda p: SequenceProcessor(p.model, p.tokenizer, engine=cast("Any", [])),
            EngineError,
            "engine must be the name of an engine or an Engine, got list",
        ),
        (lambda p: SequenceProcessor(p.model, None), ModelError, "tokenizer must be .* NoneType"),
        (lambda p: SequenceProcessor(p.model.model, p.tokenizer), ModelError, "gives no logits"),
    ],
)
def test_what_is_refused_is_named(
    processor: SequenceProcessor, call: Call, error: type[SeqprocError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(processor)


def test_examples_that_do_not_fit_are_refused_before_anything_is_sampled(
    processor: SequenceProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor.sampler, "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises(SequenceError, match=r"one entry per prompt \(1\), got 0"):
        processor.generate_with_logprobs(["a"], examples=[])


def test_prompts_and_steps_may_come_in_any_form(processor: SequenceProcessor) -> None:
    prompts = ["What is 2 + 3?", "The answer is"]
    listed = processor.generate_batched(prompts, G=1, seed=0)
    lazy = processor.generate_batched((p for p in prompts), G=1, seed=0)
    assert torch.equal(listed.sequences, lazy.sequences)
    etas: list[Any] = [[0.0, 0.5], torch.tensor([0, 0.5]), np.array([0, 0.5]), iter([0, 0.5])]
    swept = [processor.sweep(listed, V, form) for form in etas]
    totals = [[results.sequence_logprobs for results, _ in one] for one in swept]
    assert totals == [totals[0]] * 4
    assert totals[0][0] != totals[0][1]


def test_arguments_of_another_way_to_sample_are_refused_by_name(tiny_llama, tiny_tokenizer):
    processor = SequenceProcessor(tiny_llama(), tiny_tokenizer)
    with pytest.raises(ConfigError, match="num_prompts goes with dataset_name"):
        processor.generate_with_logprobs(["a"], num_prompts=3)
    for name in ("num_prompts", "examples", "colour"):
        wrong: Any = {name: 1}
        with pytest.raises(ConfigError, match=f"replacement_sampling has no argument '{name}'"):
            processor.generate_with_replacement_sampling(2, "arithmetic", **wrong)
