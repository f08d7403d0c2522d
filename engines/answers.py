"""Holds what an engine answers against its contract, before anything reads it.

The one place that asks engines and checks what comes: completions, and what an engine tells of
itself. What means the same is taken in: a list for a tuple, a tensor or an array for numbers.
Everything else is an `EngineError` that names the engine, the request, what was expected and what
came.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeGuard, get_args

import numpy as np
import torch
from torch import Tensor

from seqproc._util import strict_json
from seqproc.engines.base import (
    Completion,
    Engine,
    Path,
    Request,
    StoppingRule,
    TellsDistributions,
)
from seqproc.engines.noise import Noise, NoiseFunction, NotReplayable
from seqproc.errors import EngineError
from seqproc.policy import SamplingPolicy
from seqproc.types import FinishReason

_MOST = 0.5  # nats; a log q is at most 0, which bfloat16 rounds by two places of its logits
_MASS_ERROR = 0.01  # of a distribution's sum; bfloat16 rounds log q by up to 1 %
_LEAST = -1e100  # but for −∞; no float32 is lower, and sums of squares stay finite


def ask(
    engine: Engine,
    requests: Iterable[Request],
    policy: SamplingPolicy,
    stopping: StoppingRule,
    *,
    vocabulary: int | None,
    same_prompts: bool = True,
) -> Generator[Completion, None, None]:
    """Have an engine answer requests; its completions as they come, held against the contract.

    Args:
        engine: gets a list of its own, so that what it does to it is seen by nobody else; or the
            requests one by one, where they are no sequence, so that a stream stays one.
        requests: see `Engine.generate`.
        policy: see there.
        stopping: see there.
        vocabulary: V; ids lie in [0, V). None when it is not known.
        same_prompts: whether other prompt tokens than were asked for are an error.

    Raises:
        EngineError: when the engine fails, or see `answered` and `prompts_kept`.
    """
    waiting: dict[int, Request] = {}
    is_list = isinstance(requests, Sequence)
    stream = _noted(requests, waiting)
    completions = engine.generate(list(stream) if is_list else stream, policy, stopping)
    name = name_of(engine)
    with _closing(completions):
        answers = answered(completions, waiting, engine=name, vocabulary=vocabulary)
        yield from (prompts_kept(answers, engine=name) if same_prompts else (c for _, c in answers))
    if (ignored := next(stream, None)) is not None:
        _refuse(name, f"ended without an answer to request {ignored.index} and those after it")


def _noted(requests: Iterable[Request], waiting: dict[int, Request]) -> Iterator[Request]:
    """The requests, each noted as waiting for an answer when it is taken."""
    for request in requests:
        waiting[request.index] = request
        yield request


@contextmanager
def _closing(completions: Any) -> Iterator[None]:
    """End a generation that is not read to its end, before anything else is asked of the engine."""
    try:
        yield
    finally:
        close = getattr(completions, "close", None)  # an iterator need not be a generator
        if close is not None:
            close()


def name_of(engine: Engine | TellsDistributions) -> str:
    """An engine's name, for errors; that of its class where it gave itself none."""
    return str(getattr(engine, "name", None) or type(engine).__name__)


def described(engine: Engine) -> dict[str, Any]:
    """What an engine says of itself.

    Raises:
        EngineError: it is no engine; or what it says is no mapping, or one that cannot be written.
    """
    if not callable(getattr(engine, "describe", None)):
        raise EngineError(f"expected an engine, got a {type(engine).__name__}")
    told: Any = engine.describe()
    if not isinstance(told, Mapping):
        _refuse(name_of(engine), f"described itself by a {type(told).__name__}; expected a dict")
    try:
        strict_json.dumps(told)
    except RecursionError:
        _refuse(
            name_of(engine), "described itself by what holds itself; expected what JSON can say"
        )
    return dict(told)


def noise_of(engine: Engine, policy: SamplingPolicy) -> Noise | NotReplayable:
    """The noise that an engine says it draws with; every value that it gives is held, too.

    Raises:
        EngineError: it is neither a `Noise` nor a `NotReplayable`, or an error that is none.
    """
    told: Any = engine.noise(policy)
    if isinstance(told, NotReplayable):
        return told
    if not isinstance(told, Noise):
        _refuse(
            name_of(engine),
            f"told its noise by a {type(told).__name__}; expected a Noise or a NotReplayable",
        )
    if not (isinstance(told.error, (int, float)) and 0 <= told.error < math.inf):
        _refuse(
            name_of(engine),
            f"told a noise with the error {told.error!r}; expected a number of nats ≥ 0",
        )
    if not callable(told.values):
        _refuse(name_of(engine), f"told a noise whose values are a {type(told.values).__name__}")
    return dataclasses.replace(told, values=_held(told, name_of(engine)))


def batch_size_of(engine: Engine) -> int | None:
    """How many sequences an engine computes together; None where it schedules itself.

    Raises:
        EngineError: it says something else than a whole number ≥ 1 or None.
    """
    told: Any = engine.batch_size
    if told is None:
        return None
    if not _is_integer(told) or told < 1:
        _refuse(
            name_of(engine), f"has the batch_size {told!r}; expected a whole number ≥ 1 or None"
        )
    return int(told)


def _held(noise: Noise, engine: str) -> NoiseFunction:
    def values(seeds_N: Tensor, lengths_N: Tensor, steps_N: Tensor, vocab: int) -> Tensor:
        try:
            values: Any = noise.values(seeds_N, lengths_N, steps_N, vocab)
        except Exception as error:
            raise EngineError(
                f"the noise ({noise.name}) of engine {engine!r} raised {error!r}: it is to be a "
                "function of seeds, prompt lengths, steps and the size of the vocabulary"
            ) from error
        is_right = isinstance(values, Tensor) and values.shape == (len(seeds_N), vocab)
        if not is_right or not values.is_floating_point() or bool(values.isnan().any()):
            came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            _refuse(
                engine,
                f"told a noise ({noise.name}) with values of {came}; expected a tensor of numbers "
                f"of shape {[len(seeds_N), vocab]}, none of them NaN",
            )
        return values

    return values


def distributions_of(
    engine: TellsDistributions, contexts: Sequence[Sequence[int]], policy: SamplingPolicy
) -> Iterator[Tensor]:
    """What an engine would sample from after each context; every distribution is held.

    Args:
        engine: see `Engine.distributions`.
        contexts: see there.
        policy: see there.

    Returns:
        For each context, log q of every id: ``[V]`` in float64 on the CPU, nats.

    Raises:
        EngineError: when the engine cannot tell, or fails; what it gives is no distribution, or
            there are more or fewer than contexts.
    """
    given: Any = engine.distributions([tuple(context) for context in contexts], policy)
    if not isinstance(given, Iterable):
        _refuse(name_of(engine), f"gave a {type(given).__name__}; expected an iterator of tensors")
    return _distributions(given, len(contexts), name_of(engine))


def followed_by(engine: Engine, paths: Sequence[Path], policy: SamplingPolicy) -> Iterator[Tensor]:
    """What an engine would sample from at each step of the paths; every distribution is held.

    Args:
        engine: see `Engine.follow`.
        paths: see there.
        policy: see there.

    Returns:
        For each path and each of its steps, log q of every id: ``[V]`` in float64 on the CPU, nats.

    Raises:
        EngineError: as for `distributions_of`.
    """
    given: Any = engine.follow(list(paths), policy)
    if not isinstance(given, Iterable):
        _refuse(name_of(engine), f"gave a {type(given).__name__}; expected an iterator of tensors")
    return _distributions(given, sum(len(path.steps) for path in paths), name_of(engine))


def _distributions(given: Iterable[Any], number: int, engine: str) -> Iterator[Tensor]:
    count = 0
    with _closing(given):
        for count, values in enumerate(given, 1):
            if count > number:
                _refuse(engine, f"gave more distributions than the {number} contexts")
            yield _distribution(values, f"context {count - 1}", engine)
    if count < number:
        _refuse(engine, f"gave {count} distributions for {number} contexts")


def _distribution(values: Any, where: str, engine: str) -> Tensor:
    if not _is_row(values):
        came = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        _refuse(engine, f"gave {came} for {where}; expected a tensor of log q of shape [V]")
    wide = values.detach().double().cpu()
    total = float(wide.exp().sum())
    if not abs(total - 1) <= _MASS_ERROR:
        _refuse(engine, f"gave log q for {where} whose probabilities sum to {total:g}, and not 1")
    return wide


def _is_row(values: object) -> TypeGuard[Tensor]:
    """Whether it is a vector of numbers that can be read."""
    if not isinstance(values, Tensor) or values.is_meta or values.layout != torch.strided:
        return False
    return values.ndim == 1 and values.is_floating_point()


def prompts_kept(
    answers: Iterable[tuple[Request, Completion]], *, engine: str
) -> Iterator[Completion]:
    """The completions; those of other prompts than were asked for are an error.

    Raises:
        EngineError: the engine fed the model other tokens, which the response would be scored
            behind the wrong prompt for.
    """
    for request, completion in answers:
        used, due = completion.prompt_ids, tuple(request.prompt_ids)
        if used is not None and used != due:
            _refuse(
                engine,
                f"fed the model another prompt than that of request {completion.index}: "
                f"{len(due)} tokens were asked for, {len(used)} came, and they differ",
            )
        yield completion


def answered(
    completions: Iterable[Completion],
    waiting: dict[int, Request],
    *,
    engine: str,
    vocabulary: int | None,
) -> Iterator[tuple[Request, Completion]]:
    """The completions as they come, one for every request, with tuples of Python's numbers.

    Args:
        completions: of `Engine.generate`.
        waiting: what it was asked, by index; may grow meanwhile. What is answered is taken out.
        engine: its name, for errors.
        vocabulary: V; ids lie in [0, V). None when it is not known.

    Raises:
        EngineError: a completion that is none, of no request, of one that was answered, or with
            fields that are not what `Completion` says; or a request that is left without one.
    """
    if not isinstance(completions, Iterable):
        _refuse(engine, f"gave a {type(completions).__name__}; expected an iterator of Completions")
    for completion in completions:
        if not isinstance(completion, Completion):
            _refuse(engine, f"yielded a {type(completion).__name__}; expected a Completion")
        index = completion.index
        if not _is_integer(index) or index not in waiting:
            _refuse(
                engine,
                f"answered request {index!r}, which nobody asked for or which it had answered",
            )
        checked = _checked(completion, f"for request {index}", engine, vocabulary)
        yield waiting.pop(index), checked
    if waiting:
        _refuse(
            engine,
            f"left {len(waiting)} requests without an answer, the first of them {min(waiting)}",
        )


def _checked(completion: Completion, where: str, engine: str, vocabulary: int | None) -> Completion:
    ids = _ints("token_ids", completion.token_ids, where, engine)
    beyond = math.inf if vocabulary is None else vocabulary
    strange = [token for token in ids if not 0 <= token < beyond]
    if strange:
        _refuse(engine, f"gave the token id {strange[0]} {where}; ids must lie in [0, {beyond})")
    _require_text(completion.text, where, engine)
    reason: object = completion.finish_reason
    if not isinstance(reason, str) or reason not in get_args(FinishReason):
        known = ", ".join(map(repr, get_args(FinishReason)))
        _refuse(engine, f"gave the finish_reason {reason!r} {where}; expected {known}")
    logqs = completion.logqs
    if logqs is not None:
        logqs = _logqs(logqs, len(ids), where, engine)
    prompt = completion.prompt_ids
    if prompt is not None:
        prompt = _ints("prompt_ids", prompt, where, engine)
    return dataclasses.replace(
        completion, index=int(completion.index), token_ids=ids, logqs=logqs, prompt_ids=prompt
    )


def _require_text(text: object, where: str, engine: str) -> None:
    if not isinstance(text, str):
        _refuse(engine, f"gave text of type {type(text).__name__} {where}; expected str")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # no file would take it
        _refuse(engine, f"gave text {where} that is not Unicode ({error.reason})")


def _logqs(value: Any, number: int, where: str, engine: str) -> tuple[float, ...]:
    values = _numbers("logqs", value, where, engine)
    if len(values) != number:
        _refuse(engine, f"reported {len(values)} log q for the {number} tokens {where}")
    for step, one in enumerate(values):
        if not _is_log_q(one):
            _refuse(
                engine,
                f"reported a log q of {one!r} for token {step} {where}; expected a number of nats, "
                "at most 0, or logqs=None for a draw without any",
            )
    return tuple(map(float, values))


def _is_log_q(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return bool(value == -math.inf or _LEAST <= value <= _MOST)  # no comparison holds for NaN


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _ints(name: str, value: Any, where: str, engine: str) -> tuple[int, ...]:
    values = _numbers(name, value, where, engine)
    for one in values:
        if not _is_integer(one):
            _refuse(engine, f"gave {one!r} among the {name} {where}; expected integers")
    return tuple(map(int, values))


def _numbers(name: str, value: Any, where: str, engine: str) -> Sequence[Any]:
    """A flat sequence of what may be numbers."""
    is_array = isinstance(value, (torch.Tensor, np.ndarray))
    if is_array and value.ndim != 1:
        _refuse(engine, f"gave {name} of shape {list(value.shape)} {where}; expected one dimension")
    if not is_array and not isinstance(value, (list, tuple)):
        _refuse(engine, f"gave {name} of type {type(value).__name__} {where}; expected a tuple")
    try:
        return [_number(one) for one in (value.tolist() if is_array else value)]
    except (RuntimeError, TypeError) as error:  # of tensors without values: meta, sparse
        _refuse(engine, f"gave {name} {where} that cannot be read ({error})")


def _number(value: Any) -> Any:
    """Python's number of a tensor or an array without dimensions; anything else as it is."""
    is_scalar = isinstance(value, (torch.Tensor, np.ndarray, np.generic)) and value.ndim == 0
    return value.item() if is_scalar else value


def _refuse(engine: str, what: str) -> NoReturn:
    raise EngineError(f"engine {engine!r} broke its contract: it {what}")
