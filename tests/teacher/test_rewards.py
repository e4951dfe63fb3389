from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.config import RewardConfig
from teacher.rewards import (
    Reliability,
    Replicate,
    RewardFailure,
    RewardOutcome,
    has_spread,
    leave_one_out_advantages,
    no_reward,
    reliability,
    reward_of,
    shrink,
)

METRICS = sorted({*get_args(RewardConfig.model_fields["metric"].annotation)} - {"proxy"})
UNIT = st.floats(0.0, 1.0)
ANYTHING = st.none() | st.floats()
REWARDS = st.lists(st.none() | st.floats(-1.0, 1.0), min_size=0, max_size=8)


@st.composite
def replicates(draw: st.DrawFn) -> list[Replicate]:
    return draw(
        st.lists(
            st.builds(
                Replicate,
                seed=st.integers(0, 99),
                accuracy=ANYTHING,
                probability=ANYTHING,
                token_probability=ANYTHING,
                forgetting=ANYTHING,
                failure=st.none() | st.sampled_from(RewardFailure),
            ),
            max_size=6,
        )
    )


CONFIGS = st.builds(
    RewardConfig,
    metric=st.sampled_from(METRICS),
    minimum_replicates=st.integers(1, 4),
    retention_weight=st.sampled_from([0.0, 0.3]),
)


def is_sound(replicate: Replicate, config: RewardConfig) -> bool:
    score = getattr(replicate, config.metric)
    kept = config.retention_weight == 0.0 or (replicate.forgetting is not None and -1.0 <= replicate.forgetting <= 1.0)
    return replicate.failure is None and score is not None and 0.0 <= score <= 1.0 and kept


@given(replicates(), CONFIGS, st.randoms())
def test_reward_of_gives_a_number_only_from_enough_sound_replicates(
    given_replicates: list[Replicate], config: RewardConfig, random: object
) -> None:
    outcome = reward_of(given_replicates, config)
    sound = [replicate for replicate in given_replicates if is_sound(replicate, config)]
    assert outcome.replicates == len(sound)
    assert (outcome.value is not None) == (len(sound) >= config.minimum_replicates)
    assert (outcome.value is None) == (outcome.reason is not None)
    assert outcome.value is None or math.isfinite(outcome.value)
    random.shuffle(given_replicates)  # type: ignore[attr-defined]
    assert reward_of(given_replicates, config) == outcome
    if outcome.value is not None:  # what failed has no part in the value
        assert reward_of(sound, config).value == outcome.value


@pytest.mark.parametrize("failure", list(RewardFailure))
def test_reward_of_a_failed_replicate_is_never_a_number(failure: RewardFailure) -> None:
    failed = Replicate(seed=1, accuracy=1.0, probability=1.0, failure=failure)
    outcome = reward_of([failed], RewardConfig())
    assert outcome == RewardOutcome(value=None, reason=failure, replicates=0, standard_error=None)
    assert no_reward(failure) == outcome


def test_reward_of_averages_the_metric_less_forgetting() -> None:
    made = [
        Replicate(seed=1, accuracy=0.5, probability=0.2, forgetting=0.1),
        Replicate(seed=2, accuracy=1.0, probability=0.4, forgetting=-0.1),
        Replicate(seed=3, failure=RewardFailure.UPDATE_FAILED),
    ]
    accuracy = reward_of(made, RewardConfig(metric="accuracy", minimum_replicates=2))
    assert accuracy.value == 0.75
    assert accuracy.standard_error == pytest.approx(np.std([0.5, 1.0], ddof=1) / math.sqrt(2))
    assert reward_of(made, RewardConfig()).value == pytest.approx(0.3)
    kept = reward_of(made, RewardConfig(metric="accuracy", retention_weight=2.0))
    assert kept.value == pytest.approx((0.5 - 0.2 + 1.0 + 0.2) / 2)
    assert reward_of(made[:1], RewardConfig()).standard_error is None


def test_reward_of_names_the_commonest_failure_and_then_the_earliest() -> None:
    def reason(*failures: RewardFailure | None) -> RewardFailure | None:
        made = [Replicate(seed=i, probability=0.5, failure=failure) for i, failure in enumerate(failures)]
        return reward_of(made, RewardConfig(minimum_replicates=4)).reason

    update, canary = RewardFailure.UPDATE_FAILED, RewardFailure.CANARY_FAILED
    assert reason(update, canary, canary) == canary
    assert reason(canary, update) == update
    assert reason(None, update) == update
    assert reason(None, None) == reason() == RewardFailure.MISSING_REPLICATES
    nan, missing = Replicate(seed=1, probability=math.nan), Replicate(seed=1, accuracy=0.5)
    assert reward_of([nan], RewardConfig()).reason == RewardFailure.NON_FINITE
    assert reward_of([missing], RewardConfig()).reason == RewardFailure.SCORING_FAILED
    assert reward_of([missing], RewardConfig(metric="accuracy", retention_weight=1.0)).reason is not None


def test_reward_outcome_refuses_both_and_neither() -> None:
    for value, reason in ((None, None), (0.0, RewardFailure.LEAKED)):
        with pytest.raises(ValueError, match="needs a value or a reason"):
            RewardOutcome(value=value, reason=reason, replicates=0, standard_error=None)


@given(REWARDS, st.floats(-1.0, 1.0), st.permutations(range(8)))
def test_leave_one_out_advantages_properties(rewards: list[float | None], shift: float, order: list[int]) -> None:
    advantages = leave_one_out_advantages(rewards)
    known = [a for a in advantages if a is not None]
    assert math.fsum(known) == pytest.approx(0.0, abs=1e-12)
    order = [i for i in order if i < len(rewards)]
    assert leave_one_out_advantages([rewards[i] for i in order]) == [advantages[i] for i in order]
    shifted = leave_one_out_advantages([None if r is None else r + shift for r in rewards])
    for before, after in zip(advantages, shifted, strict=True):
        assert (before is None) == (after is None)
        assert before is None or after == pytest.approx(before, abs=1e-12)
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i and r is not None]
        if reward is not None and others:
            assert advantages[i] == pytest.approx(reward - sum(others) / len(others), abs=1e-12)
        else:
            assert advantages[i] is None


def test_has_spread_needs_two_different_rewards() -> None:
    assert has_spread([0.1, None, 0.2])
    assert not has_spread([0.1, None, 0.1 + 1e-12])
    assert not has_spread([0.1, None])
    assert not has_spread([])


def test_an_update_gives_no_proxy_reward() -> None:
    with pytest.raises(ValueError, match="without an update"):
        reward_of([Replicate(seed=1, accuracy=0.5, probability=0.5)], RewardConfig(metric="proxy"))


def test_shrink_takes_a_reliability_for_each_reward() -> None:
    assert shrink([0.2, 0.6, None], [1.0, 0.5, 0.0]) == [pytest.approx(0.2), pytest.approx(0.5), None]
    with pytest.raises(ValueError, match="zip"):
        shrink([0.2, 0.6], [1.0])


@given(REWARDS, UNIT)
def test_shrink_keeps_the_mean_and_the_order(rewards: list[float | None], share: float) -> None:
    shrunk = shrink(rewards, share)
    known = [(r, s) for r, s in zip(rewards, shrunk, strict=True) if r is not None and s is not None]
    assert [s is None for s in shrunk] == [r is None for r in rewards]
    if known:
        before, after = np.array(known).T
        assert after.mean() == pytest.approx(before.mean(), abs=1e-12)
        assert np.ptp(after) == pytest.approx(share * np.ptp(before), abs=1e-12)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        shrink(rewards, 1.5)


@pytest.mark.parametrize("ragged", [False, True])
def test_reliability_recovers_the_components_of_simulated_rewards(ragged: bool) -> None:
    """SD 0.10 between self-edits and 0.20 between seeds: intra-class correlation 0.2, of a 3-seed mean 0.43."""
    random = np.random.default_rng(0)
    groups = []
    for _ in range(1500):
        level = random.normal(0, 1)
        truths = level + random.normal(0, 0.1, 5)
        counts = random.integers(1, 5, 5) if ragged else np.full(5, 3)
        groups.append([(t + random.normal(0, 0.2, n)).tolist() for t, n in zip(truths, counts, strict=True)])
    found = reliability(groups)
    assert found is not None
    assert found.between_variance == pytest.approx(0.01, rel=0.1)
    assert found.within_variance == pytest.approx(0.04, rel=0.05)
    assert found.of_mean(1) == pytest.approx(0.2, abs=0.02)
    assert found.of_mean(3) == pytest.approx(0.03 / 0.07, abs=0.03)


def test_reliability_equals_shrout_and_fleiss_on_a_balanced_table() -> None:
    """Shrout and Fleiss 1979, table 2 (6 targets, 4 judges): ICC(1,1) = .17, ICC(1,4) = .44."""
    table = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    found = reliability([[[float(v) for v in row] for row in table]])
    assert found is not None
    assert found.of_mean(1) == pytest.approx(0.17, abs=0.005)
    assert found.of_mean(4) == pytest.approx(0.44, abs=0.005)
    assert found.edits == 6


def test_reliability_without_replicates_or_rivals_is_none_and_noise_alone_is_zero() -> None:
    assert reliability([]) is None
    assert reliability([[[0.1], [0.2]]]) is None
    assert reliability([[[0.1, 0.2]], [[], [0.3, 0.4]]]) is None
    noise = reliability([[[0.0, 1.0], [1.0, 0.0]]])
    assert noise is not None
    assert noise.between_variance < 0.0
    assert noise.of_mean(3) == 0.0
    assert Reliability(between_variance=0.0, within_variance=0.0, edits=2).of_mean(1) == 0.0


@pytest.mark.parametrize(
    ("file", "share", "between_sd", "within_sd"),
    [
        ("train_rank_iter0", 0.32, 0.075, 0.192),
        ("train_rank_iter0_prompt-long", 0.43, 0.100, 0.199),
        ("train_rank_iter0_prompt-rewrite", 0.45, 0.114, 0.218),
        ("train_rank_iter0_prompt-self-qa", 0.45, 0.130, 0.247),
    ],
)
def test_reliability_of_recorded_rewards(
    shared_data: Callable[..., Path], file: str, share: float, between_sd: float, within_sd: float
) -> None:
    """SEAL's recorded runs, 50 documents x 5 self-edits x 3 runs; figures recomputed from the verdicts."""
    recorded = json.loads(gzip.decompress(shared_data("seal", "graded", f"{file}.json.gz").read_bytes()))
    groups = []
    for article in recorded["articles"]:
        group = []
        for completion in article["completions"]:
            verdicts: dict[int, list[bool]] = {}
            for row in completion["questions"]:
                verdicts.setdefault(row["rep"], []).append(row["adapter_correct"])
            group.append([sum(run) / len(run) for run in verdicts.values()])
        groups.append(group)
    found = reliability(groups)
    assert found is not None
    assert found.edits == 250
    assert found.of_mean(3) == pytest.approx(share, abs=0.006)
    assert math.sqrt(found.between_variance) == pytest.approx(between_sd, abs=0.001)
    assert math.sqrt(found.within_variance) == pytest.approx(within_sd, abs=0.001)
