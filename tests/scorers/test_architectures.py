"""Every architecture of the zoo scores as its own forward says, or is refused by name.

The table is docs/models.md; `python tests/scorers/zoo.py` prints it anew.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
import zoo
from torch import nn

from seqproc.errors import ModelError
from seqproc.scorers import TeacherForcingScorer, take_apart

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("ignore"),  # of transformers' own code
]

SMALL = {
    "vocab_size": zoo.V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "bert": ("Bert", "BertForMaskedLM", SMALL, "is not causal"),
    "roberta": ("Roberta", "RobertaForMaskedLM", SMALL, "is not causal"),
    "modernbert": ("ModernBert", "ModernBertForMaskedLM", SMALL | {"pad_token_id": 0}, "is not c"),
    "t5": (
        "T5",
        "T5ForConditionalGeneration",
        {"vocab_size": zoo.V, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2},
        "an encoder and a decoder",
    ),
    "bart": (
        "Bart",
        "BartForConditionalGeneration",
        {"vocab_size": zoo.V, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
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


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_an_architecture_scores_as_its_own_forward_says(name, caplog):
    caplog.set_level(logging.CRITICAL)
    assert zoo.examined(name).faults() == {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_causal_language_model_is_refused(name):
    config, model, fields, words = REFUSED[name]
    made = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**fields))
    with pytest.raises(ModelError, match=f"{model}.*{words}"):
        take_apart(made.eval())


def test_there_are_as_many_as_docs_say():
    assert len(zoo.ARCHITECTURES) >= 40


class Shifted(nn.Module):
    """A model whose later calls say something else than its first."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.shift = inner, 0.0

    def forward(self, **arguments: Any) -> Any:
        output = self.inner(**arguments)
        output.logits = output.logits + self.shift * torch.linspace(0, 1, zoo.V)
        return output


def test_every_figure_can_show_a_fault():
    """Of a model that changes under the scorer, after it was examined."""
    model = zoo.build("llama")
    scorer = TeacherForcingScorer(Shifted(model))
    scorer.model.shift = 1e-3  # type: ignore[assignment]
    assert zoo.worst(scorer.score(zoo.sequences(), zoo.POLICY)[0], model) > 1e-5
    line = zoo.Line(name="llama", figures={"packed": 2e-5, "jvp": "refused"}, left_out=[])
    assert set(line.faults()) == {"packed", "jvp"}
