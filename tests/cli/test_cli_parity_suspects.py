"""`seqproc parity --suspect`: the right checkpoint is named, and what is no suspect is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from helpers.parity_command import Run, report
from seqproc.engines import HFEngine, ModelSource, register_engine


class Stale(HFEngine):
    """It samples with other weights than it was started with."""

    name = "stale"
    checkpoint: Path

    @classmethod
    def from_source(cls, source: ModelSource, **options: Any) -> Stale:
        engine = cls(source.live_model(), source.tokenizer, **options)
        model = AutoModelForCausalLM.from_pretrained(cls.checkpoint)
        engine.load_weights(dict(model.named_parameters()))
        return engine


register_engine("stale", Stale)


def test_a_suspected_checkpoint_is_named(
    run_parity: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    Stale.checkpoint = tmp_path / "before"
    tiny_llama(seed=1, initializer_range=0.5).save_pretrained(tmp_path / "before")
    tiny_tokenizer.save_pretrained(tmp_path / "before")
    result = run_parity("stale", "--suspect", tmp_path / "before")
    assert result.exit_code == 3, result.output
    (cause,) = report(tmp_path)["checks"]["stale"][0]["causes"]
    assert cause["description"] == f"the weights of {tmp_path / 'before'}"
    assert cause["explains"] is True


def test_a_certificate_names_the_suspects(
    run_parity: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    tiny_llama(seed=1, initializer_range=0.5).save_pretrained(tmp_path / "before")
    tiny_tokenizer.save_pretrained(tmp_path / "before")
    result = run_parity("hf", "--until", 0.5, "--suspect", tmp_path / "before")
    name = f"the weights of {tmp_path / 'before'}"
    assert f"{name}: ruled out" in " ".join(result.output.split())
    (one,) = report(tmp_path)["checks"]["hf"]
    assert one["certificate"]["suspects"] == {name: "ruled out"}


@pytest.mark.parametrize(
    ("change", "words"),
    [("theta", "computes something else than"), ("nan", "holds NaN or infinity in 1 parameters")],
)
def test_a_suspect_that_would_be_scored_as_another_model_is_refused(
    run_parity: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any, change: str, words: str
) -> None:
    """Its parameters are scored in the model's own code: what else differs would go unseen."""
    other = tiny_llama(**({"rope_theta": 3.0} if change == "theta" else {}))
    if change == "nan":
        other.lm_head.weight.data[0, 0] = math.nan
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer.save_pretrained(tmp_path / "other")
    result = run_parity(None, "--engines", "hf", "--suspect", tmp_path / "other")
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.output.split())
    if change == "theta":
        assert "rope" in result.output


def test_a_suspect_has_to_be_of_the_same_architecture(
    run_parity: Run, tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    tiny_llama(hidden_size=16).save_pretrained(tmp_path / "small")
    tiny_tokenizer.save_pretrained(tmp_path / "small")
    result = run_parity("hf", "--suspect", tmp_path / "small")
    assert result.exit_code == 2, result.output
    assert "must have the parameters of" in " ".join(result.output.split())
    assert run_parity(None, "--pair", "hf,scorer", "--suspect", tmp_path / "small").exit_code == 2
