"""Every architecture of the zoo scores as its own forward says, or is refused by name.

The table is docs/models.md; `python -m helpers.zoo`, in tests/, prints it anew.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from helpers import zoo, zoo_models
from seqproc.errors import ModelError
from seqproc.scorers import TeacherForcingScorer, split_model

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of transformers' own code
]

SMALL = {
    "vocab_size": zoo_models.V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("Bert", "BertForMaskedLM", SMALL, "is not causal"),
    "bert with its decoder's head": ("Bert", "BertLMHeadModel", SMALL, "is not causal"),
    "cpm-ant": (
        "CpmAnt",
        "CpmAntForCausalLM",
        {
            "vocab_size": zoo_models.V,
            "hidden_size": 32,
            "dim_head": 8,
            "dim_ff": 48,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
        },
        "is not causal",
    ),
    "xlm": ("XLM", "XLMWithLMHeadModel", SMALL | {"emb_dim": 32, "n_layers": 2}, "is not causal"),
    "xlnet": (
        "XLNet",
        "XLNetLMHeadModel",
        {"vocab_size": zoo_models.V, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
        "is not causal",
    ),
    "roberta": ("Roberta", "RobertaForMaskedLM", SMALL, "is not causal"),
    "modernbert": ("ModernBert", "ModernBertForMaskedLM", SMALL | {"pad_token_id": 0}, "is not c"),
    "t5": (
        "T5",
        "T5ForConditionalGeneration",
        {"vocab_size": zoo_models.V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2},
        "an encoder and a decoder",
    ),
    "bart": (
        "Bart",
        "BartForConditionalGeneration",
        {"vocab_size": zoo_models.V, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
        "an encoder and a decoder",
    ),
    "llama's backbone": ("Llama", "LlamaModel", SMALL, "gives no logits"),
    "llama's classifier": (
        "Llama",
        "LlamaForSequenceClassification",
        SMALL | {"pad_token_id": 0},
        "expected logits",
    ),
}


@pytest.mark.parametrize("name", zoo_models.ARCHITECTURES)
def test_an_architecture_scores_as_its_own_forward_says(name, caplog):
    caplog.set_level(logging.CRITICAL)
    assert zoo.examined(name, zoo_models.build(name)).faults() == {}


def test_a_model_with_adapters_scores_as_its_own_forward_says(caplog):
    caplog.set_level(logging.CRITICAL)
    names = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=3, target_modules=names, init_lora_weights=False)
    torch.manual_seed(0)
    assert (
        zoo.examined("adapters", get_peft_model(zoo_models.build("llama"), config)).faults() == {}
    )


@pytest.mark.parametrize("name", zoo_models.ARCHITECTURES)
def test_an_architecture_is_far_from_predicting_all_tokens_alike(name):
    """Or what it reads at a wrong place would show in no figure."""
    entropy, moved = zoo_models.liveliness(zoo_models.build(name))
    assert entropy < 0.75
    assert moved > 1e-2


def test_a_figure_that_is_not_a_number_is_a_fault():
    model = zoo_models.build("llama")
    policy = zoo.POLICIES[0]
    scores = TeacherForcingScorer(model).score(zoo.sequences(), policy)[0]
    scores[2].logprobs[3] = float("nan")
    line = zoo.Line(name="", figures={"packed": zoo.distance(scores, model, policy)}, left_out=[])
    assert line.faults()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_causal_language_model_is_refused(name):
    config, model, fields, words = REFUSED[name]
    made = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**fields))
    with pytest.raises(ModelError, match=f"{model}.*{words}"):
        split_model(made.eval())


@pytest.mark.parametrize(
    ("name", "changes"),
    [("deepseek v3.2", {"index_n_heads": 2}), ("glm moe dsa", {"index_n_heads": 2})],
)
def test_a_model_whose_past_depends_on_how_much_follows_is_refused(name, changes, monkeypatch):
    """An indexer of few heads, whose scores tie: more keys, and others of the tied are taken."""
    family, fields = zoo_models.ARCHITECTURES[name]
    monkeypatch.setitem(zoo_models.ARCHITECTURES, name, (family, fields | changes))
    with pytest.raises(ModelError, match="is not causal"):
        split_model(zoo_models.build(name))


def test_there_are_as_many_as_docs_say():
    assert len(zoo_models.ARCHITECTURES) == 117


class Shifted(nn.Module):
    """A model whose later calls say something else than its first."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.shift = inner, 0.0

    def forward(self, **arguments: Any) -> Any:
        output = self.inner(**arguments)
        output.logits = output.logits + self.shift * torch.linspace(0, 1, zoo_models.V)
        return output


def test_every_figure_can_show_a_fault():
    """Of a model that changes under the scorer, after it was examined."""
    model = zoo_models.build("llama")
    scorer = TeacherForcingScorer(Shifted(model))
    scorer.model.shift = 1e-3  # type: ignore[assignment]
    assert zoo.worst(scorer, model) > 2e-5
    line = zoo.Line(name="llama", figures={"packed": 3e-5, "jvp": "refused"}, left_out=[])
    assert set(line.faults()) == {"packed", "jvp"}
