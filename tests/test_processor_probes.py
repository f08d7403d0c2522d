"""What a probe asks of the processor: sweeps over η, derivatives, and limits of a forward."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from seqproc import SequenceProcessor
from seqproc.errors import ConfigError, OverrideError
from seqproc.scorers import overrides

PROMPTS = ["What is 2 + 3?", "The answer is 72, because"]
EXACT = {
    "generation": {"max_new_tokens": 5, "temperature": 0.8, "top_p": 0.9},
    "precision": {
        name: {"dtype": "float64"} for name in ("func_override", "tf_nograd", "tf_withgrad")
    },
}


@pytest.fixture
def processor(tiny_llama: Any, tiny_tokenizer: Any) -> SequenceProcessor:
    return SequenceProcessor(tiny_llama(), tiny_tokenizer, config=EXACT)


def direction_of(processor: SequenceProcessor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(p.shape, generator=generator)
        for name, p in processor.model.named_parameters()
        if "mlp" in name
    }


def flat(values: list[list[Any]]) -> np.ndarray:
    return np.concatenate([np.atleast_1d(x) for row in values for x in row])


def test_a_sweep_is_its_overrides_one_by_one(processor: SequenceProcessor) -> None:
    batch = processor.generate_batched(PROMPTS, G=3, seed=1)
    v, etas = direction_of(processor), [0.0, 1e-2, -3e-2]
    swept = processor.sweep(batch, v, etas)
    assert len(swept) == 3
    for eta, (results, diagnostics) in zip(etas, swept, strict=True):
        one, other = processor.teacher_force_logprobs_with_diagnostics(
            batch, compute_rb=True, params_override=processor.build_params_override(v, eta)
        )
        assert np.array_equal(flat(results.rb_entropies), flat(one.rb_entropies))
        assert diagnostics.diagnostics[1][2].seq == other.diagnostics[1][2].seq
    moved = flat(swept[1][0].rb_entropies) - flat(swept[0][0].rb_entropies)
    assert np.abs(moved).max() > 1e-4


def test_a_sweep_holds_one_override_at_a_time(
    processor: SequenceProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mapping(dict[str, Any]):  # a dict that weak references can point to
        __slots__ = ("__weakref__",)

    alive: list[Any] = []
    most = 0
    build = overrides.build_params_override

    def counted(*args: Any, **kwargs: Any) -> Mapping:
        nonlocal most
        gc.collect()
        alive.append(weakref.ref(mapping := Mapping(build(*args, **kwargs))))
        most = max(most, sum(reference() is not None for reference in alive))
        return mapping

    monkeypatch.setattr(overrides, "build_params_override", counted)
    batch = processor.generate_batched(PROMPTS, G=1, seed=1)
    processor.sweep(batch, direction_of(processor), [0.1 * i for i in range(5)])
    assert len(alive) == 5
    assert most <= 2  # the one in use, and the next as it is built


def test_a_sweep_copies_only_what_moves(processor: SequenceProcessor) -> None:
    model = processor.model.double()
    v = direction_of(processor)
    mapping = processor.build_params_override(v, 0.5)
    own = dict(model.named_parameters())
    shared = {name for name, p in mapping.items() if p.data_ptr() == own[name].data_ptr()}
    assert shared == set(own) - set(v)


def test_derivatives_are_those_of_the_sweep(processor: SequenceProcessor) -> None:
    batch = processor.generate_batched(PROMPTS, G=2, seed=1)
    v = direction_of(processor)
    found = processor.jvp(batch, v)
    step = 1e-6
    low, high = (results for results, _ in processor.sweep(batch, v, [-step, step]))
    slope = (flat(high.logprobs) - flat(low.logprobs)) / (2 * step)
    assert [len(row) for row in found] == [2, 2]
    ours = np.concatenate([d.logprobs.numpy() for row in found for d in row])
    assert np.abs(ours - slope).max() <= 1e-7 * np.abs(slope).max()
    assert np.abs(slope).max() > 1e-2


def test_limits_of_a_forward_change_no_result(processor: SequenceProcessor) -> None:
    batch = processor.generate_batched(PROMPTS, G=3, seed=1)
    wanted = processor.teacher_force_logprobs(batch, compute_rb=True)
    processor.config.tf_token_budget, processor.config.tf_share_prompts = 7, False
    found = processor.teacher_force_logprobs(batch, compute_rb=True)
    np.testing.assert_allclose(flat(found.rb_entropies), flat(wanted.rb_entropies), atol=1e-11)
    np.testing.assert_allclose(flat(found.logprobs), flat(wanted.logprobs), atol=1e-11)
    sizes = [b.num_tokens for b in processor.scorer.schedule([], token_budget=7).batches]
    assert sizes == []


def test_mistakes_are_told(processor: SequenceProcessor) -> None:
    batch = processor.generate_batched(PROMPTS, G=1, seed=1)
    with pytest.raises(OverrideError, match="eta must be a finite number"):
        processor.sweep(batch, direction_of(processor), [float("nan")])
    with pytest.raises(OverrideError, match="no parameter named 'x'"):
        processor.jvp(batch, {"x": torch.zeros(1)})
    with pytest.raises(ConfigError, match="tf_token_budget"):
        processor.config.tf_token_budget = 0
