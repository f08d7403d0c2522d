"""Packages that only a part of seqproc needs, and the extras that bring them.

What needs one asks here first, and imports it in the function that uses it: the rest works without.
"""

from __future__ import annotations

import importlib.util

from seqproc.errors import MissingDependencyError


def is_installed(module: str) -> bool:
    """Whether a top-level module can be found. Imports nothing."""
    return importlib.util.find_spec(module) is not None


def require_package(module: str, *, extra: str | None = None, purpose: str) -> None:
    """Refuse to go on without a package.

    Args:
        module: the name that it is imported by.
        extra: of seqproc, which brings it; None: no extra does.
        purpose: what needs it, as the first words of the message.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if not is_installed(module):
        raise MissingDependencyError(
            f"{purpose} needs the package {module!r}, which is not installed: "
            f"{install_command(extra) if extra else f'pip install {module}'}"
        )


def install_command(extra: str) -> str:
    """The command that brings an extra."""
    return f'pip install "seqproc[{extra}]"'
