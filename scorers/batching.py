"""Teacher-forcing batches: true token lists, planned by a budget of tokens, prompts shared.

Sequences are sorted by length and cut where padding would cost more than another forward, and a
prompt that several responses have in common is in a batch once. Padding comes from lengths alone,
never from token ids. The last token of a response is never an input: nothing reads what it
predicts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from seqproc._util.arguments import require, require_all
from seqproc._util.printing import Facts, Printed
from seqproc._util.tensor_arguments import require_ids, require_ids_below, token_ids
from seqproc.config import require_count, require_flag
from seqproc.errors import SequenceError
from seqproc.scorers.kernels.packing import FORWARD_COST, Item, cheapest_runs
from seqproc.types import BatchedSequences


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenSequence(Printed):
    """One sequence to score: its prompt and the response whose tokens get scores.

    Raises:
        SequenceError: ids that are not a tensor of integers ≥ 0 of one dimension, or a response
            to an empty prompt, whose first token nothing predicts.
    """

    prompt_ids: Tensor  # [P] int64, P ≥ 1 unless the response is empty
    response_ids: Tensor  # [T] int64

    def __post_init__(self) -> None:
        require_ids("prompt_ids", self.prompt_ids, dims=1)
        require_ids("response_ids", self.response_ids, dims=1)
        if len(self.response_ids) and not len(self.prompt_ids):
            raise SequenceError(
                "prompt_ids is empty, so that nothing predicts the first token of response_ids: "
                "begin with the token that the model begins with (BOS)"
            )
        require_ids_below("prompt_ids", self.prompt_ids, None)
        require_ids_below("response_ids", self.response_ids, None)

    def _facts(self) -> Facts:
        return {
            "prompt_tokens": len(self.prompt_ids),
            "response_tokens": len(self.response_ids),
            "device": str(self.response_ids.device),
        }

    @property
    def length(self) -> int:
        """P + T."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a batch may hold. A single sequence is a batch of its own, however long.

    Raises:
        ConfigError: when a limit is not a whole number ≥ 1.
    """

    tokens: int  # inputs of a forward, padding included
    sequences: int | None = None  # None: as many as the tokens allow
    share_prompts: bool = True  # compute a prompt once for all its responses in a batch
    forward_cost: int = FORWARD_COST.cpu  # of a forward beside its tokens, in tokens; saves padding

    def __post_init__(self) -> None:
        require_count("token_budget", self.tokens)
        require_count("forward_cost", self.forward_cost)
        require_flag("share_prompts", self.share_prompts)
        if self.sequences is not None:
            require_count("batch_size", self.sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Sequences for one forward. N of them; with M shared prompts, or whole sequences.

    Without shared prompts ``inputs`` are prompt and response together, padded on the right. With
    them ``inputs`` are the responses alone, padded on the right; ``prompts`` are padded on the
    left, so that a response follows its prompt at the distance that it has without padding. Rows
    come in falling order of length, to be read in one or more forwards.
    """

    indices: list[int]  # N positions in the caller's list
    inputs: Tensor  # [N, L] int64
    inputs_mask: Tensor  # [N, L] int64, 1 on real tokens
    forwards: list[tuple[int, int]]  # how many rows each forward takes in turn, and their width
    targets: Tensor  # [R] int64, all response tokens of sequence after sequence, R = Σ T_n
    read: Tensor  # [R] int64, where in all forwards' flattened outputs each target is predicted
    lengths: list[int]  # N response lengths T_n
    prompts: Tensor | None = None  # [M, P] int64
    prompts_mask: Tensor | None = None  # [M, P] int64
    owners: Tensor | None = None  # [N] int64, which of the M prompts is each sequence's

    @property
    def num_tokens(self) -> int:
        """Inputs of its forwards, padding included."""
        inputs = sum(number * width for number, width in self.forwards)
        return inputs + (0 if self.prompts is None else self.prompts.numel())

    @property
    def longest(self) -> int:
        """Length of its longest row, prompt included."""
        return self.inputs.shape[1] + (0 if self.prompts is None else self.prompts.shape[1])

    def parts(self) -> Iterator[tuple[slice, int]]:
        """Rows of the inputs, and their width, of each forward."""
        start = 0
        for number, width in self.forwards:
            yield slice(start, start + number), width
            start += number

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """(index, start, stop) of each sequence: where it is in the caller's list and in [R]."""
        start = 0
        for index, length in zip(self.indices, self.lengths, strict=True):
            yield index, start, start + length
            start += length

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return Batch(**moved)


def token_sequences(batch: BatchedSequences) -> list[TokenSequence]:
    """Strip the padding of a `BatchedSequences`; B·G sequences in the order ``[b][g]``."""
    require("batch", batch, BatchedSequences, "a BatchedSequences", SequenceError)
    return [
        TokenSequence(prompt_ids=batch.prompt_ids(b, g), response_ids=batch.response_ids(b, g))
        for b in range(batch.num_prompts)
        for g in range(batch.num_responses)
    ]


def plan(
    sequences: Sequence[TokenSequence], limits: Limits, indices: Sequence[int] | None = None
) -> list[Batch]:
    """Batches on the CPU of all sequences, or of some; those without a response are left out.

    Longest first, so that a batch that does not fit in memory fails at once and not at the end.
    """
    require_all("sequences", sequences, TokenSequence, "TokenSequence", SequenceError)
    require("limits", limits, Limits, "Limits")
    chosen = range(len(sequences)) if indices is None else _indices(indices, len(sequences))
    scored = [i for i in chosen if len(sequences[i].response_ids)]
    whole, families = _families(sequences, scored) if limits.share_prompts else (scored, [])
    batches = [
        _shared(sequences, group, limits) for group in _packed_families(sequences, families, limits)
    ]
    batches += [_unshared(sequences, indices) for indices in _packed(sequences, whole, limits)]
    return sorted(batches, key=lambda batch: -batch.longest)


def _indices(indices: object, number: int) -> tuple[int, ...]:
    return token_ids("indices", indices, number)


def _families(
    sequences: Sequence[TokenSequence], scored: list[int]
) -> tuple[list[int], list[list[int]]]:
    """Sequences alone with their prompt, and groups that have one in common."""
    by_prompt: dict[bytes, list[int]] = {}
    for i in scored:
        by_prompt.setdefault(
            sequences[i].prompt_ids.to("cpu", torch.int64).numpy().tobytes(), []
        ).append(i)
    groups = list(by_prompt.values())
    return [g[0] for g in groups if len(g) == 1], [g for g in groups if len(g) > 1]


def _packed(
    sequences: Sequence[TokenSequence], indices: Iterable[int], limits: Limits
) -> Iterator[list[int]]:
    """Longest first, as many at a time as cost least."""
    order = sorted(indices, key=lambda i: -sequences[i].length)
    items = [Item(first=sequences[i].length - 1) for i in order]
    return (order[run] for run in _runs(items, limits))


def _packed_families(
    sequences: Sequence[TokenSequence], families: list[list[int]], limits: Limits
) -> Iterator[list[list[int]]]:
    """Families together; one that does not fit on its own is taken in parts."""
    parts = [part for family in families for part in _split(sequences, family, limits)]
    parts.sort(key=lambda part: (-len(sequences[part[0]].prompt_ids), -sequences[part[0]].length))
    items = [_item(sequences, part) for part in parts]
    return (parts[run] for run in _runs(items, limits))


def _split(
    sequences: Sequence[TokenSequence], family: list[int], limits: Limits
) -> Iterator[list[int]]:
    """As many responses at a time as fit, longest first."""
    part: list[int] = []
    for i in sorted(family, key=lambda i: -sequences[i].length):
        if part and _full(_item(sequences, [*part, i]), limits):
            yield part
            part = []
        part.append(i)
    yield part


def _item(sequences: Sequence[TokenSequence], part: list[int]) -> Item:
    """Of a family, or a part of one, its longest response first."""
    rests = [len(sequences[i].response_ids) - 1 for i in part]
    prompt = len(sequences[part[0]].prompt_ids)
    return Item(first=prompt, rows=len(part), longest=rests[0], total=sum(rests))


def _full(item: Item, limits: Limits) -> bool:
    too_many = limits.sequences is not None and item.rows > limits.sequences
    return too_many or item.first + item.rows * item.longest > limits.tokens


def _runs(items: Sequence[Item], limits: Limits) -> list[slice]:
    rows = math.inf if limits.sequences is None else limits.sequences
    return cheapest_runs(items, limits.tokens, rows, limits.forward_cost)


def _unshared(sequences: Sequence[TokenSequence], indices: list[int]) -> Batch:
    inputs, mask = _pad([_whole_ids(sequences[i])[:-1] for i in indices], left=False)
    width = inputs.shape[1]
    starts = [n * width + len(sequences[i].prompt_ids) - 1 for n, i in enumerate(indices)]
    lengths = [len(sequences[i].response_ids) for i in indices]
    return Batch(
        indices=indices,
        inputs=inputs,
        inputs_mask=mask,
        forwards=[(len(indices), width)],
        targets=_targets(sequences, indices),
        read=torch.cat([torch.arange(s, s + t) for s, t in zip(starts, lengths, strict=True)]),
        lengths=lengths,
    )


def _shared(sequences: Sequence[TokenSequence], group: list[list[int]], limits: Limits) -> Batch:
    """Outputs are flattened as the M last positions of the prompts, then forward by forward."""
    owner = {i: m for m, part in enumerate(group) for i in part}
    indices = sorted(owner, key=lambda i: -len(sequences[i].response_ids))
    prompts, prompts_mask = _pad([sequences[part[0]].prompt_ids.cpu() for part in group], left=True)
    inputs, mask = _pad([sequences[i].response_ids.cpu()[:-1] for i in indices], left=False)
    lengths = [len(sequences[i].response_ids) for i in indices]
    runs = cheapest_runs([Item(first=t - 1) for t in lengths], forward_cost=limits.forward_cost)
    forwards = [(run.stop - run.start, lengths[run.start] - 1) for run in runs]
    widths = [width for number, width in forwards for _ in range(number)]
    starts = itertools.accumulate(widths, initial=len(group))
    return Batch(
        indices=indices,
        inputs=inputs,
        inputs_mask=mask,
        forwards=forwards,
        targets=_targets(sequences, indices),
        read=torch.cat(
            [
                torch.cat([torch.tensor([owner[i]]), torch.arange(start, start + length - 1)])
                for i, start, length in zip(indices, starts, lengths, strict=False)
            ]
        ),
        lengths=lengths,
        prompts=prompts,
        prompts_mask=prompts_mask,
        owners=torch.tensor([owner[i] for i in indices]),
    )


def _targets(sequences: Sequence[TokenSequence], indices: list[int]) -> Tensor:
    return torch.cat([sequences[i].response_ids.cpu() for i in indices])


def _whole_ids(sequence: TokenSequence) -> Tensor:
    return torch.cat([sequence.prompt_ids, sequence.response_ids]).cpu()


def _pad(rows: list[Tensor], *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows filled up to one length with a token that is read anyhow, and the mask of what is real.

    A padding token's own row can be zeros, and what a model divides by their length reaches others
    in a derivative, as 0 · ∞.
    """
    width = max(map(len, rows))
    filling = next((int(row[0]) for row in rows if len(row)), 0)
    ids = torch.full((len(rows), width), filling, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for n, row in enumerate(rows):
        real = slice(width - len(row), width) if left else slice(0, len(row))
        ids[n, real] = row
        mask[n, real] = 1
    return ids, mask
