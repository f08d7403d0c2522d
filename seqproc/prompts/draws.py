"""Draws the prompts of a run, and derives the seed of each draw.

Everything here is a pure function of a seed and an index, so that a draw is the same
whatever the batch, shard, order, worker or restart. Knows nothing of datasets or engines.
"""

import hashlib
import operator
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seqproc._util.arguments import require
from seqproc.errors import ConfigError, DatasetError

T = TypeVar("T")

_DRAW_SEED_TAG = b"seqproc.draw_seed.v1"


def choose_prompts(pool: Sequence[T], num_prompts: int | None, seed: int) -> list[T]:
    """Choose prompts without replacement.

    The choice is the first `num_prompts` of a permutation by `Generator(PCG64(seed))`, so a
    smaller choice with the same seed is the beginning of a larger one.

    Args:
        pool: what to choose from.
        num_prompts: how many; None for the whole pool in its own order.
        seed: any integer of 64 bits; a negative one stands for its two's complement.

    Raises:
        DatasetError: `num_prompts` is below 1, or more than the pool holds.
        ConfigError: the seed is not an integer of 64 bits, or `num_prompts` no integer.
    """
    require("pool", pool, Sequence, "a list of prompts", DatasetError)
    if num_prompts is None:
        return list(pool)
    num_prompts = _integer("num_prompts", num_prompts)
    if num_prompts < 1:
        raise DatasetError(f"num_prompts must be at least 1, or None for all, got {num_prompts}")
    if num_prompts > len(pool):
        raise DatasetError(
            f"{num_prompts} prompts were asked for without replacement, but the pool holds "
            f"{len(pool)}. Ask for fewer, or draw with replacement"
        )
    order = _generator(seed).permutation(len(pool))
    return [pool[index] for index in order[:num_prompts]]


def replacement_indices(seed: int, pool_size: int, total: int) -> NDArray[np.int64]:
    """Prompt indices of `total` draws with replacement, int64 `[total]`, in `[0, pool_size)`.

    They are `Generator(PCG64(seed)).integers(0, pool_size, size=total)`. Draw i does not depend
    on `total`: a shorter run's draws are the beginning of a longer run's.

    Raises:
        DatasetError: `pool_size` is below 1 or `total` is negative.
        ConfigError: the seed is not an integer of 64 bits, or another argument no integer.
    """
    pool_size, total = _integer("pool_size", pool_size), _integer("total", total)
    if pool_size < 1:
        raise DatasetError(f"draws need a pool of at least 1 prompt, got {pool_size}")
    if total < 0:
        raise DatasetError(f"the number of draws cannot be negative, got {total}")
    if max(pool_size, total) >= 2**63:
        raise DatasetError(f"draws and prompts are counted in 64 bits, got {total} of {pool_size}")
    return _generator(seed).integers(0, pool_size, size=total, dtype=np.int64)


def draw_seed(run_seed: int, index: int) -> int:
    """The sampling seed of draw `index`: an integer in `[0, 2**64)`.

    It is the 8-byte BLAKE2b digest, read as a little-endian unsigned integer, of the bytes
    `b"seqproc.draw_seed.v1"`, the run seed and the index, the last two as little-endian 64-bit
    integers. Seeds of different draws and of different runs are therefore unrelated.

    Args:
        run_seed: any integer of 64 bits, signed or unsigned; a negative one stands for its
            two's complement, so −1 and 2**64 − 1 are the same seed.
        index: which draw, in `[0, 2**64)`.

    Raises:
        ConfigError: either is not an integer, or does not fit.
    """
    position = _integer("the index of a draw", index)
    if not 0 <= position < 2**64:
        raise ConfigError(f"the index of a draw must lie in [0, 2**64), got {position}")
    payload = _DRAW_SEED_TAG + _unsigned(run_seed).to_bytes(8, "little")
    payload += position.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest(), "little")


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(_unsigned(seed)))


def _unsigned(seed: int) -> int:
    """The seed's 64 bits, read as an unsigned integer."""
    value = _integer("a seed", seed)
    if not -(2**63) <= value < 2**64:
        raise ConfigError(f"a seed must fit 64 bits, in [-2**63, 2**64), got {value}")
    return value % 2**64


def _integer(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise ConfigError(
            f"{name} must be an integer, got {type(value).__name__}: {value!r}"
        ) from error
