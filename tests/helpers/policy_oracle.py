"""The definitions of the sampling measure, evaluated one step at a time.

Written from the definitions alone: sorts, sums and logarithms of probabilities, no tensors, and
nothing shared with `seqproc.policy`. `step` uses mpmath (50 digits) and is slow; `extended_step`
says the same in numpy's extended precision, for large vocabularies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from mpmath import exp, inf, log, mp, mpf

DIGITS = 50


@dataclass(frozen=True, kw_only=True)
class Step:
    """Everything that seqproc says about one step; numbers of mpmath or of numpy."""

    support: tuple[bool, ...]
    log_p: tuple[mpf, ...]  # raw model, T = 1
    log_q: tuple[mpf, ...]
    rb_entropy: mpf
    head_mass: mpf
    tail_mass: mpf
    two_point_entropy: mpf
    top1_prob: mpf
    margin: mpf
    collision: mpf
    renyi2: mpf
    eff_support: mpf
    logit_mean: mpf
    logit_var: mpf
    cut_margin: mpf
    eos_prob: mpf


STATISTICS = (
    "rb_entropy",
    "head_mass",
    "tail_mass",
    "two_point_entropy",
    "top1_prob",
    "margin",
    "collision",
    "renyi2",
    "eff_support",
    "logit_mean",
    "logit_var",
    "cut_margin",
    "eos_prob",
)


@cache
def step(
    logits: tuple[float, ...],
    temperature: float,
    top_p: float,
    do_sample: bool = True,
    eos: tuple[int, ...] = (),
) -> Step:
    """One step of V logits under one policy. Every float is taken as the exact number it is."""
    with mp.workdps(DIGITS):
        a = [mpf(x) / mpf(temperature) for x in logits]
        p = _softmax(a)
        kept = _nucleus(a, p, mpf(top_p)) if do_sample else [_first_largest(a)]
        head = sum(p[i] for i in kept)
        q = {i: p[i] / head for i in kept}
        dropped = [i for i in range(len(a)) if i not in q]
        tail = sum((p[i] for i in dropped), mpf(0))
        entropy = -sum(_xlogx(x) for x in q.values())
        collision = sum(x * x for x in q.values())
        top = max(a[i] for i in kept)
        mean = sum(q[i] * (a[i] - top) for i in kept)  # from the top, as a may be 1e308
        falling = sorted((a[i] for i in kept), reverse=True)
        return Step(
            support=tuple(i in q for i in range(len(a))),
            log_p=tuple(_log(x) for x in _softmax([mpf(x) for x in logits])),
            log_q=tuple(_log(q.get(i, mpf(0))) for i in range(len(a))),
            rb_entropy=entropy,
            head_mass=head,
            tail_mass=tail,
            two_point_entropy=-_xlogx(head) - _xlogx(tail),
            top1_prob=max(q.values()),
            margin=falling[0] - falling[1] if len(kept) > 1 else mpf(0),
            collision=collision,
            renyi2=-log(collision),
            eff_support=exp(entropy),
            logit_mean=top + mean,
            logit_var=sum(q[i] * (a[i] - top - mean) ** 2 for i in kept),
            cut_margin=falling[-1] - max(a[i] for i in dropped) if dropped else inf,
            eos_prob=sum((q.get(i, mpf(0)) for i in eos), mpf(0)),
        )


def _softmax(a: Sequence[mpf]) -> list[mpf]:
    top = max(a)
    weights = [exp(x - top) for x in a]
    total = sum(weights)
    return [w / total for w in weights]


def _nucleus(a: Sequence[mpf], p: Sequence[mpf], top_p: mpf) -> list[int]:
    """In the order of a, which is that of p, but for ties that all digits of p leave."""
    if top_p == 1:  # also where the mass before a token is 1 to all digits
        return [i for i in range(len(p)) if p[i] > 0]
    kept, before = [], mpf(0)
    for i in sorted(range(len(p)), key=lambda i: (-a[i], i)):
        if p[i] > 0 and before < top_p:
            kept.append(i)
        before += p[i]
    return kept


def _first_largest(a: Sequence[mpf]) -> int:
    return min(i for i, x in enumerate(a) if x == max(a))


def _log(x: mpf) -> mpf:
    return log(x) if x > 0 else -inf


def _xlogx(x: mpf) -> mpf:
    return x * log(x) if x > 0 else mpf(0)


def extended_step(
    logits: np.ndarray, temperature: float, top_p: float, eos: tuple[int, ...] = ()
) -> Step:
    """`step` of one row ``[V]`` of finite logits, in numpy's longdouble."""
    raw = logits.astype(np.longdouble)
    a = raw / temperature
    weights = np.exp(a - a.max())
    p = weights / weights.sum()
    order = np.lexsort((np.arange(len(p)), -p))
    before = np.concatenate([[np.longdouble(0)], np.cumsum(p[order])[:-1]])
    kept = np.zeros(len(p), dtype=bool)
    kept[order[before < top_p] if top_p < 1 else order] = True
    head, tail = p[kept].sum(), p[~kept].sum()
    q = np.where(kept, p / head, 0)
    inside, held = q[kept], a[kept]
    mean = (inside * held).sum()
    falling = np.sort(held)[::-1]
    entropy = -(inside * np.log(inside)).sum()
    with np.errstate(divide="ignore"):
        log_q = np.log(q)
    return Step(
        support=tuple(kept),
        log_p=tuple(raw - raw.max() - np.log(np.exp(raw - raw.max()).sum())),
        log_q=tuple(log_q),
        rb_entropy=entropy,
        head_mass=head,
        tail_mass=tail,
        two_point_entropy=-sum(x * np.log(x) for x in (head, tail) if x > 0),
        top1_prob=inside.max(),
        margin=falling[0] - falling[1] if len(falling) > 1 else 0,
        collision=(inside**2).sum(),
        renyi2=-np.log((inside**2).sum()),
        eff_support=np.exp(entropy),
        logit_mean=mean,
        logit_var=(inside * (held - mean) ** 2).sum(),
        cut_margin=falling[-1] - a[~kept].max() if not kept.all() else np.inf,
        eos_prob=q[list(eos)].sum() if eos else 0,
    )
