from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from evaluation.common.errors import InputError
from evaluation.gate.checks import (
    GateCheck,
    PairedScore,
    StatisticsConfig,
    bounds_of,
    check_groups,
    differences_of,
    needed_documents,
)
from evaluation.gate.decisions import GateConfig, GateEvidence, GateReport, decide, report_markdown
from evaluation.statistics import bootstrap_mean
from tests.evaluation.factories import ends

RANK = {"reject": 0, "hold": 1, "promote": 2}
QUICK = GateConfig(resamples=1000)
GOOD: dict[str, Any] = {"canaries": {"digest": None}, "answered": 100, "collapsed": 0}

Pairs = list[tuple[float, float]]
share = st.integers(0, 8).map(lambda right: right / 8)
pairs = st.lists(st.tuples(share, share), min_size=1, max_size=14)


def scores(of: Sequence[tuple[float, float]]) -> tuple[PairedScore, ...]:
    return tuple(PairedScore(document=f"d{i:03d}", candidate=c, reference=r) for i, (c, r) in enumerate(of))


def changed(differences: Sequence[float]) -> tuple[PairedScore, ...]:
    """Return pairs with these differences."""
    return scores([((1 + d) / 2, (1 - d) / 2) for d in differences])


def well(count: int = 200) -> GateEvidence:
    """Return the evidence of a candidate that is as good as can be."""
    same = changed([0.0] * count)
    return GateEvidence(new=changed([0.6] * count), earlier={"monday": same}, probes={"known": same}, **GOOD)


def check(report: GateReport, name: str) -> GateCheck:
    return next(found for found in report.checks if found.name == name)


# Bounds


@pytest.mark.parametrize(("right", "count"), [(0, 10), (3, 20), (57, 60)])
def test_bounds_of_right_and_wrong_answers_are_clopper_and_pearsons(right: int, count: int) -> None:
    # Clopper and Pearson 1934, one-sided at 95 %, as quantiles of beta distributions.
    found = bounds_of([1.0] * right + [-1.0] * (count - right), StatisticsConfig(resamples=40_000))
    low = beta.ppf(0.05, right, count - right + 1) if right else 0.0
    high = beta.ppf(0.95, right + 1, count - right)
    assert found.low == pytest.approx(2 * low - 1, abs=0.01)
    assert found.high == pytest.approx(2 * high - 1, abs=0.01)


def test_bounds_of_equal_scores_are_the_exact_ones_of_the_bootstrap() -> None:
    found = bounds_of([0.25] * 30, StatisticsConfig(resamples=40_000))
    exact = bootstrap_mean([0.25] * 30, confidence=0.95, bounds=(-1.0, 1.0))
    assert ends(found) == pytest.approx(ends(exact), abs=0.005)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-8, 8).map(lambda d: d / 8), min_size=1, max_size=20), st.data())
def test_bounds_never_fall_when_a_document_gains(differences: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(differences) - 1))
    better = list(differences)
    better[place] = data.draw(st.floats(differences[place], 1.0))
    draws = StatisticsConfig(confidence=0.9, resamples=1000)
    before, after = (bounds_of(d, draws) for d in (differences, better))
    assert after.low >= before.low - 1e-12
    assert after.high >= before.high - 1e-12
    assert before.low <= before.mean <= before.high


def test_bounds_hold_where_the_bootstraps_do_not_for_rare_whole_losses() -> None:
    rng = np.random.default_rng(1)
    wrong = {"bootstrap": 0, "gate": 0}
    runs, documents, lost = 300, 30, 0.05
    for _ in range(runs):
        noise = rng.choice([-1 / 16, 0.0, 1 / 16], documents)
        drawn = np.where(rng.random(documents) < lost, -1.0, noise).tolist()
        bootstrap = bootstrap_mean(drawn, confidence=0.9, resamples=500, bounds=(-1.0, 1.0))
        wrong["bootstrap"] += bootstrap.low > -lost
        wrong["gate"] += bounds_of(drawn, QUICK).low > -lost
    # 21 % and 0 % of 600 runs with other seeds: the first is why the gate has bounds of its own.
    assert wrong["bootstrap"] / runs > 0.1
    assert wrong["gate"] / runs <= 0.05


@pytest.mark.parametrize("bad", [[], [1.5], [float("nan")]], ids=["none", "outside", "no number"])
def test_bounds_refuse_what_is_no_difference(bad: list[float]) -> None:
    with pytest.raises(InputError, match="allowed is at least one"):
        bounds_of(bad, QUICK)


def spread_of(sd: float) -> list[float]:
    """Return two differences with a sample standard deviation."""
    return [-sd / 2**0.5, sd / 2**0.5]


@pytest.mark.parametrize(("spread", "slack"), [(0.2, 0.05), (0.1, 0.05), (0.32, 0.1)])
def test_needed_documents_decide_about_as_often_as_they_should(spread: float, slack: float) -> None:
    count = needed_documents(spread_of(spread), 0.0, slack, 0.95)
    assert count is not None
    rng = np.random.default_rng(2)

    def power(documents: int) -> float:
        drawn = [rng.normal(0.0, spread, documents).clip(-1, 1).tolist() for _ in range(200)]
        return sum(bounds_of(d, QUICK).low > -slack for d in drawn) / 200

    assert 0.65 <= power(count) <= 0.92
    assert power(count // 2) < 0.6


def test_needed_documents_grow_as_the_margin_nears_and_end() -> None:
    found = [needed_documents(spread_of(0.2), 0.0, slack, 0.95) for slack in (0.2, 0.1, 0.05, 0.01)]
    assert found == sorted(found, key=lambda n: n or 0)
    assert needed_documents(spread_of(0.2), 0.0, 0.0, 0.95) is None
    assert needed_documents(spread_of(0.2), 0.0, 1e-5, 0.95) is None
    seals = needed_documents(spread_of(0.32), 0.0, 0.1, 0.95)
    assert needed_documents([0.1], 0.0, 0.1, 0.95) == needed_documents([0.1, 0.1], 0.0, 0.1, 0.95) == seals


def test_differences_average_the_questions_of_a_document() -> None:
    asked = [("a", 1.0, 0.0), ("b", 0.0, 1.0), ("a", 0.0, 0.0)]
    assert differences_of([PairedScore(document=d, candidate=c, reference=r) for d, c, r in asked]) == [0.5, -1.0]


# Decisions


@pytest.mark.parametrize(
    "change",
    [{}, {"earlier": {}}, {"touched": changed([0.0] * 3)}],
    ids=["everything", "first night", "keeps what it knew of the subjects"],
)
def test_a_candidate_that_shows_what_is_asked_for_is_promoted(change: dict[str, Any]) -> None:
    report = decide(well().model_copy(update=change), GateConfig())
    assert report.decision == "promote"
    assert {found.verdict for found in report.checks} == {"pass"}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"canaries": {"digest": None, "base": "the base moved"}}, ["canaries"]),
        ({"collapsed": 3}, ["empty or degenerate answers"]),
        ({"new": changed([-0.2] * 200)}, ["new documents"]),
        ({"earlier": {"monday": changed([-0.2] * 200)}}, ["earlier documents", "night monday"]),
        ({"earlier": {"monday": changed([0.0] * 400), "tuesday": changed([-0.9] * 12)}}, ["night tuesday"]),
        ({"probes": {"known": changed([-0.3] * 200)}}, ["probes known"]),
        ({"touched": changed([-1.0] * 12 + [0.0] * 12)}, ["contradiction check"]),
    ],
    ids=["canary", "collapse", "no gain", "forgets", "one night", "probes", "contradicts"],
)
def test_anything_shown_to_be_wrong_rejects(change: dict[str, Any], failing: list[str]) -> None:
    report = decide(well().model_copy(update=change), GateConfig())
    assert report.decision == "reject"
    assert [found.name for found in report.checks if found.verdict == "fail"] == failing


@pytest.mark.parametrize(
    ("change", "name", "has_number"),
    [
        ({"new": ()}, "new documents", True),
        ({"new": changed([0.6] * 3)}, "new documents", True),
        ({"earlier": {"monday": ()}}, "earlier documents", True),
        ({"earlier": {"monday": changed([0.0] * 400), "tuesday": ()}}, "night tuesday", True),
        ({"earlier": {"monday": changed([0.0] * 400), "tuesday": changed([-1.0, 0.0])}}, "night tuesday", True),
        ({"earlier": {"monday": changed([0.0] * 12)}}, "earlier documents", True),
        ({"probes": {}}, "probes", True),
        ({"probes": {"known": changed([0.0] * 12)}}, "probes known", True),
        ({"canaries": {}}, "canaries", True),
        ({"answered": 0}, "empty or degenerate answers", True),
        ({"touched": changed([-1.0])}, "contradiction check", True),
        ({"unscored": ("d1",)}, "documents without a score", False),
    ],
)
def test_anything_not_shown_either_way_holds(change: dict[str, Any], name: str, has_number: bool) -> None:
    report = decide(well().model_copy(update=change), GateConfig())
    assert report.decision == "hold"
    found = check(report, name)
    assert found.verdict == "undecided"
    assert (found.needed is not None) is has_number
    assert found.needed is None or found.needed > (found.documents or 0)
    assert name in [other.name for other in report.checks if other.verdict != "pass"]


def test_the_number_that_a_held_candidate_needs_is_enough() -> None:
    rng = np.random.default_rng(5)
    few = well().model_copy(update={"earlier": {"monday": changed(rng.normal(0.0, 0.1, 30).clip(-1, 1).tolist())}})
    held = check(decide(few, QUICK), "earlier documents")
    assert held.verdict == "undecided"
    assert held.needed is not None
    passed = 0
    for _ in range(60):
        drawn = rng.normal(0.0, 0.1, held.needed).clip(-1, 1).tolist()
        more = well().model_copy(update={"earlier": {"monday": changed(drawn)}})
        passed += check(decide(more, QUICK), "earlier documents").verdict == "pass"
    assert passed >= 60 * 0.65


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-8, 8).map(lambda d: d / 8), min_size=2, max_size=10))
def test_more_of_the_same_resolves_a_hold(differences: list[float]) -> None:
    mean = sum(differences) / len(differences)
    margin = GateConfig().new_margin
    many = well().model_copy(update={"new": changed(differences * (4000 // len(differences)))})
    if abs(mean - margin) > 0.05:
        assert decide(many, QUICK).decision == ("promote" if mean > margin else "reject")


@st.composite
def evidence(draw: st.DrawFn) -> dict[str, Any]:
    answered = draw(st.integers(0, 40))
    return {
        "new": draw(pairs),
        "earlier": draw(st.dictionaries(st.sampled_from(["monday", "tuesday", "friday"]), pairs, max_size=3)),
        "probes": draw(st.dictionaries(st.sampled_from(["known", "style"]), pairs, max_size=2)),
        "answered": answered,
        "collapsed": draw(st.integers(0, answered)),
        "canaries": draw(st.dictionaries(st.sampled_from(["digest", "base"]), st.none() | st.just("moved"))),
    }


def built(drawn: dict[str, Any], turn: int = 1) -> GateEvidence:
    """Return the evidence; `turn` -1 lists all documents the other way round."""
    groups = {
        part: {name: scores(listed)[::turn] for name, listed in drawn[part].items()} for part in ("earlier", "probes")
    }
    return GateEvidence.model_validate({**drawn, "new": scores(drawn["new"])[::turn], **groups})


LENIENT = GateConfig(new_margin=0.0, earlier_margin=0.5, group_margin=0.5, probe_margin=0.6, resamples=1000)


@settings(deadline=None, max_examples=100)
@given(evidence(), st.data())
def test_a_better_candidate_is_never_decided_worse(drawn: dict[str, Any], data: st.DataObject) -> None:
    def raised(listed: Pairs) -> Pairs:
        return [(data.draw(st.sampled_from([c, c, min(1.0, c + 0.25), 1.0])), r) for c, r in listed]

    better = {
        **drawn,
        "new": raised(drawn["new"]),
        "earlier": {name: raised(listed) for name, listed in drawn["earlier"].items()},
        "probes": {name: raised(listed) for name, listed in drawn["probes"].items()},
        "collapsed": data.draw(st.integers(0, drawn["collapsed"])),
        "canaries": {name: data.draw(st.sampled_from([None, reason])) for name, reason in drawn["canaries"].items()},
    }
    before, after = decide(built(drawn), LENIENT), decide(built(better), LENIENT)
    assert RANK[after.decision] >= RANK[before.decision]


@settings(deadline=None, max_examples=60)
@given(evidence())
def test_nothing_is_promoted_past_a_check_that_does_not_pass_in_any_order(drawn: dict[str, Any]) -> None:
    report = decide(built(drawn), LENIENT)
    assert report == decide(built(drawn, -1), LENIENT)
    verdicts = {found.verdict for found in report.checks}
    assert (report.decision == "promote") == (verdicts == {"pass"})
    assert (report.decision == "reject") == ("fail" in verdicts)


@pytest.mark.parametrize("margin", ["new", "earlier", "probes"])
def test_candidates_at_a_margin_are_promoted_no_more_often_than_the_level_allows(margin: str) -> None:
    rng, runs, documents = np.random.default_rng(11), 250, 60
    config = GateConfig(new_margin=0.1, earlier_margin=0.1, group_margin=0.9, probe_margin=0.1, resamples=1000)
    promoted = 0
    for _ in range(runs):
        # A tenth of the documents changes wholly, or all change by a tenth: the mean is at the margin either way.
        whole = (rng.random(documents) < 0.1).astype(float)
        spread = (0.1 + rng.choice([-0.125, 0.0, 0.125], documents)).clip(-1, 1)
        at_margin = whole if rng.random() < 0.5 else spread
        changes: dict[str, dict[str, Any]] = {
            "new": {"new": changed(at_margin.tolist())},
            "earlier": {"earlier": {"monday": changed((-at_margin).tolist())}},
            "probes": {"probes": {"known": changed((-at_margin).tolist())}},
        }
        promoted += decide(well(60).model_copy(update=changes[margin]), config).decision == "promote"
    # 5 %, and three standard errors of 250 runs.
    assert promoted / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_an_unchanged_night_among_many_is_seldom_rejected_and_a_lost_one_is() -> None:
    rng, runs, rejected = np.random.default_rng(7), 100, 0
    for _ in range(runs):
        nights = {f"n{i}": changed(rng.normal(0.0, 0.2, 10).clip(-1, 1).tolist()) for i in range(20)}
        rejected += any(found.verdict == "fail" for found in check_groups(nights, 0.15, QUICK))
    assert rejected / runs <= 0.05
    nights["n7"] = changed([-0.8] * 10)
    assert {found.name: found.verdict for found in check_groups(nights, 0.15, QUICK)}["n7"] == "fail"


# The page


def test_the_page_says_the_decision_first_and_why_and_fits_on_a_screen() -> None:
    nights = {f"2026-{i:03d}": changed([0.01 * (i % 3)] * 5) for i in range(300)}
    nights["2026-007 | poisoned"] = changed([-0.9] * 20)
    page = report_markdown(decide(well().model_copy(update={"earlier": nights}), QUICK))
    lines = page.splitlines()
    assert lines[0] == "# Gate: REJECT"
    assert len(lines) < 30
    assert "**FAIL** night 2026-007 \\| poisoned: A loss of 90.0 points" in page
    assert "| 296 more nights | pass |" in page
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
