"""Products of layers and heads, by either library, against PyTorch's own and exact sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from helpers.scorer_helpers import distance, random_sequences, same_bits
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, build_params_override, jvp
from seqproc.scorers.kernels import products
from seqproc.scorers.kernels.products import head_products, layer_products, product, tiled_product

STATES, WIDTH, VOCABULARY = 7, 50, 33
AMD = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC"
CPU = torch.device("cpu")
INTEL = "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)"

TERMS, MIN_WORK = products._TERMS, products._MIN_WORK

Multiply = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and sums that do not divide what they are parts of."""
    monkeypatch.setattr(products, "_TILE", 10)
    monkeypatch.setattr(products, "_TERMS_OF_HEAD", 16)
    monkeypatch.setattr(products, "_TERMS", 16)
    monkeypatch.setattr(products, "_MIN_WORK", 0)


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def onednn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this processor is one on which oneDNN is faster."""
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: request.param)
    return request.param


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What oneDNN computed, on a processor on which it is faster."""
    made: list[Tensor] = []
    compute = products._by_onednn

    def record(*arguments: Any) -> Tensor:
        made.append(compute(*arguments))
        return made[-1]

    monkeypatch.setattr(products, "_by_onednn", record)
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
    return made


@pytest.fixture
def by_blas(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Tiles that PyTorch's own products filled."""
    made: list[Tensor] = []
    compute = products._by_blas

    def record(terms: Iterable[tuple[Tensor, Tensor]], out: Tensor) -> None:
        made.append(out)
        compute(terms, out)

    monkeypatch.setattr(products, "_by_blas", record)
    return made


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def narrow(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).float()


def error_of(multiply: Multiply, states: Tensor, weight: Tensor) -> float:
    """Root of the mean square of a float32 product's error."""
    with torch.no_grad():
        found = multiply(states.float(), weight.float())
    exact = states.float().double() @ weight.float().double().t()
    return float((found - exact).square().mean().sqrt())


@pytest.mark.parametrize("shape", [(STATES, WIDTH), (1, STATES, WIDTH), (WIDTH,), (0, WIDTH)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_head_is_the_product(
    shape: tuple[int, ...], with_bias: bool, by_blas: list[Tensor]
) -> None:
    states, weight = normal(*shape), normal(VOCABULARY, WIDTH, seed=1)
    bias = normal(VOCABULARY, seed=2) if with_bias else None
    with torch.no_grad():
        found = tiled_product(states, weight, bias)
    expected = functional.linear(states, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    assert [tile.shape[1] for tile in by_blas] == [10, 10, 10, 3]


@pytest.mark.parametrize("multiply", [product, tiled_product])
@pytest.mark.parametrize("shape", [(STATES, WIDTH), (2, STATES, WIDTH), (WIDTH,), (1, WIDTH)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_onednn_has_the_same_outcome(
    multiply: Multiply, shape: tuple[int, ...], with_bias: bool, by_onednn: list[Tensor]
) -> None:
    states, weight = narrow(*shape), narrow(VOCABULARY, WIDTH, seed=1)
    bias = narrow(VOCABULARY, seed=2) if with_bias else None
    with torch.no_grad():
        found = multiply(states, weight, bias)
    wide_bias = None if bias is None else bias.double()
    expected = functional.linear(states.double(), weight.double(), wide_bias)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert len(by_onednn) == (1 if multiply is product else 4)


@pytest.mark.parametrize("multiply", [product, tiled_product])
def test_operands_in_any_layout(multiply: Multiply, by_onednn: list[Tensor]) -> None:
    states, weight = narrow(WIDTH, STATES).t(), narrow(WIDTH, VOCABULARY, seed=1).t()
    with torch.no_grad():
        found = multiply(states, weight)
    torch.testing.assert_close(found, states @ weight.t(), rtol=0, atol=1e-5)
    assert by_onednn


@pytest.mark.parametrize("multiply", [product, tiled_product])
def test_no_rows(multiply: Multiply, onednn: bool) -> None:
    with torch.no_grad():
        assert multiply(narrow(0, WIDTH), narrow(VOCABULARY, WIDTH)).shape == (0, VOCABULARY)


@pytest.mark.parametrize("width", [WIDTH, 0])
def test_what_was_in_the_memory_before_is_overwritten(width: int) -> None:
    out = torch.full((STATES, VOCABULARY), torch.nan, dtype=torch.float64)
    states, rows = normal(STATES, width), normal(VOCABULARY, width, seed=1)
    products._by_blas(zip(states.split(16, 1), rows.split(16, 1), strict=True), out)
    torch.testing.assert_close(out, states @ rows.t(), rtol=0, atol=1e-13)


def test_sums_of_few_terms_are_rounded_less(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    states, weight = normal(64, 4096), normal(256, 4096, seed=1)

    def error(terms: int) -> float:
        monkeypatch.setattr(products, "_TERMS_OF_HEAD", terms)
        return error_of(tiled_product, states, weight)

    assert error(64) < 0.7 * error(4096)


def test_onednn_is_rounded_no_more_than_torchs_own(
    by_onednn: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight = normal(64, 1536), normal(576, 1536, seed=1)
    monkeypatch.undo()
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)

    def error(terms: int) -> float:
        monkeypatch.setattr(products, "_TERMS", terms)
        return error_of(product, states, weight)

    assert error(192) < 1.1 * error_of(functional.linear, states, weight)
    assert error(1536) > 1.5 * error(192)  # in one sum it is: what the terms are for


@pytest.mark.parametrize("width", [1, 5, 16, 17])
def test_few_dimensions_are_enough(width: int, onednn: bool) -> None:
    states, weight = narrow(STATES, width), narrow(VOCABULARY, width, seed=1)
    with torch.no_grad():
        found = tiled_product(states, weight)
    torch.testing.assert_close(found, states @ weight.t(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("terms", [4, 512])  # few show that they come last, many that apart
def test_large_weights_are_summed_last_and_rounded_less(
    terms: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight = normal(64, 512), normal(4096, 512, seed=1)
    weight[:, ::64] *= 100
    monkeypatch.setattr(products, "_TERMS_OF_HEAD", terms)

    def error(heavy: int) -> float:
        monkeypatch.setattr(products, "_HEAVY", heavy)
        return error_of(tiled_product, states, weight)

    assert set(products._heaviest(weight).tolist()) >= set(range(0, 512, 64))
    assert error(16) < 0.6 * error(1)


@same_bits
@pytest.mark.parametrize("multiply", [product, tiled_product])
@pytest.mark.parametrize("size", [(64, 96), (256, 400), (2048, 192)])
def test_a_row_does_not_depend_on_its_batch(
    multiply: Multiply, size: tuple[int, int], onednn: bool
) -> None:
    states, weight = narrow(300, size[1]), narrow(*size, seed=1)
    with torch.no_grad():
        whole = multiply(states, weight)
        for start, stop in ((0, 1), (299, 300), (0, 2), (5, 12), (7, 22), (3, 20), (170, 300)):
            rows = slice(start, stop)
            assert torch.equal(multiply(states[rows], weight), whole[rows])


@same_bits
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 64, 300])
@pytest.mark.parametrize("with_bias", [True, False])
def test_neither_does_it_on_a_graph_that_is_kept(
    rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layers large enough for oneDNN and small ones, with a bias and without."""
    monkeypatch.setattr(products, "_TERMS", TERMS)
    monkeypatch.setattr(products, "_MIN_WORK", MIN_WORK)
    for width, size in ((576, 1536), (896, 896), (64, 64)):
        states, weight = narrow(300, width), narrow(size, width, seed=1).requires_grad_()
        bias = narrow(size, seed=2).requires_grad_() if with_bias else None
        with torch.no_grad():
            whole = product(states, weight, bias)
            assert torch.equal(product(states[:rows], weight, bias), whole[:rows])
        assert torch.equal(product(states[:rows], weight, bias), whole[:rows])


@same_bits
@pytest.mark.parametrize("width", range(32, 900, 32))
def test_both_libraries_sum_in_one_order(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many rows there are decides between them."""
    monkeypatch.setattr(products, "_TERMS", TERMS)
    states, weight = narrow(64, width), narrow(48, width, seed=1)
    found = []
    for is_faster in (False, True):
        monkeypatch.setattr(products, "_onednn_is_faster", lambda chosen=is_faster: chosen)
        with torch.no_grad():
            found.append(product(states, weight))
    assert torch.equal(*found)


def test_gradients_of_few_rows_are_those_of_the_product() -> None:
    states, weight = normal(3, WIDTH).requires_grad_(), normal(7, WIDTH, seed=1).requires_grad_()
    bias = normal(7, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(product, (states, weight, bias))
    assert torch.autograd.gradgradcheck(product, (states, weight, bias))


def test_it_does_in_torchs_own() -> None:
    """Else the test above would show nothing."""
    states, weight = narrow(300, 400), narrow(256, 400, seed=1)
    whole = functional.linear(states, weight)
    assert not torch.equal(functional.linear(states[:1], weight), whole[:1])


@pytest.mark.parametrize("multiply", [product, tiled_product])
@pytest.mark.parametrize("shape", [(0, WIDTH), (1, WIDTH), (2, 3, WIDTH), (1, 2, 17, WIDTH)])
def test_rows_are_filled_up_unseen(
    multiply: Multiply, shape: tuple[int, ...], onednn: bool
) -> None:
    states, weight, bias = narrow(*shape), narrow(VOCABULARY, WIDTH, seed=1), narrow(1, VOCABULARY)
    with torch.no_grad():
        found = multiply(states, weight, bias[0])
    torch.testing.assert_close(found, functional.linear(states, weight, bias[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("multiply", [product, tiled_product])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_product_is_torchs_own(
    multiply: Multiply, dtype: torch.dtype, by_onednn: list[Tensor], by_blas: list[Tensor]
) -> None:
    states, weight = normal(STATES, WIDTH).to(dtype), normal(VOCABULARY, WIDTH).to(dtype)
    with torch.no_grad():
        assert torch.equal(multiply(states, weight), functional.linear(states, weight))
    assert not by_onednn
    assert not by_blas


def test_float64_stays_with_torchs_own(by_onednn: list[Tensor], by_blas: list[Tensor]) -> None:
    states, weight = normal(16, WIDTH), normal(VOCABULARY, WIDTH)
    with torch.no_grad():
        assert torch.equal(product(states, weight), functional.linear(states, weight))
        tiled_product(states, weight)
    assert not by_onednn
    assert by_blas


@pytest.mark.parametrize("multiply", [product, tiled_product])
def test_autocast_is_kept(
    multiply: Multiply, by_onednn: list[Tensor], by_blas: list[Tensor]
) -> None:
    states, weight = narrow(STATES, WIDTH), narrow(VOCABULARY, WIDTH)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert multiply(states, weight).dtype == torch.bfloat16
    assert not by_onednn
    assert not by_blas


@pytest.mark.parametrize("multiply", [product, tiled_product])
def test_gradients_are_kept(
    multiply: Multiply, by_onednn: list[Tensor], by_blas: list[Tensor]
) -> None:
    states, weight = narrow(STATES, WIDTH), narrow(VOCABULARY, WIDTH).requires_grad_()
    multiply(states, weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, states.sum(0).expand_as(weight))
    assert not by_onednn
    assert not by_blas


@pytest.mark.parametrize("multiply", [product, tiled_product])
def test_forward_derivatives_are_kept(
    multiply: Multiply, by_onednn: list[Tensor], by_blas: list[Tensor]
) -> None:
    states, weight = narrow(STATES, WIDTH), narrow(VOCABULARY, WIDTH, seed=1)
    slope = narrow(VOCABULARY, WIDTH, seed=2)
    with torch.no_grad(), forward_ad.dual_level():
        found = multiply(states, forward_ad.make_dual(weight, slope))
        tangent = forward_ad.unpack_dual(found).tangent
    torch.testing.assert_close(tangent, states @ slope.t())
    assert not by_onednn
    assert not by_blas


def test_operands_that_do_not_fit_have_torchs_error(onednn: bool) -> None:
    states = normal(STATES, WIDTH)
    for weight in (
        normal(VOCABULARY, WIDTH + 1),
        normal(VOCABULARY, 2 * WIDTH),
        normal(VOCABULARY, WIDTH).float(),
    ):
        for multiply in (tiled_product, product, functional.linear):
            with torch.no_grad(), pytest.raises(RuntimeError, match=r"shapes|same dtype|dtype"):
                multiply(states, weight)


class Doubled(Tensor):
    """A weight that stands for twice its numbers, as a quantised one does for others."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **(kwargs or {}))
        return 2 * found if func is functional.linear else found


@pytest.mark.parametrize("scope", [head_products, layer_products])
def test_a_weight_of_a_class_of_its_own_is_multiplied_by_it(
    scope: Callable[[torch.device], Any], by_onednn: list[Tensor], by_blas: list[Tensor]
) -> None:
    states, weight = narrow(STATES, WIDTH), narrow(VOCABULARY, WIDTH, seed=1)
    with torch.no_grad(), scope(CPU):
        found = functional.linear(states, weight.as_subclass(Doubled))
    torch.testing.assert_close(found.as_subclass(Tensor), 2 * states @ weight.t())
    assert not by_onednn
    assert not by_blas


def test_little_work_is_torchs_own(
    by_onednn: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight = narrow(STATES, WIDTH), narrow(VOCABULARY, WIDTH)
    for least, calls in ((STATES * WIDTH * VOCABULARY + 1, 0), (STATES * WIDTH * VOCABULARY, 1)):
        monkeypatch.setattr(products, "_MIN_WORK", least)
        with torch.no_grad():
            product(states, weight)
        assert len(by_onednn) == calls


def test_onednn_turned_off_in_torch_is_off(
    by_onednn: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, weight = narrow(STATES, WIDTH), narrow(VOCABULARY, WIDTH)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with torch.no_grad():
        assert torch.equal(product(states, weight), functional.linear(states, weight))
    assert not by_onednn


@pytest.fixture
def undecided() -> Iterator[None]:
    """Which library is faster is found anew, in the test and after it."""
    products._onednn_is_faster.cache_clear()
    yield
    products._onednn_is_faster.cache_clear()


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(
    ("processor", "capability", "mkl", "faster"),
    [
        (AMD, "AVX512", True, True),
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "AVX512", True, True),
        (AMD, "AVX2", True, False),
        (AMD, "AVX512", False, False),
        (INTEL, "AVX512", True, False),
        ("", "AVX512", True, False),
    ],
)
def test_where_onednn_is_faster(
    processor: str, capability: str, mkl: bool, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert products._onednn_is_faster() is faster
    with layer_products(CPU), torch.no_grad():
        found = functional.linear(narrow(STATES, WIDTH), narrow(VOCABULARY, WIDTH, seed=1))
    expected = narrow(STATES, WIDTH) @ narrow(VOCABULARY, WIDTH, seed=1).t()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_inside_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    for name in ("product", "tiled_product"):
        monkeypatch.setattr(products, name, lambda *arguments: calls.append(arguments))
    states, weight = normal(STATES, WIDTH), normal(VOCABULARY, WIDTH)
    for scope in (head_products, layer_products):
        calls.clear()
        with scope(torch.device("cuda")):
            functional.linear(states, weight)
        assert not calls
        with scope(CPU):
            functional.linear(states, weight)
            assert torch.equal(torch.relu(states), states.clamp(min=0))
        assert len(calls) == 1
        assert functional.linear(states, weight).shape == (STATES, VOCABULARY)
        assert len(calls) == 1


def test_a_model_is_scored_by_it(
    tiny_llama: Callable[..., Any], by_onednn: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = tiny_llama()
    sequences, policy = random_sequences(llama.config.vocab_size), SamplingPolicy(top_p=0.9)
    scorer = TeacherForcingScorer(llama)
    by_onednn.clear()
    found = scorer.score(sequences, policy)[0]
    num_layers = len([m for m in llama.modules() if isinstance(m, torch.nn.Linear)]) - 1
    assert len(by_onednn) > num_layers
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    expected = scorer.score(sequences, policy)[0]
    assert 0 < distance(found, expected) < 2e-5


def test_derivatives_go_through_it(tiny_llama: Callable[..., Any], by_onednn: list[Tensor]) -> None:
    """Central differences of a float64 pass, which oneDNN has no part in, are the oracle."""
    llama = tiny_llama()
    sequences, policy = random_sequences(llama.config.vocab_size), SamplingPolicy()
    scorer = TeacherForcingScorer(llama)
    direction = {
        name: 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        for i, (name, p) in enumerate(llama.named_parameters())
    }
    by_onednn.clear()
    found = jvp(scorer, sequences, policy, direction)
    assert by_onednn
    low, high = scorer.score(
        sequences,
        policy,
        overrides=[
            build_params_override(llama, direction, eta, dtype=torch.float64)
            for eta in (-1e-4, 1e-4)
        ],
    )
    for each, below, above in zip(found, low, high, strict=True):
        slope = (above.logprobs - below.logprobs) / 2e-4
        torch.testing.assert_close(each.logprobs.double(), slope, rtol=1e-3, atol=1e-3)
