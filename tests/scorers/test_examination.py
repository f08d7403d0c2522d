"""A model is scored by those shortcuts that give its own numbers, and refused if none can be."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from helpers.scorer_helpers import distance, families
from seqproc.errors import ModelError, ScoringError
from seqproc.policy import SamplingPolicy
from seqproc.scorers import Shortcuts, TeacherForcingScorer, examination, examine
from seqproc.scorers.overrides import resolve_mapping

V = 40
POLICY = SamplingPolicy(temperature=0.8, top_p=0.95)

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.4,
}


def build(family: str, **fields: Any) -> Any:
    config_class = getattr(transformers, f"{family}Config")
    config = config_class(vocab_size=V, **{"intermediate_size": 24, **SIZES, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def llama(**fields: Any) -> Any:
    return build("Llama", num_key_value_heads=1, max_position_embeddings=64, **fields)


def worst(model: nn.Module, scorer: TeacherForcingScorer) -> float:
    """How far the scorer's log p are from those of plain forwards of one sequence at a time."""
    found, gap = families(V), 0.0
    for sequence, scores in zip(found, scorer.score(found, POLICY)[0], strict=True):
        ids = torch.cat([sequence.prompt_ids, sequence.response_ids])
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0].double()
        own = logits.log_softmax(-1)[len(sequence.prompt_ids) - 1 : -1]
        own = own.gather(-1, sequence.response_ids[:, None])[:, 0]
        gap = max([gap, *(scores.logprobs.double() - own).abs().tolist()])
    return gap


@pytest.fixture
def told(caplog):
    """`told()`: what seqproc logged so far."""
    caplog.set_level(logging.WARNING, logger="seqproc")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "seqproc"]


# Shortcuts that a model does not allow.


@pytest.mark.parametrize(
    "fields",
    [
        {"alibi": False},
        {"alibi": True},
        {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 1},
    ],
    ids=["rotary", "alibi", "new decoder"],
)
def test_a_model_that_goes_by_the_name_of_its_attention_keeps_it(fields, told):
    """Falcon's attention asks the configuration whether it is PyTorch's."""
    model = build("Falcon", **fields)
    scorer = TeacherForcingScorer(model)
    assert worst(model, scorer) < 1e-5
    assert not scorer.shortcuts.attention_in_order
    assert scorer.shortcuts.parts
    (line,) = [text for text in told() if "attention" in text]
    assert "off by" in line


def test_what_is_not_examined_is_wrong(monkeypatch):
    """The twin: Falcon with every shortcut taken."""
    model = build("Falcon")
    monkeypatch.setitem(examination._TOLERANCE, torch.float32, math.inf)
    assert worst(model, TeacherForcingScorer(model)) > 1e-2


class Crowded(transformers.LlamaModel):
    """What a row becomes depends on how many there are."""

    def forward(self, input_ids: Any = None, **arguments: Any) -> Any:
        output = super().forward(input_ids=input_ids, **arguments)
        output.last_hidden_state = output.last_hidden_state + 0.1 * (len(input_ids) - 1)
        return output


def test_a_model_whose_rows_mind_each_other_reads_one_at_a_time(told):
    model = llama()
    model.model.__class__ = Crowded
    scorer = TeacherForcingScorer(model)
    assert not scorer.shortcuts.batches
    assert worst(model, scorer) < 1e-5
    assert any("one sequence at a time" in text for text in told())


def test_a_model_that_minds_how_products_are_made_keeps_pytorchs(told):
    class Minding(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes = torch.overrides._get_current_function_mode_stack()
            return super().forward(x) * (
                1 + 0.1 * any("Swapped" in type(m).__name__ for m in modes)
            )

    model = llama()
    model.lm_head.__class__ = Minding
    scorer = TeacherForcingScorer(model)
    assert not scorer.shortcuts.products
    assert worst(model, scorer) < 1e-5
    assert any("own products" in text for text in told())


@pytest.mark.parametrize("window", [4096, 5])
def test_a_window_is_tried_within_reach(window):
    """A fault beyond it shows, though no sequence tried is as long; the model keeps its own."""
    model = build(
        "Mistral", num_key_value_heads=1, max_position_embeddings=9000, sliding_window=window
    )
    seen = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(module.config.sliding_window)

    model.model.register_forward_pre_hook(note, with_kwargs=True)
    scorer = TeacherForcingScorer(model)
    assert set(seen) == {4}
    assert model.config.sliding_window == window
    assert scorer.shortcuts == Shortcuts()
    assert worst(model, scorer) < 1e-5


def test_a_model_of_the_usual_kind_takes_every_shortcut(told):
    scorer = TeacherForcingScorer(llama())
    assert scorer.shortcuts == Shortcuts()
    assert told() == []


# A rounding is not a fault, and a fault is not hidden by a large number.


@pytest.mark.parametrize("value", [-math.inf, torch.finfo(torch.float32).min, -1e20, -1e4])
def test_a_token_that_is_never_sampled_does_not_set_the_scale(value, told):
    model = llama()
    head = nn.Linear(16, V)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[7] = value
    model.lm_head = head
    assert examine(model)[1] == Shortcuts()
    assert told() == []
    with torch.no_grad():
        far = examination._forward(model, examination._ids(examination._sequences(V)[0]))
    assert examination._difference(far, far) is None
    assert "off by" in (examination._difference(far + torch.linspace(0, 0.1, V), far) or "")


def test_a_common_offset_of_logits_is_allowed_its_rounding():
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(0))
    offset = (logits + 1e4) - 1e4
    assert (offset - logits).abs().max() > 1e-4
    assert examination._difference(logits + 1e4, logits.double().add(1e4).float()) is None
    assert examination._difference(offset, logits) is not None


def test_logits_of_another_shape_differ():
    assert "[2, 3]" in (examination._difference(torch.zeros(2, 3), torch.zeros(2, 4)) or "")


# Models that are refused.


def test_a_masked_model_is_not_causal():
    config = transformers.BertConfig(vocab_size=V, intermediate_size=24, **SIZES)
    with pytest.raises(ModelError, match=r"BertForMaskedLM is not causal.*position 11.*off by"):
        examine(transformers.BertForMaskedLM(config).eval())


def test_a_decoder_of_the_same_family_is():
    config = transformers.BertConfig(vocab_size=V, intermediate_size=24, is_decoder=True, **SIZES)
    model = transformers.BertLMHeadModel(config).eval()
    assert worst(model, TeacherForcingScorer(model)) < 1e-5


def test_an_encoder_and_decoder_is_refused():
    config = transformers.T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=1)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder and a decoder"):
        examine(transformers.T5ForConditionalGeneration(config).eval())


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelError, match="LlamaModel gives no logits"):
        examine(llama().model)


def test_a_classifier_is_refused():
    model = transformers.LlamaForSequenceClassification(llama().config).eval()
    model.config.pad_token_id = 0
    with pytest.raises(ModelError, match=r"expected logits \[1, 11, vocabulary\]"):
        examine(model)


def test_a_model_that_needs_more_than_tokens_is_refused():
    class Needy(nn.Module):
        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
            raise ValueError("you must specify pixel_values")

    with pytest.raises(ModelError, match=r"Needy cannot be scored.*ValueError: you must specify"):
        examine(Needy())


def test_a_model_that_says_something_else_each_time_is_refused():
    model = llama()
    noise = torch.Generator().manual_seed(0)
    model.lm_head.register_forward_hook(
        lambda _m, _i, out: out + torch.randn(out.shape, generator=noise)
    )
    with pytest.raises(ModelError, match="other logits each time"):
        examine(model)


def test_a_model_that_no_mapping_reaches_is_refused():
    """Its forward reads copies of its parameters: an override would be scored as if it were not."""

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(V, V))

        def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> torch.Tensor:
            twice = self.table if isinstance(self.table, nn.Parameter) else self.table * 2
            return twice[input_ids]

    with pytest.raises(ModelError, match=r"Deaf called by torch.func.functional_call differs"):
        examine(Deaf())


# What a forward raises later.


def test_what_the_models_own_code_raises_names_the_model():
    model = llama()
    scorer = TeacherForcingScorer(model)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("expected scalar type Half")

    model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(ScoringError, match=r"LlamaForCausalLM in float32 raised RuntimeError: exp"):
        scorer.score(families(V), POLICY)


def test_examining_changes_nothing():
    model = llama()
    before = resolve_mapping(model, None, None, [])[0]
    before = {name: tensor.clone() for name, tensor in before.items()}
    state = torch.get_rng_state()
    settings = model.config.to_dict()
    examine(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == settings
    assert all(
        torch.equal(before[n], t) for n, t in resolve_mapping(model, None, None, [])[0].items()
    )


def test_the_same_numbers_with_and_without_shortcuts():
    model = llama()
    fast, plain = TeacherForcingScorer(model), TeacherForcingScorer(model)
    plain.shortcuts = examination._PLAIN
    plain.parts = plain.shortcuts.parts_of(model, fast.parts.vocab_size)
    one, other = (s.score(families(V), POLICY)[0] for s in (fast, plain))
    assert distance(one, other) < 1e-5


def test_a_model_without_numbers_is_refused(tiny_llama):
    with torch.device("meta"):
        model = type(tiny_llama())(tiny_llama().config)
    with pytest.raises(ModelError, match="on the device 'meta'"):
        examine(model)
