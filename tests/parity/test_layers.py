"""Which module of two models first differs: one changed weight, other dtypes, other code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from seqproc.errors import ConfigError, ModelError, OverrideError, SequenceError
from seqproc.parity import first_difference

SEQUENCES = [(40, 41, 42, 43, 44), (50, 51, 52)]
MODULES = [
    "model.embed_tokens",
    "model.layers.0.self_attn.k_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.1.input_layernorm",
    "model.layers.1.mlp.gate_proj",
    "model.norm",
    "lm_head",
]


def with_one_changed(model: Any, name: str, step: float = 1.0) -> dict[str, torch.Tensor]:
    weight = model.get_parameter(name).detach().clone()
    weight.view(-1)[weight.shape[-1] * 40 if "embed" in name else 3] += step
    return {name: weight}


@pytest.mark.parametrize("module", MODULES)
def test_one_changed_weight_names_its_module(tiny_llama: Callable[..., Any], module: str) -> None:
    model = tiny_llama()
    name = f"{module}.weight"
    override = with_one_changed(model, name)
    found = first_difference(model, model, SEQUENCES, second_override=override)
    assert found is not None
    assert (found.module, found.parameters, found.num_parameters) == (module, (name,), 1)
    assert found.kind == type(model.get_submodule(module)).__name__
    assert found.difference > found.tolerance == 1e-4
    # The same from the other side, and with the weight in the model itself.
    changed = copy.deepcopy(model)
    changed.load_state_dict(override, strict=False)
    for again in (
        first_difference(model, model, SEQUENCES, first_override=override),
        first_difference(model, changed, SEQUENCES),
    ):
        assert again is not None
        assert (again.module, again.parameters) == (module, (name,))


def test_what_is_equal_has_no_first_difference(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    assert first_difference(model, copy.deepcopy(model), SEQUENCES, tolerance=0.0) is None
    assert all(not module._forward_hooks for module in model.modules())


def test_a_small_change_is_found_with_no_tolerance(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    override = with_one_changed(model, "model.layers.1.mlp.up_proj.weight", 1e-6)
    assert first_difference(model, model, SEQUENCES, second_override=override) is None
    found = first_difference(model, model, SEQUENCES, second_override=override, tolerance=0.0)
    assert found is not None
    assert found.module == "model.layers.1.mlp.up_proj"


def test_the_difference_is_that_of_the_vectors(tiny_llama: Callable[..., Any]) -> None:
    """A layer norm whose weights double doubles its output: ‖a − 2a‖ / ‖a‖ = 1."""
    model = tiny_llama()
    name = "model.layers.0.post_attention_layernorm.weight"
    override = {name: 2 * model.get_parameter(name).detach()}
    found = first_difference(model, model, SEQUENCES, second_override=override)
    assert found is not None
    assert found.difference == pytest.approx(1.0, abs=1e-6)
    # What finishes before it: the embedding, the rotary one, a norm, four projections, attention.
    assert found.num_before == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_within_its_tolerance_and_a_fault_in_it_is_not(
    tiny_llama: Callable[..., Any], dtype: torch.dtype
) -> None:
    model = tiny_llama()
    other = copy.deepcopy(model).to(dtype)
    assert first_difference(model, other, SEQUENCES) is None
    exact = first_difference(model, other, SEQUENCES, tolerance=0.0)
    assert exact is not None
    assert exact.num_parameters == 0  # rounded alike, the weights are the same
    name = "model.layers.1.mlp.gate_proj.weight"
    other.load_state_dict({name: -other.get_parameter(name).detach()}, strict=False)
    found = first_difference(model, other, SEQUENCES)
    assert found is not None
    assert (found.module, found.parameters) == (name.removesuffix(".weight"), (name,))


def test_other_code_is_named_without_parameters(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    other = copy.deepcopy(model)
    for layer in other.model.layers:
        layer.self_attn.scaling *= 2
    found = first_difference(model, other, SEQUENCES)
    assert found is not None
    # Attention's own code lies between its projections: the last of them sees it first.
    assert (found.module, found.kind) == ("model.layers.0.self_attn.o_proj", "Linear")
    assert (found.parameters, found.num_parameters) == ((), 0)


def test_other_kernels_do_not_differ(tiny_llama: Callable[..., Any]) -> None:
    """Eager attention returns its weights as well, and sdpa does not."""
    eager = tiny_llama(attn_implementation="eager")
    sdpa = tiny_llama(attn_implementation="sdpa")
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == (
        "eager",
        "sdpa",
    )
    sdpa.load_state_dict(eager.state_dict())
    assert first_difference(eager, sdpa, SEQUENCES) is None


def test_other_shapes_and_nan_are_infinitely_far(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    wide = tiny_llama(intermediate_size=96)
    wide.load_state_dict(
        {k: v for k, v in model.state_dict().items() if ".mlp." not in k}, strict=False
    )
    found = first_difference(model, wide, SEQUENCES)
    assert found is not None
    assert (found.module, found.difference) == ("model.layers.0.mlp.gate_proj", math.inf)
    broken = copy.deepcopy(model)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    found = first_difference(model, broken, SEQUENCES)
    assert found is not None
    assert (found.module, found.difference) == ("model.layers.1.mlp.up_proj", math.inf)


def test_what_does_not_compare_is_refused(tiny_llama: Callable[..., Any]) -> None:
    model = tiny_llama()
    with pytest.raises(SequenceError, match="at least one token each"):
        first_difference(model, model, [])
    with pytest.raises(SequenceError, match="at least one token each"):
        first_difference(model, model, [(40,), ()])
    odd: list[Any] = [[(40, 1.5)], [40, 41], 3]
    for sequences in odd:
        with pytest.raises(SequenceError, match="sequences of token ids, integers each"):
            first_difference(model, model, sequences)
    wrong: list[Any] = [-1.0, "a", math.nan]
    for tolerance in wrong:
        with pytest.raises(ConfigError, match="tolerance must be a number"):
            first_difference(model, model, SEQUENCES, tolerance=tolerance)
    with pytest.raises(OverrideError, match="nothing"):
        first_difference(model, model, SEQUENCES, second_override={"nothing": torch.zeros(1)})
    with pytest.raises(ModelError, match="no modules of the same names"):
        first_difference(model, Renamed(model), SEQUENCES)


class Renamed(torch.nn.Module):
    """A model under another name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = copy.deepcopy(model)

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


def test_an_id_that_a_model_does_not_embed_is_refused(tiny_llama: Callable[..., Any]) -> None:
    large, small = tiny_llama(), tiny_llama(vocab_size=50)
    for pair in ((large, small), (small, large)):
        with pytest.raises(SequenceError, match="token id 50 is none of the 50"):
            first_difference(*pair, [[1, 49], [2, 50]])
    with pytest.raises(SequenceError, match="token id -1 is none"):
        first_difference(large, large, [[-1]])
    assert first_difference(small, small, [[49]]) is None


def test_a_row_of_zeros_is_held_against_the_longest_of_its_module(
    tiny_llama: Callable[..., Any],
) -> None:
    """The embedding of the padding token, 1, is zero: the smallest change of it is no fault."""
    first, second = tiny_llama(), tiny_llama()
    rows = second.get_input_embeddings().weight.data
    longest = float(rows[[5, 1]].double().norm(dim=-1).max())
    assert float(rows[1].norm()) == 0
    rows[1, 0] = 1e-7
    assert first_difference(first, second, [[5, 1]], tolerance=1e-4) is None
    rows[1, 0] = 0.5
    found = first_difference(first, second, [[5, 1]])
    assert found is not None
    assert (found.module, found.shapes) == ("model.embed_tokens", None)
    assert found.difference == pytest.approx(0.5 / longest)


def test_other_shapes_are_named(tiny_llama: Callable[..., Any]) -> None:
    found = first_difference(tiny_llama(), tiny_llama(hidden_size=16), [[5, 7, 9]])
    assert found is not None
    assert found.difference == math.inf
    width = tiny_llama().config.hidden_size
    assert found.shapes == ((1, 3, width), (1, 3, 16))
