"""Forward derivatives of custom autograd functions that declare only a backward.

PyTorch differentiates a `torch.autograd.Function` forwards by its ``jvp``, which few have. But a
backward is linear in the gradient that it is given, g ↦ Jᵀg, and its derivative along g is J: so
J·v = ∂⟨Jᵀg, v⟩/∂g, the derivative that the function's author declared and that gradients follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from seqproc._util.isolation import in_turn


@contextlib.contextmanager
def differentiated_forwards() -> Iterator[None]:
    """A scope in which dual tensors pass through custom functions that have no ``jvp``."""
    with in_turn():  # `Function.apply` is one for all threads
        original = Function.__dict__["apply"]
        _replace_apply(classmethod(_by_backward(original.__func__)))
        try:
            yield
        finally:
            _replace_apply(original)


def _replace_apply(method: Any) -> None:
    Function.apply = method  # type: ignore[method-assign]


def _by_backward(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        tangents = [_tangent(x) for x in args]
        if cls.jvp is not Function.jvp or all(t is None for t in tangents):
            return original(cls, *args, **kwargs)
        return _pushed_forward(
            lambda *values: original(cls, *values, **kwargs), args, tangents, cls
        )

    return apply


def _pushed_forward(
    function: Callable[..., Any], args: Sequence[Any], tangents: list[Tensor | None], cls: type
) -> Any:
    """Dual outputs of a function of dual inputs."""
    with torch.enable_grad():
        values = [
            x if t is None else forward_ad.unpack_dual(x).primal.detach().requires_grad_()
            for x, t in zip(args, tangents, strict=True)
        ]
        out = function(*values)
        outputs = list(out) if isinstance(out, tuple) else [out]
        moved = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
        pairs = [(x, t) for x, t in zip(values, tangents, strict=True) if t is not None]
        slopes = dict(zip(map(id, moved), _slopes(moved, pairs, cls), strict=True))
    duals = [
        forward_ad.make_dual(y.detach(), slopes[id(y)]) if id(y) in slopes else y for y in outputs
    ]
    return tuple(duals) if isinstance(out, tuple) else duals[0]


def _slopes(
    outputs: list[Tensor], inputs: list[tuple[Tensor, Tensor]], cls: type
) -> Sequence[Tensor]:
    """J·v for each output."""
    weights = [torch.zeros_like(y, requires_grad=True) for y in outputs]
    try:
        pulled = torch.autograd.grad(
            outputs, [x for x, _ in inputs], weights, create_graph=True, allow_unused=True
        )
        terms = [(g * v).sum() for g, (_, v) in zip(pulled, inputs, strict=True) if g is not None]
        # Raises when they are not connected: such a backward is of no use, and J is not 0.
        return torch.autograd.grad(torch.stack(terms).sum(), weights)
    except RuntimeError as error:
        raise NotImplementedError(
            f"the custom function {cls.__name__} has no jvp, and its backward cannot be "
            "differentiated either"
        ) from error


def _tangent(value: Any) -> Tensor | None:
    return forward_ad.unpack_dual(value).tangent if isinstance(value, Tensor) else None
