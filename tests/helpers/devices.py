"""Values by device, as tests need them."""

from __future__ import annotations

from typing import TypeVar

import pytest

from seqproc._util.by_device import ByDevice

T = TypeVar("T")


def everywhere(value: T) -> ByDevice[T]:
    """The same value on every device."""
    return ByDevice(cpu=value, accelerator=value)


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU take the values that accelerators have."""
    monkeypatch.setattr(ByDevice, "on", lambda self, device: self.accelerator)
