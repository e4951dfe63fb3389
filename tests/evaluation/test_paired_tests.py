from __future__ import annotations

import gc
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evaluation.common.errors import InputError
from evaluation.statistics import (
    PairedTest,
    adjusted,
    compare,
    mcnemar_test,
    required_documents,
    sign_flip_test,
)
from tests.evaluation.factories import seal_scores

DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
"""Fisher 1935, "The Design of Experiments", table 3: cross- minus self-fertilised maize, in eighths of an inch."""

# Benjamini and Hochberg 1995, JRSS B 57, section 3.2: 15 hypotheses about the treatment of myocardial infarction.
INFARCTION = [
    *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344),
    *(0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000),
]

differences = st.lists(st.integers(-12, 12).map(lambda right: right / 12), min_size=1, max_size=9)


def enumerated(values: Sequence[float]) -> float:
    """Return the share of sign patterns whose sum is at least as far from 0, counted one by one."""
    observed = abs(sum(values)) - 1e-9
    sums = [sum(s * v for s, v in zip(p, values, strict=True)) for p in itertools.product((1, -1), repeat=len(values))]
    return sum(abs(total) >= observed for total in sums) / len(sums)


def test_sign_flip_test_gives_fishers_p_value_for_darwins_maize() -> None:
    # Fisher 1935, section 21: 863 of the 32 768 sign patterns have a sum of at least 314, and as many of at most -314.
    assert sign_flip_test(DARWIN, resamples=2**15) == pytest.approx(2 * 863 / 32_768)
    assert sign_flip_test(DARWIN, resamples=9999) == pytest.approx(2 * 863 / 32_768, abs=0.01)


@settings(deadline=None, max_examples=60)
@given(differences)
def test_sign_flip_test_of_few_documents_is_the_share_of_all_sign_patterns(values: list[float]) -> None:
    assert sign_flip_test(values) == pytest.approx(enumerated(values))


def test_sign_flip_test_of_documents_that_all_gain() -> None:
    assert sign_flip_test([0.1, 0.4, 0.2, 0.3, 0.5]) == pytest.approx(2 / 32)
    assert sign_flip_test([0.1, 0.4, 0.0, 0.2, 0.3, 0.5, 0.0]) == pytest.approx(2 / 32)
    assert sign_flip_test([0.7]) == sign_flip_test([0.0, 0.0]) == sign_flip_test([0.0, 0.7]) == 1.0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-6, 6).map(lambda v: v / 6), min_size=15, max_size=25), st.integers(0, 2**31))
def test_sign_flip_test_depends_neither_on_the_order_of_documents_nor_on_the_scale(
    values: list[float], seed: int
) -> None:
    found = sign_flip_test(values, resamples=199, seed=seed)
    shuffled = random.Random(seed).sample(values, len(values))
    assert 0.0 < found <= 1.0
    assert sign_flip_test(shuffled, resamples=199, seed=seed) == found
    assert sign_flip_test([v * 1e-6 for v in values], resamples=199, seed=seed) == found


def test_sign_flip_test_finds_nothing_as_seldom_as_its_level_says() -> None:
    generator = np.random.default_rng(0)
    # Six questions a document, right or wrong by chance alike for both variants: discrete, skewed by document.
    chance = generator.beta(0.3, 1.2, (500, 30, 1))
    right = generator.binomial(6, np.repeat(chance, 2, axis=2)) / 6
    found = [sign_flip_test((r[:, 0] - r[:, 1]).tolist(), resamples=199, seed=i) for i, r in enumerate(right)]
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean([p <= level for p in found]) == pytest.approx(level, abs=3.5 * math.sqrt(level / len(found)))


def test_sign_flip_test_agrees_with_the_interval_on_seal_results(shared_data: Callable[..., Path]) -> None:
    # arXiv 2506.10943, recorded results of 200 passages: the interval of edits minus passage alone is [.013, .108],
    # that is 2.5 standard errors from 0, a normal p-value of .012.
    scored = {name: seal_scores(shared_data("seal", "graded", f"eval_{name}.json.gz")) for name in ("base", "naive")}
    tests = compare(scored, [("base", "naive")], seed=1).tests
    assert tests["base_minus_naive"].sign_flip == pytest.approx(0.012, abs=0.006)
    assert tests["base_minus_naive"].required_documents == pytest.approx(230, abs=10)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [0.1, math.inf]])
def test_sign_flip_test_refuses_what_is_no_difference(values: list[float]) -> None:
    with pytest.raises(InputError, match="allowed"):
        sign_flip_test(values)


def test_mcnemar_test_is_the_sign_test_of_the_discordant_questions() -> None:
    # Six questions only a has right, one only b: 2 * (1 + 7) / 2^7.
    a = [True] * 6 + [False] + [True] * 9 + [False] * 4
    b = [False] * 6 + [True] + [True] * 9 + [False] * 4
    assert mcnemar_test(a, b) == mcnemar_test(b, a) == pytest.approx(0.125)
    assert mcnemar_test(a, b) == pytest.approx(sign_flip_test([float(x) - float(y) for x, y in zip(a, b, strict=True)]))
    assert mcnemar_test(a, a) == 1.0
    assert mcnemar_test([True], [False]) == 1.0


def test_mcnemar_test_finds_too_much_where_questions_share_a_document() -> None:
    generator = np.random.default_rng(2)
    by_question, by_document = [], []
    for trial in range(200):
        # Ten questions a document, of which an update teaches all or none, by chance alike for both variants.
        a, b = (np.repeat(generator.random(20) < 0.5, 10) for _ in range(2))
        by_question.append(mcnemar_test(a.tolist(), b.tolist()))
        gains = (a.astype(float) - b).reshape(20, 10).mean(1)
        by_document.append(sign_flip_test(gains.tolist(), resamples=199, seed=trial))
    assert np.mean([p <= 0.05 for p in by_question]) > 0.3
    assert np.mean([p <= 0.05 for p in by_document]) < 0.1


def test_adjusted_gives_the_published_findings() -> None:
    names = [f"h{i}" for i in range(1, 16)]
    holm = adjusted(dict(zip(names, INFARCTION, strict=True)))
    # Section 3.2: controlling the family-wise error rejects three hypotheses at 5 %.
    assert [name for name in names if holm[name] <= 0.05] == names[:3]
    # By hand: Holm multiplies the i-th by 16 - i.
    assert [holm[name] for name in names[:4]] == pytest.approx([0.0015, 0.0056, 0.0247, 0.1140])


@pytest.fixture
def frozen_garbage() -> Iterator[None]:
    """`multipletests` collects garbage at each call, which takes long where much has been imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen_garbage")
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1), max_size=8),
    st.integers(0, 99),
)
def test_adjusted_is_never_smaller_keeps_the_order_and_knows_names(family: dict[str, float], seed: int) -> None:
    found = adjusted(family)
    assert list(found) == list(family)
    assert all(family[name] - 1e-12 <= p <= 1.0 for name, p in found.items())
    ranked = sorted(family, key=family.__getitem__)
    assert all(found[a] <= found[b] + 1e-12 for a, b in itertools.pairwise(ranked))
    shuffled = random.Random(seed).sample(list(family), len(family))
    assert adjusted({name: family[name] for name in shuffled}) == pytest.approx(found)


def test_tests_are_over_the_documents_that_every_scored_variant_has() -> None:
    base = {f"d{i}": 0.1 for i in range(6)}
    trained = {f"d{i}": 0.2 + i / 10 for i in range(1, 8)}
    pairs = [("trained", "base"), ("base", "failed")]
    tests = compare({"base": base, "trained": trained, "failed": {}}, pairs, resamples=100).tests
    wanted = required_documents([trained[f"d{i}"] - 0.1 for i in range(1, 6)])
    assert tests == {"trained_minus_base": PairedTest(sign_flip=2 / 32, adjusted=2 / 32, required_documents=wanted)}


def test_tests_of_equal_variants_need_no_number_of_documents() -> None:
    same, shifted = {"a": 0.2, "b": 0.7, "c": 0.4}, {"a": 0.3, "b": 0.8, "c": 0.5}
    mirrored = {"a": 0.1, "b": 0.8, "c": 0.4}
    variants, pairs = {"x": same, "y": same, "z": shifted, "m": mirrored}, [("x", "y"), ("z", "x"), ("m", "x")]
    tests = compare(variants, pairs, resamples=100).tests
    assert tests["x_minus_y"] == PairedTest(sign_flip=1.0, adjusted=1.0, required_documents=None)
    assert tests["z_minus_x"] == PairedTest(sign_flip=0.25, adjusted=0.75, required_documents=None)
    assert tests["m_minus_x"] == PairedTest(sign_flip=1.0, adjusted=1.0, required_documents=None)
