from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluation.gate import GateCheck, PairedScore
from pipelines.regression.verdict import (
    EXIT_CODES,
    Compared,
    Outcome,
    VerdictConfig,
    VerdictFound,
    check_regression,
    find_verdict,
)

LIMITS = VerdictConfig(resamples=1000)
RANK: dict[Outcome, int] = {"regressed": 0, "undecided": 1, "passed": 2}


def changed(differences: Sequence[float]) -> tuple[PairedScore, ...]:
    return tuple(
        PairedScore(document=f"d{i:03d}", candidate=(1 + d) / 2, reference=(1 - d) / 2)
        for i, d in enumerate(differences)
    )


def verdict(
    differences: Sequence[float],
    *,
    probes: Sequence[float] = (),
    collapsed: tuple[int, int] = (0, 0),
    groups: dict[str, tuple[str, ...]] | None = None,
    limits: VerdictConfig = LIMITS,
) -> VerdictFound:
    compared = Compared(changed(differences), changed(probes), collapsed, (100, 100))
    return find_verdict(compared, groups or {}, limits)


def named(found: VerdictFound, name: str) -> GateCheck:
    return next(check for check in found.checks if check.name == name)


def test_verdicts_of_clear_cases_and_their_exit_codes() -> None:
    assert verdict([0.0] * 80).outcome == "passed"
    assert verdict([-0.2] * 80).outcome == "regressed"
    assert verdict([0.0] * 5).outcome == "undecided"
    assert [EXIT_CODES[outcome] for outcome in ("passed", "regressed", "undecided")] == [0, 1, 3]


def test_a_loss_within_the_tolerance_passes_even_where_it_is_shown() -> None:
    found = verdict([-0.04] * 400)
    assert named(found, "documents").high is not None
    assert (named(found, "documents").high or 0.0) < 0.0
    assert found.outcome == "passed"


def test_too_few_documents_are_told_how_many_would_do_and_those_do() -> None:
    rng = np.random.default_rng(3)
    few = named(verdict(rng.normal(0.0, 0.1, 20).tolist()), "documents")
    assert few.verdict == "undecided"
    assert few.needed is not None
    assert f"About {few.needed} would decide" in few.sentence
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


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-8, 8).map(lambda d: d / 8), min_size=1, max_size=20), st.data())
def test_a_better_candidate_has_no_worse_verdict_in_any_order(differences: list[float], data: st.DataObject) -> None:
    limits = VerdictConfig(resamples=1000, tolerance=0.2, detectable=0.5)
    place = data.draw(st.integers(0, len(differences) - 1))
    better = list(differences)
    better[place] = data.draw(st.sampled_from([d / 8 for d in range(-8, 9) if d / 8 >= differences[place]]))
    before = check_regression("documents", changed(differences), 0.2, 0.5, limits)
    after = check_regression("documents", changed(better), 0.2, 0.5, limits)
    order = {"fail": 0, "undecided": 1, "pass": 2}
    assert order[after.verdict] >= order[before.verdict]
    assert check_regression("documents", changed(differences[::-1]), 0.2, 0.5, limits) == before


def test_limits_out_of_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="tolerance must be below detectable"):
        VerdictConfig(tolerance=0.1, detectable=0.1)
    with pytest.raises(ValidationError, match="probe_tolerance must be below probe_detectable"):
        VerdictConfig(probe_tolerance=0.3, probe_detectable=0.2)
