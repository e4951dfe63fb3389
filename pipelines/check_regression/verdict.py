"""The verdict of a regression test: pure statistics on paired scores.

The candidate has regressed if a loss is significant and the measured one exceeds `tolerance`; it passes if a loss of
`detectable` is ruled out. So an unchanged candidate is called regressed, and one that lost `detectable` or more passes,
in at most 1 - confidence of tests each; between the two losses either may happen. Otherwise the data are too few, and
the verdict says how many are needed. The document is the unit. Bounds over documents leave out how much students of
other training seeds differ (docs/regression.md measures it); those of variants include it, since each document has
self-edits and updates of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from evaluation.gate.checks import (
    GateCheck,
    PairedScore,
    StatisticsConfig,
    Verdict,
    bounds_of,
    check_collapse,
    check_groups,
    check_without_scores,
    describe_change,
    differences_of,
    measured_check,
    points,
)
from evaluation.statistics import minimum_detectable_difference

Outcome = Literal["passed", "regressed", "undecided"]

EXIT_CODES: Mapping[Outcome, int] = {"passed": 0, "regressed": 1, "undecided": 3}
"""Of the command; 2 is misuse."""

DOCUMENTS, PROBES = "documents", "retention probes"
"""Names of the two checks that decide; groups can only add a loss."""
MOST_UNSCORED = 0.1
"""Share of the candidate's self-edits that may have no score, and of the documents that may be left out because one
side has none for them; with more nothing passes. Students have no self-edits."""
UNSCORED = "self-edits without a score"
"""Name of the check of variants alone; too many of them leave the verdict undecided."""


class VerdictConfig(StatisticsConfig):
    """What counts as worse. Scores are in [0, 1]: 0.05 is 5 points."""

    tolerance: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Loss over all documents that is of no concern, in [0, 1)."""
    detectable: float = Field(default=0.10, gt=0.0, le=1.0)
    """Loss over all documents that must not be missed, in (0, 1], above `tolerance`."""
    group_tolerance: float = Field(default=0.15, gt=0.0, le=1.0)
    """Loss on the documents of one group which, if significant, is a regression whatever the others gain, in (0, 1]."""
    probe_tolerance: float = Field(default=0.10, ge=0.0, lt=1.0)
    """Like `tolerance`, for the retention probes, in [0, 1)."""
    probe_detectable: float = Field(default=0.20, gt=0.0, le=1.0)
    """Like `detectable`, for the retention probes, in (0, 1]."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for low, high in (("tolerance", "detectable"), ("probe_tolerance", "probe_detectable")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"{low} must be below {high}, got {getattr(self, low)} and {getattr(self, high)}")
        return self


class Unscored(NamedTuple):
    """What is missing among the scores of two variants."""

    edits: tuple[int, int]
    """Self-edits of the candidate and of the baseline without a score: refused, or their updates failed."""
    written: int
    """Self-edits that each was to write, at least 1."""
    left_out: tuple[str, ...]
    """Ids of documents without any score on one side."""
    documents: int
    """Documents of the suite, at least 1."""


class Compared(NamedTuple):
    """Paired scores; the pairs of numbers are the candidate's and the baseline's."""

    documents: tuple[PairedScore, ...]
    """One per question, under the id of its document."""
    probes: tuple[PairedScore, ...]
    """Of students one per probe; of variants one per document, over all probes, under its id; empty without probes."""
    collapsed: tuple[int, int]
    """Empty answers."""
    answered: tuple[int, int]
    unscored: Unscored | None = None
    """None for students, which have all scores."""


class VerdictFound(NamedTuple):
    """The verdict with its checks."""

    outcome: Outcome
    checks: tuple[GateCheck, ...]
    minimum_detectable: float | None
    """Smallest loss over all documents that this suite detects with the configured power; None if unknown."""


def find_verdict(compared: Compared, groups: Mapping[str, Sequence[str]], limits: VerdictConfig) -> VerdictFound:
    """Return whether the candidate regressed; of `groups` (name -> document ids) only a significant loss counts."""
    main = [check_loss(DOCUMENTS, compared.documents, limits.tolerance, limits.detectable, limits)]
    if compared.probes:
        main.append(check_loss(PROBES, compared.probes, limits.probe_tolerance, limits.probe_detectable, limits))
    allowed = limits.most_collapsed
    if compared.answered[1]:
        allowed = max(allowed, compared.collapsed[1] / compared.answered[1])
    main.append(check_collapse(compared.collapsed[0], compared.answered[0], allowed))
    if compared.unscored is not None:
        main.append(check_unscored(compared.unscored, MOST_UNSCORED))
    parts = {
        f"group {name}": [score for score in compared.documents if score.document in set(ids)]
        for name, ids in groups.items()
    }
    grouped = check_groups(parts, limits.group_tolerance, limits)
    verdicts = {check.verdict for check in main}
    failed = "fail" in verdicts | {check.verdict for check in grouped}
    outcome: Outcome = "regressed" if failed else "undecided" if "undecided" in verdicts else "passed"
    differences = differences_of(compared.documents)
    detectable = minimum_detectable_difference(differences, confidence=2.0 * limits.confidence - 1.0)
    return VerdictFound(outcome, (*main, *grouped), detectable)


def check_loss(
    name: str, scores: Sequence[PairedScore], tolerance: float, detectable: float, settings: StatisticsConfig
) -> GateCheck:
    """Return whether a loss above `tolerance` is significant (`fail`), or one of `detectable` ruled out (`pass`)."""
    differences = differences_of(scores)
    if not differences:
        return check_without_scores(name, -tolerance, detectable, settings)
    found = bounds_of(differences, settings)
    lost = found.mean < -tolerance - 1e-12
    slack = found.mean + detectable
    if lost and found.high < 0.0:
        verdict: Verdict = "fail"
        sentence = f"{describe_change(found.mean)}, significant and more than the {points(tolerance)} tolerated."
    elif found.low > -detectable:
        verdict = "pass"
        sentence = f"{describe_change(found.mean)}; a loss of {points(detectable)} is ruled out."
    else:
        verdict = "undecided"
        slack = max(slack, -found.mean) if lost else slack
        sentence = (
            f"{describe_change(found.mean)}; a loss of {points(detectable)} is neither significant nor ruled out."
        )
    return measured_check(name, verdict, sentence, found, -tolerance, differences, settings, slack=slack)


def check_unscored(unscored: Unscored, most: float) -> GateCheck:
    """Return `pass` if at most a share `most` of self-edits and documents is without a score, else `undecided`.

    Where many have none, the remaining scores cover other documents, and other self-edits, than the suite's.
    """
    mine, theirs = unscored.edits
    share = max(mine / unscored.written, len(unscored.left_out) / unscored.documents)
    sentence = (
        f"{mine} of the candidate's {unscored.written} and {theirs} of the baseline's; {len(unscored.left_out)} of "
        f"{unscored.documents} documents have none on one side and are left out. {most:.1%} are allowed."
    )
    found = {"name": UNSCORED, "estimate": share, "limit": most, "documents": unscored.written}
    return GateCheck(verdict="pass" if share <= most else "undecided", sentence=sentence, **found)
