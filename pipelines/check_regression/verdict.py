"""The verdict of a regression test, by pure statistics on paired scores, and the report that holds it.

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
from pipelines.records import Record

Outcome = Literal["passed", "regressed", "undecided"]

DOCUMENTS, PROBES = "documents", "retention probes"
"""Names of the two checks that decide; groups can only add a loss."""
MOST_UNSCORED = 0.1
"""Share of the candidate's self-edits that may have no score, and of the documents that may be left out because one
side has none for them; with more nothing passes. Students have no self-edits."""


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
    written: int
    """Self-edits of the candidate and of the baseline without a score, and how many each was to write, at least 1."""
    left_out: tuple[str, ...]
    documents: int
    """Ids of documents without any score on one side, and how many the suite has, at least 1."""


class Compared(NamedTuple):
    """Paired scores; the pairs of numbers are the candidate's and the baseline's."""

    documents: tuple[PairedScore, ...]
    """One per question, under the id of its document."""
    probes: tuple[PairedScore, ...]
    """Of students one per probe; of variants one per document, over all probes, under its id; empty without probes."""
    collapsed: tuple[int, int]
    """Empty ones of the answers."""
    answered: tuple[int, int]
    unscored: Unscored | None = None
    """None for students, which have all scores."""


class VerdictFound(NamedTuple):
    """The verdict with its checks."""

    outcome: Outcome
    checks: tuple[GateCheck, ...]
    minimum_detectable: float | None
    """Smallest loss over all documents that this suite detects with the configured power; None if unknown."""


class EditsRecord(Record):
    """The self-edits of a variant."""

    digest: str
    """SHA-256 of everything that decides the variant's scores on the suite: teacher, prompt, sampling, recipe."""
    written: int
    """Self-edits that were to be written, at least 1."""
    unscored: dict[str, int]
    """Those without a score, by reason (`RewardFailure`)."""

    @property
    def missing(self) -> int:
        """Self-edits without a score, in [0, written]."""
        return sum(self.unscored.values())


class SubjectRecord(Record):
    """The candidate or the baseline."""

    subject: str
    """As written on the command line."""
    adapter_digest: str | None
    """SHA-256 of its adapter, for a variant the teacher's; None for a base."""
    version: int | None
    """Number of the registered version; None for others."""
    accuracy: float | None
    probability: float | None
    """Means over documents of the share of right answers and of the gold answers' probability, in [0, 1]. Of variants,
    over the documents that both have scores for and over each document's updates; None without any."""
    probes: float | None
    """Share of retention probes answered, in [0, 1], of variants after each update; None without any."""
    edits: EditsRecord | None = None
    """None for students."""


class RegressionReport(Record):
    """The result of `check-regression`."""

    suite: str
    suite_digest: str
    outcome: Outcome
    problem: str = ""
    """Why nothing could be compared; empty where something was."""
    candidate: SubjectRecord | None = None
    baseline: SubjectRecord | None = None
    checks: tuple[GateCheck, ...] = ()
    limits: VerdictConfig
    minimum_detectable: float | None = None
    """See `VerdictFound`."""
    documents: int = 0
    left_out: tuple[str, ...] = ()
    questions: int = 0
    """Documents of the suite, ids of those for which a variant has no score, and questions on the others."""
    seconds: float = 0.0
    mlflow_run_id: str | None = None

    @property
    def exit_code(self) -> int:
        """Of the command; 2 is misuse."""
        return {"passed": 0, "regressed": 1, "undecided": 3}[self.outcome]

    @property
    def subjects(self) -> dict[str, SubjectRecord]:
        """Candidate and baseline by these names; empty where nothing was compared."""
        both = {"candidate": self.candidate, "baseline": self.baseline}
        return {name: subject for name, subject in both.items() if subject is not None}


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
        main.append(check_unscored(compared.unscored))
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


def check_unscored(unscored: Unscored) -> GateCheck:
    """Return `pass` if at most `MOST_UNSCORED` of self-edits and documents is without a score, else `undecided`.

    Where many have none, the remaining scores cover other documents, and other self-edits, than the suite's.
    """
    mine, theirs = unscored.edits
    share = max(mine / unscored.written, len(unscored.left_out) / unscored.documents)
    return GateCheck(
        name="self-edits without a score",
        verdict="pass" if share <= MOST_UNSCORED else "undecided",
        sentence=f"{mine} of the candidate's {unscored.written} and {theirs} of the baseline's; "
        f"{len(unscored.left_out)} of {unscored.documents} documents have none on one side and are left out. "
        f"{MOST_UNSCORED:.1%} are allowed.",
        estimate=share,
        limit=MOST_UNSCORED,
        documents=unscored.written,
    )
