"""Texts of tokens add up to the text of all, and stand where their characters end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.token_rows import Rows, given
from seqproc.report.tokens.pieces import Pieces, local_tokenizer, pieces
from seqproc.runs.format.schema import rows_schema

TEXTS = ("What is 2 + 3?\n\n<answer>5</answer>", "Ünïcödé 数学 🎉👩‍🚀 e\u0301", " a  b\t", "")


def whole(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_text_add_up_to_it(tiny_tokenizer: Any, text: str) -> None:
    ids = [*tiny_tokenizer.encode(text), tiny_tokenizer.eos_token_id]
    found = Pieces(tiny_tokenizer).of(ids, text)
    assert found is not None
    assert len(found) == len(ids)
    assert "".join(piece or "" for piece in found) == f"{text}<eos>"
    assert found[-1] == "<eos>"


def test_a_character_stands_at_its_last_token(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer.encode("a🎉b")
    sizes = len(ids) - 2  # tokens of the character
    assert sizes > 1
    assert Pieces(tiny_tokenizer).of(ids) == ["a", *[None] * (sizes - 1), "🎉", "b"]


def test_bytes_of_no_character_leave_their_neighbours_alone(tiny_tokenizer: Any) -> None:
    party = tiny_tokenizer.encode("🎉")
    found = Pieces(tiny_tokenizer).of([*party[:2], *tiny_tokenizer.encode("ab")])
    assert found == [None, "�", "a", "b"]
    assert Pieces(tiny_tokenizer).of(party[:2]) == [None, "�"]


def test_pieces_of_random_tokens_add_up(tiny_tokenizer: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(0, len(tiny_tokenizer), size=20).tolist()
        for found in (Pieces(tiny_tokenizer).of(ids), pieces(tiny_tokenizer, ids)):
            assert "".join(piece or "" for piece in found or []) == whole(tiny_tokenizer, ids)


def test_a_space_that_a_decoder_drops_at_the_start_stays_elsewhere() -> None:
    tokenizer = _dropping()
    ids = tokenizer.encode("the cat the cat", add_special_tokens=False)
    assert whole(tokenizer, ids) == "the cat the cat"
    assert Pieces(tokenizer).of(ids, "the cat the cat") == ["the", " cat", " the", " cat"]
    assert [whole(tokenizer, [token]) for token in ids] == ["the", "cat", "the", "cat"]


def _dropping() -> Any:
    """A tokenizer of words whose decoder takes the first space away, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"▁the": 0, "▁cat": 1, "?": 2}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


@pytest.mark.model
def test_the_embedded_models_tokens_are_cut(smollm2_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(smollm2_path))
    for text in TEXTS[:3]:
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        found = Pieces(tokenizer).of(ids, text)
        assert found is not None
        assert "".join(piece or "" for piece in found) == whole(tokenizer, ids)
    assert Pieces(tokenizer).of(tokenizer.encode("the answer is 42")) == [
        *("the", " answer", " is", " "),
        *("4", "2"),
    ]


def test_another_models_tokenizer_is_not_believed(tiny_tokenizer: Any) -> None:
    ids = tiny_tokenizer.encode("the answer")
    assert Pieces(tiny_tokenizer).of(ids, "the question") is None
    assert Pieces(_dropping()).of([0, 10**9], "the cat") is None


def test_tokenizers_come_from_this_machines_disk(tmp_path: Any, tiny_tokenizer: Any) -> None:
    run: Any = Rows(_table())
    assert local_tokenizer(run) is None
    tiny_tokenizer.save_pretrained(str(tmp_path))
    run.manifest.model["name"] = str(tmp_path)
    loaded = local_tokenizer(run)
    assert loaded is not None
    assert loaded.decode([5, 6, 7]) == tiny_tokenizer.decode([5, 6, 7])


def test_an_embedded_model_is_not_converted_for_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQPROC_CACHE", str(tmp_path))
    run: Any = Rows(_table())
    run.manifest.model["name"] = "smollm2-135m"
    assert local_tokenizer(run) is None
    assert list(tmp_path.iterdir()) == []


def _table() -> pa.Table:
    return pa.Table.from_pylist([given(0, "abc", [1], ())], schema=rows_schema(()))
