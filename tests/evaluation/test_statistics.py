from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.common.errors import InputError, ScoringError
from evaluation.statistics import (
    Interval,
    bootstrap_mean,
    compare,
    known_mean,
    minimum_detectable_difference,
    required_documents,
)
from tests.evaluation.factories import ends, seal_scores

FEW = 300
"""Resamples in property tests."""

scores = st.integers(0, 12).map(lambda right: right / 12)
samples = st.lists(scores, min_size=1, max_size=25)


def test_compare_on_seal_results_gives_the_recorded_interval(shared_data: Callable[..., Path]) -> None:
    # arXiv 2506.10943, recorded results of 200 passages: edits of the base model minus the passage alone have a paired
    # bootstrap interval of +.062 [.013, .108].
    scored = {name: seal_scores(shared_data("seal", "graded", f"eval_{name}.json.gz")) for name in ("base", "naive")}
    compared = compare(scored, [("base", "naive")], seed=1)
    assert len(compared.documents) == 200
    assert ends(compared.gains["base_minus_naive"]) == pytest.approx((0.062, 0.013, 0.108), abs=0.005)
    # The same records: naive .335 [.297, .373], base .397 [.358, .437].
    assert ends(compared.variants["naive"]) == pytest.approx((0.335, 0.297, 0.373), abs=0.005)
    assert ends(compared.variants["base"]) == pytest.approx((0.397, 0.358, 0.437), abs=0.005)
    assert compared.minimum_detectable["base_minus_naive"] == pytest.approx(0.067, abs=0.005)


def spread_around(mean: float, sd: float) -> list[float]:
    """Return two differences with a mean and a sample standard deviation."""
    return [mean - sd / math.sqrt(2), mean + sd / math.sqrt(2)]


@pytest.mark.parametrize(("effect", "documents"), [(0.05, 350), (0.03, 970)])
def test_required_documents_for_the_spread_of_seal(effect: float, documents: int) -> None:
    # arXiv 2506.10943, recorded results: a paired SD of .334 needs about 350 documents to see 5 points and about 970
    # to see 3 with 80 % power.
    assert required_documents(spread_around(effect, 0.334)) == pytest.approx(documents, rel=0.005)


@given(st.floats(0.01, 1), st.floats(0.001, 1))
def test_required_documents_are_the_inverse_of_the_detectable_difference(sd: float, effect: float) -> None:
    n = required_documents(spread_around(effect, sd))
    assert n is not None

    def detectable(documents: int) -> float:
        return minimum_detectable_difference([sd, -sd]) / math.sqrt(documents)  # type: ignore[operator]

    # Two values of +-sd have a sample SD of sqrt(2) sd and two documents: the factors cancel.
    assert detectable(n) <= abs(effect) * (1 + 1e-9)
    if n > 1:
        assert detectable(n - 1) >= abs(effect) * (1 - 1e-9)


@settings(deadline=None, max_examples=40)
@given(samples, st.sampled_from([0.8, 0.9, 0.95]))
def test_bootstrap_mean_is_wider_at_a_higher_level_and_holds_the_mean(values: list[float], level: float) -> None:
    narrow = bootstrap_mean(values, confidence=level, resamples=FEW)
    wide = bootstrap_mean(values, confidence=level + 0.04, resamples=FEW)
    ends = [0, wide.low, narrow.low, narrow.mean, narrow.high, wide.high, 1]
    assert all(left <= right + 1e-9 for left, right in itertools.pairwise(ends))
    assert narrow.mean == wide.mean == pytest.approx(sum(values) / len(values))


@settings(deadline=None, max_examples=40)
@given(samples, st.integers(-8, 8), st.integers(0, 2**31))
def test_bootstrap_mean_moves_with_the_values_whatever_their_order(values: list[float], shift: int, seed: int) -> None:
    here = bootstrap_mean(values, resamples=FEW, seed=seed)
    shuffled = random.Random(seed).sample(values, len(values))
    assert bootstrap_mean(shuffled, resamples=FEW, seed=seed) == here
    there = bootstrap_mean([v + shift for v in values], resamples=FEW, seed=seed, bounds=(shift, 1 + shift))
    assert ends(there) == pytest.approx([end + shift for end in ends(here)], abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-12, 12).map(lambda more: more / 12), min_size=12, max_size=25))
def test_bootstrap_mean_of_negated_differences_is_the_mirror_image(gains: list[float]) -> None:
    forth, back = (bootstrap_mean([sign * g for g in gains], resamples=4000, bounds=(-1, 1)) for sign in (1, -1))
    assert back.mean == pytest.approx(-forth.mean)
    # Other documents are drawn, so the ends agree up to the error of the resampling.
    tolerance = 0.02 + 0.1 * (forth.high - forth.low)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=tolerance)


def test_bootstrap_mean_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    trials, held = 300, 0
    for trial in range(trials):
        values = generator.binomial(6, generator.beta(0.1, 0.9, 80)) / 6  # skewed, mean .1
        interval = bootstrap_mean(values.tolist(), resamples=499, seed=trial)
        held += interval.low <= 0.1 <= interval.high
    assert 0.91 <= held / trials <= 0.98


def test_bootstrap_mean_of_one_document_says_nearly_nothing() -> None:
    # One document seen: up to 95 % of all documents may differ and score anything.
    assert ends(bootstrap_mean([0.5])) == pytest.approx((0.5, 0.025, 0.975))
    assert ends(bootstrap_mean([0.5], bounds=(-1.0, 1.0))) == pytest.approx((0.5, -0.925, 0.975))


def test_bootstrap_mean_of_equal_scores_is_the_rule_of_three() -> None:
    interval = bootstrap_mean([0.0] * 100)
    assert (interval.mean, interval.low) == (0.0, 0.0)
    assert interval.high == pytest.approx(3 / 100, rel=0.02)
    assert ends(bootstrap_mean([0.1 + 0.2, 0.3] * 50)) == pytest.approx(ends(bootstrap_mean([0.3] * 100)))


def test_bootstrap_mean_at_an_absurd_level_still_holds_the_mean() -> None:
    values = [0.0] * 30 + [1.0]
    interval = bootstrap_mean(values, confidence=1 - 1e-13, resamples=FEW)
    assert interval.low <= interval.mean <= interval.high
    assert interval.high > bootstrap_mean(values, confidence=0.9, resamples=FEW).high


def test_bootstrap_mean_depends_on_the_seed_alone() -> None:
    values = [i / 20 for i in range(20)]
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert bootstrap_mean(values, resamples=FEW, seed=3) == bootstrap_mean(values, resamples=FEW, seed=3)
    assert bootstrap_mean(values, resamples=FEW, seed=3) != bootstrap_mean(values, resamples=FEW, seed=4)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


def test_bootstrap_mean_of_many_documents_goes_in_batches() -> None:
    values = np.random.default_rng(0).random(20_000)
    interval = bootstrap_mean(values.tolist(), resamples=200)
    error = float(values.std()) / math.sqrt(len(values))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.3)


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [0.5, math.inf], [0.5, 1.2], [-0.1]])
def test_bootstrap_mean_refuses_what_is_no_score(values: list[float]) -> None:
    with pytest.raises(InputError, match="allowed"):
        bootstrap_mean(values)


def test_minimum_detectable_difference_is_unknown_without_spread() -> None:
    assert minimum_detectable_difference([]) is None
    assert minimum_detectable_difference([0.3]) is None
    assert minimum_detectable_difference([0.3, 0.3, 0.3]) is None
    assert minimum_detectable_difference([0.0, 0.2]) == pytest.approx(2.8016 * 0.1, rel=1e-4)


def test_compare_uses_only_documents_that_every_variant_has() -> None:
    base = {f"d{i}": 0.1 for i in range(8)}
    trained = {f"d{i}": 0.1 + i / 10 for i in range(2, 9)}
    compared = compare({"base": base, "trained": trained}, [("trained", "base")], resamples=FEW)
    assert compared.documents == ("d2", "d3", "d4", "d5", "d6", "d7")
    assert compared.gains["trained_minus_base"].mean == pytest.approx(0.45)
    assert compared.variants["trained"].mean == pytest.approx(0.55)
    assert compared.minimum_detectable["trained_minus_base"] == pytest.approx(2.8016 * 0.18708 / math.sqrt(6), rel=1e-3)


def test_compare_of_a_variant_with_itself_finds_nothing() -> None:
    same = {"a": 0.2, "b": 0.7, "c": 0.4}
    compared = compare({"x": same, "y": dict(reversed(same.items()))}, [("x", "y")], resamples=FEW)
    assert compared.variants["x"] == compared.variants["y"]
    gain = compared.gains["x_minus_y"]
    assert gain.mean == 0
    assert gain.low < 0 < gain.high
    assert compared.minimum_detectable == {}


def test_compare_goes_on_without_a_variant_that_failed_everywhere() -> None:
    scored = {"a": 0.2, "b": 0.7}
    pairs = [("x", "y"), ("x", "failed")]
    compared = compare({"x": scored, "failed": {}, "y": {"a": 0.1, "b": 0.2}}, pairs, resamples=FEW)
    assert set(compared.variants) == {"x", "y"}
    assert set(compared.gains) == {"x_minus_y"}
    assert isinstance(compared.gains["x_minus_y"], Interval)


def test_compare_refuses_variants_without_a_common_document() -> None:
    with pytest.raises(ScoringError, match=r"\{'x': 1, 'y': 2\}"):
        compare({"x": {"a": 0.1}, "y": {"b": 0.1, "c": 0.2}}, [])


def test_known_mean_leaves_out_what_is_not_known() -> None:
    assert known_mean([0.25, None, 0.75]) == 0.5
    assert known_mean([None]) is None
    assert known_mean([]) is None
