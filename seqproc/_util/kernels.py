"""Switches of the parts of `seqproc.scorers.kernels`.

Scoring is right without them. A scorer switches them for its own calls by ``precision.kernels``;
whatever is called without one, as `seqproc.policy` alone, follows the environment variable
SEQPROC_KERNELS: ``1`` (the default) for all of them, ``0`` for none, or names with commas.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

from seqproc.errors import ConfigError

VARIABLE = "SEQPROC_KERNELS"

KernelName = Literal["allocator", "attention", "nucleus", "packing", "products", "tangents"]
KERNELS: tuple[KernelName, ...] = get_args(KernelName)

_switched_on: ContextVar[Sequence[str] | None] = ContextVar("kernels", default=None)


def is_on(kernel: KernelName) -> bool:
    """Whether this kernel is to be used here and now."""
    switched_on = _switched_on.get()
    return kernel in (kernels_of_environment() if switched_on is None else switched_on)


@contextmanager
def kernels_on(names: Sequence[str]) -> Iterator[None]:
    """A scope in which these kernels are on, and no others."""
    token = _switched_on.set(names)
    try:
        yield
    finally:
        _switched_on.reset(token)


def kernels_of_environment() -> tuple[KernelName, ...]:
    """The kernels that SEQPROC_KERNELS names.

    Raises:
        ConfigError: a name that no kernel has.
    """
    text = os.environ.get(VARIABLE, "1").strip()
    if text in ("1", ""):
        return KERNELS
    names = () if text == "0" else tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in KERNELS]
    if unknown:
        raise ConfigError(
            f"{VARIABLE} is {text!r}; expected 1 for all kernels, 0 for none, or names with commas "
            f"among {', '.join(KERNELS)}"
        )
    return tuple(name for name in KERNELS if name in names)
