from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.microworld.pretraining import build_tokenizer
from evaluation.tasks import Question
from teacher.rewards import (
    RewardConfig,
    RewardFailure,
    attributed_gains,
    attributed_lines,
    has_spread,
    leave_one_out_advantages,
    line_advantages,
    line_gains,
    reward_of,
)

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
        assert reward_of(sound, config) == found  # failed updates do not contribute


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


# Credit by line

QUESTIONS = (
    Question(question="Where does Bram Dahl live?", answer="Velmora"),
    Question(question="Where does Ida Kern live?", answer="Pelling"),
    Question(question="What pet does Bram Dahl own?", answer="hare"),
    Question(question="What pet does Ida Kern own?", answer="crow"),
)
LINES = ("Bram Dahl lives in Velmora.", "The pet of Ida Kern is a crow.", "It is good to know such things.")


def test_a_line_answers_the_question_with_the_rarest_common_words() -> None:
    assert attributed_lines(LINES, QUESTIONS) == [0, None, None, 1]


def test_the_first_of_two_equivalent_lines_has_the_credit() -> None:
    again = (LINES[1], LINES[0], "Bram Dahl lives in Velmora, they say.")
    assert attributed_lines(again, QUESTIONS) == [1, None, None, 0]
    assert attributed_gains(again, QUESTIONS, [0.8, 0.0, 0.0, 0.4]) == pytest.approx([0.1, 0.2, 0.0])


def test_a_true_line_takes_the_credit_from_an_earlier_wrong_one() -> None:
    assert attributed_lines(("Bram Dahl lives in Lindale.", LINES[0]), QUESTIONS)[0] == 1


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.permutations(range(3)))
def test_gains_sum_to_those_of_the_attributed_questions_in_any_order(gains: list[float], order: list[int]) -> None:
    plain = attributed_gains(LINES, QUESTIONS, gains)
    assert math.fsum(plain) == pytest.approx((gains[0] + gains[3]) / 4)
    moved = attributed_gains([LINES[i] for i in order], QUESTIONS, gains)
    assert moved == pytest.approx([plain[i] for i in order], abs=1e-12)


ragged = st.lists(st.lists(st.floats(-1, 1), max_size=5), min_size=1, max_size=6)


@given(ragged)
def test_line_advantages_at_each_position_sum_to_zero(gains: list[list[float]]) -> None:
    found = line_advantages(gains)
    assert [len(row) for row in found] == [len(row) for row in gains]
    for place in range(5):
        column = [row[place] for row in found if len(row) > place]
        assert math.fsum(column) == pytest.approx(0.0, abs=1e-9)
        if len(column) == 1:
            assert column == [0.0]


def test_a_late_line_is_compared_with_late_lines() -> None:
    """The second lines gain less than the first ones, and the better of the two still has a positive advantage."""
    first, second = line_advantages([[0.5, 0.2], [0.5, 0.1]])
    assert first == pytest.approx([0.0, 0.1])
    assert second == pytest.approx([0.0, -0.1])


tokenizer = functools.cache(build_tokenizer)


def decode(tokens: Sequence[int]) -> str:
    return str(tokenizer().decode(tokens, skip_special_tokens=True))


@pytest.mark.parametrize("between", ["\n", "\n\n"])
def test_tokens_belong_to_their_lines_and_the_end_token_to_none(between: str) -> None:
    """Blank lines are not counted."""
    ids = tokenizer()(f"- {LINES[0]}{between}- {LINES[2]}", add_special_tokens=False)["input_ids"]
    ids += [tokenizer().eos_token_id]
    found = line_gains(ids, decode, QUESTIONS, [0.8, 0.0, 0.0, 0.0])
    assert found.gains == pytest.approx((0.2, 0.0))
    assert (found.token_lines[0], found.token_lines[-1]) == (0, None)
    lines = [line for line in found.token_lines if line is not None]
    assert lines == sorted(lines)
    assert set(lines) == {0, 1}


@pytest.mark.parametrize(
    "text",
    [
        " Where does Bram Dahl live?\nAnswer 1: Lindale\nQuestion 2: Who is it?\nAnswer 2: a baker",
        "\nWhere does Bram Dahl live?\nAnswer 1:\nLindale\nQuestion 2:\nWho is it?\nAnswer 2:\na baker",
    ],
)
def test_an_answer_shares_the_credit_of_its_question(text: str) -> None:
    asked = [Question(question="Where does Bram Dahl live?", answer="Lindale"), Question(question="Which?", answer="x")]
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"]
    found = line_gains(ids, decode, asked, [0.8, 0.0])
    assert found.gains == pytest.approx((0.4, 0.0))
    read = [decode(ids[: i + 1]) for i in range(len(ids))]
    answer = next(i for i, so_far in enumerate(read) if "Lindale" in so_far)
    assert found.token_lines[answer] == 0
    assert set(found.token_lines) - {None} == {0, 1}
