from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.common.errors import InputError
from evaluation.statistics import (
    Interval,
    RandomEffects,
    bootstrap_mean,
    hierarchical_bootstrap_mean,
    kept_share,
    random_effects,
)
from tests.evaluation.factories import ends

FEW = 300
"""Resamples in property tests."""

samples = st.lists(st.integers(0, 12).map(lambda right: right / 12), min_size=1, max_size=25)

T_2, T_8 = 4.302653, 2.306004
"""Two-sided 95 % points of the t distribution with 2 and 8 degrees of freedom, from any table."""

# Kacker 2004, Metrologia 41, table 1: nine measurements with their variances.
MEASURED = [61.00, 61.40, 62.21, 62.30, 62.34, 62.60, 62.70, 62.84, 65.90]
VARIANCES = [0.2025, 1.2100, 0.0900, 0.2025, 0.3844, 0.5625, 0.0676, 0.0225, 1.8225]

Gains = tuple[list[float], list[float]]


def figures(found: RandomEffects | None) -> tuple[float, ...]:
    assert found is not None
    return *ends(found), found.between_sd


def gains(
    generator: np.random.Generator, count: int, here: float, share: float, seed_sd: tuple[float, float] = (0.0, 0.0)
) -> Gains:
    """Return gains there and here of documents with an SD of .3, correlated by .5, for one seed of some spread."""
    noise = generator.normal(0, 0.3, (count, 2))
    moved = generator.normal(0, 1, 2) * seed_sd
    values_here = here + moved[1] + noise[:, 0]
    values_there = share * here + moved[0] + 0.5 * noise[:, 0] + math.sqrt(0.75) * noise[:, 1]
    return values_there.clip(-1, 1).tolist(), values_here.clip(-1, 1).tolist()


def kept(there: Sequence[float], here: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> Interval | None:
    """The share that one seed keeps."""
    return kept_share([(there, here)], np.random.default_rng(seed), resamples=resamples)


def test_random_effects_give_the_between_variance_of_kackers_measurements() -> None:
    found = random_effects(MEASURED, [math.sqrt(v) for v in VARIANCES])
    assert found is not None
    assert found.between_sd == pytest.approx(0.8399, abs=6e-5)  # Kacker 2004, table 1, Paule and Mandel
    weights = 1 / (np.array(VARIANCES) + 0.8399**2)
    mean = float(weights @ MEASURED / weights.sum())
    half = T_8 / math.sqrt(weights.sum())
    assert ends(found) == pytest.approx((mean, mean - half, mean + half), abs=1e-3)


@pytest.mark.parametrize(
    ("means", "errors", "half", "between_sd"),
    [
        # With equal errors e and a sample SD s of the means above e, Paule and Mandel's variance is s^2 - e^2.
        ([0.1, 0.2, 0.3], [0.06] * 3, T_2 * 0.1 / math.sqrt(3), 0.08),
        # Hartung and Knapp's interval without a floor would have no width here.
        ([0.2] * 3, [0.06] * 3, T_2 * 0.06 / math.sqrt(3), 0.0),
        ([0.1, 0.2, 0.3], [0.0] * 3, T_2 * 0.1 / math.sqrt(3), 0.1),
    ],
    ids=["seeds differ", "agree by luck", "no errors"],
)
def test_random_effects_worked_by_hand(means: list[float], errors: list[float], half: float, between_sd: float) -> None:
    found = random_effects(means, errors)
    assert figures(found) == pytest.approx((0.2, 0.2 - half, 0.2 + half, between_sd), abs=1e-6)


def test_random_effects_without_an_error_take_that_of_the_other_seeds() -> None:
    found = random_effects([0.10, 0.12, 0.14], [0.0, 0.03, 0.05])
    other = math.sqrt((0.03**2 + 0.05**2) / 2)
    assert found == random_effects([0.10, 0.12, 0.14], [other, 0.03, 0.05])
    assert random_effects([0.10, 0.12, 0.14], [1e-17, 0.03, 0.05]) == found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 0.3)), min_size=2, max_size=8),
    st.floats(-2, 2),
    st.integers(0, 99),
)
def test_random_effects_move_with_the_means_and_do_not_depend_on_the_order(
    seeds: list[tuple[float, float]], shift: float, order: int
) -> None:
    means, errors = zip(*seeds, strict=True)
    found = random_effects(means, errors)
    mean, low, high, between_sd = figures(found)
    assert low < mean < high
    assert min(means) - 1e-9 <= mean <= max(means) + 1e-9
    moved = random_effects([m + shift for m in means], errors)
    expected = [mean + shift, low + shift, high + shift, between_sd]
    assert figures(moved) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    shuffled = random.Random(order).sample(seeds, len(seeds))
    again = random_effects(*zip(*shuffled, strict=True))
    assert figures(again) == pytest.approx(figures(found), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("ratio", "low"), [(0.0, 0.97), (2.0, 0.94), (4.0, 0.92)])
def test_random_effects_hold_the_true_mean_as_often_as_they_say_with_three_seeds(ratio: float, low: float) -> None:
    generator = np.random.default_rng(0)
    trials, held, held_alone = 400, 0, 0
    for _ in range(trials):
        true = 0.1 + generator.normal(0, ratio * 0.3 / 8, (3, 1))
        values = generator.normal(true, 0.3, (3, 64))
        found = random_effects(values.mean(1).tolist(), (values.std(1, ddof=1) / 8).tolist())
        _, least, most = ends(found)
        held += least <= 0.1 <= most
        held_alone += abs(values.mean() - 0.1) <= 1.96 * values.std() / math.sqrt(values.size)
    assert held / trials >= low
    # The interval over all documents, as if there were no seeds, does not.
    assert ratio == 0.0 or held_alone / trials < 0.75


def test_random_effects_are_unknown_without_variance() -> None:
    assert random_effects([0.2, 0.2], [0.0, 0.0]) is None


def test_kept_share_has_the_spread_of_the_delta_method() -> None:
    there, here = gains(np.random.default_rng(1), 400, 0.3, 0.5)
    found = kept(there, here)
    assert found is not None
    share = sum(there) / sum(here)
    assert found.mean == pytest.approx(share)
    # Ratio estimator (Cochran 1977, section 2.11): the error of mean(there - share * here), over the mean here.
    residuals = np.array(there) - share * np.array(here)
    error = residuals.std() / math.sqrt(400) / np.mean(here)
    assert (found.low, found.high) == pytest.approx((share - 1.96 * error, share + 1.96 * error), abs=0.15 * error)


def test_kept_share_pairs_documents() -> None:
    here = np.random.default_rng(2).uniform(0.0, 0.6, 40).tolist()
    assert ends(kept([0.5 * gain for gain in here], here)) == pytest.approx((0.5, 0.5, 0.5))
    unpaired = kept([0.5 * gain for gain in reversed(here)], here)
    assert unpaired is not None
    assert unpaired.mean == pytest.approx(0.5)
    assert unpaired.high - unpaired.low > 0.1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31))
def test_kept_share_depends_on_its_seed_and_not_on_the_order_of_documents(seed: int) -> None:
    there, here = gains(np.random.default_rng(seed), 30, 0.4, 0.7)
    order = random.Random(seed).sample(range(30), 30)
    found = kept(there, here, resamples=FEW, seed=seed)
    assert found is not None
    assert found.low <= found.mean <= found.high
    assert kept([there[i] for i in order], [here[i] for i in order], resamples=FEW, seed=seed) == found
    assert kept(there, here, resamples=FEW, seed=seed + 1) != found
    # A share of the same gains in half the units is the same share.
    halved = kept([v / 2 for v in there], [v / 2 for v in here], resamples=FEW, seed=seed)
    assert ends(halved) == pytest.approx(ends(found))


def test_kept_share_of_no_sure_gain_is_unknown() -> None:
    generator = np.random.default_rng(3)
    there, here = gains(generator, 40, 0.0, 0.0)
    assert bootstrap_mean(here, bounds=(-1, 1)).low <= 0
    assert kept(there, here) is None
    assert kept(there, [-0.3 + 0.01 * i for i in range(40)]) is None
    assert kept([0.4], [0.4]) is None
    assert kept_share([(there, here), gains(generator, 40, 0.0, 0.0)], generator) is None
    assert kept([0.0] * 40, here) is None
    assert kept_share([([0.0] * 40, here)] * 2, generator) is None


def test_kept_share_of_gains_that_vanish_everywhere_is_not_surely_none() -> None:
    here = np.random.default_rng(4).uniform(0.1, 0.5, 50).tolist()
    found = kept([0.0] * 50, here)
    assert found is not None
    # Rule of three: up to about 3 in 50 documents could gain or lose everything.
    lowest = bootstrap_mean(here, bounds=(-1, 1)).low
    assert ends(found) == pytest.approx((0.0, -0.058 / lowest, 0.058 / lowest), rel=0.02)
    over_seeds = kept_share([([0.0] * 50, here)] * 3, np.random.default_rng(5), resamples=FEW)
    assert over_seeds is not None
    assert over_seeds.low < 0 < over_seeds.high < found.high


def test_kept_share_holds_the_true_share_as_often_as_it_says() -> None:
    generator = np.random.default_rng(6)
    found = [kept(*gains(generator, 60, 0.2, 0.5), resamples=399, seed=trial) for trial in range(200)]
    given_ones = [interval for interval in found if interval is not None]
    assert len(given_ones) > 190
    assert 0.9 <= np.mean([i.low <= 0.5 <= i.high for i in given_ones]) <= 0.985


def coverage_over_seeds(seeds: int, seed_sd: float, trials: int = 120) -> float:
    generator = np.random.default_rng(7)
    held: list[bool] = []
    for _ in range(trials):
        groups: Sequence[Gains] = [gains(generator, 60, 0.2, 0.5, (seed_sd, seed_sd)) for _ in range(seeds)]
        if found := kept_share(groups, generator, resamples=299):
            held.append(found.low <= 0.5 <= found.high)
    assert len(held) > 0.9 * trials
    return float(np.mean(held))


def test_kept_share_over_seeds_holds_the_true_share_less_often_than_it_says_with_few_seeds() -> None:
    error = 0.3 / math.sqrt(60)
    assert coverage_over_seeds(3, 0.0) >= 0.93
    assert 0.8 <= coverage_over_seeds(3, error) <= 0.96
    # One seed is worse: it does not know of the others.
    assert coverage_over_seeds(1, error) <= 0.87


def test_kept_share_counts_seeds_alike() -> None:
    generator = np.random.default_rng(8)
    many, few = gains(generator, 200, 0.4, 0.8), gains(generator, 50, 0.4, 0.2)
    both = kept_share([many, few], np.random.default_rng(0))
    assert both is not None
    expected = (np.mean(many[0]) + np.mean(few[0])) / (np.mean(many[1]) + np.mean(few[1]))
    assert both.mean == pytest.approx(expected)
    one = kept(*many)
    assert one is not None
    assert both.high - both.low > 2 * (one.high - one.low)


def test_hierarchical_bootstrap_has_the_spread_of_both_levels() -> None:
    # Davison and Hinkley 1997, section 3.8: with S groups of N values the variance of the resampled mean is that of the
    # group means (divided by S) plus the mean variance within a group (divided by S N), both as variances of a sample
    # of the size that it has, without correction.
    generator = np.random.default_rng(3)
    groups = [(0.5 + shift + generator.uniform(-0.2, 0.2, 30)).tolist() for shift in (-0.2, -0.05, 0.05, 0.2)]
    found = hierarchical_bootstrap_mean(groups, np.random.default_rng(4))
    between = np.var([np.mean(group) for group in groups]) / 4
    within = np.mean([np.var(group) for group in groups]) / 30 / 4
    assert (found.high - found.low) / 2 == pytest.approx(1.960 * math.sqrt(between + within), rel=0.1)
    pooled = bootstrap_mean([value for group in groups for value in group])
    assert found.mean == pytest.approx(pooled.mean)
    assert found.high - found.low > 2 * (pooled.high - pooled.low)


@pytest.mark.parametrize(("groups", "low", "high"), [(3, 0.75, 0.9), (10, 0.9, 0.98)])
def test_hierarchical_bootstrap_holds_the_true_mean_less_often_than_it_says_with_few_groups(
    groups: int, low: float, high: float
) -> None:
    generator = np.random.default_rng(5)
    trials, held = 300, 0
    for _ in range(trials):
        # Groups that differ by twice the standard error of their means.
        values = [(0.5 + generator.normal(0, 0.04) + generator.normal(0, 0.16, 64)).clip(0, 1) for _ in range(groups)]
        interval = hierarchical_bootstrap_mean([v.tolist() for v in values], generator, resamples=499)
        held += interval.low <= 0.5 <= interval.high
    assert low <= held / trials <= high


@settings(deadline=None, max_examples=40)
@given(st.lists(samples, min_size=1, max_size=4), st.integers(0, 2**31))
def test_hierarchical_bootstrap_depends_on_its_generator_and_stays_within_the_values(
    groups: list[list[float]], seed: int
) -> None:
    first, again = (hierarchical_bootstrap_mean(groups, np.random.default_rng(seed), resamples=FEW) for _ in range(2))
    assert first == again
    assert 0.0 <= first.low <= first.high <= 1.0


def test_hierarchical_bootstrap_of_equal_values_is_the_rule_of_three() -> None:
    equal = hierarchical_bootstrap_mean([[0.0] * 50, [0.0] * 50], np.random.default_rng(0))
    assert equal == bootstrap_mean([0.0] * 100)


@pytest.mark.parametrize("groups", [[[]], [[0.5], [1.2]]])
def test_hierarchical_bootstrap_refuses_what_is_no_score(groups: list[list[float]]) -> None:
    with pytest.raises(InputError, match="allowed"):
        hierarchical_bootstrap_mean(groups, np.random.default_rng(0))


@pytest.mark.parametrize(("there", "here"), [([], []), ([0.1, math.nan], [0.3, 0.4]), ([0.1, 0.2], [0.3, 1.4])])
def test_kept_share_refuses_what_is_no_gain(there: list[float], here: list[float]) -> None:
    with pytest.raises(InputError, match="allowed"):
        kept(there, here)
