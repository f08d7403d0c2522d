"""Custom autograd functions are differentiated forwards by the backward that they declare."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import transformers
from torch.autograd import Function, forward_ad

from helpers.scorer_helpers import families, float64_profiles
from seqproc.policy import SamplingPolicy
from seqproc.scorers import TeacherForcingScorer, build_params_override, jvp
from seqproc.scorers.custom_functions import differentiated_forwards

V = 40


class Cubed(Function):
    """x³ y, and how far it is from y."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor, power: int) -> Any:
        ctx.save_for_backward(x, y)
        ctx.power = power
        return x**power * y, x**power * y - y

    @staticmethod
    def backward(ctx: Any, first: torch.Tensor, second: torch.Tensor) -> Any:
        x, y = ctx.saved_tensors
        both = first + second
        return both * y * ctx.power * x ** (ctx.power - 1), both * x**ctx.power - second, None


class Rounded(Function):
    """Straight through: the derivative is what the author says, not that of rounding."""

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class Sealed(Function):
    """A backward that only a kernel knows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class WithJvp(Sealed):
    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        return tangent * 7


def pushed(function: type[Function], *values: Any) -> list[torch.Tensor | None]:
    """The tangents of the outputs, for (value, tangent) pairs or constants."""
    with torch.no_grad(), forward_ad.dual_level(), differentiated_forwards():
        duals = [forward_ad.make_dual(*v) if isinstance(v, tuple) else v for v in values]
        out = function.apply(*duals)
        found = out if isinstance(out, tuple) else (out,)
        return [forward_ad.unpack_dual(y).tangent for y in found]


def test_a_function_of_several_inputs_and_outputs():
    x, dx, y, dy = (torch.rand(3, dtype=torch.float64) for _ in range(4))
    first, second = pushed(Cubed, (x, dx), (y, dy), 3)
    slope = 3 * x**2 * y * dx + x**3 * dy
    torch.testing.assert_close(first, slope)
    torch.testing.assert_close(second, slope - dy)
    (alone, _) = pushed(Cubed, x, (y, dy), 3)
    torch.testing.assert_close(alone, x**3 * dy)


def test_the_derivative_is_the_one_declared():
    (slope,) = pushed(Rounded, (torch.tensor([0.3, 1.7]), torch.tensor([2.0, 5.0])))
    assert slope.tolist() == [2.0, 5.0]


def test_a_jvp_of_its_own_comes_first():
    (slope,) = pushed(WithJvp, (torch.ones(2), torch.ones(2)))
    assert slope.tolist() == [7.0, 7.0]


def test_one_that_cannot_be_differentiated_is_named():
    with pytest.raises(NotImplementedError, match="custom function Sealed has no jvp"):
        pushed(Sealed, (torch.ones(2), torch.ones(2)))


def test_outside_a_scope_and_without_tangents_nothing_changes():
    before = Function.__dict__["apply"]
    with differentiated_forwards():
        x = torch.ones(2, requires_grad=True)
        Sealed.apply(x).sum().backward()
        assert x.grad.tolist() == [2.0, 2.0]
    assert Function.__dict__["apply"] is before
    with pytest.raises(RuntimeError), differentiated_forwards():
        raise RuntimeError
    assert Function.__dict__["apply"] is before


def test_scopes_of_two_threads_follow_one_another():
    before = Function.__dict__["apply"]
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.set()
        with differentiated_forwards():
            done.set()

    with differentiated_forwards():
        thread = threading.Thread(target=other)
        thread.start()
        inside.wait()
        assert not done.wait(0.05)
    thread.join()
    assert Function.__dict__["apply"] is before


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("Bloom", {"n_layer": 2, "n_head": 2}),
        ("RecurrentGemma", {"num_hidden_layers": 3, "num_attention_heads": 2, "lru_width": 16}),
    ],
)
def test_models_that_have_them(family, fields):
    """To seven digits of central differences in float64."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=V, hidden_size=16, initializer_range=0.2, pad_token_id=None, **fields
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    scorer = TeacherForcingScorer(model, precision=float64_profiles())
    drawn, policy = torch.Generator().manual_seed(1), SamplingPolicy()
    v = {n: torch.randn(p.shape, generator=drawn) for n, p in model.named_parameters()}
    step = 1e-7
    slopes = jvp(scorer, families(V), policy, v)
    sides = [
        scorer.score(
            families(V),
            policy,
            overrides=[build_params_override(model, v, eta, dtype=torch.float64)],
        )[0]
        for eta in (step, -step)
    ]
    for slope, up, down in zip(slopes, *sides, strict=True):
        difference = (up.logprobs - down.logprobs) / (2 * step)
        torch.testing.assert_close(slope.logprobs, difference, rtol=1e-6, atol=1e-6)
