"""Torch functions swapped for others with the same outcome, for a scope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]


class Swapped(TorchFunctionMode):
    """While active, a call of each function of a mapping is one of what it is mapped to."""

    def __init__(self, others: Mapping[Function, Function]) -> None:
        super().__init__()
        self._others = others

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call what stands for ``func``."""
        return self._others.get(func, func)(*args, **(kwargs or {}))
