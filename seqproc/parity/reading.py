"""Teacher forcing for parity: where each token stands in one or several distributions.

One forward serves all the distributions that are asked about. Knows the scorer's parts and
functions of logits; not engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seqproc._util.by_device import ByDevice
from seqproc.models.parameters import ParamMapping
from seqproc.scorers.batching import Batch, TokenSequence
from seqproc.scorers.overrides import resolve_mapping
from seqproc.scorers.teacher_forcing import Progress, TeacherForcingScorer

# Logits of a chunk: 16 MB in float64 on a CPU. Several tensors of the size are alive.
_CHUNK_ELEMENTS = ByDevice(cpu=1 << 21, accelerator=1 << 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """R generated tokens, of one sequence after the other; on the scorer's device."""

    tokens: Tensor  # [R] int64 ids
    sequences: Tensor  # [R] int64, each one's place in the caller's list
    steps: Tensor  # [R] int64, each one's place in its response, from 0

    def split(self, num_rows: int) -> Iterator[Rows]:
        """So many at a time."""
        columns = (self.tokens, self.sequences, self.steps)
        for tokens, owners, steps in zip(*(c.split(num_rows) for c in columns), strict=True):
            yield Rows(tokens=tokens, sequences=owners, steps=steps)


# Logits [R, V], and the tokens that followed them, to columns [R, …] by name.
Reading = Callable[[Tensor, Rows], dict[str, Tensor]]


def read_columns(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    reading: Reading,
    *,
    override: ParamMapping | None = None,
    rounded_to: torch.dtype | None = None,
    token_budget: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Tensor]]:
    """Whatever ``reading`` reads off the logits of every generated token.

    Args:
        scorer: model and precision; logits come in the dtype of its forward without gradients.
        sequences: what to read, each with at least one token.
        reading: a pure function, row by row, of logits and the tokens that followed them.
        override: parameters to read at, possibly partial; None for the model's own θ.
        rounded_to: dtype that parameters are held in, and the forward runs in, for the time of the
            call; None for the scorer's.
        token_budget: see `TeacherForcingScorer.score`.
        progress: told how many sequences each batch finished.

    Returns:
        For each sequence, in the order given, the columns on the CPU, one row per token.
    """
    mapping, width = resolve_mapping(scorer.model, override, None, scorer.minimum_dtypes())
    if rounded_to is not None:
        mapping, width = mapping | _rounded(scorer, mapping, rounded_to), rounded_to
    results: list[dict[str, Tensor]] = [{}] * len(sequences)

    def read(batch: Batch) -> dict[str, Tensor]:
        return _read_batch(scorer, batch, reading, mapping, width)

    with torch.no_grad():
        for batch, columns in scorer.schedule(sequences, None, token_budget).map(read):
            for index, start, stop in batch.spans():
                results[index] = {name: column[start:stop] for name, column in columns.items()}
            if progress is not None:
                progress(len(batch.indices))
    return results


def _rounded(
    scorer: TeacherForcingScorer, state: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The parameters among the state, in a dtype."""
    names = [name for name, p in scorer.model.named_parameters() if p.is_floating_point()]
    return {name: state[name].to(dtype) for name in names}


def _read_batch(
    scorer: TeacherForcingScorer,
    batch: Batch,
    reading: Reading,
    mapping: Mapping[str, Tensor] | None,
    width: torch.dtype,
) -> dict[str, Tensor]:
    batch = batch.to(scorer.device)
    parts: list[dict[str, Tensor]] = []
    with scorer.forwarding(width):
        states = scorer.parts.hidden_states(batch, mapping)
        head = scorer.parts.head_tensors(mapping)
        num_rows = max(1, _CHUNK_ELEMENTS.on(scorer.device) // scorer.parts.vocab_size)
        rows = _rows(batch).split(num_rows)
        for some, of_some in zip(states.split(num_rows), rows, strict=True):
            columns = reading(scorer.parts.logits(some, head), of_some)
            parts.append({name: column.cpu() for name, column in columns.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _rows(batch: Batch) -> Rows:
    spans, device = list(batch.spans()), batch.targets.device
    owners = [torch.full((stop - start,), index) for index, start, stop in spans]
    steps = [torch.arange(stop - start) for _, start, stop in spans]
    return Rows(
        tokens=batch.targets,
        sequences=torch.cat(owners).to(device),
        steps=torch.cat(steps).to(device),
    )
