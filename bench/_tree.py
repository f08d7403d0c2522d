"""The other way to compute a prompt once: one row of it and all its responses, with a tree mask.

What seqproc does instead, a cache that the responses continue, is measured beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqproc.scorers import TokenSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """A prompt and its responses in one row of L tokens."""

    ids: Tensor  # [1, L] int64
    positions: Tensor  # [1, L] int64
    mask: Tensor  # [1, 1, L, L] float, 0 where a token may look and −∞ elsewhere


def packed_rows(sequences: Sequence[TokenSequence], device: torch.device) -> list[PackedRow]:
    """A row for each prompt; the last tokens of responses are no inputs."""
    families: dict[tuple[int, ...], list[Tensor]] = {}
    for s in sequences:
        families.setdefault(tuple(s.prompt_ids.tolist()), []).append(s.response_ids[:-1])
    return [
        _packed(torch.tensor(prompt), responses, device) for prompt, responses in families.items()
    ]


def packed_hidden(model: Any, row: PackedRow) -> Tensor:
    """Hidden states ``[1, L, D]``."""
    output = model.model(
        input_ids=row.ids, attention_mask=row.mask, position_ids=row.positions, use_cache=False
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _packed(prompt: Tensor, responses: list[Tensor], device: torch.device) -> PackedRow:
    start, pieces = len(prompt), [torch.arange(len(prompt))]
    pieces += [start + torch.arange(len(r)) for r in responses]
    branch = torch.cat([torch.full((len(p),), i) for i, p in enumerate(pieces)])
    index = torch.arange(len(branch))
    same_or_prompt = (branch[:, None] == branch) | (branch == 0)
    looks = same_or_prompt & (index <= index[:, None])
    mask = torch.zeros(looks.shape).masked_fill(~looks, float("-inf"))
    return PackedRow(
        ids=torch.cat([prompt, *responses])[None].to(device),
        positions=torch.cat(pieces)[None].to(device),
        mask=mask[None, None].to(device),
    )
