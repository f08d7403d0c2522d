"""Bets: each is a distribution, and the one of its name; a right engine does not win them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqproc.parity.betting import heads
from seqproc.parity.betting.alternatives import Alternative, Case, Seen
from seqproc.parity.betting.bans import Bans, without
from seqproc.parity.betting.catalogue import SHARE, catalogue, log_ratios
from seqproc.parity.betting.coarse import COARSE
from seqproc.parity.betting.cuts import IGNORED
from seqproc.parity.betting.evidence import WINDOWS, evidence, gains
from seqproc.parity.betting.heads import heads_of, tempered
from seqproc.parity.positions import masses
from seqproc.policy import SamplingPolicy, log_q

EOS = (3, 5)
POLICIES = [
    SamplingPolicy(),
    SamplingPolicy(temperature=0.7, top_p=0.95),
    SamplingPolicy(temperature=1.3, top_p=0.9),
    SamplingPolicy(temperature=0.5),
]


def logits_of(vocabulary: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocabulary, generator=generator, dtype=torch.float64) * scale


def every_token(logits_V: Tensor, policy: SamplingPolicy, eos: Sequence[int] = EOS) -> Case:
    """A row for each token of the vocabulary, as if that one had been sampled."""
    vocabulary = len(logits_V)
    logits_RV, tokens_R = logits_V.expand(vocabulary, -1), torch.arange(vocabulary)
    found = heads_of(logits_RV, tokens_R, policy)
    log_q_RV = log_q(logits_RV, policy)
    before_R, below_R = masses(log_q_RV, tokens_R)
    generator = torch.Generator().manual_seed(1)
    counts = [
        torch.randint(0, 3, (vocabulary,), generator=generator)[found.ids].double()
        for _ in range(2)
    ]
    return Case(
        heads=found,
        nominal=tempered(found, found.inverse_temperature),
        policy=policy,
        logqs=log_q_RV.gather(-1, tokens_R[:, None])[:, 0],
        mass_below=below_R,
        mass_before=before_R,
        log_eos=log_q_RV[:, list(eos)].logsumexp(-1),
        is_eos=torch.isin(tokens_R, torch.tensor(eos)),
        seen=Seen(in_prompt=counts[0], in_response=counts[1]),
    )


def alternatives(policy: SamplingPolicy) -> list[Alternative]:
    return catalogue(policy, EOS)


def bets() -> list[Any]:
    return [
        pytest.param(policy, n, id=f"{policy.temperature:g}-{policy.top_p:g}-{one.name}")
        for policy in POLICIES
        for n, one in enumerate(alternatives(policy))
    ]


@pytest.mark.parametrize(("policy", "number"), bets())
def test_an_alternative_is_a_distribution_and_the_one_of_its_name(
    policy: SamplingPolicy, number: int
) -> None:
    """In a small vocabulary the head is all of it, and nothing is approximate."""
    one, logits_V = alternatives(policy)[number], logits_of(200)
    assert one.log_r is not None
    log_r = one.log_r(every_token(logits_V, policy))
    assert float(log_r.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    if one.whole is not None:
        whole = one.whole(logits_V.unsqueeze(0))[0]
        assert torch.equal(log_r == -math.inf, whole == -math.inf)
        finite = whole > -math.inf
        assert torch.allclose(log_r[finite], whole[finite], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("temperature", "least", "most"),
    [(1e-6, 1e-6, 2e-6), (1e6, 5e5, 1e6), (1.5e-6, 1e-6, 3e-6), (1.0, 0.5, 2.0)],
)
def test_no_temperature_of_the_catalogue_is_beyond_those_of_a_policy(
    temperature: float, least: float, most: float
) -> None:
    found = alternatives(SamplingPolicy(temperature=temperature, top_p=0.9))
    values = [one.value for one in found if one.family == "temperature" and one.name != IGNORED]
    factors = [one / temperature for one in values if one is not None]
    assert {0.99: temperature > 1e-6, 1.01: temperature < 1e6} == {
        factor: any(abs(one - factor) < 1e-9 for one in factors) for factor in (0.99, 1.01)
    }
    assert all(least <= one <= most for one in values if one is not None)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("scale", [0.3, 2.0, 5.0])
def test_an_alternative_adds_up_to_1_or_is_not_known_where_the_vocabulary_is_large(
    policy: SamplingPolicy, scale: float
) -> None:
    logits_V = logits_of(heads.HEAD * 5, seed=2, scale=scale)
    case = every_token(logits_V, policy)
    num_known = 0
    for one in alternatives(policy):
        assert one.log_r is not None
        log_r = one.log_r(case)
        if bool(log_r.isnan().any()):
            assert bool(log_r.isnan().all()), one.name
        else:
            num_known += 1
            assert float(log_r.exp().sum()) == pytest.approx(1.0, abs=1e-9), one.name
    assert num_known >= (10 if scale < 1 else 30)


def test_there_is_no_bet_on_what_is_not_known() -> None:
    """A flat row, whose nucleus is larger than the head at any temperature."""
    policy = SamplingPolicy(temperature=0.7, top_p=0.95)
    case = every_token(logits_of(heads.HEAD * 5, scale=1e-3), policy)
    ratios_RK = log_ratios(alternatives(policy), case)
    families = [one.family for one in alternatives(policy)]
    assert (ratios_RK[:, families.index("temperature")] == 0).all()
    assert (ratios_RK[:, families.index("top_k")] != 0).any()


def test_a_bet_on_eos_is_none_where_nothing_else_can_be_sampled() -> None:
    policy = SamplingPolicy(top_p=0.5)
    logits_V = torch.zeros(200, dtype=torch.float64)
    logits_V[EOS[0]] = 50.0
    case = every_token(logits_V, policy)
    ratios = log_ratios(alternatives(policy), case)
    assert torch.isfinite(ratios).all()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_bet_has_mean_1_under_the_policy(policy: SamplingPolicy) -> None:
    case = every_token(logits_of(200), policy)
    ratios_RK = log_ratios(alternatives(policy), case)
    means_K = (ratios_RK.exp() * case.logqs.exp().unsqueeze(-1)).sum(0)
    assert (means_K <= 1 + 1e-9).all()
    assert (means_K >= SHARE - 1e-12).all()


def test_a_bet_on_a_banned_id_has_mean_1_and_is_the_distribution_without_it() -> None:
    logits_V, policy = logits_of(40), SamplingPolicy(temperature=0.7)
    log_q_V = log_q(logits_V.unsqueeze(0), policy)[0]
    log_es = []
    for token in range(40):
        bans = Bans()
        bans.note(log_q_V.unsqueeze(0), torch.tensor([token]))
        log_es.append(bans.log_e)
    e_VV = np.exp(np.stack(log_es))  # sampled token, banned id
    assert np.allclose(log_q_V.exp().numpy() @ e_VV, 1.0, rtol=0, atol=1e-12)
    for banned in range(40):
        whole = without(banned, policy)(logits_V.unsqueeze(0))[0]
        assert float(whole.exp().sum()) == pytest.approx(1.0)
        assert whole[banned] == -math.inf
        kept = (log_q_V > -math.inf) & (torch.arange(40) != banned)
        due = SHARE * log_q_V.exp() + (1 - SHARE) * whole.exp()
        assert np.allclose(e_VV[kept, banned], (due / log_q_V.exp())[kept], rtol=1e-9)


def test_bans_add_up_over_rows_and_batches() -> None:
    log_q_RV = torch.stack([logits_of(30, seed=n).log_softmax(-1) for n in range(6)])
    tokens = torch.tensor([1, 4, 1, 7, 9, 2])
    whole, parts = Bans(), Bans()
    whole.note(log_q_RV, tokens)
    parts.note(log_q_RV[:2], tokens[:2])
    parts.note(log_q_RV[2:], tokens[2:])
    assert whole.log_e is not None
    assert parts.log_e is not None
    assert np.allclose(whole.log_e, parts.log_e)


def test_the_shares_of_all_bets_add_up_to_1() -> None:
    rng = np.random.default_rng(0)
    found = gains(
        alternatives(SamplingPolicy()),
        np.zeros((12, len(alternatives(SamplingPolicy()))), dtype=np.float32),
        np.log(rng.random(12)),
        np.ones(12, dtype=np.int64),
        np.array([5, 7]),
        bans=np.zeros(50),
    )
    shares = [bet.log_share for bet in evidence(found).bets]
    assert np.exp(shares).sum() == pytest.approx(1.0)


def test_a_temperature_beyond_the_head_is_nearly_the_exact_one() -> None:
    policy = SamplingPolicy(temperature=1.0)
    logits_V = logits_of(heads.HEAD * 8, seed=4)
    case = every_token(logits_V, policy)
    for one in alternatives(policy):
        if one.family == "temperature" and one.value is not None and 0.9 < one.value < 1.1:
            assert one.log_r is not None
            assert one.whole is not None
            exact = one.whole(logits_V.unsqueeze(0))[0]
            gap = (one.log_r(case) - exact) * exact.exp()
            assert float(gap.abs().sum()) < 1e-3


# ---------------------------------------------------------------------- coarse random numbers


def halves(bits: int) -> Tensor:
    return (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits


U = {
    "of 8 bits": halves(8) - 2**-9,
    "of 8 bits, from half a step on": halves(8),
    "of 11 bits": halves(11) - 2**-12,
    "of 11 bits, from half a step on": halves(11),
    "of 16 bits": halves(16) - 2**-17,
    "rounded to bfloat16": halves(22).bfloat16().double(),
    "rounded to float16": halves(22).half().double(),
}


@pytest.mark.parametrize("policy", POLICIES[:2], ids=str)
@pytest.mark.parametrize("order", ["id", "falling probability"])
@pytest.mark.parametrize("name", list(U))
def test_coarse_random_numbers_are_those_of_all_u_counted(
    name: str, order: str, policy: SamplingPolicy
) -> None:
    """Oracle: every u there is, looked up in the running sums of q."""
    found = {one.name: one for one in alternatives(policy) if one.family == COARSE}
    one = found[f"random numbers {name}, tokens in order of {order}"]
    q_V = log_q(logits_of(200).unsqueeze(0), policy)[0].exp()
    ids_V = torch.arange(200) if order == "id" else q_V.argsort(descending=True)
    upto_V = q_V[ids_V].cumsum(0)
    upto_V[upto_V > 1 - 1e-9] = 1.0  # u of 1 is of the last token that can be sampled
    places = torch.searchsorted(upto_V, U[name].clamp(max=1 - 1e-9), right=True)
    counts_V = torch.bincount(places, minlength=200).double() / len(U[name])
    due_V = torch.empty_like(counts_V).scatter(0, ids_V, counts_V)
    assert one.whole is not None
    got_V = one.whole(logits_of(200).unsqueeze(0))[0].exp()
    allowed = 1e-6 if "rounded" in name else 1e-12  # the u of that oracle have 22 bits
    assert torch.allclose(got_V, due_V, rtol=0, atol=allowed)
    assert len(found) == 2 * len(U)
    assert float((got_V - q_V).abs().max()) > allowed


@pytest.mark.parametrize("vocabulary", [4, 64, 256, 300, 1024])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_coarse_random_numbers_share_them_out_among_equal_tokens(
    vocabulary: int, policy: SamplingPolicy
) -> None:
    """The ends of their parts are values of u, and each value belongs to one token all the same."""
    logits_V = torch.full((vocabulary,), 3.3, dtype=torch.float64)
    case = every_token(logits_V, policy, eos=())
    for one in catalogue(policy, EOS):
        if one.family == COARSE:
            assert one.log_r is not None
            log_r_V = one.log_r(case)
            assert float(log_r_V.exp().sum()) == pytest.approx(1.0, abs=1e-9), one.name
            if vocabulary == 256 and not policy.truncates and "of 8 bits" in one.name:
                assert torch.allclose(log_r_V, case.logqs, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------- all together


def test_windows_share_all_bets() -> None:
    assert sum(window.share for window in WINDOWS) == pytest.approx(1.0)


def toy(
    rng: np.random.Generator, r: float, num_draws: int, q: float = 0.3, r_of_bet: float = 0.4
) -> Any:
    """Draws of 6 tokens of two, whose second has the chance r, and q by the policy."""
    one = Alternative(family="a", name=f"{r_of_bet:g}")
    lengths = np.full(num_draws, 6)
    is_second = rng.random(num_draws * 6) < r
    ratio = np.where(is_second, math.log(r_of_bet / q), math.log((1 - r_of_bet) / (1 - q)))
    logqs = np.where(is_second, math.log(q), math.log(1 - q))
    return gains([one], ratio[:, None].astype(np.float32), logqs, is_second.astype(int), lengths)


def test_all_bets_together_exceed_their_threshold_as_seldom_as_they_must() -> None:
    """Looked at after every 5 draws, of 40; the rate is held against an exact binomial bound."""
    from scipy.stats import binom

    rng, alpha, runs = np.random.default_rng(0), 0.05, 400
    won = 0
    for _ in range(runs):
        found = toy(rng, 0.3, 40)
        looks = (evidence(found.some(0, n)).log_e for n in range(5, 41, 5))
        won += any(log_e >= -math.log(alpha) for log_e in looks)
    assert won <= binom.ppf(0.999, runs, alpha)


def test_a_true_alternative_wins() -> None:
    found = evidence(toy(np.random.default_rng(1), 0.4, 600))
    assert found.log_e > 20
    assert found.bets[0].name == "0.4"
    assert found.bets[0].window.name == ""


def test_what_the_sums_hold_is_what_was_gained() -> None:
    """Against plain loops over windows and draws."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 40, size=50)
    lengths[40] = 5_000
    ratios = rng.normal(size=(lengths.sum(), 2)).astype(np.float32)
    ones = [Alternative(family=name, name=name) for name in ("a", "b")]
    found = evidence(
        gains(ones, ratios, np.full(len(ratios), -1.0), np.ones(len(ratios), int), lengths)
    )
    steps = np.concatenate([np.arange(n) for n in lengths])
    owners = np.repeat(np.arange(50), lengths)
    keep: dict[str, Callable[[int, int], bool]] = {
        "": lambda step, draw: True,
        "at the first token": lambda step, draw: step == 0,
        "in the first 4 tokens": lambda step, draw: step < 4,
        "from step 16 on": lambda step, draw: step >= 16,
        "from step 4096 on": lambda step, draw: step >= 4096,
        "in the first 32 draws": lambda step, draw: draw < 32,
        "from draw 32 on": lambda step, draw: draw >= 32,
        "in the first 2048 draws": lambda step, draw: True,
    }
    by_name = {(bet.name, bet.window.name): bet.log_e for bet in found.bets}
    for (column, name), window in itertools.product(enumerate("ab"), keep):
        kept = [keep[window](step, draw) for step, draw in zip(steps, owners, strict=True)]
        assert by_name[name, window] == pytest.approx(float(ratios[kept, column].sum()), abs=1e-4)
    for column, name in enumerate("ab"):
        e_of_draws = [
            math.exp(ratios[owners == draw, column].sum(dtype=float)) for draw in range(50)
        ]
        due = sum(math.log(0.9 + 0.1 * e) for e in e_of_draws)
        assert by_name[name, "in 10% of the draws"] == pytest.approx(due, abs=1e-3)


def test_some_draws_from_an_alternative_are_seen() -> None:
    """A tenth of 600 draws, which by themselves hardly count among all tokens."""
    rng, is_some = np.random.default_rng(3), np.random.default_rng(4).random(600) < 0.1
    some, all_ = toy(rng, 0.99, 600, r_of_bet=0.99), toy(rng, 0.3, 600, r_of_bet=0.99)
    mixed = replace(some, sums=np.where(is_some[:, None, None], some.sums, all_.sums))
    best = evidence(mixed).bets[0]
    assert best.window.name == "in 10% of the draws"
    assert best.log_e > 50
    assert evidence(all_).bets[0].log_e < 7
