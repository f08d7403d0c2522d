"""The position of a token in the distribution that it should have been drawn from.

For one step with distribution q over V tokens, in order of falling probability (ties: smaller id
first), and a token y: its rank, the mass before it, and the moments that predict all of this. With
V uniform on (0, 1), (mass before y) + V·q(y) is uniform exactly if y was drawn from q: the
randomised probability-integral transform.

Pure functions of whole rows of log q, whatever made them: `policy.log_q`, or a distribution that
that an engine may sample from instead. Float64 throughout.

References: Rosenblatt, "Remarks on a multivariate transformation" (1952), for the transform;
Rüschendorf, "On the distributional transform" (2009), for its randomisation at atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from seqproc.policy import SamplingPolicy, support
from seqproc.support.top_logits import largest

# Shapes: R rows (steps), V tokens of the vocabulary, K bins of ranks, E ids of EOS, S ids of a
# class, B exponents.

LogDistribution = Callable[[Tensor], Tensor]  # logits [R, V] to log q [R, V], −∞ outside support

# Bin k holds the ranks from edge k − 1 up to edge k; the last bin, all from the last edge on.
RANK_EDGES = (1, 2, 3, 5, 10, 20, 50)

# β of the distributions q^β / Σ q^β: those of the same support at the temperature T/β. In eighths.
EXPONENTS = (0.5, 0.75, 0.875, 1.125, 1.25, 1.5)
RARE = 1e-3  # tokens of a smaller probability are rare


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Tokens and their distributions, step by step; float64 where not said otherwise."""

    logqs: Tensor  # [R] log q(y), nats; −∞ outside the support
    mass_before: Tensor  # [R] q of the tokens that come before y; 1 when y is outside
    mass_below: Tensor  # [R] q of the tokens of smaller id than y
    ranks: Tensor  # [R] int64, how many tokens come before y
    entropies: Tensor  # [R] H(q), nats
    variances: Tensor  # [R] Var_q[log q]
    rank_masses: Tensor  # [R, K] q of each bin of ranks
    last_probs: Tensor  # [R] q of the last token of the support
    is_last: Tensor  # [R] bool, whether y is that token
    eos_probs: Tensor  # [R] q of all EOS ids together
    special_probs: Tensor  # [R] q of all special ids together
    is_special: Tensor  # [R] bool, whether y is one of them
    stop_probs: Tensor  # [R] q of all ids together that may complete a stop string
    is_stop: Tensor  # [R] bool, whether y is one of them
    rare_probs: Tensor  # [R] q of all rare tokens together
    first_ids: Tensor  # [R] int64, the most likely token
    log_powers: Tensor  # [R, B] log Σ q^β over the support, of every exponent β

    @staticmethod
    def concatenate(parts: Sequence[Placement]) -> Placement:
        """Join placements along their rows."""
        names = [field.name for field in fields(Placement)]
        return Placement(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})

    def rows(self, start: int, stop: int) -> Placement:
        """Some of the rows."""
        return Placement(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})


def place(
    log_q_RV: Tensor,
    tokens_R: Tensor,
    eos_token_ids: Sequence[int] = (),
    special_token_ids: Sequence[int] = (),
    stop_token_ids: Sequence[int] = (),
) -> Placement:
    """Place tokens in their distributions.

    Args:
        log_q_RV: log-probabilities that sum to 1, −∞ outside the support. Read in float64.
        tokens_R: int64 ids in [0, V).
        eos_token_ids: E ids, for `Placement.eos_probs`.
        special_token_ids: S ids, for `Placement.special_probs`.
        stop_token_ids: S ids, for `Placement.stop_probs`.
    """
    log_q_RV = log_q_RV.double()
    q_RV, logqs_R = log_q_RV.exp(), log_q_RV.gather(-1, tokens_R.unsqueeze(-1)).squeeze(-1)
    before_RV = _before(log_q_RV, logqs_R, tokens_R)
    mass_before_R, mass_below_R = _masses(q_RV, before_RV, tokens_R)
    ranks_R = before_RV.sum(-1)
    surprisals_RV = -log_q_RV.masked_fill(q_RV == 0, 0.0)
    entropies_R = (q_RV * surprisals_RV).sum(-1)
    spread_RV = surprisals_RV - entropies_R.unsqueeze(-1)
    supported_RV = log_q_RV > float("-inf")
    last_R = log_q_RV.masked_fill(~supported_RV, float("inf")).amin(-1).exp()
    return Placement(
        logqs=logqs_R,
        mass_before=mass_before_R,
        mass_below=mass_below_R,
        ranks=ranks_R,
        entropies=entropies_R,
        variances=(q_RV * spread_RV * spread_RV).sum(-1),
        rank_masses=_rank_masses(q_RV),
        last_probs=last_R,
        is_last=ranks_R == supported_RV.sum(-1) - 1,
        eos_probs=q_RV[:, list(eos_token_ids)].sum(-1),
        special_probs=q_RV[:, list(special_token_ids)].sum(-1),
        is_special=torch.isin(tokens_R, tokens_R.new_tensor(list(special_token_ids))),
        stop_probs=q_RV[:, list(stop_token_ids)].sum(-1),
        is_stop=torch.isin(tokens_R, tokens_R.new_tensor(list(stop_token_ids))),
        rare_probs=_mass(q_RV, log_q_RV < math.log(RARE)),
        first_ids=log_q_RV.argmax(-1),
        log_powers=_log_powers(log_q_RV),
    )


def _log_powers(log_q_RV: Tensor) -> Tensor:
    """log Σ q^β of every exponent, ``[R, B]``: by products of q^⅛, as an exponential takes longer.

    Powers that are needed are those of 1, 2, 4 and 8 eighths, whose sums all of them are.
    """
    powers = [(log_q_RV / 8).exp()]
    while len(powers) < 4:
        powers.append(powers[-1] * powers[-1])
    sums = []
    for exponent in EXPONENTS:
        eighths = int(8 * exponent)
        factors = [power for n, power in enumerate(powers) if eighths >> n & 1]
        sums.append(math.prod(factors[1:], start=factors[0]).sum(-1))
    return torch.stack(sums, -1).log()


def masses(log_q_RV: Tensor, tokens_R: Tensor) -> tuple[Tensor, Tensor]:
    """q of the tokens that come before the given ones, and of those of smaller id, ``[R]``.

    Args:
        log_q_RV: see `place`.
        tokens_R: int64 ids in [0, V).
    """
    log_q_RV = log_q_RV.double()
    logqs_R = log_q_RV.gather(-1, tokens_R.unsqueeze(-1)).squeeze(-1)
    return _masses(log_q_RV.exp(), _before(log_q_RV, logqs_R, tokens_R), tokens_R)


def _masses(q_RV: Tensor, before_RV: Tensor, tokens_R: Tensor) -> tuple[Tensor, Tensor]:
    before_R, below_R = (
        _mass(q_RV, which_RV).clamp_(max=1.0) for which_RV in (before_RV, _below(q_RV, tokens_R))
    )
    return before_R, below_R


def _mass(q_RV: Tensor, which_RV: Tensor) -> Tensor:
    return torch.where(which_RV, q_RV, 0.0).sum(-1)


def _before(log_q_RV: Tensor, logqs_R: Tensor, tokens_R: Tensor) -> Tensor:
    """Which tokens come before the given ones: bool ``[R, V]``; all of the support, outside it."""
    own_R1 = logqs_R.unsqueeze(-1)
    tied_RV = (log_q_RV == own_R1) & _below(log_q_RV, tokens_R)
    return (log_q_RV > own_R1) | (tied_RV & (own_R1 > float("-inf")))


def _below(like_RV: Tensor, tokens_R: Tensor) -> Tensor:
    """Which tokens have a smaller id than the given ones: bool ``[R, V]``."""
    ids_V = torch.arange(like_RV.shape[-1], device=like_RV.device)
    return ids_V < tokens_R.unsqueeze(-1)


def _rank_masses(q_RV: Tensor) -> Tensor:
    edges = [edge for edge in RANK_EDGES if edge < q_RV.shape[-1]]
    ids_RE = largest(q_RV, edges[-1]) if edges else q_RV[:, :0].long()
    sums_RE = q_RV.gather(-1, ids_RE).cumsum(-1)
    upto_RK = sums_RE[:, [edge - 1 for edge in edges]]
    first, whole = torch.zeros_like(q_RV[:, :1]), q_RV.sum(-1, keepdim=True)
    masses_RK = torch.cat([first, upto_RK, whole], dim=-1).diff(dim=-1).clamp_(min=0.0)
    missing = len(RANK_EDGES) + 1 - masses_RK.shape[-1]  # bins beyond a small vocabulary
    return torch.nn.functional.pad(masses_RK, (0, missing))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where the support ends, seen from p = softmax(ℓ/T), and how surely; float64, ``[R]``."""

    mass_before: Tensor  # under p, of the tokens before y: y is in the support iff it is < top_p
    head_mass: Tensor  # under p, of the support
    cut_margin: Tensor  # last kept − first dropped ℓ/T; +∞ when nothing is dropped
    is_reachable: Tensor  # bool: logits within the error could have y in the support
    is_settled: Tensor  # bool: logits within the error have the same mass before the cut


def cut(logits_RV: Tensor, tokens_R: Tensor, policy: SamplingPolicy, logit_error: float) -> Cut:
    """What becomes of the support when each logit is off by at most ``logit_error``.

    Two tokens can change places when they are within 2δ/T of each other, and a mass can move by
    δ/(2T): its derivative is Σ p (1 − s) over the head and −p s over the tail, times δ/T.
    """
    error, top_p = logit_error / policy.temperature, policy.top_p if policy.do_sample else 0.0
    a_RV = logits_RV.double() / policy.temperature
    p_RV, own_R1 = a_RV.softmax(-1), a_RV.gather(-1, tokens_R.unsqueeze(-1))
    kept_RV = support(logits_RV, policy)
    inside_RV, outside_RV = _fill(a_RV, ~kept_RV, math.inf), _fill(a_RV, kept_RV, -math.inf)
    last_R, head_R = inside_RV.amin(-1), (p_RV * kept_RV).sum(-1)
    before_last_R = head_R - (last_R - a_RV.logsumexp(-1)).exp()
    surely_before_R = (p_RV * (a_RV > own_R1 + 2 * error)).sum(-1)
    return Cut(
        mass_before=(p_RV * _before(a_RV, own_R1.squeeze(-1), tokens_R)).sum(-1),
        head_mass=head_R,
        cut_margin=last_R - outside_RV.amax(-1),
        is_reachable=_may_be_kept(surely_before_R, error, top_p) & (own_R1[:, 0] > -math.inf),
        is_settled=(kept_RV.sum(-1) == 1) & (top_p == 0)
        | ((top_p - before_last_R > error / 2) & (head_R - top_p > error / 2))
        | (top_p == 1),
    )


def _may_be_kept(mass_before_R: Tensor, error: float, top_p: float) -> Tensor:
    # Greedy decoding is the cut at mass 0: what is surely behind another is out.
    return mass_before_R == 0 if top_p == 0 else mass_before_R - error / 2 < top_p


def _fill(values: Tensor, where: Tensor, value: float) -> Tensor:
    return values.masked_fill(where, value)
