"""Teacher-forcing batches: right padding, longest first, masks and never pad ids."""

from __future__ import annotations

import pytest
import torch
from scorer_helpers import LENGTHS, random_sequences

from seqproc.scorers import TokenSequence, padded_batches, token_sequences
from seqproc.types import BatchedSequences

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_every_response_token_is_predicted_once_from_its_own_prefix(batch_size):
    sequences = random_sequences(50)
    batches = list(padded_batches(sequences, batch_size, CPU))
    assert all(len(batch.indices) <= batch_size for batch in batches)
    placed = [i for batch in batches for i in batch.indices]
    assert sorted(placed) == [i for i, (_, t) in enumerate(LENGTHS) if t > 0]
    for batch in batches:
        for row, (i, (start, stop)) in enumerate(zip(batch.indices, batch.spans, strict=True)):
            prompt, response = sequences[i].prompt_ids, sequences[i].response_ids
            ids = batch.input_ids[row]
            assert ids[start + 1 : stop + 1].tolist() == response.tolist()
            assert ids[: start + 1].tolist() == prompt.tolist()
            assert stop - start == len(response)


def test_padding_is_on_the_right_and_only_there():
    for batch in padded_batches(random_sequences(50), 4, CPU):
        lengths = batch.attention_mask.sum(-1)
        assert int(lengths.max()) == batch.input_ids.shape[1]
        for row, i in enumerate(batch.indices):
            length = random_sequences(50)[i].length
            assert batch.attention_mask[row].tolist() == [1] * length + [0] * (
                batch.input_ids.shape[1] - length
            )
        assert batch.input_ids.dtype == batch.attention_mask.dtype == torch.int64
        assert batch.input_ids.device == CPU


def test_longest_first_so_that_memory_fails_at_once():
    sequences = random_sequences(50)
    widths = [b.input_ids.shape[1] for b in padded_batches(sequences, 2, CPU)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == max(s.length for s in sequences if len(s.response_ids))
    as_given = [s.length for s in sequences]
    assert as_given != sorted(as_given, reverse=True)


def test_batches_do_not_depend_on_the_order_given():
    sequences = random_sequences(50)
    shapes = [
        [tuple(b.input_ids.shape) for b in padded_batches(order, 3, CPU)]
        for order in (sequences, sequences[::-1])
    ]
    assert shapes[0] == shapes[1]


def test_nothing_to_score_gives_no_batch():
    assert list(padded_batches([], 4, CPU)) == []
    empty = random_sequences(50, [(3, 0), (0, 0)])
    assert list(padded_batches(empty, 4, CPU)) == []


def test_token_sequences_strips_padding_by_masks_alone():
    eos = pad = 7
    batch = BatchedSequences(
        sequences=torch.tensor([[[pad, eos, 3, 5, eos, pad], [pad, eos, 3, eos, pad, pad]]]),
        prompt_lens=[3],
        gen_lens=[[2, 1]],
        attention_masks=torch.tensor([[[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]]]),
        responses_text=[["", ""]],
    )
    found = token_sequences(batch)
    assert [s.prompt_ids.tolist() for s in found] == [[eos, 3], [eos, 3]]
    assert [s.response_ids.tolist() for s in found] == [[5, eos], [eos]]
    assert [s.length for s in found] == [4, 3]
    by_id = [row[row != pad].tolist() for row in batch.sequences[0]]
    assert by_id != [[*s.prompt_ids.tolist(), *s.response_ids.tolist()] for s in found]


def test_token_sequences_come_in_row_order():
    ids = torch.arange(2 * 3 * 2).view(2, 3, 2)
    batch = BatchedSequences(
        sequences=ids,
        prompt_lens=[1, 1],
        gen_lens=[[1, 1, 1]] * 2,
        attention_masks=torch.ones_like(ids),
        responses_text=[[""] * 3] * 2,
    )
    assert [int(s.prompt_ids) for s in token_sequences(batch)] == [0, 2, 4, 6, 8, 10]


def test_a_sequence_is_a_frozen_record():
    sequence = TokenSequence(prompt_ids=torch.zeros(2), response_ids=torch.zeros(3))
    assert sequence.length == 5
    with pytest.raises(AttributeError):
        sequence.prompt_ids = torch.zeros(1)
