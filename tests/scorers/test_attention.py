"""Attention in a fixed order of sums, against Hugging Face's own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from helpers.scorer_helpers import distance, families, float64_profiles, same_bits
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer
from seqproc.scorers.kernels import attention
from seqproc.scorers.kernels.attention import attention_in_order

ROWS, LENGTH, KEYS, WIDTH = 3, 5, 9, 4


class Layer(nn.Module):
    """What an attention function asks of a layer."""

    is_causal = True

    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = num_key_value_groups


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def operands(
    heads: int,
    key_heads: int,
    length: int = LENGTH,
    keys: int = KEYS,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, laid out as a model's layers do."""
    query = normal(ROWS, length, heads, WIDTH, dtype=dtype).transpose(1, 2)
    both = normal(2, ROWS, keys, key_heads, WIDTH, dtype=dtype).transpose(2, 3)
    return query, both[0], both[1]


def causal(length: int = LENGTH, keys: int = KEYS) -> Tensor:
    """Of responses, or of whole sequences, with first keys that one row does not see."""
    mask = torch.ones(ROWS, 1, length, keys, dtype=torch.bool).tril(keys - length)
    mask[0, :, :, : min(2, keys - length)] = False
    return mask


def window(length: int, keys: int) -> Tensor:
    """The 100 keys up to a query's own."""
    return causal(length, keys).triu(keys - length - 99)


@pytest.fixture
def courses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many heads of a key head were taken together, call by call."""
    found: list[int] = []
    course = attention._plan_of

    def record(mask: Tensor, heads: int, dtype: torch.dtype) -> Any:
        found.append(heads)
        return course(mask, heads, dtype)

    monkeypatch.setattr(attention, "_plan_of", record)
    return found


@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (6, 3), (4, 1), (2, 2)])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(
    ("length", "keys"), [(LENGTH, KEYS), (1, 7), (99, 240), (240, 240), (16, 600), (500, 500)]
)
@pytest.mark.parametrize("shape", [causal, window])
def test_it_is_attention(
    heads: int,
    key_heads: int,
    scaling: float | None,
    length: int,
    keys: int,
    shape: Callable[[int, int], Tensor],
    courses: list[int],
) -> None:
    query, key, value = operands(heads, key_heads, length, keys)
    mask, layer = shape(length, keys), Layer(heads // key_heads)
    with torch.no_grad():
        found, _ = attention._attend(layer, query, key, value, mask, scaling=scaling)
        expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=scaling)
        other, _ = sdpa_attention_forward(
            layer, query, key, value, mask.roll(1, -1), scaling=scaling
        )
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert float((found - other).abs().max()) > 1e-2  # the mask counts here
    assert courses == [heads // key_heads]


@pytest.mark.parametrize(("most", "together"), [(3 * KEYS, [3]), (2 * KEYS, [2, 1]), (1, [1] * 3)])
def test_heads_go_apart_where_their_masks_would_take_much_memory(
    most: int, together: list[int], courses: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = operands(6, 2)
    monkeypatch.setattr(attention, "_MOST_MASKED", most)
    with torch.no_grad():
        found, _ = attention._attend(Layer(3), query, key, value, causal())
        expected, _ = sdpa_attention_forward(Layer(3), query, key, value, causal())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert courses == together


def test_a_query_that_sees_no_key_is_a_number() -> None:
    query, key, value = operands(6, 2, 300, 300)
    mask = causal(300, 300)
    mask[1, :, 7] = False
    mask[2] = False
    with torch.no_grad():
        found, _ = attention._attend(Layer(3), query, key, value, mask)
    assert bool(found.isfinite().all())


def alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One sequence, its last queries, nothing padded."""
    mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool)
    found, _ = attention._attend(
        Layer(3), query, key, value, mask.tril(key.shape[2] - query.shape[2])
    )
    return found


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same by PyTorch."""
    found, _ = sdpa_attention_forward(Layer(3), query, key, value, None)
    return found


def long_operands(keys: int) -> tuple[Tensor, Tensor, Tensor]:
    query = normal(1, keys, 9, 64, dtype=torch.float32).transpose(1, 2) * 2
    both = normal(2, 1, keys, 3, 64, dtype=torch.float32).transpose(2, 3)
    return query, both[0], both[1]


@same_bits
@pytest.mark.parametrize("keys", [30, 150, 192, 193, 250, 384, 401, 700])
@pytest.mark.parametrize("before", [0, 1, 37])
@pytest.mark.parametrize("after", [0, 3, 150])
def test_padding_changes_no_bit(keys: int, before: int, after: int) -> None:
    query, key, value = long_operands(keys)
    q, k, v = (functional.pad(t, (0, 0, before, after), value=1.5) for t in (query, key, value))
    length = before + keys + after
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    mask[..., :before] = False
    mask[..., before + keys :] = False
    with torch.no_grad():
        found, _ = attention._attend(Layer(3), q, k, v, mask)
        assert torch.equal(found[:, before : before + keys], alone(query, key, value))


@same_bits
@pytest.mark.parametrize("keys", [30, 250, 401])
@pytest.mark.parametrize("first", [1, 13, 29])
def test_the_queries_beside_change_no_bit(keys: int, first: int) -> None:
    query, key, value = long_operands(keys)
    with torch.no_grad():
        whole = alone(query, key, value)
        assert torch.equal(alone(query[:, :, first:], key, value), whole[:, first:])


@same_bits
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_the_sequences_beside_change_no_bit(rows: int) -> None:
    query, key, value = long_operands(250)
    q, k, v = (t.repeat(rows, 1, 1, 1) for t in (query, key, value))
    mask = torch.ones(rows, 1, 250, 250, dtype=torch.bool).tril()
    with torch.no_grad():
        found, _ = attention._attend(Layer(3), q, k, v, mask)
        whole = alone(query, key, value)
    assert all(torch.equal(row, whole[0]) for row in found)


@same_bits
def test_padding_does_change_bits_of_fused_attention() -> None:
    """Else the tests above would show nothing."""
    sequence = long_operands(250)
    padded = [functional.pad(t, (0, 0, 0, 150)) for t in sequence]
    with torch.no_grad():
        assert not torch.equal(fused(*padded)[:, :250], fused(*sequence))


@pytest.mark.parametrize(
    "changed",
    [
        {"mask": None},
        {"mask": causal().expand(-1, 6, -1, -1)},
        {"mask": causal()[1, :, -1:]},
        {"mask": causal()[1:2]},
        {"mask": torch.zeros(ROWS, 1, LENGTH, KEYS).masked_fill(~causal(), -torch.inf).double()},
        {"options": {"position_bias": torch.zeros(1, 6, LENGTH, KEYS, dtype=torch.float64)}},
        {"options": {"dropout": 1e-9}},
        {"dtype": torch.bfloat16},
        {"width": WIDTH - 1},
    ],
    ids=[
        "no mask",
        "a mask per head",
        "a mask of 3 dimensions",
        "a mask for all",
        "an added mask",
        "bias",
        "dropout",
        "half precision",
        "narrow values",
    ],
)
def test_what_a_mask_does_not_say_is_hugging_faces_own(
    changed: dict[str, Any], courses: list[int]
) -> None:
    query, key, value = operands(6, 2, dtype=changed.get("dtype", torch.float64))
    value = value[..., : changed.get("width", WIDTH)]
    arguments = (Layer(3), query, key, value, changed.get("mask", causal()))
    options = changed.get("options", {})
    with torch.no_grad():
        found, _ = attention._attend(*arguments, **options)
        expected, _ = sdpa_attention_forward(*arguments, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not courses


def test_so_is_what_moves(courses: list[int]) -> None:
    """Fused attention has no forward derivative, and raises."""
    query, key, value = operands(6, 2)
    with torch.no_grad(), forward_ad.dual_level():
        moving = forward_ad.make_dual(key, torch.ones_like(key))
        with pytest.raises(NotImplementedError):
            attention._attend(Layer(3), query, moving, value, causal())
    assert not courses


@pytest.mark.parametrize(
    ("which", "twice"),  # in the values attention is linear
    [("query", False), ("key", False), ("value", False), ("query", True), ("key", True)],
)
@pytest.mark.parametrize(("length", "keys"), [(5, 9), (40, 240)])
def test_derivatives_are_those_of_hugging_faces(
    which: str, twice: bool, length: int, keys: int, courses: list[int]
) -> None:
    """Of one operand at a time, and the second ones where fused attention is not allowed."""
    given = dict(zip(("query", "key", "value"), operands(6, 2, length, keys), strict=True))
    leaf, mask = given[which].requires_grad_(), causal(length, keys)
    weights = normal(ROWS, length, 6, WIDTH)

    def gradient(attend: Callable[..., tuple[Tensor, None]]) -> Tensor:
        out, _ = attend(Layer(3), *given.values(), mask)
        with sdpa_kernel(SDPBackend.MATH):
            (first,) = torch.autograd.grad((out * weights).sum(), leaf, create_graph=twice)
            if not twice:
                return first
            (second,) = torch.autograd.grad(first.square().sum(), leaf)
        return second

    found = gradient(attention._attend)
    assert courses == [3]
    with sdpa_kernel(SDPBackend.MATH):
        expected = gradient(sdpa_attention_forward)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert float(expected.abs().max()) > 1e-3


def test_a_graph_does_not_keep_the_course() -> None:
    query, key, value = (t.requires_grad_() for t in operands(6, 2))
    mask = causal()
    out, _ = attention._attend(Layer(3), query, key, value, mask)
    gc.collect()
    before = len(attention._PLANS)
    del mask
    assert len(attention._PLANS) == before - 1
    out.sum().backward()


def test_a_course_is_made_once_and_not_kept() -> None:
    mask = causal()
    first = attention._plan_of(mask, 3, torch.float32)
    assert attention._plan_of(mask, 3, torch.float32) is first
    assert attention._plan_of(mask, 1, torch.float32) is not first
    assert attention._plan_of(mask, 3, torch.float64) is not first
    assert attention._plan_of(mask.clone(), 3, torch.float32) is not first
    gc.collect()
    before = len(attention._PLANS)
    del mask
    assert len(attention._PLANS) == before - 1


def test_the_model_is_as_before_afterwards(tiny_llama: Any) -> None:
    model = tiny_llama()
    with torch.no_grad():
        with attention_in_order(model):
            assert model.config._attn_implementation == attention._NAME
        with pytest.raises(KeyError), attention_in_order(model):
            raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_other_attention_stays_as_it_is(tiny_llama: Any) -> None:
    model = tiny_llama()
    model.set_attn_implementation("eager")
    with torch.no_grad(), attention_in_order(model):
        assert model.config._attn_implementation == "eager"
    with torch.no_grad(), attention_in_order(nn.Linear(2, 2)):
        pass


def test_so_does_attention_that_must_not_be_fused(tiny_llama: Any) -> None:
    model = tiny_llama()
    with sdpa_kernel(SDPBackend.MATH), attention_in_order(model):
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
def test_every_layer_of_a_model_is_read_so(
    family: str, request: pytest.FixtureRequest, courses: list[int]
) -> None:
    model, policy = request.getfixturevalue(family)(), SamplingPolicy(top_p=0.9)
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    layers = model.config.num_hidden_layers
    courses.clear()
    together = scorer.score(families(300), policy)[0]
    assert courses == [2] * layers * 3  # prompts, responses to them, sequences of their own
    courses.clear()
    apart = scorer.score(families(300), policy, share_prompts=False)[0]
    assert len(courses) == layers * len(scorer.schedule(families(300), share_prompts=False).batches)
    assert distance(apart, together) < 1e-11


@same_bits
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
@pytest.mark.parametrize(
    "options",
    [{"share_prompts": True}, {"batch_size": 1}, {"batch_size": 3}, {"token_budget": 500}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_scored_beside_a_sequence_changes_no_bit(
    family: str, request: pytest.FixtureRequest, options: dict[str, Any]
) -> None:
    scorer = TeacherForcingScorer(request.getfixturevalue(family)())
    policy, sequences = SamplingPolicy(top_p=0.9), families(300)
    expected = scorer.score(sequences, policy, share_prompts=False)[0]
    found = scorer.score(sequences, policy, **({"share_prompts": False} | options))[0]
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
        assert torch.equal(one.logqs, other.logqs)
        assert torch.equal(one.stats.rb_entropy, other.stats.rb_entropy)


@same_bits
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
def test_a_graph_changes_no_bit(family: str, request: pytest.FixtureRequest) -> None:
    """So that the ratio of importance of a policy to itself is 1."""
    scorer = TeacherForcingScorer(request.getfixturevalue(family)())
    policy, sequences = SamplingPolicy(top_p=0.9), families(300)
    expected = scorer.score(sequences, policy)[0]
    for one, other in zip(expected, scorer.score_with_grad(sequences, policy), strict=True):
        assert torch.equal(one.logprobs, other.logprobs)
        assert torch.equal(one.logqs, other.logqs)
        assert torch.equal(one.stats.rb_entropy, other.stats.rb_entropy)
