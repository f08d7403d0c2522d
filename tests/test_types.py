"""`BatchedSequences`: what it refuses, and what its accessors read when pad and EOS are one id."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seqproc.errors import SequenceError
from seqproc.types import BatchedSequences

EOS = PAD = 0


def fields(**changes: Any) -> dict[str, Any]:
    """Two prompts of 2 and 3 tokens, two responses each; EOS = pad stands in both regions."""
    values = {
        "sequences": [
            [[PAD, EOS, 5, 7, EOS, PAD], [PAD, EOS, 5, EOS, PAD, PAD]],
            [[EOS, 6, EOS, 8, 9, 7], [EOS, 6, EOS, PAD, PAD, PAD]],
        ],
        "attention_masks": [
            [[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]],
            [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]],
        ],
        "prompt_lens": [3, 3],
        "gen_lens": [[2, 1], [3, 0]],
        "responses_text": [["a", ""], ["b", ""]],
    } | changes
    for name in ("sequences", "attention_masks"):
        if isinstance(values[name], list):
            values[name] = torch.tensor(values[name])
    return values


def masks(**rows: list[int]) -> torch.Tensor:
    """The masks, with one sequence's row replaced: ``masks(b1g0=[…])``."""
    changed = fields()["attention_masks"].clone()
    for name, row in rows.items():
        changed[int(name[1]), int(name[3])] = torch.tensor(row)
    return changed


def test_accessors_go_by_lengths_and_masks_and_never_by_pad_ids():
    batch = BatchedSequences(**fields())
    assert (batch.num_prompts, batch.num_responses) == (2, 2)
    assert batch.prompt_ids(0).tolist() == [EOS, 5]
    assert batch.prompt_ids(0, 1).tolist() == [EOS, 5]
    assert batch.prompt_ids(1).tolist() == [EOS, 6, EOS]
    assert batch.response_ids(0, 0).tolist() == [7, EOS]
    assert batch.response_ids(0, 1).tolist() == [EOS]
    assert batch.response_ids(1, 0).tolist() == [8, 9, 7]
    by_pad_id = batch.sequences[0, 0] != PAD  # the old defect: real EOS tokens are lost
    assert by_pad_id.sum() < batch.attention_masks[0, 0].sum()


def test_texts_are_optional():
    values = fields()
    del values["responses_text"]
    assert BatchedSequences(**values).responses_text == []
    assert BatchedSequences(**fields(responses_text=[])).responses_text == []


def test_a_generation_without_tokens_is_empty():
    assert BatchedSequences(**fields()).response_ids(1, 1).tolist() == []
    alone = BatchedSequences(
        sequences=torch.zeros(1, 1, 0, dtype=torch.int64),
        prompt_lens=[0],
        gen_lens=[[0]],
        attention_masks=torch.zeros(1, 1, 0, dtype=torch.int64),
        responses_text=[[""]],
    )
    assert alone.prompt_ids(0).tolist() == alone.response_ids(0, 0).tolist() == []


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_masks_of_any_dtype_read_the_same(dtype):
    batch = BatchedSequences(**fields(attention_masks=masks().to(dtype)))
    assert batch.prompt_ids(0).tolist() == [EOS, 5]


def test_optional_fields_may_be_given_or_left_out():
    assert BatchedSequences(**fields()).seeds is None
    full = BatchedSequences(
        **fields(
            finish_reasons=[["eos", "eos"], ["length", "length"]],
            engine_logqs=[[torch.zeros(2), None], [torch.zeros(3), None]],
            seeds=[[1, 2], [3, 4]],
        )
    )
    assert full.finish_reasons[1][0] == "length"


TWICE = [["a"], ["b", "c"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequences": torch.zeros(2, 6, dtype=torch.int64)}, r"\[B, G, L\], got .* \[2, 6\]"),
        ({"sequences": torch.zeros(2, 2, 6)}, r"integer ids, got torch\.float32"),
        (
            {"attention_masks": torch.ones(2, 2, 5)},
            r"shape of sequences \[2, 2, 6\], got \[2, 2, 5",
        ),
        ({"prompt_lens": [3]}, r"prompt_lens must hold one length per prompt \(2\), got 1"),
        ({"gen_lens": [[2, 1]]}, r"gen_lens must be nested as \[2\]\[2\].*got 1 rows of lengths"),
        (
            {"gen_lens": [[2], [3]]},
            r"gen_lens must be nested as \[2\]\[2\].*2 rows of lengths \[1\]",
        ),
        ({"responses_text": TWICE}, r"responses_text must be nested .*2 rows of lengths \[1, 2\]"),
        ({"finish_reasons": TWICE}, r"finish_reasons must be nested"),
        ({"engine_logqs": [[None, None]]}, r"engine_logqs must be nested"),
        ({"seeds": [[1, 2, 3], [1, 2, 3]]}, r"seeds must be nested"),
        ({"gen_lens": [[2, 1], [4, 0]]}, r"\[1\]\[0\]: prompt_len 3 \+ gen_len 4 must fit in .* 6"),
        ({"gen_lens": [[2, 1], [3, -1]]}, r"\[1\]\[1\]: prompt_len 3 \+ gen_len -1"),
        ({"prompt_lens": [3, -3]}, r"\[1\]\[0\]: prompt_len -3"),
        (
            {"attention_masks": masks(b1g1=[1, 1, 0, 0, 0, 0])},
            r"\[1\]\[1\]: the prompt's attention mask must be left-padded \(zeros, then ones\)",
        ),
        (
            {"attention_masks": masks(b1g0=[1, 0, 1, 1, 1, 1])},
            r"\[1\]\[0\]: the prompt's attention mask must be left-padded",
        ),
        (
            {"attention_masks": masks(b0g0=[0, 1, 1, 1, 0, 0])},  # as `tokens != pad` would have it
            r"\[0\]\[0\]: attention_masks must be 1 on all 2 generated tokens.*drops real EOS",
        ),
        (
            {"attention_masks": masks(b1g0=[0, 0, 0, 1, 1, 1])},
            r"\[1\]\[0\]: a response needs at least one prompt token",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(SequenceError, match=message):
        BatchedSequences(**fields(**changes))


def test_an_empty_prompt_is_fine_where_there_is_no_response():
    batch = BatchedSequences(**fields(attention_masks=masks(b1g1=[0, 0, 0, 0, 0, 0])))
    assert batch.prompt_ids(1, 1).tolist() == []


def test_a_sequence_error_is_a_value_error():
    with pytest.raises(ValueError, match="prompt_lens"):
        BatchedSequences(**fields(prompt_lens=[]))
