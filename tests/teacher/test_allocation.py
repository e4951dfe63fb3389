"""Where updates are spent, and what choosing the best of noisy rewards is worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.allocation import allocation_cost, headroom, leaders, shrunken_truth, simulate_choice

FLAT = ((5, 3),)
HALVING = ((5, 1), (3, 2), (2, 2))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.floats(0, 1)), max_size=12), st.integers(1, 4))
def test_leaders_of_a_smaller_stage_are_among_those_of_a_larger_one(
    candidates: list[tuple[str, float | None]], keep: int
) -> None:
    groups, rewards = [c[0] for c in candidates], [c[1] for c in candidates]
    few, more = leaders(groups, rewards, keep), leaders(groups, rewards, keep + 1)
    assert set(few) <= set(more)
    assert all(rewards[i] is not None for i in more)
    assert all(sum(groups[i] == group for i in few) <= keep for group in "ab")


def test_of_equal_rewards_the_earlier_goes_on() -> None:
    assert leaders(["a", "a", "a", "b"], [0.5, 0.7, 0.7, 0.1], 1) == [1, 3]


def test_flat_and_halving_cost_the_same() -> None:
    assert allocation_cost(FLAT) == allocation_cost(HALVING) == 15


def test_best_of_pure_noise_gains_nothing_once_cross_validated() -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.2, size=(400, 5, 3))
    found = headroom(noise.tolist())
    assert found.apparent - found.mean > 0.1
    assert abs(found.cross_validated - found.mean) < 0.02


def test_without_noise_every_allocation_finds_the_best() -> None:
    generator = np.random.default_rng(1)
    replay = shrunken_truth(generator.normal(size=(50, 5, 3)).tolist(), 0.04)
    quiet = replay._replace(residuals=np.zeros(1))
    best = float((replay.true.max(axis=1) - replay.true.mean(axis=1)).mean())
    assert simulate_choice(quiet, FLAT, generator) == pytest.approx(best)
    assert simulate_choice(quiet, HALVING, generator) == pytest.approx(best)
