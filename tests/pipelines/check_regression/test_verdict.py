from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.gate.checks import GateCheck
from pipelines.check_regression.verdict import (
    Compared,
    Outcome,
    RegressionReport,
    Unscored,
    VerdictConfig,
    VerdictFound,
    check_loss,
    check_unscored,
    find_verdict,
)
from tests.pipelines.check_regression.factories import changed

LIMITS = VerdictConfig(resamples=1000)


def verdict(
    differences: Sequence[float],
    *,
    probes: Sequence[float] = (),
    collapsed: tuple[int, int] = (0, 0),
    groups: dict[str, tuple[str, ...]] | None = None,
    unscored: Unscored | None = None,
) -> VerdictFound:
    compared = Compared(changed(differences), changed(probes), collapsed, (100, 100), unscored)
    return find_verdict(compared, groups or {}, LIMITS)


def named(found: VerdictFound, name: str) -> GateCheck:
    return next(check for check in found.checks if check.name == name)


def test_verdicts_of_clear_cases_and_their_exit_codes() -> None:
    assert verdict([0.0] * 80).outcome == "passed"
    assert verdict([-0.2] * 80).outcome == "regressed"
    assert verdict([0.0] * 5).outcome == "undecided"
    outcomes: tuple[Outcome, ...] = ("passed", "regressed", "undecided")
    reports = [RegressionReport(suite="s", suite_digest="d", outcome=each, limits=LIMITS) for each in outcomes]
    assert [report.exit_code for report in reports] == [0, 1, 3]


def test_a_significant_loss_within_the_tolerance_passes() -> None:
    found = verdict([-0.04] * 400)
    assert (named(found, "documents").high or 0.0) < 0.0
    assert found.outcome == "passed"


def test_the_number_of_documents_that_would_decide_decides() -> None:
    rng = np.random.default_rng(3)
    few = named(verdict(rng.normal(0.0, 0.1, 20).tolist()), "documents")
    assert few.verdict == "undecided"
    assert few.needed is not None
    passed = [verdict(rng.normal(0.0, 0.1, few.needed).tolist()).outcome == "passed" for _ in range(60)]
    assert sum(passed) >= 60 * 0.65
    assert verdict([]).outcome == "undecided"
    assert (named(verdict([]), "documents").needed or 0) > 0


@pytest.mark.parametrize(("loss", "wrong"), [(0.0, "regressed"), (0.10, "passed")], ids=["unchanged", "planted"])
def test_simulated_verdicts_are_wrong_no_more_often_than_the_level_allows(loss: float, wrong: Outcome) -> None:
    rng, runs, documents = np.random.default_rng(17), 300, 80
    found = 0
    for _ in range(runs):
        # Either a share of the documents is lost whole, or all differ a little.
        whole = -(rng.random(documents) < loss).astype(float) + rng.choice([-0.25, 0.0, 0.25], documents)
        little = rng.normal(-loss, 0.15, documents)
        drawn = (whole if rng.random() < 0.5 else little).clip(-1.0, 1.0)
        found += verdict(drawn.tolist()).outcome == wrong
    assert found / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_one_lost_group_is_a_regression_whatever_the_others_gain_and_an_unsure_one_decides_nothing() -> None:
    groups = {"people": tuple(f"d{i:03d}" for i in range(12)), "places": tuple(f"d{i:03d}" for i in range(12, 80))}
    lost = verdict([-0.4] * 12 + [0.2] * 68, groups=groups)
    assert named(lost, "documents").verdict == named(lost, "group places").verdict == "pass"
    assert named(lost, "group people").verdict == "fail"
    assert lost.outcome == "regressed"
    unsure = verdict([-0.9, 0.0, 0.0] + [0.1] * 77, groups={"few": ("d000", "d001", "d002")})
    assert named(unsure, "group few").verdict == "undecided"
    assert unsure.outcome == "passed"


def test_probes_and_empty_answers_count_too() -> None:
    assert verdict([0.0] * 80, probes=[-0.4] * 80).outcome == "regressed"
    assert verdict([0.0] * 80, probes=[0.0] * 80).outcome == "passed"
    assert verdict([0.0] * 80, probes=[0.0] * 3).outcome == "undecided"
    assert verdict([0.0] * 80, collapsed=(3, 0)).outcome == "regressed"
    assert verdict([0.0] * 80, collapsed=(3, 3)).outcome == "passed"  # no worse than the baseline


def test_too_many_self_edits_without_a_score_are_undecided_but_a_significant_loss_stays_one() -> None:
    few, many = Unscored((8, 40), 80, (), 40), Unscored((9, 0), 80, (), 40)
    left_out = Unscored((0, 40), 80, tuple("abcde"), 40)
    assert [check_unscored(case).verdict for case in (few, many, left_out)] == ["pass", "undecided", "undecided"]
    assert verdict([0.0] * 80, unscored=few).outcome == "passed"
    assert verdict([0.3] * 80, unscored=many).outcome == "undecided"
    assert verdict([-0.3] * 80, unscored=many).outcome == "regressed"
    assert verdict([], unscored=Unscored((80, 0), 80, tuple("abcd"), 4)).outcome == "undecided"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-8, 8).map(lambda d: d / 8), min_size=1, max_size=20), st.data())
def test_a_better_candidate_has_no_worse_verdict_in_any_order(differences: list[float], data: st.DataObject) -> None:
    limits = VerdictConfig(resamples=1000, tolerance=0.2, detectable=0.5)
    place = data.draw(st.integers(0, len(differences) - 1))
    better = list(differences)
    better[place] = data.draw(st.sampled_from([d / 8 for d in range(-8, 9) if d / 8 >= differences[place]]))
    before = check_loss("documents", changed(differences), 0.2, 0.5, limits)
    after = check_loss("documents", changed(better), 0.2, 0.5, limits)
    order = {"fail": 0, "undecided": 1, "pass": 2}
    assert order[after.verdict] >= order[before.verdict]
    assert check_loss("documents", changed(differences[::-1]), 0.2, 0.5, limits) == before
