"""What is one thing on a CPU and another on an accelerator, such as how much is done at a time.

On a CPU that is little, to stay in its caches; on an accelerator much, because there a kernel takes
longer to launch than to do little.
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
