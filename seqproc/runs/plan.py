"""The plan of a run: its specification, and the draws that follow from it.

Draw i is a pure function of the run's seed and i: it does not depend on how many draws there are,
or on batches, shards and restarts. Knows nothing of models, engines or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqproc._util.arguments import require
from seqproc.config import require_count
from seqproc.errors import ConfigError
from seqproc.prompts import choose_prompts, draw_seed, replacement_indices
from seqproc.runs.shards.shard import require_shard, shard_draws


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Which draws a run makes: prompts drawn with replacement, one response each.

    How they are sampled (policy, stopping, engine, precision) is the processor's and stands in the
    manifest beside this.

    Raises:
        ConfigError: a count below 1, a seed that is not an integer of 64 bits, an empty name, or a
            shard that is none.
    """

    dataset: str  # as for `seqproc.load_prompts`: "arithmetic", "gsm8k", "jsonl:PATH", …
    draws: int  # ≥ 1, independent of each other
    split: str = "train"
    seed: int = 0  # of the run: chooses the prompts and seeds every draw
    model: str | None = None  # what the processor opened; None: filled in from the processor
    adapter: str | None = None  # a PEFT adapter, for the record
    revision: str | None = None  # of a hub model, for the record
    max_prompts_pool: int | None = None  # draw from this many prompts of the split, by the seed
    chat: bool = False  # wrap each prompt as a user's turn of the model's chat template
    data_dir: str | None = None  # folder that the dataset is read from, where it can be
    shard: tuple[int, int] | None = None  # (i, n): only draws d with d mod n = i; None: all

    def __post_init__(self) -> None:
        require_count("draws", self.draws)
        if self.max_prompts_pool is not None:
            require_count("max_prompts_pool", self.max_prompts_pool)
        draw_seed(self.seed, 0)  # refuses what is no seed
        require("chat", self.chat, bool, "True or False")
        if self.shard is not None:
            require_shard(self.shard)
        for name in ("dataset", "split"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{name} must be a name, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One draw of a run."""

    index: int  # i, from 0
    prompt_index: int  # position of its prompt in the dataset's split
    seed: int | None  # of its sampling, unsigned 64-bit; None: not sampled by seqproc


def plan_draws(spec: RunSpec, pool: Sequence[object]) -> Iterator[Draw]:
    """The draws of a run, or of its shard, in order; eight bytes of memory for each of the plan.

    Args:
        spec: the run.
        pool: every prompt of the split. With ``max_prompts_pool`` the draws stay within that many
            of them, chosen as `choose_prompts` does.

    Raises:
        DatasetError: ``max_prompts_pool`` exceeds the pool, or the pool is empty.
    """
    prompts = drawn_prompts(spec, len(pool))
    return (planned_draw(spec, prompts, int(i)) for i in shard_draws(spec.shard, spec.draws))


def drawn_prompts(spec: RunSpec, pool_size: int) -> NDArray[np.int64]:
    """The position of each draw's prompt in the split, ``[draws]``."""
    positions = choose_prompts(range(pool_size), spec.max_prompts_pool, spec.seed)
    chosen = replacement_indices(spec.seed, len(positions), spec.draws)
    return np.asarray(positions, dtype=np.int64)[chosen]


def planned_draw(spec: RunSpec, prompts: NDArray[np.int64], index: int) -> Draw:
    """Draw i, given `drawn_prompts`."""
    seed = draw_seed(spec.seed, index)
    return Draw(index=index, prompt_index=int(prompts[index]), seed=seed)
