"""Logits that no model should have, and some have: −∞, the lowest float, ±1e20, subnormal ones.

Every value, gradient and forward derivative against mpmath with 50 digits: never NaN, and never a
finite number that is wrong. A value that its dtype cannot hold is an infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mpmath import exp, isinf, mp, mpf
from torch.autograd import forward_ad

from helpers.policy_oracle import DIGITS, STATISTICS, Step, step
from seqproc.policy import SamplingPolicy, TokenScores, log_q, score_tokens

INF = float("inf")
SPECIAL = (-INF, -1e20, 1e20, -65504.0, 65504.0, 1e-40, -1e-45, 0.0, -1000.0, -104.0, 1.0)
LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-11}
NEAR = mpf(10) ** -9  # of a cut: rounding may decide

Row = tuple[float, ...]


def rows(dtype: torch.dtype) -> st.SearchStrategy[Row]:
    width = 32 if dtype == torch.float32 else 64
    ordinary = st.floats(-60, 60, width=width)  # type: ignore[arg-type]
    # Nothing is wider than float64, to hold the distance of its lowest number from its largest.
    largest = (LARGEST[dtype],) if dtype == torch.float32 else ()
    special = st.sampled_from((*SPECIAL, -LARGEST[dtype], *largest))
    return st.lists(ordinary | special, min_size=1, max_size=6).map(tuple)


temperatures = st.floats(-3, 3).map(lambda x: 10.0**x) | st.just(1.0)
nuclei = st.floats(-6, 0).map(lambda x: 10.0**x) | st.just(1.0)


def cases(dtype: torch.dtype) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return given(
        row=rows(dtype),
        policy=st.builds(
            SamplingPolicy, temperature=temperatures, top_p=nuclei, do_sample=st.booleans()
        ),
        token=st.integers(0, 5),
    )


def both_dtypes(test: Any) -> Any:
    """The test for float32 and for float64, each with its own extremes."""

    @pytest.mark.parametrize("dtype", LARGEST, ids=str)
    def run(dtype: torch.dtype) -> None:
        @settings(max_examples=300, deadline=None, derandomize=True)
        @cases(dtype)
        @example((1.0, -LARGEST[dtype], 2.0), SamplingPolicy(temperature=0.8), 0)
        @example((1.0, -1e20, 2.0), SamplingPolicy(), 1)
        @example((-LARGEST[dtype], LARGEST[dtype], -INF), SamplingPolicy(temperature=1e-3), 1)
        def each(row: Row, policy: SamplingPolicy, token: int) -> None:
            assume(max(row) > -INF)
            row = tuple(torch.tensor(row, dtype=dtype).double().tolist())  # as the dtype holds it
            expected = oracle(row, policy)
            assume(expected is not None)
            test(torch.tensor([row], dtype=dtype), policy, token % len(row), expected)

        each()

    return run


def oracle(row: Row, policy: SamplingPolicy) -> Step | None:
    """None where the cut is so near to a token that rounding may decide."""
    if policy.do_sample and policy.top_p < 1 and _near_a_cut(row, policy):
        return None
    return step(row, policy.temperature, policy.top_p, policy.do_sample, eos=(0,))


def _near_a_cut(row: Row, policy: SamplingPolicy) -> bool:
    with mp.workdps(DIGITS):
        whole = step(row, policy.temperature, 1.0)
        masses = sorted((exp(x) for x in whole.log_q), reverse=True)
        sums = [sum(masses[:n], mpf(0)) for n in range(1, len(masses) + 1)]
        return any(abs(total - policy.top_p) < NEAR for total in sums)


def holds(found: float, true: mpf, dtype: torch.dtype, scale: float = 1.0) -> bool:
    """Whether a number is the true one, to rounding."""
    if math.isinf(found):
        beyond = abs(true) > LARGEST[dtype] * mpf("0.999")
        return bool(beyond or isinf(true)) and (found > 0) == bool(true > 0)
    return bool(abs(mpf(found) - true) <= TOLERANCE[dtype] * (scale + abs(true)))


def fields(scores: TokenScores, expected: Step, token: int) -> dict[str, tuple[float, mpf]]:
    found = {name: (getattr(scores.stats, name), getattr(expected, name)) for name in STATISTICS}
    found["log p"] = (scores.logprobs, expected.log_p[token])
    found["log q"] = (scores.logqs, expected.log_q[token])
    return {name: (float(value), true) for name, (value, true) in found.items()}


@both_dtypes
def test_every_value(logits, policy, token, expected):
    scores = score_tokens(logits, torch.tensor([token]), policy, eos_token_ids=(0,))
    assert scores.logprobs.dtype == logits.dtype
    for name, (found, true) in fields(scores, expected, token).items():
        assert holds(found, true, logits.dtype), (name, found, true)
    beyond = (logits - logits.max())[0].isneginf().tolist()  # as far as that a dtype cannot tell
    for i, found in enumerate(log_q(logits, policy)[0].tolist()):
        assert holds(found, -INF if beyond[i] else expected.log_q[i], logits.dtype), ("all", i)


def slopes(expected: Step, policy: SamplingPolicy, token: int) -> dict[str, list[mpf]]:
    """Derivatives of log p, log q and H by every logit, in closed form."""
    with mp.workdps(DIGITS):
        p, q = ([exp(x) for x in row] for row in (expected.log_p, expected.log_q))
        here = [mpf(i == token) for i in range(len(p))]
        of_entropy = [
            -x * (log + expected.rb_entropy) / policy.temperature if x > 0 else mpf(0)
            for x, log in zip(q, expected.log_q, strict=True)
        ]
        of_log_q = [(y - x) / policy.temperature for x, y in zip(q, here, strict=True)]
        of_log_p = [y - x for x, y in zip(p, here, strict=True)]
        return {"log p": of_log_p, "log q": of_log_q, "H": of_entropy}


def measured(logits: torch.Tensor, policy: SamplingPolicy, token: int) -> dict[str, torch.Tensor]:
    scores = score_tokens(logits, torch.tensor([token]), policy, eos_token_ids=(0,))
    found = {"log p": scores.logprobs, "H": scores.stats.rb_entropy}
    return found | ({"log q": scores.logqs} if bool(scores.logqs > -INF) else {})


@pytest.mark.slow
@both_dtypes
def test_every_gradient(logits, policy, token, expected):
    assume(logits[0, token] > -INF)
    scale = 1 + 1 / policy.temperature
    for name, true in slopes(expected, policy, token).items():
        leaf = logits.clone().requires_grad_()
        value = measured(leaf, policy, token).get(name)
        if value is None:
            continue
        (found,) = torch.autograd.grad(value.sum(), leaf)
        for one, other in zip(found[0].tolist(), true, strict=True):
            assert holds(one, other, logits.dtype, scale), (name, one, other)


STEP = mpf(10) ** -12  # of a central difference, in 50 digits
APART = 1e-6  # logits nearer to each other are taken for a tie, where a derivative has a jump


def without_ties(row: Row) -> Row:
    """Those of moderate size, each farther from all before it than `APART`."""
    kept: list[float] = []
    for x in row:
        if x == -INF or (abs(x) <= 1e20 and all(abs(x - y) > APART for y in kept)):
            kept.append(x)
    return tuple(kept)


def differences(row: Row, policy: SamplingPolicy) -> dict[str, list[mpf]]:
    """Derivatives of every statistic by every logit, as central differences of the oracle."""
    found: dict[str, list[mpf]] = {name: [] for name in STATISTICS}
    with mp.workdps(DIGITS):
        for i in range(len(row)):
            low, high = (
                step(
                    tuple(mpf(x) + (sign * STEP if j == i else 0) for j, x in enumerate(row)),
                    policy.temperature,
                    policy.top_p,
                    policy.do_sample,
                    eos=(0,),
                )
                for sign in (-1, 1)
            )
            assert low.support == high.support
            for name, slopes_of in found.items():
                before, after = getattr(low, name), getattr(high, name)
                slopes_of.append(mpf(0) if before == after else (after - before) / (2 * STEP))
    return found


@pytest.mark.slow
@both_dtypes
def test_every_gradient_of_every_statistic(logits, policy, token, expected):
    row = without_ties(tuple(logits[0].double().tolist()))
    assume(len(row) and max(row) > -INF and oracle(row, policy) is not None)
    leaf = torch.tensor([row], dtype=logits.dtype, requires_grad=True)
    stats = score_tokens(leaf, torch.tensor([0]), policy, eos_token_ids=(0,)).stats
    for name, true in differences(row, policy).items():
        value = getattr(stats, name)
        if not value.requires_grad:
            assert not any(true), name
            continue
        if bool(value.isinf()):  # the cut margin where nothing is dropped
            continue
        (found,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True, allow_unused=True)
        numbers = [0.0] * len(row) if found is None else found[0].tolist()
        scale = (1 + 1 / policy.temperature) * (100 if name == "logit_var" else 1)
        for one, other in zip(numbers, true, strict=True):
            assert holds(one, other, logits.dtype, scale), (name, one, other)


@both_dtypes
def test_no_gradient_of_any_statistic_is_nan(logits, policy, token, expected):
    leaf = logits.clone().requires_grad_()
    scores = score_tokens(leaf, torch.tensor([token]), policy, eos_token_ids=(0,))
    total = sum(getattr(scores.stats, name) for name in STATISTICS if name != "cut_margin")
    if total.requires_grad:
        (found,) = torch.autograd.grad(total.sum(), leaf)
        assert not found.isnan().any()


@pytest.mark.slow
@both_dtypes
def test_every_forward_derivative(logits, policy, token, expected):
    assume(logits[0, token] > -INF)
    direction = torch.linspace(-1, 2, logits.shape[1], dtype=logits.dtype)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, direction[None])
        values = measured(dual, policy, token)
        found = {name: forward_ad.unpack_dual(value).tangent for name, value in values.items()}
    for name, tangent in found.items():
        moves = zip(slopes(expected, policy, token)[name], direction.tolist(), strict=True)
        true = sum((slope * v for slope, v in moves), mpf(0))
        number = 0.0 if tangent is None else float(tangent)
        assert holds(number, true, logits.dtype, 6 * (1 + 1 / policy.temperature)), (name, number)


def test_the_comparison_can_fail():
    assert holds(1.0, mpf(1), torch.float32)
    assert not holds(1.0 + 2e-5, mpf(1), torch.float32)
    assert not holds(float("nan"), mpf(1), torch.float32)
    assert not holds(-INF, mpf(-1e30), torch.float32)
    assert holds(-INF, mpf("-4e38"), torch.float32)
    assert not holds(INF, mpf("-4e38"), torch.float32)
