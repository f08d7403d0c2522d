"""Statistical tests of a sampler: were these tokens drawn from q?

Each test has a null distribution that holds whatever the model, the prompts and the policy are,
because given the past each token's place in its own q is known exactly:

- the randomised transform of a token is uniform on (0, 1), and independent of all before it;
- counts and sums minus what q expects of them are martingales, normal when their variance is
  large enough, and left undecided (no p-value) when it is not.

So tokens of all steps, draws and prompts can be pooled, though they are not alike and the number of
them is random. Knows `Draws` alone: arrays.

References: Brockwell, "Universal residuals" (2007), for the transform of dependent data; Brown,
"Martingale central limit theorems" (1971); Brown, Barbieri, Ventura, Kass and Frank, "The
time-rescaling theorem" (2002), for the lengths.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqproc._util.optional import require_package
from seqproc.parity.draws import Draws, Floats
from seqproc.parity.positions import RANK_EDGES
from seqproc.parity.verdict import Finding, Link

LENGTHS = "lengths"  # name of the finding
_CERTAIN = 0.99  # where the first token has more than this, its draw tells next to nothing
_TAIL_EDGES = (*np.linspace(0, 0.9, 10), 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)
_LEAST_EXPECTED = 10.0  # in a bin of a χ² test
_LEAST_VARIANCE = 25.0  # of a count that is taken for normal
_LEAST_TOKENS = 100
_LEAST_DRAWS = 20


def require_scipy() -> None:
    """Refuse to go on without scipy.

    Raises:
        MissingDependencyError: it is not installed.
    """
    require_package("scipy", extra="parity", purpose="testing a sampler")


def _stats() -> Any:
    require_scipy()
    from scipy import stats

    return stats


def sampler_findings(draws: Draws) -> list[Finding]:
    """All tests of this module.

    Raises:
        MissingDependencyError: scipy, which has the distributions, is not installed.
    """
    return [
        uniformity(draws),
        tail(draws),
        ranks(draws),
        surprisal(draws),
        last_kept(draws),
        lengths(draws),
        *independence(draws),
    ]


def uniformity(draws: Draws) -> Finding:
    """Kolmogorov-Smirnov test that the randomised transforms are uniform."""
    u = draws.uniforms[_informative(draws)]
    if len(u) < _LEAST_TOKENS:
        return _undecided("uniformity", Link.POLICY, f"{len(u)} uncertain tokens")
    result = _stats().kstest(u, "uniform")
    return Finding(
        name="uniformity",
        link=Link.POLICY,
        p_value=float(result.pvalue),
        statistic=float(result.statistic),
        detail=f"largest gap to uniform over {len(u):,} uncertain tokens",
    )


def tail(draws: Draws) -> Finding:
    """χ² test of the transforms in bins that get narrow towards the least likely tokens."""
    u = draws.uniforms[_informative(draws)]
    edges = _wide_enough(np.array(_TAIL_EDGES), len(u))
    if len(u) < _LEAST_TOKENS or len(edges) < 3:
        return _undecided("tail", Link.POLICY, f"{len(u)} uncertain tokens")
    counts = np.histogram(u, edges)[0]
    expected = len(u) * np.diff(edges)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    excess = counts[-1] / expected[-1]
    return Finding(
        name="tail",
        link=Link.POLICY,
        p_value=float(_stats().chi2.sf(statistic, len(counts) - 1)),
        statistic=statistic,
        detail=f"{len(counts)} bins; the last, of mass {1 - edges[-2]:.3g}, is hit {excess:.2f} "
        "times as often as q says",
    )


def ranks(draws: Draws) -> Finding:
    """χ² test of how often the first, second, … token was drawn, against what q expects.

    With π_t the masses of the bins at step t, the counts minus Σ π_t have the covariance
    Σ (diag π_t − π_t π_tᵀ).
    """
    masses = draws.rank_masses
    bins = np.searchsorted(RANK_EDGES, draws.ranks, side="right")
    groups = _merged(masses.sum(0))
    if len(groups) < 2:
        return _undecided("ranks", Link.POLICY, "q leaves all but one bin of ranks empty")
    pi = np.stack([masses[:, group].sum(1) for group in groups], axis=1)[:, 1:]
    hits = np.stack([np.isin(bins, group).sum() for group in groups])[1:]
    gap = hits - pi.sum(0)
    covariance = np.diag(pi.sum(0)) - pi.T @ pi
    statistic = float(gap @ np.linalg.solve(covariance, gap))
    worst = int(np.argmax(np.abs(gap) / np.sqrt(np.diag(covariance))))
    first, expected = RANK_EDGES[groups[worst + 1][0] - 1], pi.sum(0)[worst]
    return Finding(
        name="ranks",
        link=Link.POLICY,
        p_value=float(_stats().chi2.sf(statistic, len(gap))),
        statistic=statistic,
        detail=f"{len(groups)} bins of ranks; of ranks from {first} on {hits[worst]:,} tokens, "
        f"{expected:,.1f} expected",
    )


def surprisal(draws: Draws) -> Finding:
    """z = Σ (−log q(y) − H(q)) / √Σ Var_q[log q]: 0 on average exactly when y is drawn from q."""
    kept = draws.in_support
    gap = float((-draws.logqs[kept] - draws.entropies[kept]).sum())
    variance = float(draws.variances[kept].sum())
    return _normal(
        "surprisal",
        Link.POLICY,
        gap,
        variance,
        f"surprisal over entropy by {gap / max(kept.sum(), 1):+.4f} nats per token",
    )


def last_kept(draws: Draws) -> Finding:
    """z of how often the last token that the nucleus keeps was drawn."""
    expected = draws.last_probs
    gap = float(draws.is_last.sum() - expected.sum())
    return _normal(
        "last kept",
        Link.POLICY,
        gap,
        float((expected * (1 - expected)).sum()),
        f"drawn {draws.is_last.sum():,} times, {expected.sum():,.1f} expected",
    )


def lengths(draws: Draws) -> Finding:
    """Kolmogorov-Smirnov test of when draws end by EOS, one uniform variable per draw.

    Let S_t = Π_{s ≤ t} (1 − q_s(EOS)) be the chance to live through step t. A draw that ends by
    EOS at T gets a uniform point of (S_T, S_{T−1}), one that is cut off there a point of (0, S_T):
    uniform on (0, 1) for a right engine, however T and the q_s came about. Draws in which EOS never
    was possible and not certain are left out: as no outcome of one decides that, this selects
    nothing.
    """
    was_open = (draws.eos_probs > 0) & (draws.eos_probs < 1)
    is_open = np.logical_or.reduceat(was_open, draws.starts) if len(was_open) else was_open
    if is_open.sum() < _LEAST_DRAWS:
        return _undecided(LENGTHS, Link.TEXT, f"{is_open.sum()} draws that EOS could have ended")
    points = _survival_points(draws)[is_open]
    result = _stats().kstest(points, "uniform")
    ended, expected = int(draws.ended_by_eos.sum()), float(draws.eos_probs.sum())
    return Finding(
        name=LENGTHS,
        link=Link.TEXT,
        p_value=float(result.pvalue),
        statistic=float(result.statistic),
        detail=f"{ended:,} of {len(draws.lengths):,} draws end by EOS, {expected:,.1f} expected",
    )


def _survival_points(draws: Draws) -> Floats:
    with np.errstate(divide="ignore"):
        logs = np.log1p(-np.minimum(draws.eos_probs, 1.0))
    ends = draws.starts + draws.lengths - 1
    upto = np.array([logs[a : b + 1].sum() for a, b in zip(draws.starts, ends, strict=True)])
    before = np.array([logs[a:b].sum() for a, b in zip(draws.starts, ends, strict=True)])
    low = np.where(draws.ended_by_eos, np.exp(upto), 0.0)
    high = np.where(draws.ended_by_eos, np.exp(before), np.exp(upto))
    points: Floats = low + draws.randomiser[ends] * (high - low)
    return points


def independence(draws: Draws) -> list[Finding]:
    """z of the correlation of transforms that a right engine draws independently.

    Between neighbouring draws of one prompt, between draws of different prompts, and between
    steps of one draw. Products (u − ½)(u' − ½) have mean 0 and variance 1/144.
    """
    order = np.argsort(draws.prompts, kind="stable")
    pairs = list(itertools.pairwise(order))
    same = [(i, j) for i, j in pairs if draws.prompts[i] == draws.prompts[j]]
    # The first draw of each prompt, beside that of the next.
    firsts = order[np.unique(draws.prompts[order], return_index=True)[1]]
    other = list(itertools.pairwise(firsts))
    return [
        _correlation(draws, "draws of one prompt", *_aligned(draws, same)),
        _correlation(draws, "draws of two prompts", *_aligned(draws, other)),
        _correlation(draws, "steps of one draw", *_consecutive(draws)),
    ]


def _aligned(draws: Draws, pairs: list[tuple[int, int]]) -> tuple[NDArray[np.int64], ...]:
    """Tokens of the two draws of each pair, step by step, as far as both go."""
    starts, lengths_ = draws.starts, draws.lengths
    steps = [np.arange(min(lengths_[i], lengths_[j])) for i, j in pairs]
    first = [starts[i] + s for (i, _), s in zip(pairs, steps, strict=True)]
    second = [starts[j] + s for (_, j), s in zip(pairs, steps, strict=True)]
    nothing = np.zeros(0, dtype=np.int64)
    return np.concatenate([nothing, *first]), np.concatenate([nothing, *second])


def _consecutive(draws: Draws) -> tuple[NDArray[np.int64], ...]:
    later = np.flatnonzero(draws.steps > 0)
    return later - 1, later


def _correlation(
    draws: Draws, name: str, first: NDArray[np.int64], second: NDArray[np.int64]
) -> Finding:
    certain = ~_informative(draws)
    told = ~(certain[first] | certain[second])
    u = draws.uniforms_by_id - 0.5
    products = (u[first] * u[second])[told]
    if len(products) < _LEAST_TOKENS:
        return _undecided(name, Link.TOKENS, f"{len(products)} pairs of uncertain tokens")
    z = 12 * float(products.sum()) / math.sqrt(len(products))
    return Finding(
        name=name,
        link=Link.TOKENS,
        p_value=_two_sided(z),
        statistic=z,
        detail=f"correlation {12 * products.mean():+.4f} over {len(products):,} pairs",
    )


def _informative(draws: Draws) -> NDArray[np.bool_]:
    """Tokens whose outcome was open; known before they are drawn, so this selects nothing."""
    informative: NDArray[np.bool_] = draws.rank_masses[:, 0] < _CERTAIN
    return informative


def _wide_enough(edges: Floats, total: int) -> Floats:
    """Fewer edges, so that no bin is expected to hold less than it takes."""
    kept = [1.0]
    for edge in edges[-2::-1]:
        if (kept[-1] - edge) * total >= _LEAST_EXPECTED:
            kept.append(float(edge))
    kept[-1] = 0.0
    return np.array(kept[::-1])


def _merged(expected: Floats) -> list[list[int]]:
    """Neighbouring bins put together, from the last one on, until each expects enough."""
    groups: list[list[int]] = [[]]
    for k in reversed(range(len(expected))):
        groups[0].insert(0, k)
        if expected[groups[0]].sum() >= _LEAST_EXPECTED and k > 0:
            groups.insert(0, [])
    if expected[groups[0]].sum() < _LEAST_EXPECTED and len(groups) > 1:
        first = groups.pop(0)
        groups[0] = first + groups[0]
    return groups


def _normal(name: str, link: Link, gap: float, variance: float, detail: str) -> Finding:
    if variance < _LEAST_VARIANCE:
        return _undecided(name, link, f"variance {variance:.3g}, {_LEAST_VARIANCE:g} needed")
    z = gap / math.sqrt(variance)
    return Finding(name=name, link=link, p_value=_two_sided(z), statistic=z, detail=detail)


def _two_sided(z: float) -> float:
    return float(2 * _stats().norm.sf(abs(z)))


def _undecided(name: str, link: Link, detail: str) -> Finding:
    return Finding(name=name, link=link, p_value=None, detail=f"too little to decide: {detail}")
