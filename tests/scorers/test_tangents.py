"""Linear layers and attention written out, against PyTorch's own forward mode in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from helpers.devices import everywhere
from seqproc.scorers.kernels import tangents
from seqproc.scorers.kernels.tangents import written_out

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")

LENGTH, KEYS, WIDTH = 70, 75, 8  # more rows than one block has


@pytest.fixture(autouse=True, params=[1, 1 << 20], ids=["one at a time", "together"])
def small_blocks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(tangents, "_ROWS", everywhere(32))
    monkeypatch.setattr(tangents, "_SCORES", everywhere(request.param))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def differentiated(
    function: Callable[..., Tensor], arguments: list[Tensor], moving: list[bool], **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The value, and its tangent along fixed directions of the arguments that move."""
    with torch.no_grad(), forward_ad.dual_level():
        duals = [
            forward_ad.make_dual(value, normal(*value.shape, seed=100 + n)) if moves else value
            for n, (value, moves) in enumerate(zip(arguments, moving, strict=True))
        ]
        with sdpa_kernel(SDPBackend.MATH):
            value, tangent = forward_ad.unpack_dual(function(*duals, **options))
        return value.clone(), None if tangent is None else tangent.clone()


def assert_as_torch(
    function: Callable[..., Tensor], arguments: list[Tensor], moving: list[bool], **options: Any
) -> None:
    expected, slope = differentiated(function, arguments, moving, **options)
    with written_out():
        found, own_slope = differentiated(function, arguments, moving, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    if not any(moving):
        assert slope is None
        assert own_slope is None
        return
    torch.testing.assert_close(own_slope, slope, rtol=0, atol=1e-12)
    assert slope is not None
    assert slope.abs().max() > 0.01


@pytest.mark.parametrize("moving", [(x, w, b) for x in (0, 1) for w in (0, 1) for b in (0, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 5), (4, 5), (5,)])
def test_linear(moving: tuple[int, int, int], shape: tuple[int, ...]) -> None:
    arguments = [normal(*shape, seed=0), normal(7, 5, seed=1), normal(7, seed=2)]
    assert_as_torch(functional.linear, arguments, [bool(m) for m in moving])
    assert_as_torch(functional.linear, arguments[:2], [bool(m) for m in moving[:2]])


def heads(queries: int = 2, keys: int = 2, length: int = LENGTH, seen: int = KEYS) -> list[Tensor]:
    return [
        normal(3, queries, length, WIDTH, seed=3),
        normal(3, keys, seen, WIDTH, seed=4),
        normal(3, keys, seen, WIDTH + 1, seed=5),
    ]


@pytest.mark.parametrize("moving", [(q, k, v) for q in (0, 1) for k in (0, 1) for v in (0, 1)])
def test_attention_of_whatever_moves(moving: tuple[int, int, int]) -> None:
    assert_as_torch(
        functional.scaled_dot_product_attention, heads(), [bool(m) for m in moving], scale=0.3
    )


@pytest.mark.parametrize(("length", "seen"), [(LENGTH, LENGTH), (LENGTH, 40), (40, LENGTH), (1, 1)])
def test_causal_attention(length: int, seen: int) -> None:
    arguments = heads(length=length, seen=seen)
    assert_as_torch(functional.scaled_dot_product_attention, arguments, [True] * 3, is_causal=True)


@pytest.mark.parametrize("shape", [(LENGTH, KEYS), (3, 1, LENGTH, KEYS), (1, 2, LENGTH, KEYS)])
@pytest.mark.parametrize("boolean", [True, False])
def test_masks_hide_and_shift(shape: tuple[int, ...], boolean: bool) -> None:
    mask = normal(*shape, seed=6)
    mask = mask > -0.5 if boolean else mask.masked_fill(mask < -0.5, float("-inf"))
    assert_as_torch(functional.scaled_dot_product_attention, heads(), [True] * 3, attn_mask=mask)


@pytest.mark.parametrize("boolean", [True, False])
def test_a_row_that_sees_nothing_is_finite_and_leaves_the_others_alone(boolean: bool) -> None:
    """Rows of padding; PyTorch gives them zeros, and nothing reads them."""
    mask = torch.ones(LENGTH, KEYS, dtype=torch.bool)
    mask[33] = False
    mask[:, 3] = False
    given = mask if boolean else torch.zeros(mask.shape).double().masked_fill(~mask, -torch.inf)
    attention = functional.scaled_dot_product_attention
    expected, slope = differentiated(attention, heads(), [True] * 3, attn_mask=given)
    with written_out():
        found, own_slope = differentiated(attention, heads(), [True] * 3, attn_mask=given)
    others = [n for n in range(LENGTH) if n != 33]
    torch.testing.assert_close(found[:, :, others], expected[:, :, others], rtol=0, atol=1e-13)
    assert slope is not None
    assert own_slope is not None
    torch.testing.assert_close(own_slope[:, :, others], slope[:, :, others], rtol=0, atol=1e-12)
    assert found.isfinite().all()
    assert own_slope.isfinite().all()


@pytest.mark.parametrize("masked_heads", [None, 1, 6])
def test_grouped_queries(masked_heads: int | None) -> None:
    mask = None if masked_heads is None else normal(3, masked_heads, LENGTH, KEYS, seed=6) > -0.5
    assert_as_torch(
        functional.scaled_dot_product_attention,
        heads(queries=6),
        [True] * 3,
        attn_mask=mask,
        enable_gqa=True,
    )


def test_keys_after_the_last_that_a_block_sees_are_not_computed_on() -> None:
    arguments = heads(seen=LENGTH)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    arguments[1][:, :, 32:] = float("nan")  # the first block of 32 rows sees no such key
    with written_out():
        found, slope = differentiated(
            functional.scaled_dot_product_attention, arguments, [True] * 3, attn_mask=mask
        )
    assert slope is not None
    assert found[:, :, :32].isfinite().all()
    assert slope[:, :, :32].isfinite().all()
    assert found[:, :, 32:].isnan().all()


@pytest.mark.parametrize("moving", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(4, 5), (5,), (4, 1), ()])
@pytest.mark.parametrize("product", [torch.mul, Tensor.mul, lambda a, b: a * b])
def test_products_that_broadcast(
    product: Callable[..., Tensor], shape: tuple[int, ...], moving: tuple[bool, bool]
) -> None:
    arguments = [normal(4, 5, seed=8), normal(*shape, seed=9)]
    assert_as_torch(product, arguments, list(moving))
    assert_as_torch(product, arguments[::-1], list(moving))


def test_products_with_numbers_and_of_two_dtypes() -> None:
    value = normal(9, seed=8)
    assert_as_torch(lambda a: 3 * a * 0.5, [value], [True])
    assert_as_torch(lambda a, b: a.float() * b, [value, normal(9, seed=9)], [True, True])


def test_a_product_into_a_given_tensor() -> None:
    out = torch.empty(2)
    with written_out():
        assert torch.mul(torch.tensor([1.0, 2.0]), 3, out=out) is out
    assert out.tolist() == [3, 6]


def test_a_mask_that_moves_and_other_ranks_are_left_to_torch() -> None:
    def biased(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value, mask)

    mask = normal(LENGTH, KEYS, seed=6)
    assert_as_torch(biased, [*heads(), mask], [True, False, False, True])
    flat = [tensor[0] for tensor in heads()]
    assert_as_torch(functional.scaled_dot_product_attention, flat, [True] * 3)


def test_every_other_operation_is_torchs_own() -> None:
    assert_as_torch(functional.silu, [normal(9, seed=7)], [True])


def test_a_scope_that_ends_leaves_torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Tensor:
        raise AssertionError(f"called with {len(arguments)} arguments")

    monkeypatch.setattr(tangents, "_WRITTEN_OUT", {functional.linear: refuse})
    arguments = normal(2, 5, seed=0), normal(7, 5, seed=1)
    with written_out(), pytest.raises(AssertionError, match="2 arguments"):
        functional.linear(*arguments)
    assert functional.linear(*arguments).shape == (2, 7)
