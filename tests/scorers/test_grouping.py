"""Attention with the heads of a key head as rows of one, against Hugging Face's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scorer_helpers import distance, families, float64_profiles
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, grouping
from seqproc.scorers.grouping import grouped_attention

ROWS, LENGTH, KEYS, WIDTH = 3, 5, 9, 4


class Layer(nn.Module):
    """What an attention function asks of a layer."""

    is_causal = True

    def __init__(self, num_key_value_groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = num_key_value_groups


def operands(
    heads: int, key_heads: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    keys = (normal(ROWS, key_heads, KEYS, WIDTH) for _ in range(2))
    return normal(ROWS, LENGTH, heads, WIDTH).transpose(1, 2), *keys


def causal(rows: int = ROWS) -> Tensor:
    """The responses' mask, with a first key that one row does not see."""
    mask = torch.ones(rows, 1, LENGTH, KEYS, dtype=torch.bool).tril(KEYS - LENGTH)
    mask[0, :, :, 0] = False
    return mask


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many heads were taken together, call by call."""
    found: list[int] = []
    mask_of_rows = grouping._mask_of_rows

    def record(mask: Tensor, in_common: int, dtype: torch.dtype) -> Tensor:
        found.append(in_common)
        return mask_of_rows(mask, in_common, dtype)

    monkeypatch.setattr(grouping, "_mask_of_rows", record)
    return found


@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (6, 3), (4, 1)])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("kind", ["bool", "added", "one for all"])
def test_it_is_attention(
    heads: int, key_heads: int, scaling: float | None, kind: str, grouped: list[int]
) -> None:
    query, key, value = operands(heads, key_heads)
    mask = causal(1 if kind == "one for all" else ROWS)
    if kind == "added":
        slopes = torch.randn(mask.shape, dtype=query.dtype)
        mask = slopes.masked_fill(~mask, torch.finfo(query.dtype).min)
    layer = Layer(heads // key_heads)
    with torch.no_grad():
        found, _ = grouping._attend(layer, query, key, value, mask, scaling=scaling)
        expected, _ = sdpa_attention_forward(layer, query, key, value, mask, scaling=scaling)
        other, _ = sdpa_attention_forward(layer, query, key, value, None, scaling=scaling)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert float((found - other).abs().max()) > 1e-2  # the mask counts here
    assert grouped == [heads // key_heads]


@pytest.mark.parametrize(
    "changed",
    [
        {"heads": 2},
        {"mask": None},
        {"mask": causal().expand(-1, 6, -1, -1)},
        {"mask": causal()[1, :, -1:]},
        {"limits": {"_MOST_QUERIES": LENGTH}},
        {"limits": {"_MOST_MASKED": 3 * KEYS - 1}},
        {"options": {"position_bias": torch.zeros(1, 6, LENGTH, KEYS, dtype=torch.float64)}},
        {"options": {"dropout": 1e-9}},
    ],
    ids=[
        "no heads in common",
        "no mask",
        "a mask per head",
        "a mask of 3 dimensions",
        "long",
        "wide",
        "bias",
        "dropout",
    ],
)
def test_what_would_not_gain_is_hugging_faces_own(
    changed: dict[str, Any], grouped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changed.get("limits", {}).items():
        monkeypatch.setattr(grouping, name, value)
    heads = changed.get("heads", 6)
    query, key, value = operands(heads, 2)
    arguments = (Layer(heads // 2), query, key, value, changed.get("mask", causal()))
    options = changed.get("options", {})
    with torch.no_grad():
        found, _ = grouping._attend(*arguments, **options)
        expected, _ = sdpa_attention_forward(*arguments, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not grouped


def test_the_limits_are_reached(grouped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_MOST_QUERIES", LENGTH + 1)
    monkeypatch.setattr(grouping, "_MOST_MASKED", 3 * KEYS)
    with torch.no_grad():
        grouping._attend(Layer(3), *operands(6, 2), causal())
    assert grouped == [3]


def test_a_mask_is_made_once_and_not_kept() -> None:
    mask = causal()
    first = grouping._mask_of_rows(mask, 3, torch.float32)
    assert first.shape == (ROWS, 1, 3 * LENGTH, KEYS)
    assert grouping._mask_of_rows(mask, 3, torch.float32) is first
    assert grouping._mask_of_rows(mask.clone(), 3, torch.float32) is not first
    before = len(grouping._MASKS)
    del mask
    assert len(grouping._MASKS) < before


def test_the_model_is_as_before_afterwards(tiny_llama: Any) -> None:
    model = tiny_llama()
    with torch.no_grad():
        with grouped_attention(model):
            assert model.config._attn_implementation == grouping._NAME
        with pytest.raises(KeyError), grouped_attention(model):
            raise KeyError
    assert model.config._attn_implementation == "sdpa"


def test_other_attention_and_gradients_stay_as_they_are(tiny_llama: Any) -> None:
    model = tiny_llama()
    with torch.enable_grad(), grouped_attention(model):
        assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with torch.no_grad(), grouped_attention(model):
        assert model.config._attn_implementation == "eager"
    with torch.no_grad(), grouped_attention(nn.Linear(2, 2)):
        pass


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2"])
def test_responses_to_shared_prompts_are_read_so(
    family: str, request: pytest.FixtureRequest, grouped: list[int]
) -> None:
    model, policy = request.getfixturevalue(family)(), SamplingPolicy(top_p=0.9)
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    grouped.clear()
    together = scorer.score(families(300), policy)[0]
    assert grouped == [2] * model.config.num_hidden_layers
    apart = scorer.score(families(300), policy, share_prompts=False)[0]
    assert grouped == [2] * model.config.num_hidden_layers
    assert distance(apart, together) < 1e-11
