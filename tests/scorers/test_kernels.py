"""Optional speed: each kernel by itself, and none; what a process is left with."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch

from helpers.scorer_helpers import distance, families
from seqproc import SequenceProcessor
from seqproc._util.kernels import KERNELS, VARIABLE, is_on, kernels_of_environment, kernels_on
from seqproc.config import PrecisionConfig
from seqproc.errors import ConfigError, ScoringError
from seqproc.policy import SamplingPolicy, TokenScores, support
from seqproc.scorers import TeacherForcingScorer, TokenSequence, hvp, jvp, plain
from seqproc.scorers.forward import forward_logits
from seqproc.scorers.kernels import attention, packing, products, tangents
from seqproc.support import nucleus

V = 300
POLICY = SamplingPolicy(temperature=0.8, top_p=0.9)
SEQUENCES = families(V)
# A function of each kernel that runs when it is on, and does not when it is off.
INSIDES: dict[str, tuple[Any, str]] = {
    "attention": (attention, "_attend"),
    "nucleus": (nucleus, "largest"),
    "packing": (packing, "_slices"),
    "products": (products, "_by_blas"),
    "tangents": (tangents, "_attend"),
}


def scorer_with(model: Any, names: Any, dtype: str = "float32") -> TeacherForcingScorer:
    precision = PrecisionConfig(kernels=names)
    precision.tf_nograd.dtype = dtype  # type: ignore[assignment]
    return TeacherForcingScorer(model, (0,), precision)


def direction(model: Any) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {n: torch.randn(p.shape, generator=drawn) for n, p in model.named_parameters()}


@pytest.mark.parametrize("names", [(), *((kernel,) for kernel in KERNELS)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_and_derivatives_are_right_without_kernels(tiny_llama, names, dtype):
    """In float64 what is left of a difference is the order of sums."""
    model, bound = tiny_llama(), {"float32": 2e-5, "float64": 1e-12}[dtype]
    every, some = scorer_with(model, True, dtype), scorer_with(model, names, dtype)
    assert distance(every.score(SEQUENCES, POLICY)[0], some.score(SEQUENCES, POLICY)[0]) < bound
    slopes = [jvp(scorer, SEQUENCES, POLICY, direction(model)) for scorer in (every, some)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one.rb_entropy, other.rb_entropy, rtol=20 * bound, atol=bound)


@pytest.mark.parametrize("kernel", INSIDES)
def test_a_kernel_that_is_off_does_not_run(tiny_llama, monkeypatch, kernel):
    model, (module, name) = tiny_llama(), INSIDES[kernel]
    calls, inside = [], getattr(module, name)

    def counted(*given, **named):
        calls.append(1)
        return inside(*given, **named)

    monkeypatch.setattr(module, name, counted)
    monkeypatch.setattr(nucleus, "_WIDTHS", type(nucleus._WIDTHS)(cpu=(64,), accelerator=(64,)))
    for names, runs in (
        ([other for other in KERNELS if other != kernel], False),
        (list(KERNELS), True),
    ):
        scorer = scorer_with(model, names)
        calls.clear()
        scorer.score(SEQUENCES, POLICY)
        jvp(scorer, SEQUENCES, POLICY, direction(model))
        assert bool(calls) == runs


def test_the_policy_alone_follows_the_environment(monkeypatch):
    logits = torch.randn(5, 4_000, generator=torch.Generator().manual_seed(0))
    searched = support(logits, POLICY)
    monkeypatch.setenv(VARIABLE, "0")
    assert not is_on("nucleus")
    assert torch.equal(support(logits, POLICY), searched)
    with kernels_on(["nucleus"]):
        assert is_on("nucleus")
        assert not is_on("products")


@pytest.mark.parametrize(
    ("text", "names"),
    [("1", KERNELS), ("", KERNELS), ("0", ()), (" products, nucleus ", ("nucleus", "products"))],
)
def test_the_environment_names_kernels(monkeypatch, text, names):
    monkeypatch.setenv(VARIABLE, text)
    assert kernels_of_environment() == names
    assert PrecisionConfig().kernels == names


def test_a_kernel_that_is_none_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="kernels"):
        PrecisionConfig(kernels=("speed",))  # type: ignore[arg-type]
    monkeypatch.setenv(VARIABLE, "products,speed")
    with pytest.raises(ConfigError, match="expected 1 for all kernels, 0 for none, or names"):
        PrecisionConfig()


def test_kernels_are_chosen_by_configuration(tiny_llama, tiny_tokenizer):
    def kernels(value: Any) -> tuple[str, ...]:
        config = {"precision": {"kernels": value}}
        return SequenceProcessor(tiny_llama(), tiny_tokenizer, config=config).precision.kernels

    assert kernels(False) == ()
    assert kernels(True) == KERNELS
    assert kernels(["products"]) == ("products",)


def state(model: Any) -> tuple[Any, ...]:
    return (
        model.config._attn_implementation,
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.is_grad_enabled(),
        torch.autograd.Function.__dict__["apply"],
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("in the middle")


WORK: dict[str, Callable[[TeacherForcingScorer], Any]] = {
    "score": lambda s: s.score(SEQUENCES, POLICY),
    "score_with_grad": lambda s: s.score_with_grad(SEQUENCES, POLICY),
    "jvp": lambda s: jvp(s, SEQUENCES, POLICY, direction(s.model)),
}


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("work", WORK)
def test_a_process_is_left_as_it_was_also_after_an_error(tiny_llama, monkeypatch, work, kernels):
    model = tiny_llama().train()
    monkeypatch.setattr(ctypes, "CDLL", fails)  # nor is the C library's allocator set
    before = state(model)
    scorer = scorer_with(model, kernels)
    WORK[work](scorer)
    assert state(model) == before
    monkeypatch.setattr(type(model.model.layers[1].mlp), "forward", fails)
    with pytest.raises(ScoringError, match="in the middle"):
        WORK[work](scorer)
    assert state(model) == before


def test_gradients_are_right_without_kernels(tiny_llama):
    """Of a loss that reads log p, log q and H, once and twice."""
    gradients, products = [], []
    for names in (True, False):
        model = tiny_llama().double()
        scorer = scorer_with(model, names)
        scores = scorer.score_with_grad(SEQUENCES, POLICY)
        gradients.append(torch.autograd.grad(loss(scores), list(model.parameters())))
        products.append(hvp(scorer, SEQUENCES, POLICY, direction(model), loss))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(products[1], products[0], rtol=1e-8, atol=1e-10)


def loss(scores: list[TokenScores]) -> torch.Tensor:
    of_logqs = [s.logqs.masked_fill(s.logqs.isneginf(), 0.0).sum() for s in scores]
    of_others = [s.logprobs.sum() + s.stats.rb_entropy.square().sum() for s in scores]
    return torch.stack([*of_logqs, *of_others]).sum()


def test_what_does_not_fit_in_memory_is_named_without_kernels(tiny_llama, monkeypatch):
    def out_of_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    scorer = scorer_with(tiny_llama(), ())
    monkeypatch.setattr(plain, "score_tokens", out_of_memory)
    with pytest.raises(ScoringError, match=r"sequence 0, of .* does not fit in memory on its own"):
        scorer.score(SEQUENCES, POLICY)


def test_a_plain_score_reads_whole_sequences_one_at_a_time(tiny_llama, monkeypatch):
    read = []

    def watched(model: Any, ids: torch.Tensor, *others: Any) -> torch.Tensor:
        read.append(ids)
        return forward_logits(model, ids, *others)

    monkeypatch.setattr(plain, "forward_logits", watched)
    scorer_with(tiny_llama(), ()).score(SEQUENCES, POLICY, batch_size=4)
    whole = [torch.cat([s.prompt_ids, s.response_ids]) for s in SEQUENCES if len(s.response_ids)]
    assert [ids.tolist() for ids in read] == [[ids[:-1].tolist()] for ids in whole]


def test_runs_without_packing_are_full():
    items = [packing.Item(first=n) for n in (9, 9, 5, 4, 1)]
    with kernels_on([]):
        assert packing.cheapest_runs(items, tokens=18) == [slice(0, 2), slice(2, 5)]
        assert packing.cheapest_runs(items, rows=2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
        assert packing.cheapest_runs(items, tokens=1) == [slice(n, n + 1) for n in range(5)]
        assert packing.cheapest_runs([]) == []


def test_no_sequence_is_lost_without_packing(tiny_llama):
    empty = TokenSequence(prompt_ids=torch.tensor([1, 2]), response_ids=torch.zeros(0))
    sequences = [*SEQUENCES, empty]
    found = scorer_with(tiny_llama(), ()).score(sequences, POLICY, token_budget=20)[0]
    assert [len(s.logprobs) for s in found] == [len(s.response_ids) for s in sequences]
