"""vLLM as an engine: `VLLMEngine`, and what it puts into vLLM's worker processes.

`engine` is the engine itself; `options`, `process`, `runner` and `weights` are its parts. `worker`,
`coupled`, `coupled_v1` and `coupled_v2` are imported by vLLM, in its own processes. `noise`
computes vLLM's random numbers once more, for parity. Nothing is imported before it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

if TYPE_CHECKING:
    from seqproc.engines.vllm.engine import VLLMEngine

__all__ = ["VLLMEngine"]

__getattr__, __dir__ = lazy_names(__name__, {"VLLMEngine": ".engine"})
