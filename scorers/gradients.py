"""Gradients of one number per sequence: each alone, their products, and their Gram matrix.

Sequence i has f_i, such as the sum of its log p, and the gradient g_i = ∇f_i; the g_i are the rows
of J. A backward pass through a graph that several sequences share costs as much as one through all
of them, so here every sequence has a graph of its own, which is gone before the next.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from seqproc._util.arguments import require_all
from seqproc._util.by_device import ByDevice
from seqproc._util.isolation import undisturbed
from seqproc._util.tensor_arguments import require_dense
from seqproc.config import require_count
from seqproc.errors import (
    ConfigError,
    ModelError,
    OverrideError,
    ScoringError,
    SequenceError,
)
from seqproc.models.parameters import ParamMapping, check_mapping, own_parameters
from seqproc.policy import SamplingPolicy, TokenScores
from seqproc.scorers.batching import Batch, TokenSequence
from seqproc.scorers.budget import free_memory
from seqproc.scorers.derivatives import TokenDerivatives, jvp, scalar_of
from seqproc.scorers.finite import require_numbers
from seqproc.scorers.teacher_forcing import TeacherForcingScorer

Gradient = dict[str, Tensor]  # by parameter name; zeros where f does not depend on it
Objective = Callable[[TokenScores], Tensor]
OfScores = Literal["logprob", "logq", "entropy", "surrogate"] | Objective

_SHARE_OF_FREE_MEMORY = 0.5
# With a graph, some ten tensors of as many numbers are alive at once.
_KEPT_LOGITS = ByDevice(cpu=1 << 24, accelerator=1 << 27)
_COLUMNS = 1 << 18  # of a product summed in the gradients' own dtype; its rows stay in a cache


def _entropy_surrogate(scores: TokenScores) -> Tensor:
    """Σ_t H_t + log q_t · Σ_{s>t} H_s, the last factor held fixed.

    Over draws of q, the mean of its gradient is that of the entropy of whole sequences: by the
    chain rule that is E Σ_t H_t, and a token decides which H_s come after it.
    """
    entropy = scores.stats.rb_entropy
    later = entropy.detach().flip(0).cumsum(0).flip(0) - entropy.detach()
    return (entropy + scores.logqs * later).sum()


OBJECTIVES: Mapping[str, Objective] = {
    "logprob": lambda scores: scores.logprobs.sum(),
    "logq": lambda scores: scores.logqs.sum(),
    "entropy": lambda scores: scores.stats.rb_entropy.sum(),
    "surrogate": _entropy_surrogate,
}


def sequence_gradients(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    of: OfScores = "logprob",
) -> Iterator[Gradient]:
    """g_i of each sequence, in order, computed when it is asked for.

    Args:
        scorer: its model is θ, its ``precision.tf_withgrad`` the dtype of forward and backward.
        sequences: what to differentiate.
        policy: the measure q.
        of: f as a function of a sequence's scores, or a name: ``"logprob"`` Σ log p_raw,
            ``"logq"`` Σ log q, ``"entropy"`` Σ H(q_t), ``"surrogate"`` Σ H_t + log q_t·Σ_{s>t} H_s
            with the last factor held fixed, whose mean gradient is that of the sequence entropy.

    Yields:
        A tensor for every parameter that requires a gradient, of its shape and dtype, by name.

    Raises:
        ConfigError: an unknown name.
        ScoringError: see `TeacherForcingScorer.score`.
    """
    objective = _objective(of)
    require_all("sequences", sequences, TokenSequence, "TokenSequence", SequenceError)
    return (
        _gradient(scorer, [sequence], policy, objective, first=i)
        for i, sequence in enumerate(sequences)
    )


def weighted_gradient(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    weights: Tensor,
    of: OfScores = "logprob",
    *,
    batch_size: int | None = None,
) -> Gradient:
    """Jᵀw = Σ_i w_i g_i, batch by batch.

    Args:
        scorer: see `sequence_gradients`.
        sequences: see `sequence_gradients`.
        policy: the measure q.
        weights: w ``[N]``, one for each sequence.
        of: see `sequence_gradients`.
        batch_size: see `TeacherForcingScorer.score`.

    Raises:
        SequenceError: when there are not as many weights as sequences.
    """
    objective = _objective(of)
    require_dense("weights", weights)
    require_all("sequences", sequences, TokenSequence, "TokenSequence", SequenceError)
    if not bool(weights.isfinite().all()):
        raise SequenceError("weights must be finite, and some are not")
    if weights.shape != (len(sequences),):
        raise SequenceError(
            f"weights must be [{len(sequences)}], one for each sequence, got {list(weights.shape)}"
        )
    return _gradient(scorer, sequences, policy, objective, weights, batch_size)


def projected_gradients(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    directions: Sequence[ParamMapping],
    of: OfScores = "logprob",
) -> Tensor:
    """Jv ``[N, K]`` of K directions, float64 on the CPU.

    One direction goes by forward mode, without a graph; several share the gradients.

    Args:
        scorer: see `sequence_gradients`.
        sequences: see `sequence_gradients`.
        policy: the measure q.
        directions: K mappings by parameter name; what one leaves out, it does not move.
        of: see `sequence_gradients`. Along one direction a function may read log p, log q and
            ``stats.rb_entropy`` only.

    Raises:
        OverrideError: a direction that does not fit the model.
    """
    objective = _objective(of)
    require_all("directions", directions, Mapping, "mappings by parameter name", OverrideError)
    if not directions:
        raise OverrideError("directions must hold at least one mapping by parameter name")
    if len(directions) == 1:
        slopes = jvp(scorer, sequences, policy, directions[0])
        products = [_along(slope, objective, i) for i, slope in enumerate(slopes)]
        return torch.tensor(products, dtype=torch.float64).view(-1, 1)
    own, names = own_parameters(scorer.model)
    moves = [check_mapping(direction, own, names) for direction in directions]
    rows = [
        torch.stack([_inner(gradient, move) for move in moves])
        for gradient in sequence_gradients(scorer, sequences, policy, of)
    ]
    return torch.stack(rows) if rows else torch.zeros(0, len(directions), dtype=torch.float64)


def gradient_gram(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    of: OfScores = "logprob",
    *,
    held: int | None = None,
) -> Tensor:
    """J·Jᵀ ``[N, N]`` of ⟨g_i, g_j⟩, float64 on the CPU; of log q, the empirical Fisher kernel.

    The products of 2^18 elements at a time are summed in the gradients' own dtype, and these sums
    in float64. From float32 gradients an entry is off by some 1e-5 of ‖g_i‖·‖g_j‖: by up to 4e-5
    for four sequences of SmolLM2-135M on a CPU.

    Args:
        scorer: see `sequence_gradients`.
        sequences: see `sequence_gradients`.
        policy: the measure q.
        of: see `sequence_gradients`.
        held: how many gradients to have in memory at a time; None: as half of the free memory
            holds. With fewer than N those of later sequences are computed again for each part.
    """
    _objective(of)
    require_all("sequences", sequences, TokenSequence, "TokenSequence", SequenceError)
    number = len(sequences)
    together = _held(scorer, number) if held is None else require_count("held", held)
    gram = torch.zeros(number, number, dtype=torch.float64)
    for start in range(0, number, together):
        some = slice(start, start + together)
        rows = _stacked(scorer, sequences[some], policy, of)
        gram[some, some] = _products(rows, rows)
        for i in range(some.stop, number):
            other = _stacked(scorer, sequences[i : i + 1], policy, of)
            gram[i, some] = gram[some, i] = _products(other, rows)[0]
    return gram


def _gradient(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    objective: Objective,
    weights: Tensor | None = None,
    batch_size: int | None = None,
    *,
    first: int = 0,
) -> Gradient:
    """The gradient of Σ w_i f_i, a backward pass per batch; errors count sequences from `first`."""
    scorer = _by_own_attention(scorer)
    params = {n: p for n, p in own_parameters(scorer.model)[0].items() if p.requires_grad}
    shares = [1.0] * len(sequences) if weights is None else weights.tolist()
    total: list[Tensor] = []

    def differentiate(batch: Batch) -> tuple[Tensor, ...]:
        logits = len(batch.targets) * scorer.parts.vocab_size
        scores = score_batch(batch, keep_logits=logits <= _KEPT_LOGITS.on(scorer.device))
        require_numbers(scores, batch.spans())
        values = [
            shares[index] * _value(objective, scores.rows(start, stop), first + index)
            for index, start, stop in batch.spans()
        ]
        value = torch.stack(values).sum()
        return torch.autograd.grad(
            value, list(params.values()), allow_unused=True, materialize_grads=True
        )

    if not params:
        raise ModelError(
            "no parameter of the model requires a gradient: unfreeze some (requires_grad_(True))"
        )
    with undisturbed(scorer.device), torch.enable_grad():
        score_batch = scorer.graphed(policy)
        for _, of_batch in scorer.schedule(sequences, batch_size).map(differentiate):
            if total:
                torch._foreach_add_(total, of_batch)
            else:
                total.extend(of_batch)
    gradient = total or [torch.zeros_like(p) for p in params.values()]
    return dict(zip(params, gradient, strict=True))


def _by_own_attention(scorer: TeacherForcingScorer) -> TeacherForcingScorer:
    """The scorer with PyTorch's attention, whose backward pass need not compute it once more."""
    other = copy.copy(scorer)
    other.shortcuts = dataclasses.replace(scorer.shortcuts, attention_in_order=False)
    return other


def _objective(of: OfScores) -> Objective:
    if callable(of):
        return of
    if not isinstance(of, str) or of not in OBJECTIVES:
        raise ConfigError(
            f"of is {of!r}; expected one of {', '.join(map(repr, OBJECTIVES))}, or a function of a "
            "sequence's TokenScores"
        )
    return OBJECTIVES[of]


def _value(objective: Objective, scores: TokenScores, index: int) -> Tensor:
    """f of a sequence."""
    value = scalar_of("of", objective, scores)
    if not bool(value.isfinite()):
        outside, number = int(scores.logqs.isneginf().sum()), float(value.detach())
        raise ScoringError(
            f"sequence {index}: of gives {number}, which has no gradient; log q of {outside} of "
            f"its {len(scores.logqs)} tokens is −∞, as they are outside the support"
        )
    return value


def _along(slope: TokenDerivatives, objective: Objective, index: int) -> float:
    """⟨∇f, v⟩ by the chain rule, from how the scores move along v."""
    leaves = slope.scores.map(lambda field: field.clone().requires_grad_())
    with torch.enable_grad():
        value = _value(objective, leaves, index)
    moving = [leaves.logprobs, leaves.logqs, leaves.stats.rb_entropy]
    others = [x for x in _statistics(leaves) if x is not leaves.stats.rb_entropy]
    partials = torch.autograd.grad(value, [*moving, *others], allow_unused=True)
    if any(g is not None for g in partials[3:]):
        raise ConfigError(
            "along one direction of may read logprobs, logqs and stats.rb_entropy only, whose "
            "forward derivatives are known; give two directions or more"
        )
    slopes = (slope.logprobs, slope.logqs, slope.rb_entropy)
    pairs = [(g, d) for g, d in zip(partials, slopes, strict=False) if g is not None]
    return sum(float((g.double() * d.double()).sum()) for g, d in pairs)


def _statistics(scores: TokenScores) -> list[Tensor]:
    values = (getattr(scores.stats, f.name) for f in dataclasses.fields(scores.stats))
    return [value for value in values if value is not None]


def _held(scorer: TeacherForcingScorer, number: int) -> int:
    """How many gradients fit in memory."""
    params = [p for p in own_parameters(scorer.model)[0].values() if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in params)
    free = _SHARE_OF_FREE_MEMORY * free_memory(scorer.device)
    return max(1, min(number, int(free // max(1, size))))


def _stacked(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    of: OfScores,
) -> dict[str, Tensor]:
    """Each parameter's gradients of all sequences, ``[N, elements]``."""
    rows: dict[str, Tensor] = {}
    for i, gradient in enumerate(sequence_gradients(scorer, sequences, policy, of)):
        for name, values in gradient.items():
            if i == 0:
                rows[name] = values.new_empty(len(sequences), values.numel())
            rows[name][i] = values.flatten()
    return rows


def _products(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Σ over names of left·rightᵀ, ``[m, n]`` of ``[m, elements]`` and ``[n, elements]``.

    Float64 on the CPU, summed so over parts of the elements.
    """
    device = next(iter(left.values())).device
    with undisturbed(device):
        parts = [
            (a @ b.mT).double().cpu()
            for name, rows in left.items()
            for a, b in zip(rows.split(_COLUMNS, 1), right[name].split(_COLUMNS, 1), strict=True)
        ]
        return torch.stack(parts).sum(0)


def _inner(gradient: Gradient, direction: ParamMapping) -> Tensor:
    """⟨g, v⟩, a float64 scalar on the CPU."""
    moved = {name: v.flatten()[None] for name, v in direction.items() if name in gradient}
    if not moved:
        return torch.zeros((), dtype=torch.float64)
    along = {name: gradient[name].flatten()[None].to(v.dtype) for name, v in moved.items()}
    return _products(along, moved)[0, 0]
