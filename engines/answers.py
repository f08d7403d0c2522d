"""What an engine answers, held against its contract before anything reads it.

The one place that checks completions, whoever asked for them. What means the same is taken in: a
list for a tuple, a tensor or an array for numbers. Everything else is an `EngineError` that names
the engine, the request, what was expected and what came.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, get_args

import numpy as np
import torch

from seqproc.engines.base import Completion, Request
from seqproc.errors import EngineError
from seqproc.types import FinishReason


def answered(
    completions: Iterable[Completion],
    requests: Sequence[Request],
    *,
    engine: str,
    vocabulary: int | None,
) -> Iterator[Completion]:
    """The completions as they come, one for every request, with tuples of Python's numbers.

    Args:
        completions: of `Engine.generate`.
        requests: what it was asked.
        engine: its name, for errors.
        vocabulary: V; ids lie in [0, V). None when it is not known.

    Raises:
        EngineError: a completion that is none, of no request, of one that was answered, or with
            fields that are not what `Completion` says; or a request that is left without one.
    """
    waiting, done = {request.index for request in requests}, set[int]()
    for completion in completions:
        if not isinstance(completion, Completion):
            _refuse(engine, f"yielded a {type(completion).__name__}; expected a Completion")
        index = completion.index
        if index in done:
            _refuse(engine, f"answered request {index} twice")
        if index not in waiting:
            _refuse(engine, f"answered request {index!r}, which nobody asked for")
        waiting.discard(index)
        done.add(index)
        yield _checked(completion, f"for request {index}", engine, vocabulary)
    if waiting:
        _refuse(
            engine,
            f"left {len(waiting)} of {len(requests)} requests without an answer, the first of "
            f"them {min(waiting)}",
        )


def _checked(completion: Completion, where: str, engine: str, vocabulary: int | None) -> Completion:
    ids = _ints("token_ids", completion.token_ids, where, engine)
    beyond = math.inf if vocabulary is None else vocabulary
    strange = [token for token in ids if not 0 <= token < beyond]
    if strange:
        _refuse(engine, f"gave the token id {strange[0]} {where}; ids must lie in [0, {beyond})")
    if not isinstance(completion.text, str):
        _refuse(engine, f"gave text of type {type(completion.text).__name__} {where}; expected str")
    if completion.finish_reason not in get_args(FinishReason):
        known = ", ".join(map(repr, get_args(FinishReason)))
        _refuse(
            engine, f"gave the finish_reason {completion.finish_reason!r} {where}; expected {known}"
        )
    logqs = completion.logqs
    if logqs is not None:
        logqs = _logqs(logqs, len(ids), where, engine)
    prompt = completion.prompt_ids
    if prompt is not None:
        prompt = _ints("prompt_ids", prompt, where, engine)
    return dataclasses.replace(completion, token_ids=ids, logqs=logqs, prompt_ids=prompt)


def _logqs(value: Any, number: int, where: str, engine: str) -> tuple[float, ...]:
    values = _numbers("logqs", value, where, engine)
    if len(values) != number:
        _refuse(engine, f"reported {len(values)} log q for the {number} tokens {where}")
    for step, one in enumerate(values):
        is_number = isinstance(one, (int, float, np.integer, np.floating))
        if not is_number or isinstance(one, bool) or math.isnan(one) or one == math.inf:
            _refuse(
                engine,
                f"reported a log q of {one!r} for token {step} {where}; expected a number of nats, "
                "or logqs=None for a draw without any",
            )
    return tuple(map(float, values))


def _ints(name: str, value: Any, where: str, engine: str) -> tuple[int, ...]:
    values = _numbers(name, value, where, engine)
    for one in values:
        if isinstance(one, bool) or not isinstance(one, (int, np.integer)):
            _refuse(engine, f"gave {one!r} among the {name} {where}; expected integers")
    return tuple(map(int, values))


def _numbers(name: str, value: Any, where: str, engine: str) -> Sequence[Any]:
    """A flat sequence of what may be numbers."""
    is_array = isinstance(value, (torch.Tensor, np.ndarray))
    if is_array and value.ndim != 1:
        _refuse(engine, f"gave {name} of shape {list(value.shape)} {where}; expected one dimension")
    if not is_array and not isinstance(value, (list, tuple)):
        _refuse(engine, f"gave {name} of type {type(value).__name__} {where}; expected a tuple")
    found: Sequence[Any] = value.tolist() if is_array else value
    return found


def _refuse(engine: str, what: str) -> NoReturn:
    raise EngineError(f"engine {engine!r} broke its contract: it {what}")
