"""Where updates are spent, and what choosing the best of noisy rewards is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from teacher.allocation import Allocation, allocation_cost, headroom, leaders, shrunken_truth, simulate_choice
from teacher.rewards import Reliability, reliability

FLAT = ((5, 3),)
HALVING = ((5, 1), (3, 2), (2, 2))
BEST_OF_5 = 1.16296
"""Expected maximum of 5 standard normal values (Harter 1961, Biometrika 48: 151-165, table 1)."""

CANDIDATES = st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(-4, 4).map(float)), max_size=14)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def allocations(draw: st.DrawFn) -> tuple[int, Allocation]:
    candidates = draw(st.integers(1, 6))
    later = sorted(draw(st.lists(st.integers(1, candidates), max_size=3)), reverse=True)
    return candidates, tuple((keep, draw(st.integers(1, 3))) for keep in (candidates, *later))


@st.composite
def recorded(draw: st.DrawFn) -> list[list[list[float]]]:
    """Return coarse rewards, so that ties are common; documents may differ in their numbers."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(2, 4)), min_size=1, max_size=4))
    thirds = st.integers(0, 3).map(lambda n: n / 3)
    return [[draw(st.lists(thirds, min_size=s, max_size=s)) for _ in range(edits)] for edits, s in sizes]


def quiet(true_values: NDArray[np.float64], stages: Allocation) -> float:
    return simulate_choice(true_values, np.zeros(1), stages, np.random.default_rng(0))


@given(CANDIDATES, st.integers(1, 5))
def test_leaders_are_nested_and_nobody_better_stays_behind(
    candidates: list[tuple[str, float | None]], keep: int
) -> None:
    groups, rewards = [group for group, _ in candidates], [reward for _, reward in candidates]
    chosen = leaders(groups, rewards, keep)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(leaders(groups, rewards, keep + 1))
    for group in "abc":
        known = [(-r, i) for i, (g, r) in enumerate(candidates) if g == group and r is not None]
        ahead = [(-r, i) for r, i in ((rewards[i], i) for i in chosen if groups[i] == group) if r is not None]
        assert len(ahead) == min(keep, len(known))
        behind = set(known) - set(ahead)
        assert not ahead or not behind or max(ahead) < min(behind)  # the better reward; of equal ones the earlier


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(-50, 50)), unique_by=lambda c: c[1]), st.data())
def test_leaders_with_distinct_rewards_do_not_depend_on_the_order(
    candidates: list[tuple[str, int]], data: st.DataObject
) -> None:
    keep, other = data.draw(st.integers(1, 4)), data.draw(st.permutations(candidates))
    first, second = (
        {order[i] for i in leaders([group for group, _ in order], [float(r) for _, r in order], keep)}
        for order in (candidates, other)
    )
    assert first == second


def test_leaders_ties_and_refusals() -> None:
    assert leaders(["a", "b", "a", "a"], [0.5, 0.1, 0.7, 0.7], 1) == [1, 2]
    assert leaders(["a", "a"], [0.3, 0.1 + 0.2], 1) == [0]
    assert leaders(["a", "a"], [None, None], 1) == leaders([], [], 1) == []
    with pytest.raises(ValueError, match="at least 1"):
        leaders(["a"], [0.5], 0)
    with pytest.raises(ValueError, match="zip"):
        leaders(["a", "b"], [0.5], 1)


@given(allocations(), st.data())
def test_cost_is_between_one_self_edit_and_all_and_does_not_change_when_a_stage_is_split(
    allocation: tuple[int, Allocation], data: st.DataObject
) -> None:
    candidates, stages = allocation
    updates = sum(replicates for _, replicates in stages)
    cost = allocation_cost(candidates, stages)
    assert updates <= cost <= candidates * updates
    assert (cost == candidates * updates) == all(keep == candidates for keep, _ in stages)
    at = data.draw(st.integers(0, len(stages) - 1))
    keep, replicates = stages[at]
    split = (*stages[:at], (keep, 1), *[(keep, replicates - 1)] * (replicates > 1), *stages[at + 1 :])
    assert allocation_cost(candidates, split) == cost


def test_equal_shares_and_halving_cost_the_same() -> None:
    assert allocation_cost(5, FLAT) == allocation_cost(5, HALVING) == 15


@pytest.mark.parametrize("stages", [(), ((4, 3),), ((6, 1),), ((5, 1), (3, 1), (4, 1)), ((5, 0),), ((5, 1), (0, 2))])
def test_stages_that_do_not_fit_are_refused(stages: Allocation) -> None:
    with pytest.raises(ValueError, match="for 5 self-edits"):
        allocation_cost(5, stages)
    with pytest.raises(ValueError, match="for 5 self-edits"):
        quiet(np.zeros((2, 5)), stages)


@given(allocations(), SEEDS)
def test_without_noise_every_allocation_finds_the_best_in_any_order(
    allocation: tuple[int, Allocation], seed: int
) -> None:
    (candidates, stages), generator = allocation, np.random.default_rng(seed)
    true_values = generator.normal(size=(7, candidates))
    best = float((true_values.max(axis=1) - true_values.mean(axis=1)).mean())
    assert quiet(true_values, stages) == pytest.approx(best)
    assert quiet(generator.permuted(true_values, axis=1), stages) == pytest.approx(best)


@given(allocations(), SEEDS)
def test_replayed_stages_are_those_of_leaders(allocation: tuple[int, Allocation], seed: int) -> None:
    """Whole numbers, so that many means are equal."""
    (candidates, stages), generator = allocation, np.random.default_rng(seed)
    true_values, residuals = generator.integers(0, 3, (4, candidates)).astype(float), np.array([-1.0, 0.0, 1.0])
    updates = sum(replicates for _, replicates in stages)
    noise = np.random.default_rng(seed).choice(residuals, size=(updates, 4, candidates))
    gains = []
    for document, truth in enumerate(true_values):
        alive, made = list(range(candidates)), 0
        for keep, (_, replicates) in zip([*[k for k, _ in stages[1:]], 1], stages, strict=True):
            made += replicates
            means = [float(truth[e] + noise[:made, document, e].mean()) for e in alive]
            alive = [alive[i] for i in leaders(["one"] * len(alive), means, keep)]
        gains.append(truth[alive[0]] - truth.mean())
    replayed = simulate_choice(true_values, residuals, stages, np.random.default_rng(seed))
    assert replayed == pytest.approx(np.mean(gains))


@given(st.integers(1, 6), st.integers(1, 4), SEEDS)
def test_equal_seeds_meet_equal_noise_whatever_the_stages(candidates: int, replicates: int, seed: int) -> None:
    true_values = np.random.default_rng(seed).normal(size=(20, candidates))
    residuals = np.random.default_rng(seed).normal(size=50)

    def gain(*stages: tuple[int, int]) -> float:
        return simulate_choice(true_values, residuals, stages, np.random.default_rng(seed))

    once = gain((candidates, replicates + 1))
    assert gain((candidates, 1), (candidates, replicates)) == once
    assert gain((candidates, replicates + 1), (1, 3)) == once  # further updates of the chosen one change no choice


def test_gain_of_equal_shares_follows_the_response_to_selection() -> None:
    """Normal rewards: expected maximum * SD between self-edits * sqrt(reliability of the mean).

    The breeder's equation (Falconer and Mackay 1996, Introduction to Quantitative Genetics, equation 11.3).
    """
    generator = np.random.default_rng(0)
    true_values, residuals = generator.normal(0.5, 0.1, (40_000, 5)), generator.normal(0.0, 0.2, 40_000)
    for replicates in (1, 3, 6):
        share = Reliability(between_variance=0.1**2, within_variance=0.2**2, edits=5).of_mean(replicates)
        gain = simulate_choice(true_values, residuals, ((5, replicates),), generator)
        assert gain == pytest.approx(BEST_OF_5 * 0.1 * math.sqrt(share), abs=0.002)  # 4 standard errors
    halving, flat = (simulate_choice(true_values, residuals, stages, generator) for stages in (HALVING, FLAT))
    assert halving > flat + 0.002


def test_headroom_shares_the_choice_between_equals() -> None:
    """Left out first: 0.0 and 1.0 compete, 1.0 wins and gets 0.0. Left out second: 1.0 and 0.0, 0.0 is what it gets."""
    assert headroom([[[1.0, 0.0], [0.0, 1.0]]]) == (0.5, 0.5, 0.0)
    tied = headroom([[[1.0, 0.5, 0.5], [0.0, 0.5, 0.5]]])  # equal on the last two: (1 + 0) / 2, else 0.5 of the first
    assert tied == pytest.approx((0.5, 2 / 3, 0.5))


@given(recorded(), SEEDS)
def test_the_winners_apparent_reward_is_never_below_the_cross_validated(
    groups: list[list[list[float]]], seed: int
) -> None:
    """The winner's sum bounds the sum without a replicate of whoever wins there, so it bounds what that one gets."""
    found = headroom(groups)
    assert found.apparent >= max(found.mean, found.cross_validated) - 1e-9
    generator = np.random.default_rng(seed)
    other = [generator.permutation(generator.permutation(group, axis=0), axis=1).tolist() for group in groups]
    assert headroom(other) == pytest.approx(found)


def test_the_best_of_pure_noise_is_worth_nothing() -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.2, size=(4000, 5, 3))
    found = headroom(noise.tolist())
    assert found.apparent - found.mean == pytest.approx(BEST_OF_5 * 0.2 / math.sqrt(3), abs=0.005)
    assert found.cross_validated == pytest.approx(found.mean, abs=4 * 0.2 / math.sqrt(3 * 4000))


@pytest.mark.parametrize("groups", [[], [[]], [[[0.5], [0.5]]], [[[0.5, 0.4], [0.5, 0.4, 0.3]]]])
def test_headroom_without_equal_replicates_is_refused(groups: list[list[list[float]]]) -> None:
    with pytest.raises(ValueError, match="head room"):
        headroom(groups)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(2, 4), st.floats(0.0, 0.5), SEEDS)
def test_shrunken_truth_has_the_estimated_variance_components(
    documents: int, edits: int, replicates: int, spread: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rewards = generator.normal(size=(documents, edits, replicates)) + spread * generator.normal(size=(1, edits, 1))
    found = reliability(rewards.tolist())
    assert found is not None
    true_values, residuals = shrunken_truth(rewards.tolist(), found)
    assert true_values.shape == (documents, edits)
    assert residuals.shape == (rewards.size,)
    assert true_values.mean(axis=1) == pytest.approx(rewards.mean(axis=(1, 2)))
    between = true_values.var(axis=1, ddof=1).mean()
    assert between == pytest.approx(max(found.between_variance, 0.0), abs=1e-9)
    assert residuals.mean() == pytest.approx(0.0, abs=1e-9)
    assert residuals.var() == pytest.approx(found.within_variance)
    with pytest.raises(ValueError, match="shape"):
        shrunken_truth(rewards[:, :, :1].tolist(), found)
