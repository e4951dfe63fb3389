"""The verdict of a regression test: pure statistics on paired scores.

Two losses are named: one that is of no concern (`tolerance`), and a larger one that must not be missed (`detectable`).
A candidate has regressed if it is shown to be worse at all, and by more than the tolerance as far as can be seen. It
passes if a loss of `detectable` is ruled out. So an unchanged student is called regressed, and one that lost
`detectable` or more is passed, in at most 1 - confidence of tests each; between the two losses either may be said.
Where neither is shown the data are too few, and the verdict says how many are needed.

The document is the unit. Bounds over documents know nothing of how much students differ that were trained with other
seeds, so what is called unchanged should be measured (`pipelines.regression.flakiness`). A way of adapting makes new
self-edits and new updates for each document, so that theirs hold what seeds do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from evaluation.gate.checks import (
    bounds_of,
    change_told,
    check_collapse,
    check_groups,
    check_without_scores,
    differences_of,
    measured_check,
    points,
)
from evaluation.gate.records import GateCheck, PairedScore, StatisticsConfig, Verdict
from evaluation.statistics import minimum_detectable_difference

Outcome = Literal["passed", "regressed", "undecided"]

EXIT_CODES: Mapping[Outcome, int] = {"passed": 0, "regressed": 1, "undecided": 3}
"""What the command exits with; 2 is misuse."""

DOCUMENTS, PROBES = "documents", "retention probes"
"""Names of the two checks that decide; groups can only add a loss."""
UNSCORED = "self-edits without a score"
"""Name of the check that too many of them leave undecided; of ways of adapting alone."""


class VerdictConfig(StatisticsConfig):
    """What counts as worse. Scores are in [0, 1]: 0.05 is 5 points."""

    tolerance: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Loss over all documents that is of no concern, in [0, 1)."""
    detectable: float = Field(default=0.10, gt=0.0, le=1.0)
    """Loss over all documents that must not be missed, in (0, 1], above `tolerance`."""
    group_tolerance: float = Field(default=0.15, gt=0.0, le=1.0)
    """Loss on the documents of one group which, if shown, is a regression whatever the others gain, in (0, 1]."""
    probe_tolerance: float = Field(default=0.10, ge=0.0, lt=1.0)
    """Like `tolerance`, for the retention probes."""
    probe_detectable: float = Field(default=0.20, gt=0.0, le=1.0)
    """Like `detectable`, for the retention probes."""
    most_collapsed: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of empty answers allowed, in [0, 1], or the baseline's where that is larger."""
    most_unscored: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the candidate's self-edits that may have no score, and of the documents that may be left out because one
    side has none for them, in [0, 1); with more nothing passes. Students have no self-edits."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for low, high in (("tolerance", "detectable"), ("probe_tolerance", "probe_detectable")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} must be below {high}, got {getattr(self, low)} and {getattr(self, high)}")
        return self


class Unscored(NamedTuple):
    """What is missing among the scores of two ways of adapting."""

    edits: tuple[int, int]
    """Self-edits of the candidate and of the baseline without a score: refused, or their updates failed."""
    written: int
    """Self-edits that each was to write, at least 1."""
    left_out: tuple[str, ...]
    """Ids of documents for which the candidate or the baseline has no score at all; they have no pair."""
    documents: int
    """Documents of the suite, at least 1."""


class Compared(NamedTuple):
    """Paired scores of a candidate and a baseline."""

    documents: tuple[PairedScore, ...]
    """One per question, under the id of its document."""
    probes: tuple[PairedScore, ...]
    """Of students one per probe; of ways of adapting one per document, over all probes, under its id; empty where the
    suite has none."""
    collapsed: tuple[int, int]
    """Empty answers of the candidate and of the baseline."""
    answered: tuple[int, int]
    """Answers of the candidate and of the baseline."""
    unscored: Unscored | None = None
    """None for students, which have all scores."""


class VerdictFound(NamedTuple):
    """The verdict with what it rests on."""

    outcome: Outcome
    checks: tuple[GateCheck, ...]
    minimum_detectable: float | None
    """Loss over all documents that this suite would tell from none with the power asked for; None if it cannot say."""


def find_verdict(compared: Compared, groups: Mapping[str, Sequence[str]], limits: VerdictConfig) -> VerdictFound:
    """Return whether the candidate regressed.

    Args:
        compared: Paired scores on all documents and probes.
        groups: Name -> ids of documents with a verdict of their own; one that is undecided does not count.
        limits: What counts as worse.
    """
    main = [check_regression(DOCUMENTS, compared.documents, limits.tolerance, limits.detectable, limits)]
    if compared.probes:
        limit = (limits.probe_tolerance, limits.probe_detectable)
        main.append(check_regression(PROBES, compared.probes, *limit, limits))
    allowed = limits.most_collapsed
    if compared.answered[1]:
        allowed = max(allowed, compared.collapsed[1] / compared.answered[1])
    main.append(check_collapse(compared.collapsed[0], compared.answered[0], allowed))
    if compared.unscored is not None:
        main.append(check_unscored(compared.unscored, limits.most_unscored))
    parts = {
        f"group {name}": [score for score in compared.documents if score.document in ids]
        for name, ids in ((name, set(ids)) for name, ids in groups.items())
    }
    grouped = check_groups(parts, limits.group_tolerance, limits)
    verdicts = {check.verdict for check in main}
    failed = "fail" in verdicts | {check.verdict for check in grouped}
    outcome: Outcome = "regressed" if failed else "undecided" if "undecided" in verdicts else "passed"
    detectable = minimum_detectable_difference(
        differences_of(compared.documents), power=limits.power, confidence=2.0 * limits.confidence - 1.0
    )
    return VerdictFound(outcome, (*main, *grouped), detectable)


def check_regression(
    name: str, scores: Sequence[PairedScore], tolerance: float, detectable: float, settings: StatisticsConfig
) -> GateCheck:
    """Return whether a loss is shown (`fail`), or one of `detectable` is ruled out (`pass`).

    Args:
        name: Of the check.
        scores: Paired; none is undecided.
        tolerance: Loss of no concern, in [0, 1).
        detectable: Loss that must not be missed, above `tolerance`.
        settings: How sure to be.
    """
    differences = differences_of(scores)
    if not differences:
        return check_without_scores(name, -tolerance, detectable, settings)
    found = bounds_of(differences, settings)
    lost = found.mean < -tolerance - 1e-12
    slack = found.mean + detectable
    if lost and found.high < 0.0:
        verdict: Verdict = "fail"
        sentence = f"{change_told(found.mean)}, more than chance and more than the {points(tolerance)} tolerated."
    elif found.low > -detectable:
        verdict = "pass"
        sentence = f"{change_told(found.mean)}; a loss of {points(detectable)} is ruled out."
    else:
        verdict = "undecided"
        slack = max(slack, -found.mean) if lost else slack
        sentence = f"{change_told(found.mean)}; a loss of {points(detectable)} is neither shown nor ruled out."
    return measured_check(name, verdict, sentence, found, -tolerance, differences, settings, slack=slack)


def check_unscored(unscored: Unscored, most: float) -> GateCheck:
    """Return whether few enough self-edits are without a score; too many are undecided, for no score is made up.

    Scores say what a self-edit teaches that came to one. Where many did not, they are about another part of the
    documents, and of what the teacher wrote, than the suite's.

    Args:
        unscored: What is missing.
        most: Share allowed of the candidate's self-edits, and of documents left out, in [0, 1).
    """
    mine, theirs = unscored.edits
    share = max(mine / unscored.written, len(unscored.left_out) / unscored.documents)
    sentence = (
        f"{mine} of the candidate's {unscored.written} and {theirs} of the baseline's; {len(unscored.left_out)} of "
        f"{unscored.documents} documents have none on one side and are left out. {most:.1%} are allowed."
    )
    verdict: Verdict = "pass" if share <= most else "undecided"
    return GateCheck(
        name=UNSCORED, verdict=verdict, sentence=sentence, estimate=share, limit=most, documents=unscored.written
    )
