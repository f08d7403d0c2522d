"""A constant with one value for the CPU and one for accelerators, such as the size of a chunk.

CPUs want small chunks, which stay in their caches; accelerators want large ones, since launching a
kernel takes longer than a little work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ByDevice(Generic[T]):
    """Two values, to be asked for by device."""

    cpu: T
    accelerator: T

    def on(self, device: torch.device) -> T:
        """The value for this device."""
        return self.cpu if device.type == "cpu" else self.accelerator
