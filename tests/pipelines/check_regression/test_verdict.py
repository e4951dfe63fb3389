from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.gate.checks import GateCheck
from pipelines.check_regression.verdict import (
    EditsRecord,
    Outcome,
    RegressionReport,
    Scores,
    VerdictConfig,
    VerdictFound,
    check_loss,
    check_unscored,
    find_verdict,
)
from tests.pipelines.check_regression.factories import changed

LIMITS = VerdictConfig(resamples=1000)


def edits(missing: int, written: int = 80) -> EditsRecord:
    return EditsRecord(digest="a" * 64, written=written, unscored={"parse_failed": missing} if missing else {})


def verdict(
    differences: Sequence[float],
    *,
    probes: Sequence[float] = (),
    collapsed: tuple[int, int] = (0, 0),
    groups: dict[str, tuple[str, ...]] | None = None,
    missing: tuple[int, int] | None = None,
    left_out: Sequence[str] = (),
) -> VerdictFound:
    """Return the verdict on students, or on variants of which so many self-edits are missing."""
    mine, theirs = (
        Scores(
            documents={score.document: (getattr(score, side),) for score in changed(differences)},
            probability={},
            probes={score.document: getattr(score, side) for score in changed(probes)},
            empty=collapsed[i],
            answered=100,
            edits=None if missing is None else edits(missing[i]),
        )
        for i, side in enumerate(("candidate", "reference"))
    )
    return find_verdict([*mine.documents, *left_out], mine, theirs, groups or {}, LIMITS)


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
    cases = (edits(8), edits(40), 0), (edits(9), edits(0), 0), (edits(0), edits(40), 5)
    assert [check_unscored(*case, 40).verdict for case in cases] == ["pass", "undecided", "undecided"]
    assert verdict([0.0] * 80, missing=(8, 40)).outcome == "passed"
    assert verdict([0.3] * 80, missing=(9, 0)).outcome == "undecided"
    assert verdict([-0.3] * 80, missing=(9, 0)).outcome == "regressed"
    assert verdict([], missing=(80, 0), left_out="abcd").outcome == "undecided"


def test_a_document_without_a_score_on_one_side_is_left_out() -> None:
    fields: dict[str, Any] = {"probability": {}, "answered": 2, "edits": edits(2, 4)}
    mine = Scores(documents={"a": (0.5, 1.0)}, probes={"a": 0.25}, empty=0, **fields)
    theirs = Scores(documents={"a": (0.0, 1.0), "b": (1.0, 1.0)}, probes={"a": 0.75, "b": 0.5}, empty=1, **fields)
    found = find_verdict(["a", "b"], mine, theirs, {}, LIMITS)
    assert found.compared == ("a",)
    documents, probes, collapse, unscored = found.checks
    assert (documents.estimate, documents.documents) == (0.25, 1)
    assert (probes.estimate, probes.documents) == (-0.5, 1)
    assert (collapse.estimate, collapse.limit, collapse.documents) == (0.0, 0.5, 2)
    assert unscored.estimate == 0.5
    assert unscored.sentence.startswith("2 of the candidate's 4 and 2 of the baseline's; 1 of 2 documents")


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
