"""The tiled product of a head against PyTorch's own, and against exact sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from seqproc.scorers import products
from seqproc.scorers.products import linear, tiled_products

STATES, WIDTH, VOCABULARY = 7, 50, 33


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and sums that do not divide what they are parts of."""
    monkeypatch.setattr(products, "_TILE", 10)
    monkeypatch.setattr(products, "_TERMS", 16)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The tiles that were multiplied."""
    made: list[Tensor] = []
    multiply = products._multiply

    def record(states: Tensor, rows: Tensor, out: Tensor) -> None:
        made.append(out)
        multiply(states, rows, out)

    monkeypatch.setattr(products, "_multiply", record)
    return made


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(STATES, WIDTH), (1, STATES, WIDTH), (WIDTH,), (0, WIDTH)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_product(shape: tuple[int, ...], with_bias: bool, tiles: list[Tensor]) -> None:
    states, weight = normal(*shape), normal(VOCABULARY, WIDTH, seed=1)
    bias = normal(VOCABULARY, seed=2) if with_bias else None
    with torch.no_grad():
        found = linear(states, weight, bias)
    expected = functional.linear(states, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert [tile.shape[1] for tile in tiles] == [10, 10, 10, 3]


@pytest.mark.parametrize("width", [WIDTH, 0])
def test_what_was_in_the_memory_before_is_overwritten(width: int) -> None:
    out = torch.full((STATES, VOCABULARY), torch.nan, dtype=torch.float64)
    states, rows = normal(STATES, width), normal(VOCABULARY, width, seed=1)
    products._multiply(states, rows, out)
    torch.testing.assert_close(out, states @ rows.t(), rtol=0, atol=1e-13)


def test_sums_of_few_terms_are_rounded_less(monkeypatch: pytest.MonkeyPatch) -> None:
    states, weight = normal(64, 4096), normal(256, 4096, seed=1)
    exact = states.float().double() @ weight.float().double().t()

    def error(terms: int) -> float:
        monkeypatch.setattr(products, "_TERMS", terms)
        with torch.no_grad():
            found = linear(states.float(), weight.float())
        return float((found - exact).square().mean().sqrt())

    assert error(64) < 0.7 * error(4096)


@pytest.mark.parametrize("width", [1, 5, 16, 17])
def test_few_dimensions_are_enough(width: int) -> None:
    states, weight = normal(STATES, width), normal(VOCABULARY, width, seed=1)
    with torch.no_grad():
        found = linear(states, weight)
    torch.testing.assert_close(found, states @ weight.t(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("terms", [4, 512])  # few show that they come last, many that apart
def test_large_weights_are_summed_last_and_rounded_less(
    terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight = normal(64, 512), normal(4096, 512, seed=1)
    weight[:, ::64] *= 100
    exact = states.float().double() @ weight.float().double().t()
    monkeypatch.setattr(products, "_TERMS", terms)

    def error(heavy: int) -> float:
        monkeypatch.setattr(products, "_HEAVY", heavy)
        with torch.no_grad():
            found = linear(states.float(), weight.float())
        return float((found - exact).square().mean().sqrt())

    assert set(products._heaviest(weight).tolist()) >= set(range(0, 512, 64))
    assert error(16) < 0.6 * error(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_product_is_torchs_own(dtype: torch.dtype, tiles: list[Tensor]) -> None:
    states, weight = normal(STATES, WIDTH).to(dtype), normal(VOCABULARY, WIDTH).to(dtype)
    with torch.no_grad():
        assert torch.equal(linear(states, weight), functional.linear(states, weight))
    assert not tiles


def test_autocast_is_kept(tiles: list[Tensor]) -> None:
    states, weight = normal(STATES, WIDTH).float(), normal(VOCABULARY, WIDTH).float()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(states, weight).dtype == torch.bfloat16
    assert not tiles


def test_gradients_are_kept(tiles: list[Tensor]) -> None:
    states, weight = normal(STATES, WIDTH), normal(VOCABULARY, WIDTH).requires_grad_()
    linear(states, weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, states.sum(0).expand_as(weight))
    assert not tiles


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_forward_derivatives_are_kept(tiles: list[Tensor]) -> None:
    states, weight = normal(STATES, WIDTH), normal(VOCABULARY, WIDTH, seed=1)
    slope = normal(VOCABULARY, WIDTH, seed=2)
    with torch.no_grad(), forward_ad.dual_level():
        found = linear(states, forward_ad.make_dual(weight, slope))
        tangent = forward_ad.unpack_dual(found).tangent
    torch.testing.assert_close(tangent, states @ slope.t())
    assert not tiles


def test_operands_that_do_not_fit_have_torchs_error() -> None:
    states = normal(STATES, WIDTH)
    for weight in (
        normal(VOCABULARY, WIDTH + 1),
        normal(VOCABULARY, 2 * WIDTH),
        normal(VOCABULARY, WIDTH).float(),
    ):
        for product in (linear, functional.linear):
            with torch.no_grad(), pytest.raises(RuntimeError, match=r"shapes|same dtype|dtype"):
                product(states, weight)


def test_only_inside_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(products, "linear", lambda *arguments: calls.append(arguments))
    states, weight = normal(STATES, WIDTH), normal(VOCABULARY, WIDTH)
    with tiled_products():
        functional.linear(states, weight)
        assert torch.equal(torch.relu(states), states.clamp(min=0))
    assert len(calls) == 1
    assert functional.linear(states, weight).shape == (STATES, VOCABULARY)
