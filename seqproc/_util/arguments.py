"""Checks of the arguments of public functions; an error names the argument.

Knows Python's types alone; `seqproc._util.tensor_arguments` knows tensors.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from seqproc.errors import ConfigError, SeqprocError


def require(
    name: str,
    value: object,
    kind: type | tuple[type, ...],
    expected: str,
    error: type[SeqprocError] = ConfigError,
) -> None:
    """Raise unless a value is of a kind; ``expected`` says in words of which."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise error(f"{name} must be {expected}, got {type(value).__name__}")


def require_all(
    name: str, values: object, kind: type, expected: str, error: type[SeqprocError] = ConfigError
) -> None:
    """Raise unless values are a list, or another sequence, of a kind."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise error(f"{name} must be a list of {expected}, got {type(values).__name__}")
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise error(f"{name} must hold {expected}, got a {type(value).__name__} at {i}")


def require_path(name: str, path: object, error: type[SeqprocError]) -> None:
    """Raise unless this names a file or folder."""
    require(name, path, (str, os.PathLike), "a path", error)
    text = os.fspath(path)  # type: ignore[call-overload]
    if isinstance(text, str) and text.isprintable() and "\0" not in text:
        return
    raise error(f"{name} must be a path in printable text, got {text!r:.60}")
