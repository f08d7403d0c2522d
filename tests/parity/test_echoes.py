"""Bets on noise that is used twice: pairs at every distance, mixtures of mean 1, planted faults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from helpers.broken import WHOLE, Fault
from helpers.faults import of_key
from helpers.parity_range import PER_PROMPT, Range
from seqproc.parity.betting.blocks import Placed
from seqproc.parity.betting.echoes import echo_ratios
from seqproc.parity.betting.pairs import MOST_DRAWS, Pairs, all_pairs
from seqproc.parity.sequential import in_rounds

STEPS, OF_PROMPT, TWO_PROMPTS, OF_RUN = range(4)

# ---------------------------------------------------------------------- pairs


def of_pair(pairs: Pairs, lengths: np.ndarray, distance: int) -> list[int]:
    """The earlier token of each, −1 where there is none."""
    numbers, exists = pairs.tokens(0, len(lengths), lengths)
    found = np.where(exists, numbers, -1)[:, :, distance - 1]
    return [int(n) for row, length in zip(found, lengths, strict=True) for n in row[:length]]


def test_pairs_name_the_earlier_tokens() -> None:
    prompts, lengths = np.array([0, 0, 1, 1, 0]), np.array([3, 2, 1, 4, 2])
    steps, of_prompt, two_prompts, of_run = all_pairs(prompts)
    none = -1
    assert of_pair(steps, lengths, 2) == [-1, -1, 0, -1, -1, -1, -1, -1, 6, 7, -1, -1]
    # Draws of prompt 0 are 0, 1, 4, which begin at tokens 0, 3, 10.
    assert of_pair(of_prompt, lengths, 1) == [none] * 3 + [0, 1, none, 5, none, none, none, 3, 4]
    assert of_pair(of_prompt, lengths, 2) == [none] * 10 + [0, 1]
    assert of_pair(two_prompts, lengths, 1) == [none] * 5 + [0, 3, 4, none, none, none, none]
    assert of_pair(of_run, lengths, 2) == [none] * 5 + [0, 3, 4, none, none, 5, none]


def test_pairs_are_with_earlier_draws_whatever_the_order_is() -> None:
    """Also where prompts are dealt in rounds, and the second prompt comes first."""
    order = in_rounds(6, 9)
    prompts = np.array([5 - i // 9 for i in order])
    for pairs in all_pairs(prompts)[1:]:
        exists = pairs.draws >= 0
        assert exists.any()
        assert (pairs.draws < np.arange(len(prompts))[:, None])[exists].all()
    of_prompt, two_prompts = all_pairs(prompts)[1:3]
    own = np.broadcast_to(prompts[:, None], of_prompt.draws.shape)
    exists = of_prompt.draws >= 0
    assert (prompts[of_prompt.draws] == own)[exists].all()
    exists = two_prompts.draws >= 0
    assert (prompts[two_prompts.draws] != prompts[:, None])[exists].all()


def test_every_distance_is_looked_at_up_to_the_largest() -> None:
    pairs = all_pairs(np.repeat([0, 1], 200))
    assert [one.draws.shape[1] for one in pairs[1:]] == [MOST_DRAWS, 1, MOST_DRAWS]
    assert (pairs[OF_PROMPT].draws[199] == 198 - np.arange(MOST_DRAWS)).all()
    assert (pairs[OF_RUN].draws[210] == 209 - np.arange(MOST_DRAWS)).all()


# ---------------------------------------------------------------------- a toy engine

VOCABULARY = 30
Noise = Callable[[int, int], float]  # of a draw and a step


def rows_of(seed: int, vocabulary: int = VOCABULARY) -> np.ndarray:
    """Distributions of next tokens, one for each context, ``[64, V]``."""
    return np.random.default_rng(seed).dirichlet(np.full(vocabulary, 0.5), size=64)


def context(prompt: int, ids: list[int]) -> int:
    return hash((prompt, *ids)) % 64


def placed_of(
    prompts: np.ndarray, draws: list[list[int]], rows: np.ndarray, within: Callable[[], float]
) -> Placed:
    """Tokens of given draws, placed by plain loops; ``within`` has the test's own randomness."""
    columns: list[tuple[float, ...]] = []
    for prompt, ids in zip(prompts.tolist(), draws, strict=True):
        for step, token in enumerate(ids):
            q = rows[context(prompt, ids[:step])]
            below, before = q[:token].sum(), q[q > q[token]].sum()
            u = below + within() * q[token]
            columns.append((token, math.log(q[token]), below, before, u))
    ids_N, logqs, below_N, before_N, uniforms = map(np.array, zip(*columns, strict=True))
    return Placed(
        ids=ids_N.astype(np.int64),
        logqs=logqs,
        below=below_N,
        before=before_N,
        uniforms=uniforms,
    )


def inverted(q: np.ndarray, u: float) -> int:
    return min(int((q.cumsum() <= u).sum()), len(q) - 1)


def inverted_by_probability(q: np.ndarray, u: float) -> int:
    order = np.argsort(-q)
    return int(order[inverted(q[order], u)])


def gumbel(q: np.ndarray, u: float) -> int:
    noise = np.random.default_rng(int(u * 2**40)).gumbel(size=len(q))
    return int((np.log(q) + noise).argmax())


def run_of(
    prompts: np.ndarray,
    noise: Noise,
    seed: int = 0,
    most: int = 20,
    draw: Callable[[np.ndarray, float], int] = inverted,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What every bet came to, by token ``[N, K]``; the lengths of draws; the bets' names."""
    rows, draws = rows_of(seed), []
    for number, prompt in enumerate(prompts.tolist()):
        ids: list[int] = []
        while len(ids) < most and (not ids or ids[-1] != 0):
            ids.append(draw(rows[context(prompt, ids)], noise(number, len(ids))))
        draws.append(ids)
    lengths = np.array([len(ids) for ids in draws])
    placed = placed_of(prompts, draws, rows, np.random.default_rng([seed, 7]).random)
    bets, ratios = echo_ratios(all_pairs(prompts), placed, lengths)
    return ratios, lengths, [bet.name for bet in bets]


def log_e(ratios: np.ndarray) -> float:
    """Of all bets in equal shares, nats."""
    totals = ratios.sum(0, dtype=float)
    return float(np.logaddexp.reduce(totals)) - math.log(len(totals))


def fresh(seed: int) -> Noise:
    return lambda number, step: of_key(seed, number, step)


# ---------------------------------------------------------------------- mean 1


def every_run(prompts: list[int], rows: np.ndarray) -> Iterator[tuple[float, list[list[int]]]]:
    """All runs of draws that end with token 0 or after two tokens, with their probabilities."""

    def of_draw(prompt: int) -> Iterator[tuple[float, list[int]]]:
        vocabulary = rows.shape[1]
        for first in range(vocabulary):
            q = rows[context(prompt, [])][first]
            if first == 0:
                yield q, [first]
                continue
            for second in range(vocabulary):
                yield q * rows[context(prompt, [first])][second], [first, second]

    for run in itertools.product(*(list(of_draw(prompt)) for prompt in prompts)):
        yield math.prod(q for q, _ in run), [ids for _, ids in run]


@pytest.mark.parametrize(
    ("prompts", "kinds"),
    [
        (np.array([0, 0, 0]), (STEPS, OF_PROMPT, OF_RUN)),
        (np.array([0, 1, 2]), (STEPS, TWO_PROMPTS, OF_RUN)),
    ],
    ids=["one prompt", "three prompts"],
)
def test_bets_have_mean_1_over_every_run_that_there_is(
    prompts: np.ndarray, kinds: tuple[int, ...]
) -> None:
    """Three draws, three tokens, lengths by chance: 343 runs, in exact weights.

    Bets on places are linear in the place within a token, so that its middle stands for all of it.
    """
    rows = rows_of(3, 3)
    total, means, varies = 0.0, np.zeros(12), np.zeros(12, dtype=bool)
    for probability, draws in every_run(prompts.tolist(), rows):
        lengths = np.array([len(ids) for ids in draws])
        placed = placed_of(prompts, draws, rows, lambda: 0.5)
        ratios = echo_ratios(all_pairs(prompts), placed, lengths)[1]
        e = np.exp(ratios.sum(0, dtype=float))
        total, means = total + probability, means + probability * e
        varies |= abs(e - 1) > 1e-3
    assert total == pytest.approx(1.0)
    assert varies.reshape(4, 3)[list(kinds)].all()
    assert means == pytest.approx(np.ones(12), abs=2e-6)


def test_bets_seldom_win_against_a_right_engine() -> None:
    """500 runs. The rates of e ≥ 20 and e ≥ 100 are held against exact binomial bounds."""
    prompts, runs = np.repeat([0, 1, 2, 3], 4), 500
    totals = np.stack(
        [run_of(prompts, fresh(seed), seed, most=6)[0].sum(0, dtype=float) for seed in range(runs)]
    )
    e = np.exp(totals)
    for level in (20, 100):
        assert (e >= level).sum(0).max() <= binom.ppf(1 - 1e-4, runs, 1 / level)
        assert (e.mean(1) >= level).sum() <= binom.ppf(1 - 1e-4, runs, 1 / level)


# ---------------------------------------------------------------------- planted faults


def shared(distance: int, share: float = 1.0, first: int = 0, last: int = 99) -> Noise:
    """Some draws have the noise of the one so far before, at some steps."""

    def noise(number: int, step: int) -> float:
        while number >= distance and first <= step < last and of_key(5, number) < share:
            number -= distance
        return of_key(1, number, step)

    return noise


@pytest.mark.parametrize("distance", [1, 5, 10, 11, 14, 23, 64, 100])
def test_noise_of_an_earlier_draw_is_seen_at_any_distance(distance: int) -> None:
    """A fifth of 256 draws, in prompts of eight."""
    prompts = np.arange(256) // 8
    ratios, _, names = run_of(prompts, shared(distance, 0.2))
    assert log_e(ratios) > 20
    assert f"the same noise again: draws of the run, {distance} draws apart" in names


@pytest.mark.parametrize(
    ("noise", "due"),
    [
        (shared(11, 0.1), 20),
        (shared(11, 1, first=14), 20),
        (shared(11, 1, last=3), 20),
        (shared(5 * 8, 0.3), 20),  # the draw of the same number, five prompts before
    ],
    ids=["a tenth of the draws", "from a step on", "up to a step", "five prompts before"],
)
def test_noise_that_is_shared_in_part_is_seen(noise: Noise, due: float) -> None:
    ratios, _, _ = run_of(np.arange(256) // 8, noise)
    assert log_e(ratios) > due


def test_noise_of_another_prompt_is_told_by_its_distance() -> None:
    """Prompts have nine draws here, but for a first one of three: distances in the run differ."""
    prompts = np.repeat(np.arange(24), [3, *[9] * 23])
    starts = np.concatenate([[0], np.flatnonzero(np.diff(prompts)) + 1])

    def noise(number: int, step: int) -> float:
        prompt, place = prompts[number], number - starts[prompts[number]]
        return of_key(1, prompt - 5 * (prompt % 10 >= 5), place, step)

    ratios, _, names = run_of(prompts, noise)
    assert log_e(ratios) > 20
    assert any(name.endswith("draws of two prompts, 5 prompts apart") for name in names)


def test_noise_of_an_earlier_draw_of_many_of_one_prompt_is_seen() -> None:
    """Dealt in rounds, where the distance in the run changes."""
    order = in_rounds(4, 64)
    prompts = np.array([i // 64 for i in order])

    def noise(number: int, step: int) -> float:
        i = order[number]
        return of_key(1, i - 23 * (i % 64 >= 23 and of_key(2, i) < 0.2), step)

    ratios, _, names = run_of(prompts, noise)
    assert log_e(ratios) > 20
    assert any(name.endswith("draws of one prompt, 23 draws apart") for name in names)


@pytest.mark.parametrize("draw", [inverted_by_probability, gumbel])
def test_noise_is_seen_however_it_is_used(draw: Callable[[np.ndarray, float], int]) -> None:
    ratios, _, _ = run_of(np.arange(256) // 8, shared(11, 0.3), draw=draw)
    assert log_e(ratios) > 20


@pytest.mark.parametrize("distance", [1, 5, 13])
def test_steps_that_share_noise_are_seen(distance: int) -> None:
    def noise(number: int, step: int) -> float:
        return of_key(1, number, step - distance * (step >= distance and step % 4 == 1))

    ratios, _, names = run_of(np.arange(256) // 8, noise)
    assert log_e(ratios) > 10
    assert any(f"steps of one draw, {distance} steps apart" in name for name in names)


def test_a_weak_dependence_of_all_draws_is_seen() -> None:
    """u is a mixture: a quarter of the steps of every draw lie where those of 7 draws before do."""

    def noise(number: int, step: int) -> float:
        is_shared = of_key(3, number, step) < 0.25
        return of_key(1, number - 7 * is_shared + 1000, step)

    ratios, _, _ = run_of(np.arange(512) // 8, noise)
    assert log_e(ratios) > 10


def test_opposite_places_are_seen() -> None:
    def noise(number: int, step: int) -> float:
        u = of_key(1, number - 6 * (number % 12 >= 6), step)
        return 1 - u if number % 12 >= 6 else u

    ratios, _, names = run_of(np.arange(256) // 8, noise)
    assert log_e(ratios) > 10
    assert names[int(ratios.sum(0).argmax())].startswith("opposite places")


def test_weights_do_not_depend_on_what_comes_later() -> None:
    """The bets on the first draws are the same whatever the others are."""
    prompts = np.arange(64) // 8
    change = shared(3)
    ratios, lengths, _ = run_of(prompts, fresh(1))
    other, others_lengths, _ = run_of(
        prompts, lambda n, s: of_key(1, n, s) if n < 32 else change(n, s)
    )
    assert (lengths[:32] == others_lengths[:32]).all()
    assert not np.array_equal(lengths[32:], others_lengths[32:])
    upto = int(lengths[:32].sum())
    np.testing.assert_allclose(ratios[:upto], other[:upto], rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- whole checks


def _of(distance: int, first: int, share: float) -> Fault:
    def uniform(request: object, step: int) -> float:
        index = request.index  # type: ignore[attr-defined]
        is_shared = step >= first and of_key(9, index) < share
        return of_key(index - distance * is_shared + 2**20, step)

    return Fault(name="", words=None, uniform=uniform)


@pytest.mark.parametrize(
    ("distance", "first", "share"),
    [(11, 4, 0.15), (5, 24, 0.8), (23, 0, 0.1), (5 * PER_PROMPT, 0, 0.2)],
)
def test_a_check_finds_noise_that_is_used_again(
    small: Range, distance: int, first: int, share: float
) -> None:
    engine = _of(distance, first, share).build(small.model, small.tokenizer, silent=True)
    found = small.check(engine, num_draws=256, policy=replace(WHOLE))
    assert "noise" in found.verdict.failed
    (cause,) = found.causes
    assert "randomness is used twice" in cause.description
