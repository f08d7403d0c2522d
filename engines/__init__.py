"""Engines: the back-ends that sample sequences, behind one small contract.

`create_engine` starts one by name. Names come from the entry-point group ``seqproc.engines``, so
that a package announces its own, or from `register_engine`. Nothing is imported before it is
needed, and one engine never stands in for another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names
from seqproc.engines.base import Completion, Engine, Request, StoppingRule
from seqproc.engines.noise import Noise, NotReplayable
from seqproc.engines.registry import create_engine, engine_names, register_engine

if TYPE_CHECKING:
    from seqproc.engines.gumbel import gumbel_noise
    from seqproc.engines.hf import HFEngine
    from seqproc.engines.scripted import ScriptedEngine
    from seqproc.engines.stopping import StopWatcher, finish
    from seqproc.engines.vllm import VLLMEngine
    from seqproc.models.source import Checkpoint, ModelSource

__all__ = [
    "Checkpoint",
    "Completion",
    "Engine",
    "HFEngine",
    "ModelSource",
    "Noise",
    "NotReplayable",
    "Request",
    "ScriptedEngine",
    "StopWatcher",
    "StoppingRule",
    "VLLMEngine",
    "create_engine",
    "engine_names",
    "finish",
    "gumbel_noise",
    "register_engine",
]

_HOMES = {
    "Checkpoint": "seqproc.models",
    "HFEngine": "seqproc.engines.hf",
    "ModelSource": "seqproc.models",
    "ScriptedEngine": "seqproc.engines.scripted",
    "StopWatcher": "seqproc.engines.stopping",
    "VLLMEngine": "seqproc.engines.vllm",
    "finish": "seqproc.engines.stopping",
    "gumbel_noise": "seqproc.engines.gumbel",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
