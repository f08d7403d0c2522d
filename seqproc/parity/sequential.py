"""Sequential checks: as many draws as it takes to decide, and no more.

An engine is looked at again and again while it samples. It is rejected at the first look at which
the tests, at a rate of false alarms for all looks together, reject it; and certified at the first
at which every distribution of the catalogue is ruled out or near. Knows numbers; samples nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from seqproc.errors import ConfigError
from seqproc.parity.betting.certificate import Certificate
from seqproc.parity.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When a check that goes on until it is decided is.

    Raises:
        ConfigError: of what is no distance, no probability or no number of draws.
    """

    within: float = 0.01  # ε: a distance from q that does not matter, nats per token
    level: float = 0.01  # β: probability that a wrong engine of the catalogue is certified, at most
    first_look: int = 64  # draws

    def __post_init__(self) -> None:
        if not _is_number(self.within) or not 0 < self.within < math.inf:
            raise ConfigError(f"within must be a number of nats per token > 0, got {self.within!r}")
        if not _is_number(self.level) or not 0 < self.level < 1:
            raise ConfigError(f"level must lie in (0, 1), got {self.level!r}")
        if isinstance(self.first_look, bool) or not isinstance(self.first_look, int):
            raise ConfigError(f"first_look must be a number of draws, got {self.first_look!r}")
        if self.first_look < 2:
            raise ConfigError(f"first_look must be 2 draws or more, got {self.first_look}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is known after some draws."""

    number: int  # of the look, from 1
    num_draws: int
    most_draws: int
    num_tokens: int
    seconds: float  # since the first draw was asked for
    verdict: Verdict
    certificate: Certificate

    @property
    def is_decided(self) -> bool:
        """Whether no more draws are needed."""
        return not self.verdict.holds or self.certificate.is_given

    @property
    def draws_left(self) -> int:
        """How many more it may take to decide, about; 0 when it is decided."""
        if self.is_decided:
            return 0
        due = math.ceil(self.certificate.tokens_left * self.num_draws / self.num_tokens)
        return min(due, self.most_draws - self.num_draws)

    @property
    def seconds_left(self) -> float:
        """The time these may take."""
        return self.seconds * self.draws_left / self.num_draws


def batches(prompts: Sequence[int], first_look: int) -> Iterator[slice]:
    """Which draws are sampled before each look: half as many again as before, of whole prompts.

    Args:
        prompts: ``[D]``, the number of each draw's prompt.
        first_look: draws before the first one, at least.
    """
    start = 0
    while start < len(prompts):
        stop = min(max(first_look, start + start // 2), len(prompts))
        while stop < len(prompts) and prompts[stop] == prompts[stop - 1]:
            stop += 1
        yield slice(start, stop)
        start = stop


def in_rounds(num_prompts: int, per_prompt: int, per_round: int = 4) -> list[int]:
    """Draws that are dealt prompt by prompt, in an order that soon comes to every prompt.

    Returns:
        A permutation of the draws' numbers: some of each prompt, then some more of each.
    """
    draws = range(num_prompts * per_prompt)
    return sorted(draws, key=lambda i: (i % per_prompt // per_round, i // per_prompt, i))
