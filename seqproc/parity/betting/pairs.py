"""Pairs: which earlier tokens each token is held against, at every distance.

The earlier token is of the same draw, of another draw of its prompt, of a draw of another prompt,
or of a draw so many places before in the order of the run; at the same step, where the draws
differ. A right engine draws independently of all of them.

Knows arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Shapes: D draws, L distances, n draws of a block, T steps of its longest draw.

MOST_STEPS = 64  # between two tokens of one draw
MOST_DRAWS = 128  # between two draws, counted among those that a kind of pairs looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Pairs of one kind, by distance: 1, 2, 3, …"""

    name: str  # in words
    unit: str  # what distances count
    draws: Ints  # [D, L] number of the earlier draw; −1 where there is none
    back: Ints  # [L] how many steps before the earlier token's step lies

    def tokens(self, first: int, last: int, lengths: Ints) -> tuple[Ints, Bools]:
        """Numbers of the earlier tokens of a block of draws, and which exist: ``[n, T, L]``.

        Args:
            first: draw of the block.
            last: the one behind it.
            lengths: ``[D]`` tokens of every draw.
        """
        theirs = self.draws[first:last, None, :]
        steps = np.arange(int(lengths[first:last].max()))[None, :, None] - self.back
        numbers = (np.cumsum(lengths) - lengths)[theirs] + steps
        exists = (theirs >= 0) & (steps >= 0) & (steps < lengths[theirs])
        return np.where(exists, numbers, 0), exists


def all_pairs(prompts: Ints) -> list[Pairs]:
    """Every kind of pairs of some draws, by the number of each draw's prompt, ``[D]``."""
    return [
        _steps(len(prompts)),
        _of_draws("draws of one prompt", "draws", _before_in_prompt(prompts)),
        _of_draws("draws of two prompts", "prompts", _before_among_prompts(prompts)),
        _of_draws("draws of the run", "draws", _before_in_run(len(prompts))),
    ]


def _steps(num_draws: int) -> Pairs:
    own = np.repeat(np.arange(num_draws)[:, None], MOST_STEPS, axis=1)
    return Pairs(name="steps of one draw", unit="steps", draws=own, back=1 + np.arange(MOST_STEPS))


def _of_draws(name: str, unit: str, draws: Ints) -> Pairs:
    back = np.zeros(draws.shape[1], dtype=np.int64)
    return Pairs(name=name, unit=unit, draws=draws, back=back)


def _before_in_run(num_draws: int) -> Ints:
    """The draws before each one, the nearest first."""
    most = min(MOST_DRAWS, max(num_draws - 1, 1))
    numbers: Ints = np.arange(num_draws)[:, None] - (1 + np.arange(most))
    return np.maximum(numbers, -1)


def _before_in_prompt(prompts: Ints) -> Ints:
    """The draws of its prompt before each one, the nearest first."""
    own = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]
    before = [_before_in_run(len(numbers)) for numbers in own]
    found = np.full((len(prompts), max(one.shape[1] for one in before)), -1)
    for numbers, places in zip(own, before, strict=True):
        found[numbers, : places.shape[1]] = np.where(places >= 0, numbers[places], -1)
    return found


def _before_among_prompts(prompts: Ints) -> Ints:
    """The draws of the same number among those of the prompts before, the nearest first.

    Prompts are in the order of their first draws. There is no pair with a draw that comes later.
    """
    own = [np.flatnonzero(prompts == prompt) for prompt in dict.fromkeys(prompts.tolist())]
    most = max(len(numbers) for numbers in own)
    table = np.stack([np.pad(one, (0, most - len(one)), constant_values=-1) for one in own])
    before = _before_in_run(len(own))
    found = np.full((len(prompts), before.shape[1]), -1)
    for number, numbers in enumerate(own):
        earlier = np.where(before[number, :, None] >= 0, table[before[number]], -1)
        found[numbers] = earlier[:, : len(numbers)].T
    return np.where(found < np.arange(len(prompts))[:, None], found, -1)
