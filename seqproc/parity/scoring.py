"""Every token of an engine's draws, placed in the distribution that the scorer says it came from.

Knows the scorer. One forward serves all the distributions that are asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqproc._util.progress import progress_bar
from seqproc.engines.gumbel import seed_tensor
from seqproc.engines.noise import Noise
from seqproc.models.parameters import ParamMapping
from seqproc.parity.betting.book import Book
from seqproc.parity.betting.evidence import Gains
from seqproc.parity.draws import (
    Answer,
    Controls,
    Draws,
    Floats,
    NominalScores,
    token_sequences,
    with_tokens,
)
from seqproc.parity.findings.replay import ReplayedRows, ReplayedTokens, replay_rows
from seqproc.parity.positions import Cut, LogDistribution, Placement, cut, place
from seqproc.parity.reading import Reading, Rows, read_columns
from seqproc.policy import SamplingPolicy, log_q, token_log_p
from seqproc.scorers import TeacherForcingScorer

# Legend: D draws, N tokens of all draws together, R rows (steps), V tokens of the vocabulary.

# Float64 logits [R, V] and their rows to log q [R, V], −∞ outside the support. The sequences of the
# rows are numbered as the answers that hold a token are.
RowDistribution = Callable[[Tensor, Rows], Tensor]
Key = TypeVar("Key", bound=Hashable)


def score(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    distributions: Mapping[str, LogDistribution],
    *,
    override: ParamMapping | None = None,
    seed: int = 0,
) -> dict[str, Draws]:
    """Place every token in each of the distributions; one forward serves them all.

    Args:
        answers: from `sample`; those without a token are left out.
        scorer: the model.
        distributions: from float64 logits to log q, by name.
        override: parameters to score at; None for the model's own.
        seed: of the randomisation of the transform, which is the test's and not the engine's.
    """
    by_row = {name: of_logits(of) for name, of in distributions.items()}
    return score_rows(answers, scorer, by_row, override=override, seed=seed)


def of_logits(whole: LogDistribution) -> RowDistribution:
    """As a distribution of rows, of which the logits alone are read."""

    def row_distribution(logits_RV: Tensor, _: Rows) -> Tensor:
        return whole(logits_RV)

    return row_distribution


def log_rs(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    distributions: Mapping[Key, RowDistribution],
    *,
    tokens: NDArray[np.int64] | None = None,
    override: ParamMapping | None = None,
) -> dict[Key, Floats]:
    """log r of every token under each of the distributions, ``[N]`` nats, in one forward.

    Args:
        answers: those without a token are left out.
        scorer: the model.
        distributions: by any name.
        tokens: ``[N]`` others in place of the answers' own.
        override: parameters to score at; None for the model's own.
    """
    lengths = [len(answer.completion.token_ids) for answer in with_tokens(answers)]
    starts = torch.tensor([0, *lengths]).cumsum(0)

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        wide, own_R1 = logits.double(), rows.tokens.unsqueeze(-1)
        if tokens is not None:
            numbers = starts[rows.sequences.cpu()] + rows.steps.cpu()
            own_R1 = torch.from_numpy(tokens)[numbers].to(own_R1).unsqueeze(-1)
        return {
            str(n): of(wide, rows).gather(-1, own_R1).squeeze(-1)
            for n, of in enumerate(distributions.values())
        }

    columns = token_columns(answers, scorer, reading, override)
    return {name: columns[str(n)] for n, name in enumerate(distributions)}


def score_rows(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    distributions: Mapping[str, RowDistribution],
    *,
    override: ParamMapping | None = None,
    seed: int = 0,
) -> dict[str, Draws]:
    """As `score`, for distributions that depend on which row it is as well."""
    answers, eos = with_tokens(answers), scorer.eos_token_ids

    def reading(logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        for name, of in distributions.items():
            columns |= _named(place(of(logits.double(), rows), rows.tokens, eos), f"{name}/")
        return columns

    columns = token_columns(answers, scorer, reading, override)
    return {name: _draws(answers, columns, name, eos, seed) for name in distributions}


def score_nominal(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    policy: SamplingPolicy,
    logit_error: float,
    *,
    noise: Noise | None = None,
    override: ParamMapping | None = None,
    seed: int = 0,
    bets: bool = True,
    controls: bool = False,
    special_token_ids: Sequence[int] = (),
    stop_token_ids: Sequence[int] = (),
) -> tuple[Draws, NominalScores]:
    """Place every token under the policy, and read what only the policy's own logits tell.

    Args:
        answers: from `sample`; those without a token are left out.
        scorer: the model.
        policy: the tokens were sampled under.
        logit_error: by which each logit may be off, nats.
        noise: that the engine draws with, to replay every token; None for no replay.
        override: parameters to score at; None for the model's own.
        seed: of the randomisation of the transform, which is the test's and not the engine's.
        bets: whether to bet on the distributions of the catalogue.
        controls: whether to draw a token from q in each context, for how far these are from it.
        special_token_ids: ids in [0, V) that are special, beside EOS.
        stop_token_ids: ids in [0, V) that may complete a stop string.
    """
    answers, eos = with_tokens(answers), scorer.eos_token_ids
    book = book_of(answers, policy, eos) if bets and policy.do_sample else None
    reading = _NominalReading(
        policy=policy,
        logit_error=logit_error,
        class_ids=(eos, special_token_ids, stop_token_ids),
        book=book,
        noise=noise,
        keys=_draw_keys(answers, scorer.device),
        generator=torch.Generator(scorer.device).manual_seed(seed % 2**63) if controls else None,
    )
    columns = token_columns(answers, scorer, reading, override)
    draws = _draws(answers, columns, "q", eos, seed)
    return draws, _nominal(columns, draws, book, _engine_logqs(answers))


@dataclass(frozen=True, slots=True, kw_only=True)
class _NominalReading:
    """What is read of the policy's own logits; a `Reading`."""

    policy: SamplingPolicy
    logit_error: float
    class_ids: tuple[Sequence[int], Sequence[int], Sequence[int]]  # see `place`
    book: Book | None  # that bets
    noise: Noise | None  # that every token is replayed with
    keys: Tensor  # [2, D] see `_draw_keys`
    generator: torch.Generator | None  # of controls

    def __call__(self, logits: Tensor, rows: Rows) -> dict[str, Tensor]:
        wide = logits.double()
        log_q_RV = log_q(wide, self.policy)
        placed = place(log_q_RV, rows.tokens, *self.class_ids)
        columns = {"logprobs": token_log_p(wide, rows.tokens)} | _named(placed, "q/")
        columns |= _named(cut(wide, rows.tokens, self.policy, self.logit_error))
        columns |= self._replayed(wide, rows)
        columns |= {} if self.generator is None else _controls(log_q_RV, self.generator)
        if self.book is not None:
            controls_R = columns.get("controls/ids")
            columns |= self.book.columns(wide, log_q_RV, placed, rows, controls_R=controls_R)
        return columns

    def _replayed(self, logits_RV: Tensor, rows: Rows) -> dict[str, Tensor]:
        if self.noise is None:
            return {}
        seeds, lengths = self.keys[:, rows.sequences]
        values = self.noise.values(seeds, lengths, rows.steps, logits_RV.shape[-1])
        error = self.noise.error
        return _named(
            replay_rows(logits_RV, values, rows.tokens, self.policy, self.logit_error, error)
        )


def _nominal(
    columns: Mapping[str, Any], draws: Draws, book: Book | None, reported: Floats | None
) -> NominalScores:
    """The columns that a `_NominalReading` has read, but for the tokens' places."""
    own = {name: values for name, values in columns.items() if "/" not in name}
    replayed = {name: own.pop(name) for name in ReplayedTokens.names() if name in own}
    controls = None
    if "controls/ids" in columns:
        controls = Controls(ids=columns["controls/ids"], logqs=columns["controls/logqs"])
    return NominalScores(
        controls=controls,
        engine_logqs=reported,
        gains=None if book is None else gains_of(book, columns, draws, reported),
        replayed=ReplayedTokens(**replayed) if replayed else None,
        **own,
    )


def book_of(answers: Sequence[Answer], policy: SamplingPolicy, eos: Sequence[int]) -> Book:
    """Bets on the tokens of answers, each of which holds one; under a policy that samples."""
    return Book(
        [answer.request.prompt_ids for answer in answers],
        [answer.completion.token_ids for answer in answers],
        [answer.prompt for answer in answers],
        policy,
        eos,
    )


def gains_of(
    book: Book, columns: Mapping[str, Any], draws: Draws, reported: Floats | None
) -> Gains:
    """What the bets of a book came to.

    Args:
        book: it has read all rows.
        columns: what it read of them.
        draws: the tokens, scored under the distribution that it bets against.
        reported: ``[N]`` log q as the engine reported them, NaN where it did not.
    """
    masses = (draws.mass_below, draws.mass_before)
    return book.gains(columns, draws.logqs, draws.ranks, masses, draws.uniforms_by_id, reported)


def _controls(log_q_RV: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """A token of each row that is drawn from its q."""
    upto_RV = log_q_RV.exp().cumsum(-1)  # inverted, it takes a tenth of the time of `multinomial`
    u_R1 = torch.rand(
        len(upto_RV), 1, generator=generator, dtype=upto_RV.dtype, device=upto_RV.device
    )
    ids_R1 = torch.searchsorted(upto_RV, u_R1 * upto_RV[:, -1:], right=True)
    ids_R1.clamp_(max=upto_RV.shape[-1] - 1)  # where u times the last one was rounded up to it
    return {
        "controls/ids": ids_R1.squeeze(-1),
        "controls/logqs": log_q_RV.gather(-1, ids_R1).squeeze(-1),
    }


def _draw_keys(answers: Sequence[Answer], device: torch.device) -> Tensor:
    """What noise is a function of, besides the step: seeds, prompt lengths; int64 ``[2, D]``."""
    seeds = seed_tensor([answer.request.seed for answer in answers], device)
    lengths = [len(answer.request.prompt_ids) for answer in answers]
    return torch.stack([seeds, torch.tensor(lengths, device=device)])


def _named(record: Placement | Cut | ReplayedRows, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}{field.name}": getattr(record, field.name) for field in fields(record)}


def token_columns(
    answers: Sequence[Answer],
    scorer: TeacherForcingScorer,
    reading: Reading,
    override: ParamMapping | None,
) -> dict[str, Any]:
    """What is read of all tokens, in order of draw: arrays of N rows, by name.

    Answers without a token are left out.
    """
    answers = with_tokens(answers)
    sequences = token_sequences(answers)
    with progress_bar(len(answers), "scoring", unit="seq") as bar:
        found = read_columns(scorer, sequences, reading, override=override, progress=bar.update)
    return {name: torch.cat([one[name] for one in found]).numpy() for name in found[0]}


def _draws(
    answers: Sequence[Answer],
    columns: Mapping[str, Any],
    name: str,
    eos_token_ids: Sequence[int],
    seed: int,
) -> Draws:
    completions = [answer.completion for answer in answers]
    lengths = np.array([len(completion.token_ids) for completion in completions])
    own: dict[str, Any] = {
        column.removeprefix(f"{name}/"): values
        for column, values in columns.items()
        if column.startswith(f"{name}/")
    }
    return Draws(
        prompts=np.array([answer.prompt for answer in answers]),
        lengths=lengths,
        ended_by_eos=np.array([c.token_ids[-1] in eos_token_ids for c in completions]),
        randomiser=np.random.default_rng(seed).random(int(lengths.sum())),
        **own,
    )


def _engine_logqs(answers: Sequence[Answer]) -> Floats | None:
    completions = [answer.completion for answer in answers]
    if all(completion.logqs is None for completion in completions):
        return None
    unknown = float("nan")
    each = [[unknown] * len(c.token_ids) if c.logqs is None else c.logqs for c in completions]
    return np.concatenate([np.array(logqs, dtype=np.float64) for logqs in each])
