"""Echoes: bets that a token is drawn with randomness that an earlier one was drawn with.

Two kinds, each for many distances: that the token is the earlier one again, and that it lies at a
like place in its distribution, or at the opposite one. The earlier token is of the same draw, of
another draw of the same prompt, or of another prompt; a right engine draws independently of it.

Knows arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.betting.alternatives import Alternative

SAME, PLACE = "noise drawn again", "noise at like places"  # families

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STEP_LAGS = (1, 2, 3, 4, 6, 8)
DRAW_LAGS = (1, 2, 3, 4, 8)
PROMPT_LAGS = (1, 2, 3, 4, 8)
AGAIN = (0.03, 0.2, 0.8)  # share of tokens that are the earlier one again
SLOPES = (-0.3, -0.1, 0.1, 0.3)  # of the density of the place, in units of its correlation


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """Which earlier token belongs to each."""

    name: str  # in words
    earlier: Ints  # [N] number of the token; −1 where there is none


def echoes(prompts: Ints, lengths: Ints) -> list[Echo]:
    """All pairs of tokens that are looked at.

    Args:
        prompts: ``[D]`` number of each draw's prompt.
        lengths: ``[D]`` its tokens.
    """
    starts = np.cumsum(lengths) - lengths
    steps = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    owners = np.repeat(np.arange(len(lengths)), lengths)

    def at(other: Ints) -> Ints:
        """The token of the same step in another draw of each, −1 where there is none."""
        theirs = other[owners]
        exists = (theirs >= 0) & (steps < np.where(theirs >= 0, lengths[theirs], 0))
        return np.where(exists, starts[theirs] + steps, -1)

    found = []
    for lag in STEP_LAGS:
        earlier = np.where(steps >= lag, np.arange(len(steps)) - lag, -1)
        found.append(Echo(name=f"steps {lag} apart in one draw", earlier=earlier))
    for lag in DRAW_LAGS:
        name = f"draws {lag} apart of one prompt"
        found.append(Echo(name=name, earlier=at(_before_of_prompt(prompts, lag))))
    for lag in PROMPT_LAGS:
        name = f"draws of prompts {lag} apart"
        found.append(Echo(name=name, earlier=at(_of_prompt_before(prompts, lag))))
    return found


def _before_of_prompt(prompts: Ints, lag: int) -> Ints:
    """The draw ``lag`` before each among those of its prompt."""
    other = np.full(len(prompts), -1)
    for prompt in np.unique(prompts):
        own = np.flatnonzero(prompts == prompt)
        other[own[lag:]] = own[: len(own) - lag] if lag < len(own) else own[:0]
    return other


def _of_prompt_before(prompts: Ints, lag: int) -> Ints:
    """The draw of the same number among those of the prompt ``lag`` before."""
    by_prompt = [np.flatnonzero(prompts == prompt) for prompt in np.unique(prompts)]
    other = np.full(len(prompts), -1)
    for earlier, own in zip(by_prompt, by_prompt[lag:], strict=False):
        common = min(len(earlier), len(own))
        other[own[:common]] = earlier[:common]
    return other


def echo_bets(found: Sequence[Echo]) -> list[Alternative]:
    """The bets, in the order of `echo_ratios`."""
    again = [
        Alternative(family=SAME, name=f"the same token again: {echo.name}", value=share)
        for echo in found
        for share in AGAIN
    ]
    places = [
        Alternative(
            family=PLACE,
            name=f"{'like' if slope > 0 else 'opposite'} places: {echo.name}",
            value=slope,
        )
        for echo in found
        for slope in SLOPES
    ]
    return [*again, *places]


def echo_ratios(
    found: Sequence[Echo],
    tokens: Ints,
    logqs: Floats,
    logqs_of_earlier: Floats,
    uniforms: Floats,
) -> NDArray[np.float32]:
    """log r/q of every bet, ``[N, K]``.

    Args:
        found: E of them.
        tokens: ``[N]``.
        logqs: ``[N]`` log q of the tokens.
        logqs_of_earlier: ``[N, E]`` log q, at each step, of the earlier token's id.
        uniforms: ``[N]`` transforms of the tokens, in the order of their ids.
    """
    inside = np.isfinite(logqs)
    columns = []
    for e, echo in enumerate(found):
        is_open = inside & (echo.earlier >= 0) & np.isfinite(logqs_of_earlier[:, e])
        again = is_open & (tokens == tokens[echo.earlier])
        with np.errstate(over="ignore"):
            gain = np.where(again, np.exp(-np.where(again, logqs, 0.0)), 0.0)
        columns += [np.where(is_open, np.log1p(share * (gain - 1)), 0.0) for share in AGAIN]
    for echo in found:
        is_open = inside & (echo.earlier >= 0)
        product = 12 * (uniforms - 0.5) * (uniforms[echo.earlier] - 0.5)
        columns += [np.where(is_open, np.log1p(slope * product), 0.0) for slope in SLOPES]
    return np.stack(columns, axis=1).astype(np.float32)
