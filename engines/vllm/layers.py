"""What decoder layers return in vLLM's forwards: recorded in a worker, and sent to the engine.

Knows hooks, and how vLLM's layers return their residual; nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seqproc.errors import EngineError

Told = dict[str, tuple[list[int], bytes]]  # shapes and float32 values by name, for other processes


class Recording:
    """What modules return in the forwards from now on, summed with the residual beside it.

    Args:
        model: of a worker.
        names: of the modules; those that it has not are left out.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._seen: dict[str, list[Tensor]] = {}
        modules = dict(model.named_modules())
        self._hooks = [
            modules[name].register_forward_hook(partial(self._keep, name))
            for name in names
            if name in modules
        ]

    def _keep(self, name: str, _: nn.Module, __: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        # A sum, or a copy: vLLM's kernels write into both parts later.
        total = sum((part.float() for part in parts if isinstance(part, Tensor)), torch.tensor(0.0))
        self._seen.setdefault(name, []).append(total.cpu())

    def stop(self) -> Told:
        """Shapes and float32 bytes by name; no hook is left."""
        for hook in self._hooks:
            hook.remove()
        joined = {name: torch.cat(parts).contiguous() for name, parts in self._seen.items()}
        return {name: (list(t.shape), t.numpy().tobytes()) for name, t in joined.items()}


def outputs_told(told: Told, num_tokens: int) -> dict[str, Tensor]:
    """What a worker recorded while a context of so many tokens was read: ``[T, H]`` by name.

    Raises:
        EngineError: there is nothing, or it is of other tokens.
    """
    found = {
        name: torch.frombuffer(bytearray(values), dtype=torch.float32).reshape(shape)
        for name, (shape, values) in told.items()
    }
    if not found or any(len(one) != num_tokens for one in found.values()):
        raise EngineError(
            "vLLM did not tell what its layers return, as where it compiles its model, where it "
            "reads a cached prefix, or where its modules have other names; start it with the "
            "options enforce_eager=true and enable_prefix_caching=false"
        )
    return found
