"""Teacher-forcing batches: what is read where, limits, little padding, prompts shared or not."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from helpers import scorer_helpers
from helpers.scorer_helpers import random_sequences
from seqproc.errors import ConfigError
from seqproc.scorers import Batch, Limits, TokenSequence, plan, token_sequences
from seqproc.types import BatchedSequences

CPU = torch.device("cpu")

# Prompt length, and the lengths of its responses; of the last two prompts there is one response.
FAMILIES = ((6, (5, 1, 8, 3)), (2, (1, 1)), (9, (4, 0, 7)), (4, (2, 9)), (5, (6,)), (3, (2,)))

LIMITS = [
    Limits(tokens=1),
    Limits(tokens=20),
    Limits(tokens=33),
    Limits(tokens=10_000),
    Limits(tokens=10_000, sequences=1),
    Limits(tokens=10_000, sequences=3),
    Limits(tokens=20, sequences=2),
    Limits(tokens=10_000, forward_cost=1),
    Limits(tokens=33, forward_cost=1),
    Limits(tokens=20, share_prompts=False),
    Limits(tokens=10_000, forward_cost=1, share_prompts=False),
    Limits(tokens=10_000, sequences=4, share_prompts=False),
]


def families(shapes: Any = FAMILIES, seed: int = 0) -> list[TokenSequence]:
    return scorer_helpers.families(50, shapes, seed)


def contexts(batch: Batch) -> list[list[int]]:
    """The real tokens that each of the flattened outputs of a causal model has seen."""

    def seen(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        return [ids[: j + 1][mask[: j + 1].bool()].tolist() for j in range(len(ids))]

    rows = [
        seen(ids[:width], mask[:width])
        for part, width in batch.parts()
        for ids, mask in zip(batch.inputs[part], batch.inputs_mask[part], strict=True)
    ]
    if batch.prompts is None:
        return [context for row in rows for context in row]
    prompts = [
        row[mask.bool()].tolist()
        for row, mask in zip(batch.prompts, batch.prompts_mask, strict=True)
    ]
    rest = [
        prompts[owner] + context
        for owner, row in zip(batch.owners.tolist(), rows, strict=True)
        for context in row
    ]
    return prompts + rest


def contents(sequences: list[TokenSequence], limits: Limits) -> list[list[tuple[int, ...]]]:
    """What is in each batch, as tokens."""
    found = []
    for batch in plan(sequences, limits):
        chosen = [sequences[i] for i in batch.indices]
        found.append([(*s.prompt_ids.tolist(), -1, *s.response_ids.tolist()) for s in chosen])
    return found


def real_tokens(sequences: list[TokenSequence]) -> int:
    """Inputs without padding, every prompt counted for every response."""
    return sum(s.length - 1 for s in sequences if len(s.response_ids))


# What is read where.


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("sequences", [families(), random_sequences(50)], ids=["common", "own"])
def test_every_target_is_read_behind_its_own_prefix(sequences, limits):
    placed = []
    for batch in plan(sequences, limits):
        seen = contexts(batch)
        found = [
            (seen[at], token)
            for at, token in zip(batch.read.tolist(), batch.targets.tolist(), strict=True)
        ]
        assert found == [
            ([*s.prompt_ids.tolist(), *s.response_ids.tolist()[:t]], int(s.response_ids[t]))
            for s in (sequences[i] for i in batch.indices)
            for t in range(len(s.response_ids))
        ]
        assert batch.lengths == [len(sequences[i].response_ids) for i in batch.indices]
        placed += batch.indices
    assert sorted(placed) == [i for i, s in enumerate(sequences) if len(s.response_ids)]


def test_a_whole_batch_in_full():
    sequences = [
        TokenSequence(prompt_ids=torch.tensor([11]), response_ids=torch.tensor([12, 13])),
        TokenSequence(prompt_ids=torch.tensor([21, 22]), response_ids=torch.tensor([23, 24, 25])),
    ]
    (batch,) = plan(sequences, Limits(tokens=100))
    assert batch.indices == [1, 0]
    assert batch.inputs.tolist() == [[21, 22, 23, 24], [11, 12, 21, 21]]
    assert batch.inputs_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.targets.tolist() == [23, 24, 25, 12, 13]
    assert batch.read.tolist() == [1, 2, 3, 4, 5]
    assert batch.lengths == [3, 2]
    assert batch.prompts is batch.prompts_mask is batch.owners is None
    assert batch.num_tokens == 8


def test_a_shared_batch_in_full():
    first, second = torch.tensor([11, 12, 13]), torch.tensor([21])
    sequences = [
        TokenSequence(prompt_ids=second, response_ids=torch.tensor([22])),
        TokenSequence(prompt_ids=first, response_ids=torch.tensor([14, 15])),
        TokenSequence(prompt_ids=second.clone(), response_ids=torch.tensor([23, 24])),
        TokenSequence(prompt_ids=first.clone(), response_ids=torch.tensor([16, 17, 18])),
    ]
    (batch,) = plan(sequences, Limits(tokens=100))
    assert batch.indices == [3, 1, 2, 0]
    assert batch.prompts.tolist() == [[11, 12, 13], [11, 11, 21]]
    assert batch.prompts_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.owners.tolist() == [0, 0, 1, 1]
    assert batch.inputs.tolist() == [[16, 17], [14, 16], [23, 16], [16, 16]]
    assert batch.inputs_mask.tolist() == [[1, 1], [1, 0], [1, 0], [0, 0]]
    assert batch.targets.tolist() == [16, 17, 18, 14, 15, 23, 24, 22]
    assert batch.read.tolist() == [0, 2, 3, 0, 4, 1, 6, 1]
    assert batch.lengths == [3, 2, 2, 1]
    assert batch.num_tokens == 6 + 8


@pytest.mark.parametrize("share", [True, False])
def test_prompts_are_padded_on_the_left_and_the_rest_on_the_right(share):
    padded = 0
    for batch in plan(families(), Limits(tokens=60, share_prompts=share)):
        mask = batch.inputs_mask
        assert torch.equal(mask, mask.sort(-1, descending=True).values)
        assert set(batch.inputs[mask == 0].tolist()) <= set(batch.inputs[mask == 1].tolist())
        padded += int((mask == 0).sum())
        if batch.prompts is not None:
            assert torch.equal(batch.prompts_mask, batch.prompts_mask.sort(-1).values)
            assert bool(batch.prompts_mask.any(0).all())  # no column is padding alone
            padded += int((batch.prompts_mask == 0).sum())
        else:
            assert bool(mask.any(0).all())
        assert batch.inputs.dtype == mask.dtype == torch.int64
        assert batch.inputs.device == CPU
    assert padded > 0


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_a_last_token_is_never_an_input(limits):
    last = 77
    sequences = families()
    for s in sequences:
        s.response_ids[-1:] = last
    num_targets = 0
    for batch in plan(sequences, limits):
        assert not bool((batch.inputs == last).any())
        num_targets += int((batch.targets == last).sum())
    assert num_targets == sum(len(s.response_ids) > 0 for s in sequences)


def test_responses_of_one_token_need_no_input_but_their_prompt():
    (batch,) = plan(families([(4, (1, 1, 1))]), Limits(tokens=4))
    assert batch.inputs.shape == (3, 0)
    assert batch.num_tokens == batch.prompts.numel() == 4
    assert batch.read.tolist() == [0, 0, 0]


# Limits and order.


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("sequences", [families(), random_sequences(50)], ids=["common", "own"])
def test_no_batch_is_over_its_limits_unless_it_is_one_sequence(sequences, limits):
    alone = 0
    for batch in plan(sequences, limits):
        if len(batch.indices) > 1:
            assert batch.num_tokens <= limits.tokens
            assert limits.sequences is None or len(batch.indices) <= limits.sequences
        alone += len(batch.indices) == 1 and batch.num_tokens > limits.tokens
    assert bool(alone) == (limits.tokens == 1)


@pytest.mark.parametrize("share", [True, False])
def test_a_batch_is_as_full_as_the_limits_allow(share):
    """The next batch's first sequence, or first family, would not have fitted."""
    sequences = families([(3, (4, 4))] * 9)
    sizes = [len(b.indices) for b in plan(sequences, Limits(tokens=30, share_prompts=share))]
    assert sizes == ([6, 6, 6] if share else [5, 5, 5, 3])


def test_num_tokens_counts_the_padding():
    for batch in plan(families(), Limits(tokens=60, forward_cost=1)):
        masks = [batch.inputs_mask[rows, :width] for rows, width in batch.parts()]
        masks += [] if batch.prompts_mask is None else [batch.prompts_mask]
        assert batch.num_tokens == sum(mask.numel() for mask in masks)
        real = sum(int(mask.sum()) for mask in masks)
        assert int(batch.inputs_mask.sum()) <= real <= batch.num_tokens


def test_longest_first_so_that_memory_fails_at_once():
    sequences = random_sequences(50)
    widths = [b.inputs.shape[1] for b in plan(sequences, Limits(tokens=25))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == max(s.length - 1 for s in sequences if len(s.response_ids))
    shared = families(FAMILIES[:4])
    lengths = [b.longest for b in plan(shared, Limits(tokens=30))]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 1
    given = [len(s.prompt_ids) for s in shared]
    assert given != sorted(given, reverse=True)


def test_the_longest_of_all_is_first():
    sequences = families([(3, (2, 2)), (40, (20,))])
    first, *_ = plan(sequences, Limits(tokens=10))
    assert first.indices == [2]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_order_given_does_not_matter(limits):
    sequences = families([(6, (5, 1, 8, 3)), (2, (1, 2)), (9, (4, 0, 7)), (4, (11,)), (5, (7,))])
    lengths = [s.length for s in sequences if len(s.response_ids)]
    assert len(set(lengths)) == len(lengths)  # nothing to break ties by but the order
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(0)).tolist()
    assert order != sorted(order)
    batches = contents(sequences, limits)
    assert contents([sequences[i] for i in order], limits) == batches
    assert contents(sequences[::-1], limits) == batches
    assert contents(families(seed=1), limits) != batches


# Families.


def test_a_prompt_is_in_a_batch_once():
    sequences = families()
    shared, whole = plan(sequences[::-1], Limits(tokens=10_000))
    assert shared.prompts.shape[0] == 4
    assert len({tuple(row.tolist()) for row in shared.prompts}) == 4
    assert len(shared.indices) == 10
    assert whole.prompts is None
    assert len(whole.indices) == 2


def test_a_family_that_is_too_large_is_taken_in_parts():
    sequences = families([(6, (5, 4, 3, 2, 2, 1))])
    batches = list(plan(sequences, Limits(tokens=16)))
    assert [len(b.indices) for b in batches] == [2, 4]
    assert [b.num_tokens for b in batches] == [6 + 2 * 4, 6 + 4 * 2]
    for batch in batches:
        assert batch.prompts.tolist() == [sequences[0].prompt_ids.tolist()]
    alone = list(plan(sequences, Limits(tokens=6)))
    assert [b.lengths for b in alone] == [[5], [4], [3], [2], [2], [1]]


def test_prompts_are_shared_only_when_asked():
    sequences = families()
    assert any(b.prompts is not None for b in plan(sequences, Limits(tokens=60)))
    for batch in plan(sequences, Limits(tokens=60, share_prompts=False)):
        assert batch.prompts is None
    for batch in plan(random_sequences(50), Limits(tokens=60)):
        assert batch.prompts is None  # there is nothing to share


def test_one_prompt_is_another_only_token_for_token():
    """A prompt that begins like another, or ends like it, is another."""
    prompts = [[1, 2, 3], [1, 2], [2, 3], [0, 1, 2, 3], [1, 2, 3, 0]]
    sequences = [
        TokenSequence(prompt_ids=torch.tensor(p), response_ids=torch.tensor([5, 6]))
        for p in prompts
    ]
    assert all(batch.prompts is None for batch in plan(sequences, Limits(tokens=100)))
    (batch,) = plan([*sequences[:1] * 2], Limits(tokens=100))
    assert batch.prompts is not None


def test_integer_types_do_not_make_prompts_equal():
    response = torch.tensor([5, 6])
    sequences = [
        TokenSequence(prompt_ids=torch.tensor([1, 0], dtype=torch.int32), response_ids=response),
        TokenSequence(prompt_ids=torch.tensor([1]), response_ids=response),
    ]
    assert all(batch.prompts is None for batch in plan(sequences, Limits(tokens=100)))


# Padding.


@pytest.mark.parametrize("share", [True, False])
def test_random_lengths_cost_little_padding(share):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 100, (256, 2), generator=generator).tolist()
    sequences = random_sequences(1000, [tuple(pair) for pair in lengths])
    for tokens in (2048, 10**6):
        limits = Limits(tokens=tokens, share_prompts=share)
        padded = sum(batch.num_tokens for batch in plan(sequences, limits))
        assert real_tokens(sequences) <= padded < 1.1 * real_tokens(sequences)
    (careless,) = plan(sequences, Limits(tokens=10**6, forward_cost=10**6))
    assert careless.num_tokens > 1.5 * real_tokens(sequences)


def test_responses_of_different_length_go_on_from_their_prompt_in_forwards_of_their_own():
    sequences = families([(40, (300, 2, 299, 1, 3, 2))])
    (batch,) = plan(sequences, Limits(tokens=10**4))
    assert batch.lengths == [300, 299, 3, 2, 2, 1]
    assert list(batch.parts()) == [(slice(0, 2), 299), (slice(2, 6), 2)]
    assert batch.num_tokens == 40 + 2 * 299 + 4 * 2
    (careless,) = plan(sequences, Limits(tokens=10**4, forward_cost=10**6))
    assert list(careless.parts()) == [(slice(0, 6), 299)]
    assert careless.num_tokens == 40 + 6 * 299


def test_sharing_saves_most_of_the_prompts():
    sequences = families([(40, (8,) * 16)] * 6)
    shared = sum(b.num_tokens for b in plan(sequences, Limits(tokens=1024)))
    whole = sum(b.num_tokens for b in plan(sequences, Limits(tokens=1024, share_prompts=False)))
    assert shared == 6 * (40 + 16 * 7)
    assert whole == real_tokens(sequences) > 4 * shared


# Some of the sequences, none of them, another device.


def test_indices_choose_and_keep_their_positions():
    sequences = families()
    chosen = [1, 7, 2, 10, 0]  # of these, number 7 has no response tokens, and three a prompt
    assert len(sequences[7].response_ids) == 0
    batches = list(plan(sequences, Limits(tokens=10_000), indices=chosen))
    assert sorted(i for b in batches for i in b.indices) == [0, 1, 2, 10]
    assert sorted(batches[0].indices) == [0, 1, 2]
    for batch in batches:
        assert batch.targets.tolist() == [
            token for i in batch.indices for token in sequences[i].response_ids.tolist()
        ]
    assert list(plan(sequences, Limits(tokens=100), indices=[])) == []


def test_nothing_to_score_gives_no_batch():
    assert list(plan([], Limits(tokens=4))) == []
    empty = random_sequences(50, [(3, 0), (0, 0)])
    assert list(plan(empty, Limits(tokens=4))) == []


@pytest.mark.parametrize("share", [True, False])
def test_a_batch_moves_as_a_whole(share):
    (batch, *_) = plan(families(), Limits(tokens=10_000, share_prompts=share))
    moved = batch.to(torch.device("meta"))
    for field in fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert (before.device.type, after.device.type) == ("cpu", "meta")
            assert before.shape == after.shape
        else:
            assert before == after
    assert moved.num_tokens == batch.num_tokens


# From the padded form.


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


def test_records_are_frozen():
    sequence = TokenSequence(prompt_ids=torch.zeros(2).long(), response_ids=torch.zeros(3).long())
    assert sequence.length == 5
    with pytest.raises(AttributeError):
        sequence.prompt_ids = torch.zeros(1).long()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Limits(tokens=3).tokens = 4  # type: ignore[misc]


@pytest.mark.parametrize(("name", "limits"), [("token_budget", (0, 3)), ("batch_size", (5, 0))])
def test_limits_below_one_are_refused(name, limits):
    tokens, number = limits
    with pytest.raises(ConfigError, match=name):
        Limits(tokens=tokens, sequences=number)


def test_a_forward_that_costs_nothing_is_refused():
    with pytest.raises(ConfigError, match="forward_cost"):
        Limits(tokens=5, forward_cost=0)
