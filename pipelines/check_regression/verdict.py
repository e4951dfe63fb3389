"""The verdict of a regression test, by pure statistics on paired scores, and the report that holds it.

The candidate has regressed if a loss is significant and the measured one exceeds `tolerance`; it passes if a loss of
`detectable` is ruled out. So an unchanged candidate is called regressed, and one that lost `detectable` or more passes,
in at most 1 - confidence of tests each; between the two losses either may happen. Otherwise the data are too few, and
the verdict says how many are needed. The document is the unit. Bounds over documents leave out how much students of
other training seeds differ (docs/regression.md measures it); those of variants include it, since each document has
self-edits and updates of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
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
from evaluation.tasks import KnowledgeTask
from pipelines.records import Record

Outcome = Literal["passed", "regressed", "undecided", "misuse"]
"""`undecided` is also an error. With `misuse` nothing was compared: an argument, the suite or its data were refused."""

DOCUMENTS, PROBES = "documents", "retention probes"
"""Names of the two checks that decide; groups can only add a loss."""
MOST_UNSCORED = 0.1
"""Share of the candidate's self-edits that may have no score, and of the documents that may be left out because one
side has none for them; with more nothing passes. Students have no self-edits."""
MOST_LOST = 10
"""Questions that a report names of those that got worse."""


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


class Reply(NamedTuple):
    """What a subject answers to one question."""

    text: str
    """The answer; empty for a variant, whose updates answer differently. Exact match writes none: then what greedy
    decoding writes, which after its first token that is not the gold answer's ends with `...`."""
    probability: float | None
    """Of the gold answer, in [0, 1]; of a variant the mean over updates; None for an endpoint, which does not say."""


class Scores(NamedTuple):
    """Scores of a student, or of a variant whose documents each have adapters of their own."""

    documents: dict[str, tuple[float | None, ...]]
    """Document id -> for each question, the share of updates after which it is answered correctly, in [0, 1]; of a
    student 0 or 1; None without a verdict of the grader. Documents without any score are missing."""
    probability: dict[str, float]
    """Document id -> mean probability of the gold answers, in [0, 1]."""
    probes: dict[str, float]
    """Of a student, probe -> 1 or 0; of a variant, document id -> share of the probes answered after its updates."""
    empty: int
    answered: int
    """Empty answers, and all of them, a student's to probes included."""
    replies: Mapping[str, tuple[Reply, ...]] = MappingProxyType({})
    """Document id -> the reply to each question, for the report alone."""
    adapter_digest: str | None = None
    """SHA-256 of the student's adapter, or of the teacher's policy; None for a base."""
    edits: EditsRecord | None = None
    """None for a student."""


class ComparedQuestion(Record):
    """A question with the scores of both subjects: shares of updates after which it is answered right, in [0, 1]."""

    document: str
    question: str
    gold: str
    candidate: float | None
    baseline: float | None
    candidate_answer: str = ""
    baseline_answer: str = ""
    candidate_probability: float | None = 0.0
    baseline_probability: float | None = 0.0
    """See `Reply`."""

    @property
    def lost(self) -> float:
        """How much the candidate is worse; 0 where one has no score."""
        both = self.candidate is not None and self.baseline is not None
        return (self.baseline or 0.0) - (self.candidate or 0.0) if both else 0.0


def compared_questions(tasks: Iterable[KnowledgeTask], mine: Scores, theirs: Scores) -> tuple[ComparedQuestion, ...]:
    """Return the questions on documents that both subjects have scores for, with what both answer."""
    return tuple(
        ComparedQuestion(
            document=task.id,
            question=question.question,
            gold=question.answer,
            candidate=ours,
            baseline=other,
            candidate_answer=after.text,
            baseline_answer=before.text,
            candidate_probability=after.probability,
            baseline_probability=before.probability,
        )
        for task in tasks
        for question, ours, other, after, before in zip(
            task.comparison_questions,
            *(scores.documents[task.id] for scores in (mine, theirs)),
            *(scores.replies[task.id] for scores in (mine, theirs)),
            strict=True,
        )
    )


def lost_questions(answers: Iterable[ComparedQuestion]) -> tuple[ComparedQuestion, ...]:
    """Return the questions that the candidate answers worse, the worst first; the gold answer's probability decides."""

    def order(each: ComparedQuestion) -> tuple[float, float]:
        return -each.lost, (each.candidate_probability or 0.0) - (each.baseline_probability or 0.0)

    return tuple(sorted((each for each in answers if each.lost > 0.0), key=order))


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
    answers: tuple[ComparedQuestion, ...] = Field(default=(), exclude=True)
    """Every question, for MLflow."""
    lost: tuple[ComparedQuestion, ...] = ()
    """At most `MOST_LOST` that the candidate answers worse, the worst first."""
    lost_count: int = 0
    """All that it answers worse."""
    seconds: float = 0.0
    mlflow_run_id: str | None = None
    mlflow: str = ""
    """Address of that run in MLflow."""

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return {"passed": 0, "regressed": 1, "misuse": 2, "undecided": 3}[self.outcome]

    @property
    def subjects(self) -> dict[str, SubjectRecord]:
        """Candidate and baseline by these names; empty where nothing was compared."""
        both = {"candidate": self.candidate, "baseline": self.baseline}
        return {name: subject for name, subject in both.items() if subject is not None}


class VerdictFound(NamedTuple):
    """The verdict with its checks."""

    outcome: Outcome
    checks: tuple[GateCheck, ...]
    minimum_detectable: float | None
    """Smallest loss over all documents that this suite detects with the configured power; None if unknown."""
    compared: tuple[str, ...]
    """Ids of the documents that both subjects have scores for; the others have no pair."""


def find_verdict(
    names: Sequence[str], mine: Scores, theirs: Scores, groups: Mapping[str, Sequence[str]], limits: VerdictConfig
) -> VerdictFound:
    """Return whether the candidate's scores on the documents of a suite are worse than the baseline's.

    Of `groups` (name -> document ids) only a significant loss counts. A variant's unit is the document, for the probes
    too: they are the same few after every update, and what varies is what was written and learned.
    """
    compared = tuple(name for name in names if name in mine.documents and name in theirs.documents)
    documents = [
        PairedScore(document=name, candidate=ours, reference=other)
        for name in compared
        for ours, other in zip(mine.documents[name], theirs.documents[name], strict=True)
        if ours is not None and other is not None
    ]
    probes = [
        PairedScore(document=name, candidate=share, reference=theirs.probes[name])
        for name, share in mine.probes.items()
        if name in theirs.probes
    ]
    main = [check_loss(DOCUMENTS, documents, limits.tolerance, limits.detectable, limits)]
    if probes:
        main.append(check_loss(PROBES, probes, limits.probe_tolerance, limits.probe_detectable, limits))
    allowed = max(limits.most_collapsed, theirs.empty / theirs.answered if theirs.answered else 0.0)
    main.append(check_collapse(mine.empty, mine.answered, allowed))
    if mine.edits is not None and theirs.edits is not None:
        main.append(check_unscored(mine.edits, theirs.edits, len(names) - len(compared), len(names)))
    parts = {
        f"group {name}": [score for score in documents if score.document in set(ids)] for name, ids in groups.items()
    }
    grouped = check_groups(parts, limits.group_tolerance, limits)
    verdicts = {check.verdict for check in main}
    failed = "fail" in verdicts | {check.verdict for check in grouped}
    outcome: Outcome = "regressed" if failed else "undecided" if "undecided" in verdicts else "passed"
    differences = differences_of(documents)
    detectable = minimum_detectable_difference(differences, confidence=2.0 * limits.confidence - 1.0)
    return VerdictFound(outcome, (*main, *grouped), detectable, compared)


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


def check_unscored(mine: EditsRecord, theirs: EditsRecord, left_out: int, documents: int) -> GateCheck:
    """Return `pass` if at most `MOST_UNSCORED` of self-edits and documents is without a score, else `undecided`.

    Where many have none, the remaining scores cover other documents, and other self-edits, than the suite's.
    """
    share = max(mine.missing / mine.written, left_out / documents)
    return GateCheck(
        name="self-edits without a score",
        verdict="pass" if share <= MOST_UNSCORED else "undecided",
        sentence=f"{mine.missing} of the candidate's {mine.written} and {theirs.missing} of the baseline's; {left_out} "
        f"of {documents} documents have none on one side and are left out. {MOST_UNSCORED:.1%} are allowed.",
        estimate=share,
        limit=MOST_UNSCORED,
        documents=mine.written,
    )
