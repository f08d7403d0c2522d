"""What a model tells of itself, whatever its class is called."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from seqproc.errors import ModelError
from seqproc.models.introspection import (
    context_length,
    eos_token_ids,
    has_position_table,
    vocab_size,
)


class TestVocabSize:
    def test_vocab_size_counts_the_rows_of_the_embedding(self, tiny_gpt2, tiny_qwen2):
        assert vocab_size(tiny_gpt2(vocab_size=311)) == 311
        assert vocab_size(tiny_qwen2()) == 300

    def test_vocab_size_of_a_model_with_only_a_config(self):
        nested = SimpleNamespace(text_config=SimpleNamespace(vocab_size=7))
        assert vocab_size(SimpleNamespace(config=SimpleNamespace(vocab_size=5))) == 5
        assert vocab_size(SimpleNamespace(config=nested)) == 7

    def test_vocab_size_of_something_else(self):
        with pytest.raises(ModelError, match="vocabulary size of a Linear"):
            vocab_size(torch.nn.Linear(2, 2))


class TestEosTokenIds:
    @pytest.mark.parametrize(
        ("generation", "config", "tokenizer", "expected"),
        [
            (5, 9, 2, (2, 5)),
            ([7, 5], 9, 5, (5, 7)),
            (None, 9, 2, (2, 9)),
            (None, [9, 0], None, (0, 9)),
            (0, None, None, (0,)),
            (None, None, 0, (0,)),
        ],
    )
    def test_union(self, generation, config, tokenizer, expected):
        holders = [SimpleNamespace(eos_token_id=ids) for ids in (config, generation, tokenizer)]
        assert eos_token_ids(*holders) == expected

    def test_a_model_brings_its_own_generation_config(self, tiny_llama, tiny_tokenizer):
        model = tiny_llama()
        model.generation_config.eos_token_id = [11, 4]
        assert eos_token_ids(model, None, tiny_tokenizer) == (0, 4, 11)
        assert eos_token_ids(model.config, None, tiny_tokenizer) == (0,)

    def test_a_text_config_is_asked_too(self):
        config = SimpleNamespace(text_config=SimpleNamespace(eos_token_id=3))
        assert eos_token_ids(config, None, SimpleNamespace(eos_token_id=None)) == (3,)

    def test_none_at_all(self):
        nothing = SimpleNamespace(eos_token_id=None)
        with pytest.raises(ModelError, match="set one of them"):
            eos_token_ids(nothing, nothing, nothing)


class TestContextLength:
    def test_of_real_configurations(self, tiny_llama, tiny_gpt2):
        assert context_length(tiny_llama(max_position_embeddings=96).config) == 96
        assert context_length(tiny_gpt2(n_positions=40).config) == 40

    def test_of_nested_and_silent_ones(self):
        nested = SimpleNamespace(text_config=SimpleNamespace(max_sequence_length=12))
        assert context_length(nested) == 12
        assert context_length(SimpleNamespace(vocab_size=3)) is None

    def test_a_table_of_positions_is_told_from_other_tables(self, tiny_gpt2, tiny_llama):
        assert has_position_table(tiny_gpt2(n_positions=40), 40)
        as_large = tiny_gpt2(n_positions=300)  # as many positions as tokens
        assert has_position_table(as_large, 300)
        assert not has_position_table(tiny_llama(max_position_embeddings=300), 300)
        assert not has_position_table(tiny_gpt2(n_positions=64), 40)
