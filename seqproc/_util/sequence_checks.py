"""Checks of the fields of a `BatchedSequences`: lists and arrays are converted, faults refused.

Legend as in `seqproc.types`. Everything raised is a `SequenceError` that names the field, and the
draw ``[b][g]`` where there is one. Knows nothing of models or engines.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from seqproc.errors import SequenceError

Shape = tuple[int, int, int]
R = TypeVar("R")


def as_ids(value: object) -> Tensor:
    """Token ids ``[B, G, L]`` int64, of a tensor, an array or nested lists."""
    ids = _as_tensor("sequences", value)
    if ids.dim() != 3:
        raise SequenceError(f"sequences must be [B, G, L], got a tensor of shape {list(ids.shape)}")
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise SequenceError(f"sequences must hold integer ids, got {ids.dtype}")
    if 0 in ids.shape[:2]:
        raise SequenceError(
            f"sequences must hold at least one prompt and one response to it, got {list(ids.shape)}"
        )
    return ids.to(torch.int64)


def as_masks(value: object, shape: Shape) -> Tensor:
    """Masks ``[B, G, L]`` of 0 and 1, in a dtype of their own."""
    masks = _as_tensor("attention_masks", value)
    if tuple(masks.shape) != shape:
        raise SequenceError(
            f"attention_masks must have the shape of sequences {list(shape)}, "
            f"got {list(masks.shape)}"
        )
    strange = (masks != 0) & (masks != 1)
    if bool(strange.any()):
        b, g, _ = strange.nonzero()[0].tolist()
        raise SequenceError(
            f"sequence [{b}][{g}]: attention_masks must hold only 0 and 1, or False and True, "
            f"got {masks[strange][0].item()}"
        )
    return masks


def as_prompt_lens(value: object, shape: Shape) -> list[int] | list[list[int]]:
    """Widths of the prompt regions, ``[B]`` or ``[B][G]``."""
    lens = _listed(value)
    if not isinstance(lens, list):
        raise SequenceError(
            f"prompt_lens must be a list with one length per prompt, [{shape[0]}], or per "
            f"response, [{shape[0]}][{shape[1]}]; got {_shown(value)}"
        )
    if any(isinstance(_listed(row), list) for row in lens):
        return nested("prompt_lens", lens, shape, as_length)
    if len(lens) != shape[0]:
        raise SequenceError(
            f"prompt_lens must hold one length per prompt ({shape[0]}), got {len(lens)}"
        )
    return [as_length(f"prompt_lens[{b}]", length) for b, length in enumerate(lens)]


def nested(name: str, value: object, shape: Shape, read: Callable[[str, Any], R]) -> list[list[R]]:
    """The rows ``[B][G]`` of a field, every item as ``read(where, item)`` takes it in."""
    expected = f"{name} must be nested as [{shape[0]}][{shape[1]}], like sequences"
    if not isinstance(outer := _listed(value), list):
        raise SequenceError(f"{expected}; got {_shown(value)}")
    rows = [_listed(row) for row in outer]
    if not all(isinstance(row, list) for row in rows):
        flat = next(row for row in rows if not isinstance(row, list))
        raise SequenceError(f"{expected}; got a list of {type(flat).__name__}")
    if [len(row) for row in rows] != [shape[1]] * shape[0]:
        raise SequenceError(
            f"{expected}; got {len(rows)} rows of lengths {sorted({len(row) for row in rows})}"
        )
    return [
        [read(f"{name}[{b}][{g}]", item) for g, item in enumerate(row)]
        for b, row in enumerate(rows)
    ]


def as_length(where: str, value: object) -> int:
    """A number of tokens. Not a float, even a whole one: 9.0 is how a mean slips in."""
    return _integer(where, value, "a number of tokens")


def as_text(where: str, value: object) -> str:
    """A response's text."""
    if not isinstance(value, str):
        raise fault(where, "a string", value)
    return value


def one_of(choices: tuple[str, ...]) -> Callable[[str, object], Any]:
    """What takes in one of these words."""

    def as_choice(where: str, value: object) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise fault(where, "one of " + ", ".join(map(repr, choices)), value)
        return value

    return as_choice


def as_seed(where: str, value: object) -> int:
    """A draw's sampling seed, as `seqproc.prompts.draw_seed` gives it."""
    seed = _integer(where, value, "an integer")
    if not 0 <= seed < 2**64:
        raise SequenceError(f"{where} must lie in [0, 2**64), got {seed}")
    return seed


def as_logqs(where: str, value: object) -> Tensor | None:
    """What an engine reported of a draw: ``[T]`` floating, or None where it reported nothing."""
    if value is None:
        return None
    logqs = _as_tensor(where, value)
    if logqs.dim() != 1:
        raise SequenceError(f"{where} must hold one number per token, got {_shown(value)}")
    if len(logqs) and not logqs.is_floating_point():
        raise SequenceError(f"{where} must hold log-probabilities as floats, got {logqs.dtype}")
    return logqs


def check_logq_lengths(logqs: list[list[Tensor | None]], gen_lens: list[list[int]]) -> None:
    """Refuse reported log-probabilities that are not one per generated token."""
    for b, (reported, lengths) in enumerate(zip(logqs, gen_lens, strict=True)):
        for g, (one, length) in enumerate(zip(reported, lengths, strict=True)):
            if one is not None and len(one) != length:
                raise SequenceError(
                    f"engine_logqs[{b}][{g}] must hold one number per generated token ({length}), "
                    f"got {len(one)}"
                )


def check_lengths(masks: Tensor, prompt_lens: np.ndarray, gen_lens: np.ndarray) -> None:
    """Refuse lengths ``[B, G]`` and masks ``[B, G, L]`` that say different things."""
    real, total = masks.bool().cpu().numpy(), masks.shape[2]
    _refuse_where(
        (prompt_lens < 0) | (gen_lens < 0) | (prompt_lens + gen_lens > total),
        lambda at: (
            f"prompt_len {prompt_lens[at]} + gen_len {gen_lens[at]} must fit in "
            f"the tensor's length {total}"
        ),
    )
    columns, start, stop = np.arange(total), prompt_lens[..., None], (prompt_lens + gen_lens)
    prompts = real & (columns < start)
    responses = real & (columns >= start) & (columns < stop[..., None])
    rest = real & (columns >= stop[..., None])
    _refuse_where(
        np.diff(prompts, axis=2, prepend=False, append=False).sum(2) > 2,
        lambda _: (
            "the prompt's attention mask has a hole; it must be padded on the left (zeros, "
            "then ones) or on the right (ones, then zeros), its tokens all in a row"
        ),
    )
    _refuse_where(
        responses.sum(2) != gen_lens,
        lambda at: (
            f"attention_masks must be 1 on all {gen_lens[at]} generated tokens, from column "
            f"{prompt_lens[at]} on; build them from lengths, not from `tokens != pad`, which drops "
            "real EOS tokens"
        ),
    )
    _refuse_where(
        rest.any(2),
        lambda at: (
            f"attention_masks mark {rest[at].sum()} real tokens behind the response, which ends at "
            f"column {stop[at]} by prompt_len {prompt_lens[at]} and gen_len {gen_lens[at]}: one of "
            "the lengths is too small, or the mask must be 0 there"
        ),
    )
    _refuse_where(
        (gen_lens > 0) & ~prompts.any(2),
        lambda _: "a response needs at least one prompt token",
    )


def _refuse_where(faults: np.ndarray | np.bool_, explain: Callable[[Any], str]) -> None:
    """Raise for the first draw of ``[B, G]`` that has the fault."""
    if faults.any():
        at = tuple(np.argwhere(faults)[0].tolist())
        raise SequenceError(f"sequence [{at[0]}][{at[1]}]: {explain(at)}")


def _as_tensor(name: str, value: object) -> Tensor:
    if isinstance(value, Tensor):
        return _plain(name, value)
    try:
        array = np.asarray(_without_tensors(value))
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise SequenceError(f"{name} must be a tensor, or what makes one: {reason}") from error
    if array.dtype.kind not in "biuf":
        raise fault(name, "a tensor, an array or nested lists of one shape, of numbers", value)
    return torch.tensor(array.astype({"b": np.bool_, "f": np.float64}.get(array.dtype.kind, int)))


def _without_tensors(value: Any) -> Any:
    """Nested lists with the tensors in them, if there are any, as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple, Tensor)):
        return [_without_tensors(item) for item in value]
    return value


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A tensor with rows of values to read, which a sparse or nested one or one on meta is not."""
    if tensor.is_nested or tensor.layout != torch.strided:
        raise SequenceError(f"{name} must be a dense tensor, got a sparse or nested one")
    if tensor.is_meta:
        raise SequenceError(f"{name} must hold data, got a tensor on the device 'meta'")
    return tensor


def _listed(value: Any) -> Any:
    """Lists of what lists, tuples, arrays and tensors hold; anything else as it is."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return list(value)
    return list(value) if isinstance(value, tuple) else value


def _is_boolean(value: object) -> bool:
    return isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) is torch.bool


def _integer(where: str, value: Any, expected: str) -> int:
    if not _is_boolean(value):
        with suppress(TypeError, RuntimeError):  # what is no integer, or several
            return operator.index(value)
    raise fault(where, expected, value)


def fault(where: str, expected: str, value: object) -> SequenceError:
    """The error of a value that is not what its place holds."""
    return SequenceError(f"{where} must be {expected}, got {_shown(value)}")


def _shown(value: object) -> str:
    return f"{type(value).__name__}: {' '.join(repr(value).split()):.60}"
