"""Exact derivatives of scores along a direction of parameters, and second derivatives.

`jvp` differentiates forwards, beside the scores themselves: for θ + η·v it gives d/dη at η = 0 of
log p, log q and H of every token, in one pass and without a graph. `hvp` differentiates backwards
twice.

A derivative holds the support of q fixed: it is that of the truncated policy as long as the support
does not change. The support changes where tokens at the cut exchange places, and where the mass
before the last token passes ``top_p``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from seqproc._util.arguments import require_all
from seqproc._util.isolation import in_turn, undisturbed
from seqproc._util.kernels import kernels_on
from seqproc._util.printing import Facts, Printed, Words, name_of_dtype
from seqproc.errors import ConfigError, ScoringError, SequenceError
from seqproc.models.parameters import ParamMapping, check_mapping, own_parameters
from seqproc.policy import SamplingPolicy, TokenScores, require_policy
from seqproc.scorers.batching import Batch, TokenSequence
from seqproc.scorers.custom_functions import differentiated_forwards
from seqproc.scorers.finite import require_finite, require_numbers
from seqproc.scorers.kernels.tangents import written_out
from seqproc.scorers.overrides import resolve_mapping
from seqproc.scorers.teacher_forcing import TeacherForcingScorer


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TokenDerivatives(Printed):
    """Derivatives d/dη of one sequence's scores at θ + η·v, η = 0; fields ``[T]``, nats per η.

    Summed over tokens they are those of the sequence: ``logprobs.sum()`` is ⟨∇ log p(y), v⟩ and
    ``logqs.sum()`` the score function ⟨∇ log q(y), v⟩ of the sampling policy.
    """

    logprobs: Tensor  # d log p_raw(y_t)/dη
    logqs: Tensor  # d log q(y_t)/dη; NaN where y_t is outside the support
    rb_entropy: Tensor  # dH(q_t)/dη
    scores: TokenScores  # the scores at η = 0

    def _facts(self) -> Facts:
        return {
            "tokens": len(self.logprobs),
            "dtype": name_of_dtype(self.logprobs.dtype),
            "derivatives": Words("of logprobs, logqs, rb_entropy"),
        }


def jvp(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    direction: ParamMapping,
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    share_prompts: bool = True,
) -> list[TokenDerivatives]:
    """Score, and differentiate every score along v by forward mode; without a graph.

    Args:
        scorer: its model is θ, its ``precision.tf_nograd`` the dtype.
        sequences: what to score.
        policy: the measure q.
        direction: v by parameter name; a parameter without an entry does not move.
        batch_size: see `TeacherForcingScorer.score`.
        token_budget: see `TeacherForcingScorer.score`.
        share_prompts: see `TeacherForcingScorer.score`.

    Returns:
        Derivatives of each sequence, on the CPU, in the order given.

    Raises:
        OverrideError: a direction that does not fit the model.
        ScoringError: a score or derivative that is not a number, or a model whose own code has no
            forward derivative.
    """
    require_policy(policy)
    require_all("sequences", sequences, TokenSequence, "TokenSequence", SequenceError)
    scorer = scorer.with_differentiable_attention()
    model = scorer.model
    moves = check_mapping(direction, *own_parameters(model))
    least = [*scorer.minimum_dtypes(), *(v.dtype for v in moves.values())]
    mapping, width = resolve_mapping(model, None, None, least)
    results = [_nothing(scorer, width)] * len(sequences)

    def differentiate(batch: Batch) -> TokenDerivatives:
        with in_turn(), differentiated_forwards(), forward_ad.dual_level():
            moving = mapping | {name: _dual(mapping[name], v) for name, v in moves.items()}
            with _finite_differences_instead(model):
                return _unpack(scorer.score_batch(batch, policy, moving, width))

    with (
        undisturbed(scorer.device),
        torch.no_grad(),
        kernels_on(scorer.precision.kernels),
        written_out(),
    ):
        schedule = scorer.schedule(sequences, batch_size, token_budget, share_prompts)
        for batch, derivatives in schedule.map(differentiate):
            _require_numbers(derivatives, batch)
            for index, start, stop in batch.spans():
                results[index] = _rows(derivatives, start, stop)
    return results


def hvp(
    scorer: TeacherForcingScorer,
    sequences: Sequence[TokenSequence],
    policy: SamplingPolicy,
    direction: ParamMapping,
    objective: Callable[[list[TokenScores]], Tensor],
    *,
    batch_size: int | None = None,
    token_budget: int | None = None,
    share_prompts: bool = True,
) -> dict[str, Tensor]:
    """∇²f·v, the Hessian of an objective of the scores times a direction, by double backward.

    Args:
        scorer: see `jvp`; its ``precision.tf_withgrad`` is the dtype.
        sequences: what to score.
        policy: the measure q.
        direction: v by parameter name; a parameter without an entry has v = 0.
        objective: f, a scalar of the scores, e.g. the sum of their ``stats.rb_entropy``.
        batch_size: see `TeacherForcingScorer.score`.
        token_budget: see `TeacherForcingScorer.score`.
        share_prompts: see `TeacherForcingScorer.score`.

    Returns:
        A tensor for every parameter that requires a gradient, by name.

    Raises:
        OverrideError: a direction that does not fit the model.
    """
    if not callable(objective):
        raise ConfigError(
            f"objective must be a function of a list of TokenScores, got {type(objective).__name__}"
        )
    own, names = own_parameters(scorer.model)
    params = {name: p for name, p in own.items() if p.requires_grad}
    moves = check_mapping(direction, own, names)
    with undisturbed(scorer.device), torch.enable_grad():
        scores = scorer.with_differentiable_attention().score_with_grad(
            sequences,
            policy,
            batch_size=batch_size,
            token_budget=token_budget,
            share_prompts=share_prompts,
        )
        value = scalar_of("objective", objective, scores)
        gradient = _gradient(value, params, create_graph=True)
        # Cloned, as one that was made in inference mode cannot be in a graph.
        slope = sum(
            (gradient[name] * v.clone()).sum() for name, v in moves.items() if name in params
        )
        if not isinstance(slope, Tensor) or not slope.requires_grad:
            return {name: torch.zeros_like(p) for name, p in params.items()}
        return _gradient(slope, params)


def scalar_of(name: str, function: Callable[[Any], Tensor], scores: object) -> Tensor:
    """A user's function of scores, which must give a scalar with a graph.

    Args:
        name: of the argument that the function came as.
        function: of the scores.
        scores: what it is called with.

    Raises:
        ConfigError: it raises, or gives something else.
    """
    try:
        value = function(scores)
    except Exception as error:
        raise ConfigError(
            f"{name} raised {type(error).__name__} on the TokenScores it was given: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
        raise ConfigError(
            f"{name} must give a scalar tensor that depends on the scores, got {value!r:.60}; a "
            "result of detach() or item() has no gradient"
        )
    return value


@contextlib.contextmanager
def _finite_differences_instead(model: nn.Module) -> Iterator[None]:
    """Say what to do when a model's own code has no forward derivative."""
    try:
        yield
    except ScoringError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
        raise ScoringError(
            f"a {type(model).__name__} has no derivative by forward mode: {error.__cause__}. Take "
            "finite differences instead, of scores in float64 at θ ± η·v (see sweep)"
        ) from error.__cause__


def _gradient(
    value: Tensor, params: Mapping[str, Tensor], *, create_graph: bool = False
) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        value,
        list(params.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(params, gradients, strict=True))


def _dual(param: Tensor, direction: Tensor) -> Tensor:
    with warnings.catch_warnings():
        # PyTorch loads its table of forward derivatives here, by a function it has deprecated.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        return forward_ad.make_dual(param, direction.detach().to(param.dtype))


def _unpack(scores: TokenScores) -> TokenDerivatives:
    def tangent(field: Tensor) -> Tensor:
        slope = forward_ad.unpack_dual(field).tangent
        return torch.zeros_like(field).cpu() if slope is None else slope.detach().cpu()

    primal = scores.map(lambda field: forward_ad.unpack_dual(field).primal.detach().cpu())
    outside = primal.logqs == float("-inf")
    return TokenDerivatives(
        logprobs=tangent(scores.logprobs),
        logqs=tangent(scores.logqs).masked_fill(outside, float("nan")),
        rb_entropy=tangent(scores.stats.rb_entropy),
        scores=primal,
    )


def _require_numbers(derivatives: TokenDerivatives, batch: Batch) -> None:
    require_numbers(derivatives.scores, batch.spans())
    inside = derivatives.logqs.masked_fill(derivatives.scores.logqs.isneginf(), 0.0)
    slopes = {
        "dlogprobs": derivatives.logprobs,
        "dlogqs": inside,
        "drb_entropy": derivatives.rb_entropy,
    }
    require_finite(slopes, batch.spans())


def _rows(derivatives: TokenDerivatives, start: int, stop: int) -> TokenDerivatives:
    return TokenDerivatives(
        logprobs=derivatives.logprobs[start:stop],
        logqs=derivatives.logqs[start:stop],
        rb_entropy=derivatives.rb_entropy[start:stop],
        scores=derivatives.scores.rows(start, stop),
    )


def _nothing(scorer: TeacherForcingScorer, width: torch.dtype) -> TokenDerivatives:
    scores = scorer.empty_scores(width)
    empty = torch.zeros_like(scores.logprobs)
    return TokenDerivatives(logprobs=empty, logqs=empty, rb_entropy=empty, scores=scores)
