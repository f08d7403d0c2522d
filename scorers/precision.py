"""Precision of a forward pass: true float64, autocast, and matmul modes, each for a scope only.

A Hugging Face model cast to double is not a double model: its RMSNorm and attention softmax round
to float32 inside (``.to(torch.float32)``, ``softmax(..., dtype=torch.float32)``). `Float64Lift`
turns such casts into float64 while it is active.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from seqproc.scorers.experts import BY_EXPERT

_NARROW = frozenset({torch.float32, torch.float16, torch.bfloat16})
_NARROWING_METHODS = {torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16}

# What makes tensors: of floats always, or when a float is among what it is given.
_ALWAYS_FLOATS = {torch.zeros, torch.ones, torch.empty, torch.eye, torch.linspace, torch.rand}
_NEW_TENSORS = _ALWAYS_FLOATS | {torch.full, torch.tensor, torch.arange}


class Float64Lift(TorchFunctionMode):
    """While active, every cast to a narrower float, and every dtype asked for, is float64.

    So is every new tensor of floats for which no dtype is asked.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` with narrow float dtypes among its arguments replaced by float64."""
        if func in _NARROWING_METHODS:
            return torch.Tensor.double(args[0])
        lifted = {name: _lift(value) for name, value in (kwargs or {}).items()}
        if func in _NEW_TENSORS and "dtype" not in lifted and _makes_floats(func, args, lifted):
            lifted["dtype"] = torch.float64
        return BY_EXPERT.get(func, func)(*map(_lift, args), **lifted)


def _makes_floats(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a new tensor is of the default dtype, and not of one that its values have."""
    if func in _ALWAYS_FLOATS:
        return True
    values = [*args, *kwargs.values()]
    if any(isinstance(value, torch.Tensor) for value in values):
        return False
    return any(isinstance(value, float) for value in _flat(values))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _lift(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


def exact_forward(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The context in which a forward of this dtype is what it says: float64 lifts inner casts."""
    return Float64Lift() if dtype == torch.float64 else contextlib.nullcontext()


@contextlib.contextmanager
def matmul_mode(*, allow_tf32: bool, precision: str) -> Iterator[None]:
    """Set the float32 matmul precision for a scope.

    Without ``allow_tf32`` it is "highest" whatever ``precision`` says, since "high" and "medium"
    are PyTorch's names for TF32 and bfloat16 products.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision if allow_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast to ``dtype``, or, for None, no autocast even inside a caller's."""
    if dtype is None:
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype=dtype)
