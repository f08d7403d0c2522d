"""Which draws are there, of ranges from many files: which of them twice, and which not at all.

Memory grows with the number of ranges, not with that of the draws. Of files it knows the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class Coverage:
    """Ranges of draws, and the name of the file that each is from."""

    def __init__(self) -> None:
        self.num_draws = 0  # in all ranges, those that overlap counted twice
        self._names: list[str] = []
        self._ranges: list[NDArray[np.int64]] = []  # [n, 3]: start, stop, number of the name

    def add(self, name: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Take ranges [start, stop) of a file."""
        rows = [(start, stop, len(self._names)) for start, stop in ranges]
        self._names.append(name)
        self._ranges.append(np.array(rows, dtype=np.int64).reshape(-1, 3))
        self.num_draws += sum(stop - start for start, stop, _ in rows)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The ranges [start, stop) as they were taken, rising."""
        for start, stop, _ in self._sorted().tolist():
            yield start, stop

    def twice(self) -> Iterator[tuple[int, str, str]]:
        """Draws that two ranges hold, the first of each overlap, with the names of both."""
        farthest: tuple[int, int] | None = None  # where a range ends that began before, and whose
        for start, stop, name in self._sorted().tolist():
            if farthest is not None and start < farthest[0]:
                yield start, self._names[farthest[1]], self._names[name]
            if farthest is None or stop > farthest[0]:
                farthest = stop, name

    def gaps(self, stop: int) -> Iterator[tuple[int, int]]:
        """Ranges below ``stop`` that no range holds, rising."""
        next_ = 0
        for start, end, _ in self._sorted().tolist():
            if start >= stop:
                break
            if start > next_:
                yield next_, start
            next_ = max(next_, end)
        if next_ < stop:
            yield next_, stop

    def holds(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Whether every one of these draws is there."""
        rows = self._sorted()
        ends = np.maximum.accumulate(rows[:, 1])
        for start, stop in ranges:
            # Ranges that touch are one: the gaps between them are what counts.
            reached = start
            first = int(np.searchsorted(ends, start, side="right"))
            while reached < stop and first < len(rows) and rows[first, 0] <= reached:
                reached = int(ends[first])
                first += 1
            if reached < stop:
                return False
        return True

    def _sorted(self) -> NDArray[np.int64]:
        rows = np.concatenate([np.zeros((0, 3), dtype=np.int64), *self._ranges])
        return rows[np.lexsort((rows[:, 1], rows[:, 0]))]
