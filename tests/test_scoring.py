"""Rows as probes make them: scored as their tokens are, wherever the padding stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny import random_model
from seqproc import SequenceProcessor
from seqproc.errors import SequenceError
from seqproc.types import BatchedSequences

PAD = 0
ROWS = [[([5, 6, 7], [8, 9]), ([5, 6, 7], [0])], [([3], [4, 5, 6]), ([9, 3, 8, 2], [])]]

Layout = Callable[[list[int], list[int]], tuple[list[int], list[int], int]]


def on_the_left(prompt: list[int], response: list[int]) -> tuple[list[int], list[int], int]:
    """Ids, mask and prompt width of a prompt padded on its left to five columns."""
    space = 5 - len(prompt)
    return [PAD] * space + prompt + response, [0] * space + [1] * len(prompt + response), 5


def on_the_right(prompt: list[int], response: list[int]) -> tuple[list[int], list[int], int]:
    space = 5 - len(prompt)
    mask = [1] * len(prompt) + [0] * space + [1] * len(response)
    return prompt + [PAD] * space + response, mask, 5


def directly(prompt: list[int], response: list[int]) -> tuple[list[int], list[int], int]:
    return prompt + response, [1] * len(prompt + response), len(prompt)


def laid_out(layout: Layout, total: int = 9, **changes: Any) -> BatchedSequences:
    """`ROWS`, every one laid out and padded on its right."""
    cells = [[layout(*row) for row in rows] for rows in ROWS]

    def filled(part: int) -> torch.Tensor:
        rows: list[Any] = [[cell[part] for cell in row] for row in cells]
        return torch.tensor([[(r + [PAD] * total)[:total] for r in row] for row in rows])

    fields: dict[str, Any] = {
        "sequences": filled(0),
        "attention_masks": filled(1),
        "prompt_lens": [[cell[2] for cell in row] for row in cells],
        "gen_lens": [[len(response) for _, response in row] for row in ROWS],
    }
    return BatchedSequences(**fields | changes)


def model_logprobs(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log p of a response's tokens, by the model itself on one row without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    first = len(prompt) - 1
    steps = logits[first : first + len(response)].double().log_softmax(-1)
    return steps.gather(1, torch.tensor(response, dtype=torch.int64).unsqueeze(1)).squeeze(1)


@pytest.fixture
def processor(tiny_llama: Any, tiny_tokenizer: Any) -> SequenceProcessor:
    return SequenceProcessor(tiny_llama(), tiny_tokenizer)


@pytest.mark.parametrize("layout", [on_the_left, on_the_right, directly])
@pytest.mark.parametrize("make", [lambda x: x, torch.Tensor.bool, torch.Tensor.numpy])
def test_rows_score_the_same_wherever_their_padding_stands(
    processor: SequenceProcessor, layout: Layout, make: Any
) -> None:
    batch = laid_out(layout)
    batch.attention_masks = make(batch.attention_masks)
    batch.gen_lens = torch.tensor(batch.gen_lens)  # type: ignore[assignment]
    batch.prompt_lens = np.array(batch.prompt_lens)  # type: ignore[assignment]
    found = processor.teacher_force_logprobs(batch).logprobs
    for b, rows in enumerate(ROWS):
        for g, (prompt, response) in enumerate(rows):
            want = model_logprobs(processor.model, prompt, response)
            torch.testing.assert_close(found[b][g].double(), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("with_grad", [False, True])
def test_fields_changed_afterwards_are_checked_when_they_are_scored(
    processor: SequenceProcessor, with_grad: bool
) -> None:
    batch = laid_out(on_the_left)
    batch.prompt_lens = [5, 4]  # one too small: every score of the second prompt would be off
    with pytest.raises(
        SequenceError, match=r"\[1\]\[0\]: attention_masks mark 1 real tokens behind"
    ):
        processor.teacher_force_logprobs(batch, with_grad=with_grad)
    batch.prompt_lens = [5, 5]
    batch.gen_lens[0][0] = 1
    with pytest.raises(
        SequenceError, match=r"\[0\]\[0\]: attention_masks mark 1 real tokens behind"
    ):
        processor.jvp(batch, {})
    with pytest.raises(
        SequenceError, match=r"\[0\]\[0\]: attention_masks mark 1 real tokens behind"
    ):
        processor.compute_rewards(batch, None)


def test_a_model_that_forbids_tokens_is_scored_at_shifted_parameters(
    tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    model = tiny_llama()
    forbidding = torch.nn.Linear(32, len(tiny_tokenizer))
    forbidding.weight = model.lm_head.weight
    forbidding.bias.data.zero_()[[200, 201]] = -torch.inf
    model.lm_head = forbidding
    processor = SequenceProcessor(model, tiny_tokenizer)
    batch, v = laid_out(on_the_left), {"lm_head.weight": torch.ones(len(tiny_tokenizer), 32)}
    own = processor.teacher_force_logprobs(batch).sequence_logprobs
    still, moved = processor.sweep(batch, v | {"lm_head.bias": torch.zeros(300)}, etas=[0.0, 0.1])
    assert still[0].sequence_logprobs == own
    assert np.isfinite(moved[0].sequence_logprobs).all()
    full = processor.build_params_override({}, 0.1)
    assert processor.teacher_force_logprobs(batch, params_override=full).sequence_logprobs == own


def long(length: int) -> BatchedSequences:
    ids = torch.randint(3, 290, (1, 1, length), generator=torch.Generator().manual_seed(0))
    return BatchedSequences(
        sequences=ids,
        prompt_lens=[length - 5],
        gen_lens=[[5]],
        attention_masks=torch.ones_like(ids),
    )


class CountsForwards:
    """A hook on a model's forward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.number = 0
        model.register_forward_pre_hook(self, prepend=True)

    def __call__(self, *_: Any) -> None:
        self.number += 1


@pytest.mark.parametrize("score", ["without", "with_grad", "jvp"])
def test_beyond_a_table_of_positions_is_refused_before_any_forward(
    tiny_gpt2: Any, tiny_tokenizer: Any, score: str
) -> None:
    model = tiny_gpt2(n_positions=64)
    processor, forwards = SequenceProcessor(model, tiny_tokenizer), CountsForwards(model)
    runs: dict[str, Callable[[BatchedSequences], object]] = {
        "jvp": lambda batch: processor.jvp(batch, {}),
        "with_grad": lambda batch: processor.teacher_force_logprobs(batch, with_grad=True),
        "without": processor.teacher_force_logprobs,
    }
    with pytest.raises(SequenceError, match=r"up to 66 tokens cannot .* positions only for 64 tok"):
        runs[score](long(66))
    assert forwards.number == 0
    ids = long(65).sequences[0, 0].tolist()  # nothing reads what the last token predicts
    found = processor.teacher_force_logprobs(long(65)).logprobs[0][0]
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0, -5:].double().log_softmax(-1)
    want = logits.gather(1, torch.tensor(ids[-5:]).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found.double(), want, rtol=0, atol=1e-5)


def test_a_table_with_rows_beside_its_positions_is_found_too(tiny_tokenizer: Any) -> None:
    from transformers import OPTConfig

    fields = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32}
    fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    model = random_model(OPTConfig, tiny_tokenizer, 0, fields)
    with pytest.raises(SequenceError, match="positions only for 64 tokens"):
        SequenceProcessor(model, tiny_tokenizer).teacher_force_logprobs(long(66))


def test_a_forward_that_fails_beyond_the_context_is_named(tiny_tokenizer: Any) -> None:
    from transformers import GPTJConfig

    fields = {"n_embd": 32, "n_layer": 1, "n_head": 2, "rotary_dim": 4, "n_positions": 64}
    model = random_model(GPTJConfig, tiny_tokenizer, 0, fields)  # its positions are in a buffer
    with pytest.raises(SequenceError, match=r"up to 70 tokens .* a context of 64 tokens") as raised:
        SequenceProcessor(model, tiny_tokenizer).teacher_force_logprobs(long(70))
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_an_index_error_of_a_model_that_does_not_tell_its_context_is_named(
    tiny_gpt2: Any, tiny_tokenizer: Any
) -> None:
    processor = SequenceProcessor(tiny_gpt2(n_positions=64), tiny_tokenizer)
    processor.source.max_context = None
    with pytest.raises(SequenceError, match=r"up to 70 tokens .* positions for fewer") as raised:
        processor.teacher_force_logprobs(long(70))
    assert isinstance(raised.value.__cause__, IndexError)


def test_an_error_within_the_context_stays_as_it_is(
    processor: SequenceProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("of another cause")

    monkeypatch.setattr(processor.scorer, "score", fail)
    with pytest.raises(IndexError, match="of another cause"):
        processor.teacher_force_logprobs(laid_out(on_the_left))


def test_beyond_the_context_of_computed_positions_there_is_one_warning(
    tiny_llama: Any, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    processor = SequenceProcessor(tiny_llama(max_position_embeddings=64), tiny_tokenizer)
    processor.teacher_force_logprobs(long(64))
    assert not caplog.records
    for with_grad in (False, True):
        scores = processor.teacher_force_logprobs(long(80), with_grad=with_grad)
        assert scores.logprobs[0][0].isfinite().all()
    told = [record for record in caplog.records if "context" in record.getMessage()]
    assert [record.name for record in told] == ["seqproc"]
    assert "up to 80 tokens are longer than the model's context of 64" in told[0].getMessage()
