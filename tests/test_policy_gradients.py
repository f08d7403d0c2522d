"""Derivatives of the sampling measure: gradcheck, closed forms, and no NaN at the edges."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import numpy as np
import pytest
import torch

from seqproc.policy import (
    PolicyStatistics,
    SamplingPolicy,
    log_q,
    rb_entropy,
    score_tokens,
    statistics,
    support,
    token_log_p,
    token_log_q,
)

NEG_INF = float("-inf")
POLICIES = [
    SamplingPolicy(),
    SamplingPolicy(temperature=0.7),
    SamplingPolicy(temperature=1.3, top_p=0.9),
    SamplingPolicy(top_p=0.5),
    SamplingPolicy(top_p=1e-6),
    SamplingPolicy(do_sample=False),
]


def smooth_rows() -> torch.Tensor:
    """Logits ``[2, 5]`` whose supports do not change within 1e-3 under any of the policies."""
    return torch.tensor(
        [
            [1.9, 0.3, -0.4, 1.1, -1.7],
            [-0.6, 2.7, 0.1, -2.2, 1.6],
        ],
        dtype=torch.float64,
        requires_grad=True,
    )


TOKENS = torch.tensor([0, 1])  # the most likely ones: in every support


def statistic(logits: torch.Tensor, policy: SamplingPolicy, name: str) -> torch.Tensor:
    """A statistic; where it does not depend on the logits, or is infinite, a 0 that does not."""
    values = getattr(statistics(logits, policy, (2, 3)), name)
    return values.masked_fill(values.isinf(), 0.0) + 0.0 * logits.sum(-1)


CALLS = {
    "rb_entropy": lambda x, policy: rb_entropy(x, policy),
    "token_log_q": lambda x, policy: token_log_q(x, TOKENS, policy),
    "token_log_p": lambda x, policy: token_log_p(x, TOKENS),
}
CALLS |= {
    f"statistic {field.name}": partial(statistic, name=field.name)
    for field in dataclasses.fields(PolicyStatistics)
}


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_first_and_second_derivatives(name, policy):
    logits = smooth_rows()
    for sign in (-1, 1):  # far enough from a change of support for finite differences
        moved = logits.detach() + sign * 1e-3 * logits.detach().sin()
        assert torch.equal(support(moved, policy), support(logits, policy))
    call = CALLS[name]
    assert torch.autograd.gradcheck(lambda x: call(x, policy), (logits,), atol=1e-7)
    assert torch.autograd.gradgradcheck(lambda x: call(x, policy), (logits,), atol=1e-6)


def test_gradcheck_can_fail():
    def wrong(x: torch.Tensor) -> torch.Tensor:  # the entropy with its log-mass held fixed
        q = log_q(x, SamplingPolicy()).exp().detach()
        return -(q * log_q(x, SamplingPolicy())).sum(-1)

    assert torch.equal(
        wrong(smooth_rows()).round(decimals=12), rb(smooth_rows()).round(decimals=12)
    )
    assert not torch.autograd.gradcheck(wrong, (smooth_rows(),), raise_exception=False)


def rb(logits: torch.Tensor) -> torch.Tensor:
    return rb_entropy(logits, SamplingPolicy())


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_gradients_match_their_closed_forms(policy):
    """∂H/∂ℓ = −q (log q + H) / T and ∂ log q(y)/∂ℓ = (1[y] − q) / T on S; 0 outside."""
    logits = smooth_rows()
    entropy = rb_entropy(logits, policy)
    (of_entropy,) = torch.autograd.grad(entropy.sum(), logits, retain_graph=True)
    (of_log_q,) = torch.autograd.grad(token_log_q(logits, TOKENS, policy).sum(), logits)
    for i, row in enumerate(logits.detach().numpy()):
        q, h = enumerated(row, policy)
        by_hand = np.array([-x * (np.log(x) + h) if x > 0 else 0.0 for x in q])
        one_hot = np.eye(len(row))[TOKENS[i]]
        assert np.abs(of_entropy[i].numpy() * policy.temperature - by_hand).max() < 1e-13
        assert np.abs(of_log_q[i].numpy() * policy.temperature - (one_hot - q)).max() < 1e-13
        if len(set(q)) > 2:
            twisted = by_hand + q * 1e-9  # ∂H/∂a sums to 0; this does not
            assert np.abs(of_entropy[i].numpy() * policy.temperature - twisted).max() > 1e-13


def enumerated(row: np.ndarray, policy: SamplingPolicy) -> tuple[np.ndarray, float]:
    """q and H of one row, token by token."""
    weight = np.exp(row / policy.temperature)
    kept, before = [], 0.0
    for token in sorted(range(len(row)), key=lambda t: -row[t]):
        if before < policy.top_p * weight.sum():
            kept.append(token)
        before += weight[token]
    kept = kept if policy.do_sample else kept[:1]
    q = np.array([weight[t] if t in kept else 0.0 for t in range(len(row))])
    q /= q.sum()
    return q, float(-sum(x * np.log(x) for x in q if x > 0))


EDGES = [
    [0.0, 1.0, NEG_INF],
    [0.0, 1e4, NEG_INF],
    [2.0, NEG_INF, NEG_INF],
    [0.0, 0.0, 0.0],
    [NEG_INF, -3.0, -3.0],
]
STATISTICS = [f.name for f in dataclasses.fields(PolicyStatistics)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_gradient_is_nan_at_the_edges(policy, dtype):
    logits = torch.tensor(EDGES, dtype=dtype, requires_grad=True)
    first = support(logits, policy).float().argmax(-1)
    scores = score_tokens(logits, first, policy, (0, 2))
    outputs = {name: getattr(scores.stats, name) for name in STATISTICS}
    outputs |= {"logprobs": scores.logprobs, "logqs": scores.logqs}
    for name, output in outputs.items():
        if not output.requires_grad:  # a constant, as the tail mass of the full vocabulary is
            assert name in ("tail_mass", "margin", "cut_margin")
            continue
        (gradient,) = torch.autograd.grad(output.sum(), logits, create_graph=True)
        assert not gradient.isnan().any(), name
        if gradient.requires_grad:
            again = gradient.square().sum()
            (second,) = torch.autograd.grad(again, logits, retain_graph=True)
            assert not second.isnan().any(), name


def test_a_naive_entropy_does_have_nan_gradients_there():
    logits = torch.tensor(EDGES, dtype=torch.float64, requires_grad=True)
    naive = -(logits.softmax(-1) * logits.log_softmax(-1)).sum()
    (gradient,) = torch.autograd.grad(naive, logits)
    assert gradient.isnan().any()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_impossible_tokens_get_no_gradient(policy):
    logits = torch.tensor([0.3, NEG_INF, 1.1, -0.4], dtype=torch.float64, requires_grad=True)
    for output in (rb_entropy(logits, policy), token_log_q(logits, torch.tensor(2), policy)):
        (gradient,) = torch.autograd.grad(output, logits)
        outside = ~support(logits, policy)
        assert gradient[outside].abs().max() == 0
        assert outside[1]


def test_gradients_stay_in_float32_and_agree_with_float64():
    single = smooth_rows().detach().float().requires_grad_()
    double = single.detach().double().requires_grad_()
    for policy, call in itertools.product(POLICIES, CALLS.values()):
        gradients = [
            torch.autograd.grad(call(x, policy).sum(), x, allow_unused=True)[0]
            for x in (single, double)
        ]
        if gradients[0] is None:
            continue
        assert gradients[0].dtype == torch.float32
        assert (gradients[0].double() - gradients[1]).abs().max() < 2e-6
