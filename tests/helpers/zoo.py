"""How far the scorer is from a model's own forward, for each of the models of `zoo_models`.

    cd tests && python -m helpers.zoo [NAME ...]

prints the table of docs/models.md. Knows the library as its users do.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from helpers.zoo_models import ARCHITECTURES, V, build
from seqproc.config import PrecisionConfig
from seqproc.errors import SeqprocError
from seqproc.policy import SamplingPolicy, TokenScores
from seqproc.scorers import (
    Float64Lift,
    Shortcuts,
    TeacherForcingScorer,
    TokenSequence,
    build_params_override,
    jvp,
)

POLICIES = (SamplingPolicy(temperature=0.8, top_p=0.9), SamplingPolicy())
STEP = 1e-6  # of central differences in float64
NEAR_A_CUT = 1e-5  # of mass: rounding decides whether a token is in the support

# Two prompts with three responses each, one of them empty and one of a single token, and a third
# with one: longer together than any window of the models.
LENGTHS = ((9, (7, 1, 11)), (14, (5, 0, 8)), (4, (12,)))


def sequences() -> list[TokenSequence]:
    """Random tokens; none is the padding token, whose embedding takes no gradient."""
    drawn, found = torch.Generator().manual_seed(1), []
    for prompt_length, lengths in LENGTHS:
        prompt = torch.randint(2, V, (prompt_length,), generator=drawn)
        for length in lengths:
            response = torch.randint(1, V, (length,), generator=drawn)
            found.append(TokenSequence(prompt_ids=prompt, response_ids=response))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Of one response: what the model's own forward says, in float64 from its logits on."""

    log_p: np.ndarray  # [T]
    log_q: np.ndarray  # [T]; −∞ outside the support
    entropy: np.ndarray  # [T]
    near: np.ndarray  # [T] bool, whether a cut is so near that rounding decides


def own_logits(model: Any, sequence: TokenSequence) -> torch.Tensor:
    """Logits ``[T, V]`` of one plain call on one sequence."""
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])[None]
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(sequence.prompt_ids) - 1 : ids.shape[1] - 1]


def oracle(logits: torch.Tensor, tokens: torch.Tensor, policy: SamplingPolicy) -> Oracle:
    """log p, log q and H by sorting probabilities, one step at a time."""
    raw, steps = logits.detach().double().numpy(), np.arange(len(tokens))
    a = raw / policy.temperature
    p = np.exp(a - a.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1, kind="stable")
    sums = np.take_along_axis(p, order, -1).cumsum(-1)
    kept = np.zeros_like(p, dtype=bool)
    before = np.pad(sums[:, :-1], ((0, 0), (1, 0)))
    np.put_along_axis(kept, order, (before < policy.top_p) | (policy.top_p == 1), -1)
    q = np.where(kept, p, 0.0)
    q /= q.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(q)
        entropy = -np.where(kept, q * log_q, 0.0).sum(-1)
    normal = raw - raw.max(-1, keepdims=True)
    log_p = normal - np.log(np.exp(normal).sum(-1, keepdims=True))
    return Oracle(
        log_p=log_p[steps, tokens],
        log_q=log_q[steps, tokens],
        entropy=entropy,
        near=(np.abs(sums - policy.top_p).min(-1) < NEAR_A_CUT) & (policy.top_p < 1),
    )


def distance(scores: list[TokenScores], model: Any, policy: SamplingPolicy) -> float:
    """Largest difference of log p, log q and H from the oracle's; ∞ where a support differs."""
    found = [0.0]
    for sequence, one in zip(sequences(), scores, strict=True):
        if not len(sequence.response_ids):
            continue
        with torch.no_grad():
            own = oracle(own_logits(model, sequence), sequence.response_ids, policy)
        sure = ~own.near
        found += [
            _gap(one.logprobs, own.log_p),
            _gap(one.logqs[sure], own.log_q[sure]),
            _gap(one.stats.rb_entropy[sure], own.entropy[sure]),
        ]
    return float(np.max(found))  # not `max`, which may pass a NaN over


def _gap(ours: torch.Tensor, theirs: np.ndarray) -> float:
    a = ours.detach().double().numpy()
    with np.errstate(invalid="ignore"):  # −∞ on both sides
        return float(np.where(a == theirs, 0.0, np.abs(a - theirs)).max(initial=0.0))


def worst(scorer: TeacherForcingScorer, model: Any, **options: Any) -> float:
    """`distance` of the scorer's scores under each policy from the forwards of ``model``."""
    found = [
        distance(scorer.score(sequences(), policy, **options)[0], model, policy)
        for policy in POLICIES
    ]
    return float(np.max(found))


def float64_precision() -> PrecisionConfig:
    precision = PrecisionConfig()
    for profile in (precision.func_override, precision.tf_nograd, precision.tf_withgrad):
        profile.dtype = "float64"
    return precision


# What is looked at, each a figure of one model.


def packed(model: Any) -> float:
    """Several lengths in a batch, prompts shared, against plain forwards. Nats."""
    return worst(TeacherForcingScorer(model), model)


def padded(model: Any) -> float:
    """Whole sequences in padded batches. Nats."""
    return worst(TeacherForcingScorer(model), model, share_prompts=False)


def alone(model: Any) -> float:
    """One sequence at a time. Nats."""
    return worst(TeacherForcingScorer(model), model, batch_size=1, share_prompts=False)


def own_rounding(model: Any) -> float:
    """The model's own float32 forward against its float64 one: log p of each token. Nats."""
    wide, gaps = copy.deepcopy(model).double(), []
    with torch.no_grad():
        for sequence in [s for s in sequences() if len(s.response_ids)]:
            own = own_logits(model, sequence).double().log_softmax(-1)
            with Float64Lift():
                exact = own_logits(wide, sequence).log_softmax(-1)
            gap = (own - exact).gather(-1, sequence.response_ids[:, None])
            gaps.append(float(gap.abs().max()))
    return float(np.max(gaps))


def float64(model: Any) -> float:
    """True float64 against plain float64 forwards. Nats."""
    scorer = TeacherForcingScorer(model, precision=float64_precision())
    with Float64Lift():
        return worst(scorer, copy.deepcopy(model).double())


def forward_derivative(model: Any) -> float:
    """`jvp` of log p, log q and H in float64 against central differences, of the largest."""
    scorer = TeacherForcingScorer(model, precision=float64_precision())
    drawn, policy = torch.Generator().manual_seed(2), SamplingPolicy(temperature=0.8)
    v = {
        name: (p.detach().abs().mean() + 1e-3) * torch.randn(p.shape, generator=drawn)
        for name, p in model.named_parameters()
    }
    slopes = jvp(scorer, sequences(), policy, v)
    up, down = (
        scorer.score(
            sequences(),
            policy,
            overrides=[
                build_params_override(model, v, eta, dtype=torch.float64, allow_frozen=True)
            ],
        )[0]
        for eta in (STEP, -STEP)
    )
    pairs = [
        pair
        for slope, a, b in zip(slopes, up, down, strict=True)
        for pair in (
            (slope.logprobs, (a.logprobs - b.logprobs) / (2 * STEP)),
            (slope.logqs, (a.logqs - b.logqs) / (2 * STEP)),
            (slope.rb_entropy, (a.stats.rb_entropy - b.stats.rb_entropy) / (2 * STEP)),
        )
    ]
    return _relative(pairs)


def gradient(model: Any) -> float:
    """∇ Σ log p of all sequences in float64 against autograd of the model's own forward."""
    wide = copy.deepcopy(model).double()  # before a graph is kept in any of its states
    scorer = TeacherForcingScorer(model, precision=float64_precision())
    total = torch.cat([s.logprobs for s in scorer.score_with_grad(sequences(), POLICIES[0])]).sum()
    with Float64Lift():
        each = [
            own_logits(wide, s).log_softmax(-1).gather(-1, s.response_ids[:, None]).sum()
            for s in sequences()
            if len(s.response_ids)
        ]
        own = _gradients(torch.stack(each).sum(), wide)
    return _relative(list(zip(_gradients(total, model), own, strict=True)))


def _gradients(value: torch.Tensor, model: Any) -> tuple[torch.Tensor, ...]:
    params = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)


def _relative(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Largest difference within a pair, relative to the pair, or to a thousandth of the largest."""
    kept = [(a.detach().double(), b.detach().double()) for a, b in pairs if a.numel()]
    sizes = np.array([float(b.abs().max()) for _, b in kept])
    gaps = np.array([float((a - b).abs().max()) for a, b in kept])
    return float((gaps / np.maximum(sizes, 1e-3 * sizes.max())).max())


COLUMNS: dict[str, tuple[Callable[[Any], float], float]] = {  # and what is right
    "packed": (packed, 2e-5),
    "padded": (padded, 2e-5),
    "alone": (alone, 2e-5),
    "own": (own_rounding, float("inf")),
    "float64": (float64, 1e-10),
    "jvp": (forward_derivative, 1e-5),
    "gradient": (gradient, 1e-5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model's row of the table."""

    name: str
    figures: dict[str, float | str]  # a figure, or what was raised
    left_out: list[str]  # shortcuts

    def faults(self) -> dict[str, float | str]:
        """Columns whose figure is too large, or that raised anything."""
        return {
            column: value
            for column, value in self.figures.items()
            if isinstance(value, str) or not value <= COLUMNS[column][1]
        }


def examined(name: str, model: Any) -> Line:
    """Everything about one model."""
    shortcuts = TeacherForcingScorer(model).shortcuts
    names = [f.name for f in dataclasses.fields(Shortcuts)]
    return Line(
        name=name,
        figures={column: _tried(look, model) for column, (look, _) in COLUMNS.items()},
        left_out=[n.replace("_", " ") for n in names if not getattr(shortcuts, n)],
    )


def _tried(look: Callable[[Any], float], model: Any) -> float | str:
    try:
        return look(model)
    except SeqprocError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def table(lines: Iterator[Line]) -> Iterator[str]:
    """Markdown, row by row."""
    yield "| model | " + " | ".join(COLUMNS) + " | without |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for line in lines:
        cells = [v[:40] if isinstance(v, str) else f"{v:.1e}" for v in line.figures.values()]
        yield f"| {line.name} | " + " | ".join(cells) + f" | {', '.join(line.left_out)} |"


def main() -> None:
    """The table of the models named, or of all."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # with more, models as small as these wait for one another
    names = sys.argv[1:] or list(ARCHITECTURES)
    for row in table(examined(name, build(name)) for name in names):
        print(row, flush=True)


if __name__ == "__main__":
    main()
