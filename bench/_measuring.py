"""Time and memory of callables, and the rows that hold what was measured.

Knows nothing of models or scorers.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqproc.scorers.kernels.allocator import keep_freed_memory

Run = Callable[[], Any]


@dataclass(kw_only=True, slots=True)
class Row:
    """One measured line of a part of the benchmark; None and empty where nothing was measured."""

    part: str
    name: str
    seconds: list[float] = field(default_factory=list)  # of each round, in order
    median_s: float | None = None
    min_s: float | None = None
    max_s: float | None = None
    baseline: str | None = None  # what the ratio is to
    ratio: float | None = None  # median over rounds of the ratio within a round
    tensor_peak_bytes: int | None = None  # storages made and alive at once
    high_water_bytes: int | None = None  # of the process, weights and all
    max_error: dict[str, float] = field(default_factory=dict)  # by statistic, nats
    values: dict[str, float] = field(default_factory=dict)  # what else was found
    note: str | None = None

    def relate(self, base: Row, times: int = 1) -> None:
        """Set the ratio of this row's time to another's, taken so many times."""
        pairs = zip(self.seconds, base.seconds, strict=True)
        self.ratio = statistics.median(own / (times * other) for own, other in pairs)
        self.baseline = base.name if times == 1 else f"{times} x {base.name}"

    def as_json(self) -> dict[str, Any]:
        """The fields that hold something."""
        return {name: value for name, value in asdict(self).items() if value not in (None, [], {})}


def interleaved(
    runs: Mapping[str, Run], repeats: int, warm_up: Mapping[str, Run] | None = None
) -> dict[str, list[float]]:
    """Seconds of every run in every round, after one warm-up of each.

    A round has every run once, so that drift of the machine hits all alike. Rounds start with
    another run each, and every other one goes backwards: nothing always follows the same.

    Args:
        runs: by name.
        repeats: rounds.
        warm_up: what to warm up with in the place of the runs, where those are long.
    """
    for run in (warm_up or runs).values():
        run()
    names, seconds = list(runs), {name: list[float]() for name in runs}
    for number in range(repeats):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in reversed(order) if number % 2 else order:
            seconds[name].append(_seconds(runs[name]))
    return seconds


def _seconds(run: Run) -> float:
    gc.collect()
    _finish()
    start = time.perf_counter()
    run()
    _finish()
    return time.perf_counter() - start


def _finish() -> None:
    """Wait for what an accelerator still has to do."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def timed_rows(
    part: str,
    runs: Mapping[str, Run],
    repeats: int,
    baseline: str,
    warm_up: Mapping[str, Run] | None = None,
) -> dict[str, Row]:
    """Time runs as `interleaved` does; ratios are to the baseline, round by round."""
    seconds = interleaved(runs, repeats, warm_up)
    rows = {name: _row(part, name, own) for name, own in seconds.items()}
    for row in rows.values():
        row.relate(rows[baseline])
    return rows


def _row(part: str, name: str, seconds: list[float]) -> Row:
    return Row(
        part=part,
        name=name,
        seconds=[round(s, 6) for s in seconds],
        median_s=round(statistics.median(seconds), 6),
        min_s=round(min(seconds), 6),
        max_s=round(max(seconds), 6),
    )


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages made while the mode is on: alive now, and at most.

    What kernels allocate and free within one operation is not seen; the high-water mark sees it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is made in this scope never counts."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count the storages that it did not get but gives."""
        result = func(*args, **(kwargs or {}))
        if not self._paused:
            given = {storage._cdata for storage in _storages((args, kwargs))}
            for storage in _storages(result):
                if storage._cdata not in given:
                    self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, partial(self._forget, key, size))
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int, _: object) -> None:
        del self._storages[key]
        self.live -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def tensor_peak(run: Run) -> int:
    """Most bytes of tensors that a run holds at once, beyond those that were there before."""
    gc.collect()
    with LiveStorages() as storages:
        run()
    return storages.peak


@contextmanager
def system_allocator() -> Iterator[None]:
    """glibc as it is where nobody sets it: blocks over 32 MB, and freed ends over 64, go back.

    The scorer sets it otherwise, for the whole process; so a contestant that is not ours would
    gain from what it has not. Its limits move with what is freed, up to these, and so stand at
    these in any process that scores.
    """
    set_back = platform.libc_ver()[0] == "glibc"
    if set_back:
        give_back_freed_memory()
        _set_limits(blocks=32 << 20, trim=64 << 20)
    try:
        yield
    finally:
        if set_back:
            keep_freed_memory.cache_clear()
            keep_freed_memory()


def _set_limits(blocks: int, trim: int) -> None:
    libc = ctypes.CDLL(None)
    assert libc.mallopt(-3, blocks)  # M_MMAP_THRESHOLD of malloc.h
    assert libc.mallopt(-1, trim)  # M_TRIM_THRESHOLD


def give_back_freed_memory() -> None:
    """Hand what the C library keeps back to the system, where it is glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def high_water(run: Run, device: torch.device) -> int | None:
    """Most bytes during a run, weights and all; None on a CPU without Linux.

    What PyTorch took of a GPU, or the process's largest resident size.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return int(torch.cuda.max_memory_reserved(device))
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # starts the mark anew
    except OSError:
        return None
    run()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
