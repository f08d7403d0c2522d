"""`BatchedSequences`: what it refuses, and what its accessors read when pad and EOS are one id."""

from __future__ import annotations

from typing import Any

import numpy as np
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
            {"attention_masks": masks(b1g1=[1, 0, 1, 0, 0, 0])},
            r"\[1\]\[1\]: the prompt's attention mask has a hole; .* left \(zeros, then ones\)",
        ),
        (
            {"attention_masks": masks(b1g0=[1, 0, 1, 1, 1, 1])},
            r"\[1\]\[0\]: the prompt's attention mask has a hole",
        ),
        (
            {"attention_masks": masks(b0g0=[0, 1, 1, 1, 0, 0])},  # as `tokens != pad` would have it
            r"\[0\]\[0\]: attention_masks must be 1 on all 2 generated tokens.*drops real EOS",
        ),
        (
            {"attention_masks": masks(b1g0=[0, 0, 0, 1, 1, 1])},
            r"\[1\]\[0\]: a response needs at least one prompt token",
        ),
        ({"prompt_lens": [3, 2]}, r"\[1\]\[0\]: attention_masks mark 1 real tokens behind"),
        ({"prompt_lens": [[3, 3], [3, 2]]}, r"\[1\]\[1\]: .* mark 1 real .* ends at column 2"),
        ({"gen_lens": [[1, 1], [3, 0]]}, r"\[0\]\[0\]: attention_masks mark 1 real tokens behind"),
        (
            {"attention_masks": masks(b1g1=[1, 1, 1, 0, 1, 0])},
            r"\[1\]\[1\]: attention_masks mark 1 real tokens behind the response",
        ),
        (
            {"attention_masks": masks(b0g1=[0, -1, 1, 1, 0, 0])},
            r"\[0\]\[1\]: attention_masks must hold only 0 and 1, or False and True, got -1",
        ),
        (
            {"attention_masks": masks(b1g0=[1, 2, 1, 1, 1, 1])},
            r"\[1\]\[0\]: .* only 0 and 1.* got 2",
        ),
        ({"attention_masks": masks() * float("nan")}, r"\[0\]\[0\]: .* only 0 and 1.* got nan"),
        ({"attention_masks": None}, r"attention_masks must be a tensor.*got NoneType"),
        ({"sequences": None}, r"sequences must be a tensor.*got NoneType"),
        ({"sequences": "x"}, r"sequences must be a tensor.*got str: 'x'"),
        (
            {"sequences": np.full((2, 2, 6), 1.5)},
            r"sequences must hold integer ids, got torch\.float64",
        ),
        ({"sequences": torch.ones(2, 2, 6, dtype=torch.bool)}, r"integer ids, got torch\.bool"),
        (
            {"sequences": torch.ones(2, 2, 6).long().to_sparse()},
            r"sequences must be a dense tensor",
        ),
        ({"sequences": torch.ones(2, 2, 6, device="meta")}, r"sequences must hold data"),
        (
            {"sequences": torch.zeros(2, 0, 6).long()},
            r"at least one prompt and one response.*2, 0, 6",
        ),
        (
            {"sequences": torch.zeros(0, 2, 6).long()},
            r"at least one prompt and one response.*0, 2, 6",
        ),
        ({"prompt_lens": 3}, r"prompt_lens must be a list with one length per prompt.*got int: 3"),
        ({"prompt_lens": None}, r"prompt_lens must be a list.*got NoneType"),
        (
            {"prompt_lens": [3.0, 3.0]},
            r"prompt_lens\[0\] must be a number of tokens, got float: 3\.0",
        ),
        ({"prompt_lens": np.array([3, 3.5])}, r"prompt_lens\[0\] must be a number of tokens"),
        (
            {"prompt_lens": [3, True]},
            r"prompt_lens\[1\] must be a number of tokens, got bool: True",
        ),
        (
            {"prompt_lens": [[3, 3], 3]},
            r"prompt_lens must be nested as \[2\]\[2\].*got a list of int",
        ),
        ({"prompt_lens": [[3], [3]]}, r"prompt_lens must be nested as \[2\]\[2\].*lengths \[1\]"),
        ({"gen_lens": [2, 1]}, r"gen_lens must be nested as \[2\]\[2\].*got a list of int"),
        ({"gen_lens": 2}, r"gen_lens must be nested as \[2\]\[2\].*got int: 2"),
        ({"gen_lens": None}, r"gen_lens must be nested.*got NoneType"),
        (
            {"gen_lens": [[2, 1], [3, 0.0]]},
            r"gen_lens\[1\]\[1\] must be a number of tokens, got float",
        ),
        (
            {"gen_lens": [[2, 1], [3, 2**70]]},
            r"\[1\]\[1\]: prompt_len 3 \+ gen_len 1180\d+ must fit",
        ),
        (
            {"responses_text": [["a", 3], ["b", ""]]},
            r"responses_text\[0\]\[1\] must be a string, got",
        ),
        (
            {"finish_reasons": [["eos", "eos"], ["length", "abort"]]},
            r"finish_reasons\[1\]\[1\] must be one of 'eos', 'stop', 'length', got str: 'abort'",
        ),
        (
            {"engine_logqs": [[torch.zeros(2), None], [torch.zeros(2), None]]},
            r"engine_logqs\[1\]\[0\] must hold one number per generated token \(3\), got 2",
        ),
        (
            {"engine_logqs": [[0.5, None], [None, None]]},
            r"engine_logqs\[0\]\[0\] must hold one number",
        ),
        ({"engine_logqs": [[[1, 2], None]] * 2}, r"engine_logqs\[0\]\[0\] must hold .* as floats"),
        ({"seeds": [[1, 2], [3, -4]]}, r"seeds\[1\]\[1\] must lie in \[0, 2\*\*64\), got -4"),
        ({"seeds": [[1, 2], [3, 0.5]]}, r"seeds\[1\]\[1\] must be an integer, got float: 0\.5"),
        ({"seeds": [1, 2]}, r"seeds must be nested as \[2\]\[2\].*got a list of int"),
        ({"provenance": 3}, r"provenance must be a Provenance or None, got int: 3"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(SequenceError, match=message):
        BatchedSequences(**fields(**changes))


def rows_of(batch: BatchedSequences) -> list[tuple[list[int], list[int]]]:
    """Prompt and response of every draw."""
    return [
        (batch.prompt_ids(b, g).tolist(), batch.response_ids(b, g).tolist())
        for b in range(batch.num_prompts)
        for g in range(batch.num_responses)
    ]


def test_prompts_may_be_padded_on_either_side_or_not_at_all():
    left = rows_of(BatchedSequences(**fields()))
    right = {
        "sequences": [[[EOS, 5, 9, 7, EOS, 9], [EOS, 5, 9, EOS, 9, 9]]],
        "attention_masks": [[[1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0]]],
        "prompt_lens": [3],
    }
    direct = {
        "sequences": [[[EOS, 5, 7, EOS, 9, 9], [9, EOS, 5, EOS, 9, 9]]],
        "attention_masks": [[[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0]]],
        "prompt_lens": [[2, 3]],
    }
    for changes in (right, direct):
        batch = BatchedSequences(**fields(**changes, gen_lens=[[2, 1]], responses_text=[]))
        assert rows_of(batch) == left[:2]


@pytest.mark.parametrize("make", [np.array, torch.tensor, lambda x: x, tuple])
@pytest.mark.parametrize("lens", [[3, 3], [[3, 3], [3, 3]]])
def test_arrays_tensors_and_lists_are_taken_in(make, lens):
    given = fields()
    ids, mask = given["sequences"].tolist(), given["attention_masks"].tolist()
    batch = BatchedSequences(
        **fields()
        | {
            "sequences": make(ids),
            "attention_masks": make(mask),
            "prompt_lens": make(lens),
            "gen_lens": make([[2, 1], [3, 0]]),
            "seeds": make([[1, 2], [3, 4]]),
        },
        engine_logqs=[[make([-0.5, -1.0]), None], [None, make([])]],
    )
    assert rows_of(batch) == rows_of(BatchedSequences(**fields()))
    assert batch.sequences.dtype == torch.int64
    assert (batch.prompt_lens, batch.gen_lens) == (lens, [[2, 1], [3, 0]])
    assert batch.seeds == [[1, 2], [3, 4]]
    assert batch.engine_logqs is not None
    assert batch.engine_logqs[0][0].tolist() == [-0.5, -1.0]


def test_lists_of_tensors_are_taken_in():
    given = fields()
    lists = {
        name: [list(rows) for rows in given[name]] for name in ("sequences", "attention_masks")
    }
    assert rows_of(BatchedSequences(**given | lists)) == rows_of(BatchedSequences(**given))


def test_reversed_read_only_and_boolean_arrays_are_taken_in():
    ids = fields()["sequences"].numpy().astype(np.uint16)[::-1]
    mask = masks().bool().numpy()[::-1]
    ids.flags.writeable = mask.flags.writeable = False
    lens = {"gen_lens": [[3, 0], [2, 1]], "responses_text": []}
    batch = BatchedSequences(**fields(sequences=ids, attention_masks=mask, **lens))
    first, second = rows_of(BatchedSequences(**fields()))[:2], rows_of(batch)[2:]
    assert first == second


def test_fields_changed_afterwards_are_checked_on_request():
    batch = BatchedSequences(**fields())
    batch.sequences = batch.sequences.numpy()  # type: ignore[assignment]
    batch.check()
    assert isinstance(batch.sequences, torch.Tensor)
    batch.gen_lens[0][0] = 1
    with pytest.raises(SequenceError, match="mark 1 real tokens behind"):
        batch.check()


def test_an_empty_prompt_is_fine_where_there_is_no_response():
    batch = BatchedSequences(**fields(attention_masks=masks(b1g1=[0, 0, 0, 0, 0, 0])))
    assert batch.prompt_ids(1, 1).tolist() == []


def test_a_sequence_error_is_a_value_error():
    with pytest.raises(ValueError, match="prompt_lens"):
        BatchedSequences(**fields(prompt_lens=[]))
