"""Checks that go on until they are decided."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.faults import FaultyEngine, biased, hotter, top_p_by
from helpers.gallery import requests_of
from helpers.parity_range import PER_PROMPT, STOPPING, Range
from seqproc.engines import Completion
from seqproc.errors import ConfigError
from seqproc.parity import Check, check_engine
from seqproc.parity.betting.alternatives import Alternative
from seqproc.parity.betting.catalogue import SHARE
from seqproc.parity.betting.certificate import certify
from seqproc.parity.betting.distances import Distances, distances
from seqproc.parity.betting.evidence import gains
from seqproc.parity.sequential import Look, Until, batches, in_rounds
from seqproc.policy import SamplingPolicy

COLD = SamplingPolicy(temperature=0.7, top_p=0.95)


def check(
    small: Range, engine: Any, most: int, until: Until, policy: SamplingPolicy = COLD
) -> tuple[Check, list[Look]]:
    looks: list[Look] = []
    requests, owners = requests_of(most, PER_PROMPT, seed=3)
    found = check_engine(
        engine,
        small.scorer,
        small.tokenizer,
        requests,
        owners,
        policy,
        STOPPING,
        until=until,
        on_look=looks.append,
    )
    return found, looks


def test_a_wrong_engine_is_rejected_early(small: Range) -> None:
    engine = FaultyEngine(small.model, small.tokenizer, distribution=hotter(1.5), silent=True)
    found, looks = check(small, engine, 4_096, Until())
    assert not found.verdict.holds
    assert found.num_draws == looks[-1].num_draws == 64
    assert looks[-1].is_decided
    assert any("temperature" in cause.description for cause in found.causes)


def test_a_right_engine_is_certified_when_all_others_are_ruled_out_or_near(small: Range) -> None:
    engine = FaultyEngine(small.model, small.tokenizer, silent=True)
    found, looks = check(small, engine, 4_096, Until(within=0.1, level=0.05))
    assert found.verdict.holds
    assert found.certificate is not None
    assert found.certificate.is_given
    assert found.num_draws == looks[-1].num_draws < 4_096
    assert [look.num_draws for look in looks] == sorted(look.num_draws for look in looks)
    assert not any(look.is_decided for look in looks[:-1])


def test_what_was_not_decided_says_so(small: Range) -> None:
    engine = FaultyEngine(small.model, small.tokenizer, silent=True)
    found, looks = check(small, engine, 64, Until(within=1e-6))
    assert found.verdict.holds
    assert found.certificate is not None
    assert not found.certificate.is_given
    assert found.certificate.left[0].distance > 1e-6
    assert looks[-1].draws_left == 0
    assert found.num_draws == 64


def test_a_level_that_1_does_not_tell_from_nought_is_a_level(small: Range) -> None:
    """1 − 1e-17 is 1 in a float; of the least float 1/β is infinite."""
    engine = FaultyEngine(small.model, small.tokenizer, silent=True)
    looks = [check(small, engine, 64, Until(level=level))[1][-1] for level in (1e-17, 5e-324)]
    assert [look.certificate.level for look in looks] == [1e-17, 5e-324]
    assert all(math.isfinite(look.certificate.tokens_left) for look in looks)
    assert not any(look.certificate.is_given for look in looks)


def test_draws_in_batches_are_tested_as_one(small: Range) -> None:
    """All tests see the same tokens, whether these were scored at once or batch by batch."""
    engine = FaultyEngine(small.model, small.tokenizer)
    found, _ = check(small, engine, 160, Until(within=1e-6))
    requests, owners = requests_of(160, PER_PROMPT, seed=3)
    whole = check_engine(engine, small.scorer, small.tokenizer, requests, owners, COLD, STOPPING)
    told = {one.name: one for one in found.findings}
    for one in whole.findings:
        if one.name in ("ranks", "surprisal", "twins", "support", "last kept"):
            assert told[one.name].statistic == pytest.approx(one.statistic, rel=1e-6), one.name
    assert found.num_tokens == whole.num_tokens


def test_an_engine_that_ceases_to_answer_is_rejected(small: Range) -> None:
    """Its later draws hold no token, so that there is nothing to score; their endings tell."""

    class Ceasing(FaultyEngine):
        def _completion(self, draw: Any, stopping: Any) -> Completion:
            found = super()._completion(draw, stopping)
            if draw.request.index < 64:
                return found
            return replace(found, token_ids=(), text="", finish_reason="length")

    engine = Ceasing(small.model, small.tokenizer, silent=True)
    found, looks = check(small, engine, 128, Until(within=1e-6))
    assert [look.verdict.holds for look in looks] == [True, False]
    assert "endings" in found.verdict.failed
    assert looks[0].num_tokens == looks[1].num_tokens


def test_batches_grow_and_hold_whole_prompts() -> None:
    owners = [i // 8 for i in range(1_000)]
    found = list(batches(owners, 60))
    assert found[0] == slice(0, 64)
    assert [one.start for one in found[1:]] == [one.stop for one in found[:-1]]
    assert found[-1].stop == 1_000
    assert all(one.stop % 8 == 0 for one in found)
    assert all(b.stop >= 1.5 * b.start or b.stop == 1_000 for b in found[1:])


def test_rounds_come_to_every_prompt_before_any_comes_again() -> None:
    order = in_rounds(5, 10)
    assert sorted(order) == list(range(50))
    prompts = [i // 10 for i in order]
    assert prompts[:20] == [p for p in range(5) for _ in range(4)]
    assert set(prompts[:20]) == set(range(5))


@pytest.mark.parametrize(
    "options",
    [
        {"within": 0.0},
        {"within": math.inf},
        {"within": "much"},
        {"level": 1.0},
        {"level": True},
        {"first_look": 1},
        {"first_look": 2.5},
    ],
    ids=str,
)
def test_what_is_no_rule_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Until(**options)


def test_a_greedy_policy_has_nothing_to_be_decided(small: Range) -> None:
    requests, owners = requests_of(16, PER_PROMPT, seed=0)
    with pytest.raises(ConfigError, match="until needs a policy that samples"):
        check_engine(
            FaultyEngine(small.model, small.tokenizer),
            small.scorer,
            small.tokenizer,
            requests,
            owners,
            SamplingPolicy(do_sample=False),
            STOPPING,
            until=Until(),
        )


def test_a_distance_is_that_of_two_known_distributions() -> None:
    """½(KL(r‖q) + KL(q‖r)) of T × 1.1 on one row, against the mean over its tokens."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=50)
    log_q, log_r = (v - np.logaddexp.reduce(v) for v in (logits, logits / 1.1))
    q, r = np.exp(log_q), np.exp(log_r)
    due = float(((r - q) * (log_r - log_q)).sum() / 2)
    num_draws, length = 20_000, 5
    tokens = rng.choice(50, size=num_draws * length, p=q)
    ratios = (log_r - log_q)[tokens, None].astype(np.float32)
    found = gains(
        [Alternative(family="temperature", name="T × 1.1")],
        ratios,
        log_q[tokens],
        np.ones(len(tokens), dtype=np.int64),
        np.full(num_draws, length),
    )
    found = replace(found, distances=distances(ratios, found.lengths, truncates=False))
    assert found.distances is not None
    per_token = float(found.distances.sums.sum(dtype=float)) / len(tokens)
    assert per_token == pytest.approx(due, rel=0.03)
    near = certify(found, within=due * 1.1, level=0.01)
    assert near.num_ruled_out >= 1  # 100,000 tokens rule it out however near it is
    assert near.is_given


@pytest.mark.parametrize("change", ["top_p 0.9", "T × 1.2", "half of it outside"])
def test_a_distance_counts_what_one_of_the_two_cannot_emit(change: str) -> None:
    """Against the sum over the vocabulary, whatever it is that the engine samples."""
    rng = np.random.default_rng(2)
    logits = np.sort(rng.normal(size=30))[::-1]
    q = np.exp(logits - np.logaddexp.reduce(logits))
    r = q.copy()
    if change == "top_p 0.9":
        r[np.cumsum(q) > 0.9] = 0.0
    elif change == "T × 1.2":
        r = q ** (1 / 1.2)
    else:  # q has a nucleus, and r another one
        q[20:], r[:5] = 0.0, 0.0
    q, r = q / q.sum(), r / r.sum()
    mixed = SHARE * q + (1 - SHARE) * r
    both = q > 0
    due = float(((mixed - q)[both] * np.log(mixed[both] / q[both])).sum() / 2)
    due -= float(mixed[~both].sum()) * math.log(SHARE) / 2
    num_draws, length = 20_000, 5
    controls = rng.choice(30, size=num_draws * length, p=q)
    ratios = np.log(mixed[controls] / q[controls])[:, None].astype(np.float32)
    found = distances(ratios, np.full(num_draws, length), truncates=not both.all())
    assert found.sums.sum(dtype=float) / len(controls) == pytest.approx(due, rel=0.03)


def test_what_no_control_has_shown_is_not_near() -> None:
    """r leaves out 1 in 2,000 tokens: 1,000 controls are mostly without one, and tell nothing."""
    num_tokens, excluded = 1_000, 1 / 2_000
    distance = -excluded * math.log(SHARE) / 2
    found = gains(
        [Alternative(family="EOS", name="r")],
        np.full((num_tokens, 1), -math.log1p(-excluded), dtype=np.float32),
        np.full(num_tokens, -1.0),
        np.ones(num_tokens, dtype=np.int64),
        np.full(num_tokens // 10, 10),
    )
    ratios = np.full((num_tokens, 1), -math.log1p(-excluded), dtype=np.float32)
    found = replace(found, distances=distances(ratios, found.lengths, truncates=False))
    assert "r" in {one.name for one in certify(found, within=distance / 2, level=0.01).left}


def test_a_distance_that_is_not_known_is_not_nought() -> None:
    """Of one alternative half of the controls tell, of the other one none."""
    num_draws, length, rng = 4_000, 2, np.random.default_rng(3)
    is_second = rng.random((num_draws, length)) < 0.3  # q and r of two tokens
    log_ratio = np.where(is_second, math.log(0.4 / 0.3), math.log(0.6 / 0.7))
    log_ratio[:, 1] = math.nan
    ratios = np.stack([log_ratio.ravel(), np.full(log_ratio.size, math.nan)], 1).astype(np.float32)
    lengths = np.full(num_draws, length)
    apart = distances(ratios, lengths, truncates=False)
    assert apart.counts.sum(0).tolist() == [num_draws, 0]
    due = 0.1 * (math.log(0.4 / 0.3) - math.log(0.6 / 0.7)) / 2
    assert float(apart.sums[:, 0].sum(dtype=float)) / num_draws == pytest.approx(due, rel=0.05)
    found = gains(
        [Alternative(family=name, name=name) for name in ("half", "none")],
        np.zeros_like(ratios),
        np.full(len(ratios), -1.0),
        np.ones(len(ratios), dtype=np.int64),
        lengths,
    )
    certificate = certify(replace(found, distances=apart), within=due * 1.5, level=0.01)
    left = {one.name: one.distance for one in certificate.left}
    assert left["none"] == math.inf
    assert "half" not in left
    # Its error is that of as many controls as tell: the normal interval of a mean over 4,000.
    each = np.expm1(log_ratio[:, 0]) * log_ratio[:, 0] / 2
    error = float(each.std()) / math.sqrt(num_draws)
    near = certify(replace(found, distances=apart), within=float(each.mean()), level=0.01)
    (half,) = (one for one in near.left if one.name == "half")
    unseen = math.log(0.01) * math.log(SHARE) / 2 / num_draws
    assert half.distance == pytest.approx(float(each.mean()) + 2.3263 * error + unseen, rel=1e-3)


@pytest.mark.parametrize(
    ("distribution", "policy", "within"),
    [
        (top_p_by(-0.005), SamplingPolicy(), 0.01),
        (biased([0], -math.inf), SamplingPolicy(), 0.005),
        (top_p_by(0.005), COLD, 0.02),
    ],
    ids=["top_p lower", "EOS never", "top_p higher"],
)
def test_an_engine_that_leaves_tokens_out_or_adds_some_is_not_certified(
    small: Range, distribution: Any, policy: SamplingPolicy, within: float
) -> None:
    """Its own tokens are in both supports, and tell nothing of what lies in one alone."""
    engine = FaultyEngine(small.model, small.tokenizer, silent=True, distribution=distribution)
    found, _ = check(small, engine, 512, Until(within=within), policy)
    assert found.certificate is not None
    assert not found.certificate.is_given
    assert not found.verdict.holds


def test_a_share_of_greedy_draws_is_never_near(small: Range) -> None:
    """64 draws can be without a greedy one though one in fifty is: not seen is not ruled out."""
    engine = FaultyEngine(small.model, small.tokenizer, silent=True)
    found, _ = check(small, engine, 64, Until(within=100.0))
    assert found.certificate is not None
    assert {one.name for one in found.certificate.left} == {
        "2% of draws decoded greedily",
        "5% of draws decoded greedily",
    }


def test_an_alternative_is_wrongly_ruled_out_as_seldom_as_is_said() -> None:
    """Tokens from r, looked at 20 times: at β = 0.1 it is ruled out in a tenth of runs at most."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=30)
    log_q, log_r = (v - np.logaddexp.reduce(v) for v in (logits, logits / 1.3))
    num_runs, length, looks = 400, 20, 20
    wrong = 0
    for _ in range(num_runs):
        tokens = rng.choice(30, size=looks * length, p=np.exp(log_r))
        found = gains(
            [Alternative(family="temperature", name="r")],
            (log_r - log_q)[tokens, None].astype(np.float32),
            log_q[tokens],
            np.ones(len(tokens), dtype=np.int64),
            np.full(looks, length),
        )
        ones = np.ones((looks, 1))
        apart = Distances(sums=ones.astype(np.float32), counts=ones.astype(np.int32))
        found = replace(found, distances=apart)
        left = [
            {one.name for one in certify(found.some(0, n), within=1e-12, level=0.1).left}
            for n in range(1, looks + 1)
        ]
        wrong += not all("r" in names for names in left)
    assert 0.01 < wrong / num_runs <= 0.1 + 3 * math.sqrt(0.09 / num_runs)
