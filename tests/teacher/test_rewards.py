from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.rewards import RewardConfig, RewardFailure, has_spread, leave_one_out_advantages, reward_of

METRICS = {"accuracy": "accuracy", "probability": "mean_probability", "token_probability": "mean_token_probability"}
ANYTHING = st.none() | st.floats()
REWARDS = st.lists(st.none() | st.floats(-1.0, 1.0), min_size=0, max_size=8)


@dataclass(frozen=True)
class Scored:
    """The scores of one update."""

    accuracy: float | None = None
    mean_probability: float | None = None
    mean_token_probability: float | None = None
    forgetting: float | None = None
    failure: RewardFailure | None = None


SCORED = st.lists(
    st.builds(Scored, ANYTHING, ANYTHING, ANYTHING, ANYTHING, st.none() | st.sampled_from(RewardFailure)), max_size=6
)
CONFIGS = st.builds(RewardConfig, metric=st.sampled_from(sorted(METRICS)), retention_weight=st.sampled_from([0.0, 0.3]))


def is_sound(scored: Scored, config: RewardConfig) -> bool:
    score = getattr(scored, METRICS[config.metric])
    kept = config.retention_weight == 0.0 or (scored.forgetting is not None and -1.0 <= scored.forgetting <= 1.0)
    return scored.failure is None and score is not None and 0.0 <= score <= 1.0 and kept


@given(SCORED, CONFIGS, st.randoms())
def test_reward_is_a_number_only_from_sound_updates(
    updates: list[Scored], config: RewardConfig, random: object
) -> None:
    found = reward_of(updates, config)
    sound = [scored for scored in updates if is_sound(scored, config)]
    assert isinstance(found, RewardFailure) == (not sound)
    random.shuffle(updates)  # type: ignore[attr-defined]
    assert reward_of(updates, config) == found
    if not isinstance(found, RewardFailure):
        assert math.isfinite(found)
        assert reward_of(sound, config) == found  # what failed has no part in the value


@pytest.mark.parametrize("failure", list(RewardFailure))
def test_reward_of_a_failed_update_is_never_a_number(failure: RewardFailure) -> None:
    assert reward_of([Scored(1.0, 1.0, failure=failure)], RewardConfig()) is failure


def test_reward_averages_the_metric_less_forgetting() -> None:
    made = [
        Scored(accuracy=0.5, mean_probability=0.2, forgetting=0.1),
        Scored(accuracy=1.0, mean_probability=0.4, forgetting=-0.1),
        Scored(failure=RewardFailure.UPDATE_FAILED),
    ]
    assert reward_of(made, RewardConfig(metric="accuracy")) == 0.75
    assert reward_of(made, RewardConfig()) == pytest.approx(0.3)
    kept = reward_of(made, RewardConfig(metric="accuracy", retention_weight=2.0))
    assert kept == pytest.approx((0.5 - 0.2 + 1.0 + 0.2) / 2)


def test_reason_is_the_most_common_failure_and_then_the_earliest() -> None:
    def reason(*failures: RewardFailure) -> float | RewardFailure:
        return reward_of([Scored(mean_probability=0.5, failure=failure) for failure in failures], RewardConfig())

    update, canary = RewardFailure.UPDATE_FAILED, RewardFailure.CANARY_FAILED
    assert reason(update, canary, canary) == canary
    assert reason(canary, update) == update
    assert reason() == RewardFailure.MISSING_REPLICATES
    assert reward_of([Scored(mean_probability=math.nan)], RewardConfig()) == RewardFailure.NON_FINITE
    missing = Scored(accuracy=0.5)
    assert reward_of([missing], RewardConfig()) == RewardFailure.SCORING_FAILED
    unmeasured = reward_of([missing], RewardConfig(metric="accuracy", retention_weight=1.0))
    assert unmeasured == RewardFailure.SCORING_FAILED


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
