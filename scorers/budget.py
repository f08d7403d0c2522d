"""Batches that fit in memory: sized by what is free, and halved when it runs out.

Depends on batches and memory only; knows nothing of what is computed on a batch.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from seqproc._util.by_device import ByDevice
from seqproc._util.memory import is_out_of_memory
from seqproc.errors import ScoringError
from seqproc.scorers.batching import Batch, Limits, TokenSequence, plan

R = TypeVar("R")

_LOGGER = logging.getLogger("seqproc")

# Above this many tokens a forward gets no faster, it only takes more memory.
_MAX_USEFUL_TOKENS = ByDevice(cpu=4_096, accelerator=32_768)

_SHARE_OF_FREE_MEMORY = 0.25
_LIVE_HIDDEN_STATES = 64  # activations alive at once, in hidden states: generous for an MLP
_LIVE_BYTES_PER_LOGIT = 12  # of a head and its statistics: 9 measured, in float32 and on a GPU


def default_tokens(model: nn.Module, device: torch.device) -> int:
    """Inputs of a forward whose activations fit easily into what memory is free now."""
    config: Any = getattr(model, "config", None)
    width = getattr(config, "hidden_size", None) or 1_024
    itemsize = next((p.element_size() for p in model.parameters()), 4)
    fitting = int(
        _SHARE_OF_FREE_MEMORY * free_memory(device) / (_LIVE_HIDDEN_STATES * width * itemsize)
    )
    return max(1, min(fitting, _MAX_USEFUL_TOKENS.on(device)))


def default_logits(most: int, device: torch.device) -> int:
    """Logits of a chunk of the head: as many as are worth while, if they fit easily."""
    return max(
        1, min(most, int(_SHARE_OF_FREE_MEMORY * free_memory(device)) // _LIVE_BYTES_PER_LOGIT)
    )


def free_memory(device: torch.device) -> int:
    """Bytes free on the device.

    Of a GPU with what PyTorch keeps for later; of the CPU what the system can hand out without
    swapping.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


class Schedule:
    """Batches to go through, more than once if need be, in sizes that fit in memory.

    Args:
        sequences: what is in the batches, but for those without a response.
        limits: of a batch; halved each time that memory runs out.
    """

    def __init__(self, sequences: Sequence[TokenSequence], limits: Limits) -> None:
        self.sequences = sequences
        self.limits = limits
        self.batches = plan(sequences, limits)

    def map(self, work: Callable[[Batch], R]) -> Iterator[tuple[Batch, R]]:
        """Yield every batch with the result of ``work`` on it.

        When ``work`` runs out of memory, the batch and all that follow are planned again, smaller.
        So ``work`` must leave nothing behind when it fails.

        Raises:
            ScoringError: a single sequence does not fit in memory.
        """
        waiting, done = deque(self.batches), []
        while waiting:
            batch = waiting.popleft()
            if results := _results(work, batch):
                done.append(batch)
                yield batch, results.pop()  # not kept here while the next one is computed
                continue
            self._shrink(batch)
            left = [i for b in (batch, *waiting) for i in b.indices]
            waiting = deque(plan(self.sequences, self.limits, left))
        self.batches = done

    def _shrink(self, batch: Batch) -> None:
        if len(batch.indices) == 1 or batch.num_tokens == 1:
            index = batch.indices[0]
            raise does_not_fit(index, self.sequences[index].length)
        taken = batch.num_tokens
        fewer = max(1, min(self.limits.tokens, taken) // 2)
        self.limits = dataclasses.replace(self.limits, tokens=fewer)
        _LOGGER.warning("out of memory on %d tokens: going on with %d", taken, self.limits.tokens)


def _results(work: Callable[[Batch], R], batch: Batch) -> list[R]:
    """A list with the result of the work, or an empty one when memory ran out."""
    try:
        return [work(batch)]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Here the failed work's frames, and the tensors they held, are gone.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return []


def does_not_fit(index: int, length: int) -> ScoringError:
    """The error of a sequence that memory runs out on when nothing is beside it."""
    return ScoringError(
        f"sequence {index}, of {length} tokens, does not fit in memory on its own: free memory, "
        "use a smaller dtype, or shorten it"
    )
