"""Where an engine is wrong: bets on the tokens of one prompt, some draws, some steps, or one class.

A fault of one prompt in many, or of the last steps alone, hardly shows in a test of all tokens. So
tokens are divided by what is known before they are drawn: their prompt, the number of their draw,
their step. In each cell there are bets on q^β / Σ q^β, which is the policy's q at another
temperature. Right tokens make the product of r(y)/q(y) over a cell one of mean 1, however few they
are and whatever decides their number. Tokens of one class (EOS, special, stop, rare) are bet on by
multiplying their odds.

The cells of one finding share its stakes, which are fixed before; so the inverse of what all of
them came to is a p-value, corrected for how many there are. A sum over a cell that is taken for
normal would not do: a cell that has come to hold enough tokens is one whose draws did not end.

Knows `Draws` alone: arrays.

References: Ville (1939); Vovk and Wang, "E-values: calibration, combination and applications"
(2021), for averages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqproc.parity.draws import Draws, Floats
from seqproc.parity.positions import EXPONENTS, RARE
from seqproc.parity.verdict import Finding, Link

# Shapes: N tokens of all draws together, D draws, B exponents, C cells of a division, O odds.

BY_PROMPT, BY_DRAW, BY_STEP, BY_CLASS = "by prompt", "by draw", "by step", "by token class"
PLACES = (BY_PROMPT, BY_DRAW, BY_STEP, BY_CLASS)  # names of the findings
_BATCH = 32  # draws that are taken for computed together where it is not known
_ODDS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0, 8.0)  # by which those of a class are multiplied

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Division:
    """Cells that every token lies in one of, known before it is drawn."""

    names: Sequence[str]  # [C] in words
    cells: Ints  # [N] number of each token's


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """The tokens on which the bets came to most."""

    name: str
    tokens: Bools  # [N]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """A class of tokens, whose mass is known before each of them is drawn."""

    name: str
    masses: Floats  # [N] under q
    is_hit: Bools  # [N] whether the token that came is of it


def place_findings(draws: Draws, limit: int, batch_size: int | None = None) -> list[Finding]:
    """Whether tokens of every prompt, draw, step and class are right, one finding each.

    Args:
        draws: scored under the policy.
        limit: tokens of a draw, at most.
        batch_size: draws that are computed together, in their order; None when it is not known.
    """
    divisions = _all(draws, limit, batch_size or _BATCH)
    by_cell = [_by_cell(name, draws, some) for name, some in divisions.items()]
    return [*by_cell, _by_class(draws)]


def tokens_of(name: str, draws: Draws, limit: int, batch_size: int | None = None) -> Bools:
    """The tokens on which the bets of a finding came to most, ``[N]``.

    Args:
        name: of the finding.
        draws: as those of `place_findings`, and
        limit: likewise.
        batch_size: likewise.
    """
    if name == BY_CLASS:
        return _class_bets(draws)[1].is_hit
    return _cell_bets(draws, _all(draws, limit, batch_size or _BATCH)[name])[1].tokens


# ---------------------------------------------------------------------- cells


def _all(draws: Draws, limit: int, batch_size: int) -> dict[str, list[_Division]]:
    """By finding; a division of one cell divides nothing."""
    divisions = {
        BY_PROMPT: [_prompts(draws)],
        BY_DRAW: [
            _parts_of_draws(draws, 2),
            _parts_of_draws(draws, 4),
            _firsts(draws),
            _batches(draws, batch_size),
            _slots(draws, batch_size),
        ],
        BY_STEP: [_bins(draws, limit), _quarters(draws, limit), _last(draws, limit)],
    }
    return {name: [d for d in some if len(d.names) > 1] for name, some in divisions.items()}


def _prompts(draws: Draws) -> _Division:
    prompts, numbers = np.unique(draws.prompts, return_inverse=True)
    return _Division(names=[f"prompt {p}" for p in prompts], cells=numbers[draws.owners])


def _parts_of_draws(draws: Draws, number: int) -> _Division:
    total = len(draws.lengths)
    if total < number:
        return _Division(names=["all draws"], cells=np.zeros_like(draws.owners))
    edges = [total * part // number for part in range(number + 1)]
    return _Division(
        names=[f"draws {a} to {b - 1}" for a, b in itertools.pairwise(edges)],
        cells=np.searchsorted(edges[1:], draws.owners, side="right"),
    )


def _firsts(draws: Draws) -> _Division:
    """The first draw of each prompt is often computed apart, and the others from its cache."""
    is_later = np.ones(len(draws.prompts), dtype=np.int64)
    is_later[np.unique(draws.prompts, return_index=True)[1]] = 0
    return _Division(
        names=["the first draw of each prompt", "later draws of each prompt"],
        cells=is_later[draws.owners],
    )


def _batches(draws: Draws, size: int) -> _Division:
    total = len(draws.lengths)
    firsts = range(0, total, size)
    return _Division(
        names=[f"the batch of draws {a} to {min(a + size, total) - 1}" for a in firsts],
        cells=draws.owners // size,
    )


def _slots(draws: Draws, size: int) -> _Division:
    """Places in a batch, which kernels and caches number alike in each."""
    number = min(size, len(draws.lengths))
    return _Division(
        names=[f"draw {slot} of each batch" for slot in range(number)],
        cells=draws.owners % size,
    )


def _bins(draws: Draws, limit: int) -> _Division:
    """Steps 0, 1, 2 to 3, 4 to 7, …"""
    edges = [0, *(1 << k for k in range((limit - 1).bit_length())), limit]
    return _of_steps(draws, edges)


def _quarters(draws: Draws, limit: int) -> _Division:
    return _of_steps(draws, sorted({limit * part // 4 for part in range(5)}))


def _last(draws: Draws, limit: int) -> _Division:
    return _of_steps(draws, sorted({0, limit - 1, limit}))


def _of_steps(draws: Draws, edges: Sequence[int]) -> _Division:
    spans = itertools.pairwise(edges)
    last = len(edges) - 2  # which holds steps behind the limit as well: `endings` tells of these
    return _Division(
        names=[f"step {a}" if b == a + 1 else f"steps {a} to {b - 1}" for a, b in spans],
        cells=np.minimum(np.searchsorted(edges[1:], draws.steps, side="right"), last),
    )


def _by_cell(name: str, draws: Draws, divisions: Sequence[_Division]) -> Finding:
    if not divisions:
        return _undecided(name, "there is one cell alone")
    if not draws.variances.any():
        return _undecided(name, "no token's outcome was open")
    log_e, worst = _cell_bets(draws, divisions)
    kept = worst.tokens & draws.in_support
    gap = float((-draws.logqs[kept] - draws.entropies[kept]).sum()) / max(int(kept.sum()), 1)
    cells = sum(len(division.names) for division in divisions)
    return _finding(
        name,
        log_e,
        f"bets on {cells:,} cells came to e^{log_e:.1f}; most on {worst.name}, where surprisal is "
        f"over entropy by {gap:+.4f} nats per token over {kept.sum():,} tokens",
    )


def _cell_bets(draws: Draws, divisions: Sequence[_Division]) -> tuple[float, _Cell]:
    """What the bets on all cells came to together [nats], and the cell of the most."""
    gains_NB = _gains(draws)
    stakes = -math.log(len(divisions) * len(EXPONENTS))
    log_es = [
        np.logaddexp.reduce(_sums(gains_NB, division), axis=1) + stakes - math.log(len(names))
        for division in divisions
        for names in [division.names]
    ]
    level = int(np.argmax([one.max() for one in log_es]))
    cell = int(log_es[level].argmax())
    best = divisions[level]
    worst = _Cell(name=best.names[cell], tokens=best.cells == cell)
    return float(np.logaddexp.reduce(np.concatenate(log_es))), worst


def _gains(draws: Draws) -> Floats:
    """log r/q of every exponent, ``[N, B]``, nats: (β − 1) log q(y) − log Σ q^β.

    Nothing where the token lies outside the support, which `support` judges.
    """
    kept = draws.in_support[:, None]
    logqs = np.where(kept, draws.logqs[:, None], 0.0)
    gains: Floats = np.where(kept, (np.array(EXPONENTS) - 1) * logqs - draws.log_powers, 0.0)
    return gains


def _sums(gains_NB: Floats, division: _Division) -> Floats:
    """Of the tokens of each cell, ``[C, B]``."""
    size = len(division.names)
    return np.stack([np.bincount(division.cells, one, size) for one in gains_NB.T], axis=1)


# ---------------------------------------------------------------------- classes


def _by_class(draws: Draws) -> Finding:
    if not any(((one.masses > 0) & (one.masses < 1)).any() for one in _classes(draws)):
        return _undecided(BY_CLASS, "no token of a class could come or stay away")
    log_e, worst = _class_bets(draws)
    return _finding(
        BY_CLASS,
        log_e,
        f"bets on EOS, special, stop and rare tokens came to e^{log_e:.1f}; most on {worst.name}, "
        f"drawn {worst.is_hit.sum():,} times, {worst.masses.sum():,.1f} expected",
    )


def _classes(draws: Draws) -> list[_Class]:
    is_eos = np.zeros(len(draws.logqs), dtype=np.bool_)
    is_eos[(draws.starts + draws.lengths - 1)[draws.ended_by_eos]] = True
    return [
        _Class(name="EOS", masses=draws.eos_probs, is_hit=is_eos),
        _Class(
            name="special tokens other than EOS",
            masses=draws.special_probs,
            is_hit=draws.is_special,
        ),
        _Class(
            name="tokens that may complete a stop string",
            masses=draws.stop_probs,
            is_hit=draws.is_stop,
        ),
        _Class(
            name=f"rare tokens (q < {RARE:g})",
            masses=draws.rare_probs,
            is_hit=draws.in_support & (draws.logqs < math.log(RARE)),
        ),
    ]


def _class_bets(draws: Draws) -> tuple[float, _Class]:
    """What the bets on all classes came to together [nats], and the class of the most.

    With the odds of a class of mass m multiplied by ρ, log r/q is log ρ if y is of it, less
    log(1 + (ρ − 1) m).
    """
    classes, odds_O = _classes(draws), np.array(_ODDS)
    log_es = []
    for one in classes:
        kept = draws.in_support
        hits = int((one.is_hit & kept).sum())
        costs_O = np.log1p((odds_O - 1) * np.minimum(one.masses[kept], 1.0)[:, None]).sum(0)
        log_es.append(np.logaddexp.reduce(hits * np.log(odds_O) - costs_O))
    stakes = -math.log(len(classes) * len(_ODDS))
    may_come = np.array([one.masses.any() for one in classes])
    worst = classes[int(np.where(may_come, log_es, -np.inf).argmax())]
    return float(np.logaddexp.reduce(log_es)) + stakes, worst


# ---------------------------------------------------------------------- findings


def _finding(name: str, log_e: float, detail: str) -> Finding:
    """The inverse of what bets of mean 1 came to is a p-value."""
    return Finding(
        name=name,
        link=Link.POLICY,
        p_value=math.exp(-min(max(log_e, 0.0), 700.0)),
        statistic=log_e,
        detail=detail,
    )


def _undecided(name: str, why: str) -> Finding:
    return Finding(name=name, link=Link.POLICY, p_value=None, detail=f"too little to decide: {why}")
