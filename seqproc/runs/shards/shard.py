"""Shards: the draws of one plan dealt out to several runs, draw d to shard d mod n.

A shard is a pair (i, n) with 0 <= i < n. Its draws are spread over the whole plan, so that all
shards of a plan take about as long. Knows numbers; nothing of folders or of what makes draws.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from seqproc._util.arguments import require
from seqproc.errors import ConfigError

Shard = tuple[int, int]

_WRITTEN = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def require_shard(shard: object, given_as: str = "shard") -> None:
    """Refuse what is no shard.

    Raises:
        ConfigError: it is not a pair of integers, or not of the first n from 0.
    """
    require(given_as, shard, tuple, "a pair of integers (i, n)")
    assert isinstance(shard, tuple)
    if len(shard) != 2 or any(isinstance(x, bool) or not isinstance(x, int) for x in shard):
        raise ConfigError(f"{given_as} must be a pair of integers (i, n), got {shard!r:.60}")
    index, count = shard
    if not 0 <= index < count:
        raise ConfigError(
            f"{given_as} must be one of n, counted from 0: 0 <= i < n, got {index}/{count}"
        )


def parse_shard(text: str, given_as: str = "--shard") -> Shard:
    """The shard that is written ``I/N``, such as ``0/8`` for the first of eight.

    Raises:
        ConfigError: it is written in another way, or there is no such shard.
    """
    written = _WRITTEN.fullmatch(text)
    if written is None:
        raise ConfigError(
            f"{given_as} must be I/N, such as 0/8 for the first of eight, got {text!r:.60}"
        )
    shard = int(written[1]), int(written[2])
    require_shard(shard, given_as)
    return shard


def shown(shard: Shard) -> str:
    """A shard as it is written."""
    return f"{shard[0]}/{shard[1]}"


def shard_range(shard: Shard | None, stop: int, start: int = 0) -> range:
    """The draws of a shard from ``start`` to below ``stop``; None: all draws of the plan."""
    index, count = shard or (0, 1)
    return range(start + (index - start) % count, stop, count)


def shard_draws(shard: Shard | None, num_draws: int) -> NDArray[np.int64]:
    """The draws of a shard, rising; None: all draws of the plan."""
    draws = shard_range(shard, num_draws)
    return np.arange(draws.start, draws.stop, draws.step, dtype=np.int64)
