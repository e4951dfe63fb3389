from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from teacher.screening import check_screening, screen

SCORES = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan])
CANDIDATES = st.lists(st.tuples(st.sampled_from("abc"), SCORES), max_size=24)
SHARE = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.9, 1.0])


@given(CANDIDATES, SHARE, SHARE, st.integers(0, 9))
def test_screen_skips_the_worst_of_each_group_and_audits_some_of_them(
    candidates: list[tuple[str, float | None]], skip: float, audit: float, seed: int
) -> None:
    groups, scores = [g for g, _ in candidates], [s for _, s in candidates]
    found = screen(groups, scores, skip_share=skip, audit_share=audit, rng=random.Random(seed))
    assert len(found.run) == len(found.audited) == len(groups)
    assert all(runs for runs, audited in zip(found.run, found.audited, strict=True) if audited)
    kept = [runs and not audited for runs, audited in zip(found.run, found.audited, strict=True)]
    for group in set(groups):
        known = [(s, -i) for i, s in enumerate(scores) if groups[i] == group and s is not None and not math.isnan(s)]
        assert sum(not kept[-i] for _, i in known) == math.floor(skip * len(known) + 1e-9)
        worst_kept = min(((s, i) for s, i in known if kept[-i]), default=(math.inf, 0))
        assert all((s, i) < worst_kept for s, i in known if not kept[-i])
    unscored = [i for i, s in enumerate(scores) if s is None or math.isnan(s)]
    assert all(kept[i] for i in unscored)
    if audit in (0.0, 1.0):
        assert list(found.audited) == [audit == 1.0 and not k for k in kept]
    again = screen(groups, scores, skip_share=skip, audit_share=audit, rng=random.Random(seed))
    assert again == found


def test_screen_takes_the_later_of_equal_ones_and_rounds_down() -> None:
    groups = ["a", "b", "a", "a", "b", "a", "b"]
    scores = [0.1, 0.9, 0.5, 0.1, 0.9, None, 0.9]
    found = screen(groups, scores, skip_share=0.5, audit_share=0.0, rng=random.Random(0))
    assert found.run == (True, True, True, False, True, True, False)
    many = screen(["a"] * 100, list(range(100)), skip_share=0.29, audit_share=0.0, rng=random.Random(0))
    assert many.run == (False,) * 29 + (True,) * 71


def test_audits_depend_on_the_place_alone_and_have_the_wanted_share() -> None:
    """Two scores that skip different candidates audit the same ones where both skip; of 2000 about a fifth."""
    groups = [f"g{i // 4}" for i in range(4000)]
    draw = random.Random(1)
    found = [
        screen(groups, [draw.random() for _ in groups], skip_share=0.5, audit_share=0.2, rng=random.Random(7))
        for _ in range(2)
    ]
    skipped = [[not runs or audited for runs, audited in zip(f.run, f.audited, strict=True)] for f in found]
    both = [i for i in range(len(groups)) if skipped[0][i] and skipped[1][i]]
    assert len(both) > 500
    assert [found[0].audited[i] for i in both] == [found[1].audited[i] for i in both]
    assert sum(skipped[0]) == 2000
    assert sum(found[0].audited) == pytest.approx(400, abs=4 * math.sqrt(2000 * 0.2 * 0.8))


def test_screen_refuses_shares_out_of_range_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match=r"skip_share: got 1\.5"):
        screen(["a"], [1.0], skip_share=1.5, audit_share=0.0, rng=random.Random(0))
    with pytest.raises(ValueError, match="audit_share: got nan"):
        screen(["a"], [1.0], skip_share=0.5, audit_share=math.nan, rng=random.Random(0))
    with pytest.raises(ValueError, match="shorter"):
        screen(["a", "a"], [1.0], skip_share=0.5, audit_share=0.0, rng=random.Random(0))


VALUES = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@given(st.lists(st.tuples(VALUES, VALUES), min_size=3, max_size=12))
def test_correlation_of_one_group_is_spearmans(pairs: list[tuple[float | None, float | None]]) -> None:
    scores, rewards = [s for s, _ in pairs], [r for _, r in pairs]
    found = check_screening(["a"] * len(pairs), scores, rewards, [False] * len(pairs)).rank_correlation
    known = [(s, r) for s, r in pairs if s is not None and r is not None]
    if len(known) < 3 or min(len({pair[side] for pair in known}) for side in (0, 1)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr([s for s, _ in known], [r for _, r in known]).statistic, abs=1e-12)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), VALUES, VALUES), max_size=16), st.lists(st.floats(-9, 9), min_size=4)
)
def test_correlation_knows_nothing_of_levels_and_scales_of_groups(
    rows: list[tuple[str, float | None, float | None]], shifts: list[float]
) -> None:
    groups = [group for group, _, _ in rows]
    level = dict(zip("abcd", shifts, strict=False))
    plain = check_screening(groups, [s for _, s, _ in rows], [r for _, _, r in rows], [False] * len(rows))
    moved = check_screening(
        groups,
        [None if s is None else 2.0 * s + round(level[g]) for g, s, _ in rows],
        [None if r is None else r - round(level[g]) for g, _, r in rows],
        [False] * len(rows),
    )
    assert moved == plain
    assert plain.audited_gap is None
    assert plain.rank_correlation is None or -1.0 <= plain.rank_correlation <= 1.0


def test_correlation_pools_groups_and_leaves_out_lone_candidates() -> None:
    """By hand: centred ranks (-1, 0, 1) by (-1, 0, 1) and (-.5, .5) by (.5, -.5); 1.5 / 2.5."""
    groups = ["a", "a", "a", "b", "b", "lone"]
    found = check_screening(groups, [1, 2, 3, 9, 10, 5], [0.1, 0.2, 0.3, 0.9, 0.8, 0.5], [False] * 6)
    assert found.rank_correlation == pytest.approx(0.6)
    assert check_screening(["a", "a", "b"], [1, 2, 3], [1, 2, 3], [False] * 3).rank_correlation is None
    assert check_screening([], [], [], []).rank_correlation is None
    assert check_screening(["a"] * 3, [1, 2, math.nan], [1, 2, 3], [False] * 3).rank_correlation is None


def test_the_gap_is_the_mean_over_groups_with_both_kinds() -> None:
    groups = ["a", "a", "a", "b", "b", "c", "c", "d"]
    rewards = [0.5, 0.7, 0.2, 0.4, 0.5, None, 0.3, 0.9]
    audited = [False, False, True, True, False, False, True, True]
    found = check_screening(groups, [None] * 8, rewards, audited)
    assert found.audited_gap == pytest.approx((0.4 + 0.1) / 2)
    assert found.rank_correlation is None


def test_skipping_narrows_the_correlation_and_leaves_the_gap_unbiased() -> None:
    """Simulated normal scores and rewards with a correlation of .6; a quarter is skipped, and a fifth of it audited.

    In samples of n, Spearman's has the mean 6 (asin r + (n - 2) asin(r / 2)) / (pi (n + 1)) (Moran 1948, Biometrika).
    """
    generator = np.random.default_rng(3)
    documents, each = 1000, 8
    groups = [f"d{i}" for i in range(documents) for _ in range(each)]
    score = generator.normal(size=documents * each)
    reward = 0.6 * score + 0.8 * generator.normal(size=documents * each)
    level = np.repeat(generator.normal(0, 3, documents), each)
    scores, rewards = score.tolist(), (reward + level).tolist()
    nothing = [False] * len(groups)
    screened = screen(groups, scores, skip_share=0.25, audit_share=0.2, rng=random.Random(5))
    seen = [r if runs else None for r, runs in zip(rewards, screened.run, strict=True)]
    all_skipped = screen(groups, scores, skip_share=0.25, audit_share=1.0, rng=random.Random(5))
    truth = check_screening(groups, scores, rewards, all_skipped.audited)
    found = check_screening(groups, scores, seen, screened.audited)
    assert truth.audited_gap is not None
    assert found.audited_gap == pytest.approx(truth.audited_gap, abs=0.1)  # three standard errors
    full = check_screening(groups, scores, rewards, nothing).rank_correlation
    assert full is not None
    expected = 6 * (math.asin(0.6) + (each - 2) * math.asin(0.3)) / (math.pi * (each + 1))
    assert full == pytest.approx(expected, abs=0.02)
    assert found.rank_correlation is not None
    assert found.rank_correlation < full - 0.05
