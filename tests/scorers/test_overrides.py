"""Overrides θ + η·v: exact values, exact names, and a model that is never changed."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.scorer_helpers import distance, random_sequences
from seqproc.config import PrecisionConfig
from seqproc.errors import OverrideError
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, build_params_override, build_state_override
from seqproc.scorers.overrides import resolve_mapping

POLICY = SamplingPolicy(top_p=0.9)
NAME = "model.layers.0.mlp.gate_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def direction_of(model: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}


def scored(model, *overrides, buffers=None, precision=None):
    scorer = TeacherForcingScorer(model, precision=precision)
    sequences = random_sequences(40)
    return scorer.score(sequences, POLICY, batch_size=4, overrides=overrides, buffers=buffers)


# Values.


@pytest.mark.parametrize("eta", [1e-8, -0.37, 3])
def test_values_are_theta_plus_eta_v_in_float64(tiny_llama, eta):
    model = tiny_llama()
    v = direction_of(model)[NAME].double()[:2].repeat(32, 1) / 3
    got = build_params_override(model, {NAME: v}, eta, dtype=torch.float64)[NAME]
    theta = model.get_parameter(NAME).detach()
    assert got.dtype == torch.float64
    for i in range(0, theta.numel(), 37):
        step = Fraction(eta) * Fraction(v.flatten()[i].item())
        exact = Fraction(theta.flatten()[i].item()) + step
        error = abs(Fraction(got.flatten()[i].item()) - exact)
        unit = Fraction(2) ** -53
        assert error <= unit * (abs(exact) + abs(step)) * (1 + unit)
        assert error < abs(step) * Fraction(1, 10**6)  # the step itself arrives, to six digits
    narrow = build_params_override(model, {NAME: v.float()}, eta)[NAME]
    assert narrow.dtype == torch.float32
    if abs(eta) < 1e-6:  # the twin: in float32 a step this small is mostly lost
        assert (narrow.double() - got).abs().max() > 1e-2 * abs(eta)


def test_the_step_is_taken_at_the_widest_dtype_in_play(tiny_llama):
    model = tiny_llama().to(torch.bfloat16)
    v = {NAME: direction_of(model)[NAME]}
    for dtype, found in [
        (None, torch.float32),  # that of v
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        mapping = build_params_override(model, v, 0.5, dtype=dtype)
        assert mapping[NAME].dtype == found
        want = model.get_parameter(NAME).to(found) + 0.5 * v[NAME].to(found)
        assert torch.equal(mapping[NAME], want)


def test_casts_only_go_up(tiny_llama):
    model = tiny_llama().double()
    mapping = build_params_override(model, {}, 1.0, dtype=torch.float32)
    assert {t.dtype for t in mapping.values()} == {torch.float64}


# Sharing, and the model left alone.


def test_unmoved_parameters_share_storage_and_moved_ones_do_not(tiny_llama):
    model = tiny_llama()
    mapping = build_params_override(model, {NAME: torch.ones(64, 32)}, 1e-3)
    assert list(mapping) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert (mapping[name].data_ptr() == parameter.data_ptr()) == (name != NAME)
        assert not mapping[name].requires_grad
    cast = build_params_override(model, {}, 0.0, dtype=torch.float64)
    assert all(cast[n].data_ptr() != p.data_ptr() for n, p in model.named_parameters())


def test_a_forward_without_casts_copies_no_parameter(tiny_llama):
    model = tiny_llama()
    mapping, width = resolve_mapping(model, None, None, [torch.float32])
    assert width == torch.float32
    for name, parameter in model.named_parameters():
        assert mapping[name].data_ptr() == parameter.data_ptr()


def test_the_model_is_bitwise_unchanged(tiny_llama):
    model = tiny_llama().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    mapping = build_params_override(model, direction_of(model), 0.1, dtype=torch.float64)
    scored(model, mapping, {NAME: torch.ones(64, 32)})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_an_update_of_the_model_in_place_is_seen_at_once(tiny_llama):
    model = tiny_llama()
    scorer = TeacherForcingScorer(model)
    sequences = random_sequences(40)
    first = scorer.score(sequences, POLICY, batch_size=4)[0]
    with torch.no_grad():
        model.get_parameter(NAME).mul_(1.5)
    second = scorer.score(sequences, POLICY, batch_size=4)[0]
    assert distance(first, second, ["logprobs"]) > 1e-3


def test_state_override_adds_buffers_on_request(tiny_llama):
    model = tiny_llama()
    without = build_state_override(model, {}, 0.0)
    full = build_state_override(
        model, {}, 0.0, param_dtype=torch.float64, include_buffers=True, buffer_dtype=torch.float64
    )
    buffers = {name for name, _ in model.named_buffers()}
    assert buffers
    assert not buffers & set(without)
    assert set(full) == buffers | set(without)
    assert {full[name].dtype for name in buffers} == {torch.float64}


# Errors.


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))
        self.bias = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.twin = self.weight
        self.register_buffer("scale", torch.ones(2))


GOOD = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ({"wieght": GOOD}, r"no parameter named 'wieght'; did you mean 'weight'\?"),
        ({"zzz": GOOD}, r"no parameter named 'zzz'; model.named_parameters\(\) lists the names$"),
        ({3: GOOD}, r"no parameter named 3; model"),
        (
            {"module.weight": GOOD},
            r"'module.weight'; drop the prefix 'module\.' of the distributed wrapper: 'weight'",
        ),
        ({"scale": torch.ones(2)}, r"no parameter named 'scale'"),
        ({"weight": torch.ones(4)}, r"'weight': expected shape \[2, 2\], got \[4\]"),
        ({"weight": torch.ones(1, 2)}, r"expected shape \[2, 2\], got \[1, 2\]"),
        ({"weight": GOOD.to("meta")}, r"expected a tensor with data, got one on the device 'meta'"),
        ({"weight": GOOD.long()}, r"'weight': expected a floating dtype.*, got torch\.int64"),
        (
            {"weight": GOOD.to(torch.complex64)},
            r"expected a floating dtype.*, got torch\.complex64",
        ),
        ({"weight": GOOD.to(torch.float8_e4m3fn)}, r"of 16 bits or more, got torch\.float8_e4m3fn"),
        ({"weight": GOOD.to_sparse()}, r"'weight': expected a dense tensor, got sparse_coo; use"),
        ({"weight": GOOD.to_mkldnn()}, r"'weight': expected a dense tensor, got _mkldnn"),
        ({"weight": GOOD * float("nan")}, r"'weight' holds NaN or infinity in 4 of 4 entries$"),
        ({"weight": GOOD / 0}, r"'weight' holds NaN or infinity in 4 of 4 entries$"),
        ({"weight": [[1.0, 1.0], [1.0, 1.0]]}, r"'weight': expected a tensor, got list"),
        ({"weight": None}, r"expected a tensor, got NoneType"),
        (
            {"bias": torch.ones(2)},
            r"moves 1 frozen parameter\(s\), first 'bias'; pass allow_frozen",
        ),
        ({"weight": GOOD, "twin": 2 * GOOD}, r"'twin' is tied to 'weight': give one of them"),
        ({"twin": 2 * GOOD, "weight": GOOD}, r"'weight' is tied to 'twin': give one of them"),
        ([("weight", GOOD)], r"an override must map parameter names to tensors, got list"),
        (3, r"must map parameter names to tensors, got int"),
    ],
)
def test_what_does_not_fit_is_refused(direction, message):
    with pytest.raises(OverrideError, match=message):
        build_params_override(Wrapped(), direction, 1.0)


@pytest.mark.parametrize("eta", [float("nan"), float("inf"), "1", None, True, 1j, 10**400, [0.1]])
def test_eta_must_be_a_finite_number(eta):
    with pytest.raises(OverrideError, match="eta must be a finite number, got"):
        build_params_override(Wrapped(), {"weight": GOOD}, eta)


def test_eta_may_be_any_real_number():
    model = Wrapped()
    etas: tuple[Any, ...] = (np.float32(0.5), np.float64(0.5), Fraction(1, 2))
    for eta in etas:
        assert build_params_override(model, {"weight": GOOD}, eta)["weight"][0, 0] == 0.5


@pytest.mark.parametrize("direction", [None, {}])
@pytest.mark.parametrize("eta", [0.0, -3.0])
def test_no_direction_is_the_model_as_it_is(direction, eta):
    model = Wrapped()
    mapping = build_params_override(model, direction, eta)
    assert {name: t.data_ptr() for name, t in mapping.items()} == {
        name: p.data_ptr() for name, p in model.named_parameters()
    }
    assert build_state_override(model, direction, eta).keys() == mapping.keys()


def infinite() -> Wrapped:
    """A model one of whose bias entries forbids something."""
    model = Wrapped()
    model.bias.data[0] = -torch.inf
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_infinity_of_the_models_own_passes(dtype):
    model = infinite()
    moved = build_params_override(model, {"weight": GOOD}, 0.5, dtype=dtype)
    state, _ = resolve_mapping(model, moved, None, [])
    assert state["bias"].tolist() == [-torch.inf, 0]
    too = build_params_override(model, {"bias": torch.ones(2)}, 0.5, allow_frozen=True)
    assert resolve_mapping(model, too, None, [])[0]["bias"].tolist() == [-torch.inf, 0.5]
    mended = {"bias": torch.ones(2)}
    assert resolve_mapping(model, mended, None, [])[0]["bias"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("bias", "number"),
    [([-torch.inf, torch.inf], 1), ([torch.inf, 0], 1), ([torch.nan, torch.nan], 2)],
)
def test_a_new_infinity_or_nan_is_refused_and_counted(bias, number):
    message = rf"parameter 'bias' holds NaN or infinity in {number} of 2 entries where the model's"
    with pytest.raises(OverrideError, match=message):
        resolve_mapping(infinite(), {"bias": torch.tensor(bias)}, None, [])
    broken = Wrapped()
    broken.bias.data[:] = torch.nan
    with pytest.raises(OverrideError, match=r"in 2 of 2 entries"):  # not NaN, though it is there
        resolve_mapping(broken, {"bias": broken.bias.detach()}, None, [])
    with pytest.raises(OverrideError, match=r"buffer 'scale' holds NaN or infinity in 1 of 2"):
        resolve_mapping(infinite(), None, {"scale": torch.tensor([1, torch.inf])}, [])


def test_a_direction_is_not_infinite_where_the_model_is():
    v = {"bias": torch.tensor([-torch.inf, 0])}
    with pytest.raises(OverrideError, match=r"'bias' holds NaN or infinity in 1 of 2 entries$"):
        build_params_override(infinite(), v, 1.0, allow_frozen=True)


def test_tensors_on_another_device_are_moved_to_the_models():
    model = Wrapped().to("meta")
    moved = build_params_override(model, {"weight": GOOD, "twin": GOOD}, 0.5)
    assert moved["weight"].is_meta
    scale = {"scale": torch.ones(2)}
    state, _ = resolve_mapping(model, {"weight": GOOD}, scale, [torch.float64])
    assert all(state[name].is_meta for name in ("weight", "scale"))
    assert resolve_mapping(model, moved, None, [])[0]["weight"].is_meta
    with pytest.raises(OverrideError, match="'weight' holds NaN or infinity in 4 of 4"):
        build_params_override(model, {"weight": GOOD / 0}, 0.5)


def test_what_the_errors_leave_alone():
    model = Wrapped()
    moved = build_params_override(
        model, {"bias": torch.ones(2), "twin": GOOD}, 2.0, allow_frozen=True
    )
    assert moved["bias"].tolist() == [2, 2]
    assert moved["weight"].tolist() == [[2, 2], [2, 2]]
    assert "twin" not in moved
    both = build_params_override(model, {"weight": GOOD, "twin": GOOD}, 1.0)
    assert torch.equal(both["weight"], GOOD)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"nothing": GOOD}, "no parameter named 'nothing'"),
        ({"weight": torch.ones(3)}, r"'weight': expected shape"),
        ({"weight": GOOD.long()}, "floating dtype"),
        ({"weight": GOOD, "twin": 2 * GOOD}, "tied"),
        ("weight", "got str"),
    ],
)
def test_a_mapping_is_checked_again_when_it_is_used(override, message):
    with pytest.raises(OverrideError, match=message):
        resolve_mapping(Wrapped(), override, None, [])


def test_buffers_are_checked_under_their_own_name():
    with pytest.raises(OverrideError, match=r"no buffer named 'scael'; did you mean 'scale'\?"):
        resolve_mapping(Wrapped(), None, {"scael": torch.ones(2)}, [])
    with pytest.raises(OverrideError, match=r"buffer 'scale': expected shape \[2\], got \[3\]"):
        resolve_mapping(Wrapped(), None, {"scale": torch.ones(3)}, [])
    with pytest.raises(OverrideError, match=r"'scale': expected a floating dtype.*torch\.int64"):
        resolve_mapping(Wrapped(), None, {"scale": torch.ones(2).long()}, [])
    counting = Wrapped()
    counting.register_buffer("count", torch.zeros(2, dtype=torch.int64))
    for other in (torch.float32, torch.complex64):
        with pytest.raises(OverrideError, match=rf"'count': expected torch\.int64, got {other}"):
            resolve_mapping(counting, None, {"count": torch.ones(2, dtype=other)}, [])
    state, _ = resolve_mapping(Wrapped(), None, {"scale": torch.full((2,), 5.0)}, [])
    assert state["scale"].tolist() == [5, 5]


# Forwards at θ + η·v.


def test_an_override_scores_like_a_model_with_those_parameters(tiny_llama):
    model, moved = tiny_llama(), tiny_llama()
    v = direction_of(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter.add_(0.05 * v[name])
    (at_override,) = scored(model, build_params_override(model, v, 0.05))
    assert distance(at_override, scored(moved, None)[0]) < 1e-6
    assert distance(at_override, scored(model, None)[0], ["logprobs"]) > 1e-2


def test_a_partial_override_is_the_full_one(tiny_llama):
    model = tiny_llama()
    full = build_params_override(model, {NAME: torch.ones(64, 32)}, 0.1)
    of_full, of_part, of_none = scored(model, full, {NAME: full[NAME]}, None)
    assert distance(of_full, of_part) == 0
    assert distance(of_full, of_none, ["logprobs"]) > 1e-3


def test_a_list_of_overrides_gives_what_each_gives_alone(tiny_llama):
    model = tiny_llama()
    v = direction_of(model)
    overrides = [None, *(build_params_override(model, v, eta) for eta in (0.0, 0.01, -0.02))]
    together = scored(model, *overrides)
    assert len(together) == 4
    for override, scores in zip(overrides, together, strict=True):
        assert distance(scores, scored(model, override)[0]) == 0
    assert distance(together[0], together[1]) == 0
    assert distance(together[2], together[3], ["logprobs"]) > 1e-3


def test_overriding_a_tied_embedding_moves_the_head_too(tiny_llama):
    tied = tiny_llama(tie_word_embeddings=True)
    untied = tiny_llama(tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    new = tied.get_parameter(EMBEDDING).detach() + 0.1
    new[3] += 1.0
    (of_tied,) = scored(tied, {EMBEDDING: new})
    of_both, of_one = scored(untied, {EMBEDDING: new, HEAD: new}, {EMBEDDING: new})
    assert distance(of_tied, of_both) < 1e-6
    assert distance(of_tied, of_one, ["logprobs"]) > 1e-2  # what moving the input alone would give
    by_alias, alias_and_name = scored(tied, {HEAD: new}, {HEAD: new, EMBEDDING: new})
    assert distance(of_tied, by_alias) == distance(of_tied, alias_and_name) == 0
    with pytest.raises(OverrideError, match=r"'model\.embed_tokens\.weight' is tied to 'lm_head"):
        scored(tied, {HEAD: new, EMBEDDING: new + 1})


def test_a_buffer_override_is_used(tiny_llama):
    model = tiny_llama()
    name = "model.rotary_emb.inv_freq"
    slower = model.get_buffer(name) / 10
    changed = copy.deepcopy(model)
    changed.model.rotary_emb.inv_freq = slower
    (moved,) = scored(model, None, buffers={name: slower})
    assert distance(moved, scored(changed, None)[0]) == 0
    assert distance(moved, scored(model, None)[0], ["logprobs"]) > 1e-3
    (by_params,) = scored(model, {name: slower})
    assert distance(moved, by_params) == 0


def test_a_float64_override_makes_the_whole_forward_float64(tiny_llama):
    model = tiny_llama()
    wide = build_params_override(model, {}, 0.0, dtype=torch.float64)
    of_override, of_none = scored(model, {NAME: wide[NAME]}, None)
    assert of_override[0].logprobs.dtype == torch.float64
    assert of_none[0].logprobs.dtype == torch.float32
    exact = PrecisionConfig()
    exact.tf_nograd.dtype = "float64"
    assert distance(of_override, scored(model, None, precision=exact)[0]) == 0
    assert 1e-9 < distance(of_override, of_none, ["logprobs"]) < 1e-4


@pytest.mark.parametrize("eta", [1e300, -1e38])
def test_a_step_out_of_all_numbers_is_refused(tiny_llama, eta):
    model = tiny_llama()
    v = {"lm_head.weight": torch.full_like(model.lm_head.weight, 100.0)}
    with pytest.raises(OverrideError, match="is not finite in"):
        build_params_override(model, v, eta)
