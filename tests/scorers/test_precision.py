"""Scopes of precision: the float64 lift, matmul modes, autocast."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn import functional

from seqproc.scorers import Float64Lift
from seqproc.scorers.precision import autocast, exact_forward, matmul_mode

X = torch.tensor([0.1, 0.7, -1.3], dtype=torch.float64) / 3  # not representable in float32
CPU = torch.device("cpu")

CASTS = {
    "float()": lambda x: x.float(),
    "half()": lambda x: x.half(),
    "bfloat16()": lambda x: x.bfloat16(),
    "to(dtype)": lambda x: x.to(torch.float32),
    "to(dtype=)": lambda x: x.to(dtype=torch.float16),
    "to(device, dtype)": lambda x: x.to("cpu", torch.float32),
    "to(device=, dtype=)": lambda x: x.to(device="cpu", dtype=torch.bfloat16),
    "type(dtype)": lambda x: x.type(torch.float32),
    "softmax(dtype=)": lambda x: functional.softmax(x, dim=-1, dtype=torch.float32),
    "Tensor.softmax(dim, dtype)": lambda x: x.softmax(-1, torch.float32),
    "sum(dtype=)": lambda x: x.sum(dtype=torch.float32),
    "mean(dtype=)": lambda x: x.mean(-1, dtype=torch.float32),
    "zeros(dtype=)": lambda x: torch.zeros(3, dtype=torch.float32),
    "full(dtype=)": lambda x: torch.full((3,), 0.1, dtype=torch.bfloat16),
    "arange(dtype=)": lambda x: torch.arange(3, dtype=torch.float32),
    "ones_like(dtype=)": lambda x: torch.ones_like(x, dtype=torch.float16),
    "new_zeros(dtype=)": lambda x: x.new_zeros(3, dtype=torch.float32),
    "integers.float()": lambda x: torch.arange(3).float(),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_to_narrow_floats_become_float64_inside_only(name):
    cast = CASTS[name]
    assert cast(X).dtype != torch.float64
    with Float64Lift():
        assert cast(X).dtype == torch.float64
    assert cast(X).dtype != torch.float64


def test_lifted_casts_keep_every_digit():
    with Float64Lift():
        assert torch.equal(X.float().to(torch.bfloat16).half(), X)
        exact = functional.softmax(X, dim=-1, dtype=torch.float32)
    assert torch.equal(exact, functional.softmax(X, dim=-1))
    assert not torch.equal(X.float().double(), X)


def test_a_lifted_norm_is_a_double_norm():
    """The cast-and-back of Hugging Face norms: the reason for the lift."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True))).to(x.dtype)

    want = X / (X @ X / 3).sqrt()
    with Float64Lift():
        assert (norm(X) - want).abs().max() < 1e-15
    assert (norm(X) - want).abs().max() > 1e-9


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float64])
def test_other_casts_are_left_alone(dtype):
    with Float64Lift():
        assert X.to(dtype).dtype == dtype
        assert torch.zeros(2, dtype=dtype).dtype == dtype
        assert X.long().dtype == torch.int64


def test_gradients_pass_through_lifted_casts_exactly():
    x = X.clone().requires_grad_()
    with Float64Lift():
        (x.float() ** 2).sum().backward()
    assert torch.equal(x.grad, 2 * X)


def test_the_lift_ends_with_an_exception():
    with contextlib.suppress(KeyError), Float64Lift():
        raise KeyError
    assert X.float().dtype == torch.float32


def test_exact_forward_lifts_float64_only():
    with exact_forward(torch.float64):
        assert X.float().dtype == torch.float64
    for narrow in (torch.float32, torch.bfloat16):
        with exact_forward(narrow):
            assert X.float().dtype == torch.float32


@pytest.mark.parametrize(
    ("allow_tf32", "precision", "inside"),
    [
        (False, "high", "highest"),
        (False, "medium", "highest"),
        (True, "high", "high"),
        (True, "medium", "medium"),
        (True, "highest", "highest"),
    ],
)
@pytest.mark.parametrize("before", ["highest", "high"])
def test_matmul_mode_holds_inside_and_is_restored(allow_tf32, precision, inside, before):
    original = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(before)
        with matmul_mode(allow_tf32=allow_tf32, precision=precision):
            assert torch.get_float32_matmul_precision() == inside
        assert torch.get_float32_matmul_precision() == before
        with contextlib.suppress(KeyError), matmul_mode(allow_tf32=True, precision="medium"):
            raise KeyError
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(original)


def test_no_autocast_inside_a_caller_s_autocast():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with autocast(CPU, None):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_autocast_on_request():
    x = torch.randn(4, 4)
    with autocast(CPU, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    assert (x @ x).dtype == torch.float32
