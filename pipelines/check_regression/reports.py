"""Results of a regression test: a record for scripts, a Markdown page for reviewers, JUnit XML for CI servers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from evaluation.common.storage import write_atomically
from evaluation.gate.checks import GateCheck, points
from evaluation.gate.decisions import check_table, escaped
from evaluation.statistics import POWER
from pipelines.check_regression.verdict import EXIT_CODES, Outcome, VerdictConfig
from pipelines.records import Record
from pipelines.reports import format


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
    """Mean over documents of the share of right answers, in [0, 1]. Of variants, over the documents that both have
    scores for and over each document's updates; None without any."""
    probability: float | None
    """Mean over documents of the mean probability of the gold answers, in [0, 1]; None as above."""
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
    """Of the suite."""
    left_out: tuple[str, ...] = ()
    """Ids of those for which a variant has no score."""
    questions: int = 0
    """Of the others."""
    seconds: float = 0.0
    mlflow_run_id: str | None = None

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return EXIT_CODES[self.outcome]

    @property
    def subjects(self) -> dict[str, SubjectRecord]:
        """Candidate and baseline by these names; empty where nothing was compared."""
        both = {"candidate": self.candidate, "baseline": self.baseline}
        return {name: subject for name, subject in both.items() if subject is not None}


class ReportPaths(NamedTuple):
    """Files to write; None writes none."""

    junit: Path | None = None
    json: Path | None = None
    markdown: Path | None = None


_HEADINGS: dict[Outcome, str] = {
    "passed": "the candidate is no worse",
    "regressed": "the candidate is worse",
    "undecided": "too little data, or an error",
}


def regression_markdown(report: RegressionReport) -> str:
    """Return the page for reviewers: the verdict, its reasons, and a table of the checks."""
    heading = f"# {report.outcome.upper()}: {_HEADINGS[report.outcome]}"
    lines = [heading, "", f"Suite {escaped(report.suite)} (`{report.suite_digest[:12]}`)", ""]
    if report.problem:
        return "\n".join([*lines, f"Nothing was compared: {escaped(report.problem)}"]) + "\n"
    reasons = [check for check in report.checks if check.verdict != "pass"]
    lines += [f"- {escaped(check.name)}: {escaped(check.sentence)}" for check in reasons]
    lines += [""] if reasons else []
    lines += [*_subjects_table(report), "", *check_table(report.checks), "", _footnote(report)]
    return "\n".join(lines) + "\n"


def _subjects_table(report: RegressionReport) -> list[str]:
    variants = any(subject.edits is not None for subject in report.subjects.values())
    columns = ["variant" if variants else "student", "right answers", "probability of the right answer"]
    columns += ["retention probes", *(["self-edits", "without a score"] if variants else [])]
    rows = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for name, subject in report.subjects.items():
        figures = (subject.accuracy, subject.probability, subject.probes)
        cells = [
            f"{name} `{escaped(subject.subject)}`",
            *("" if f is None else f"{format.percent(f)}%" for f in figures),
        ]
        if subject.edits is not None:
            reasons = ", ".join(f"{reason} {count}" for reason, count in subject.edits.unscored.items())
            cells += [str(subject.edits.written), f"{subject.edits.missing} ({reasons})" if reasons else "0"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _footnote(report: RegressionReport) -> str:
    limits, seen = report.limits, report.minimum_detectable
    left_out = f", {len(report.left_out)} left out" if report.left_out else ""
    least = "" if seen is None else f" Smallest loss detectable with {POWER:.0%} power: {points(seen)}."
    return (
        f"{report.documents} documents{left_out}, {report.questions} questions. Changes are candidate minus baseline "
        f"in points, with one-sided {limits.confidence:.0%} bounds over documents; `needed` documents would decide "
        f"with {POWER:.0%} power.{least}"
    )


def junit_xml(report: RegressionReport) -> str:
    """Return JUnit XML with one test case for each check.

    A loss is a failure and an undecided check an error; an undecided group decides nothing and is skipped.
    """
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(f"preceptor check-regression {report.suite}")
    for check in report.checks:
        case = TestCase(check.name, classname=report.suite)
        if check.verdict == "fail":
            case.result = [Failure(_measured(check), "regression")]
        elif check.verdict == "undecided":
            kind = Skipped if check.name.startswith("group ") else Error
            case.result = [kind(_measured(check), "undecided")]
        suite.add_testcase(case)
    if report.problem:
        case = TestCase("comparison", classname=report.suite)
        case.result = [Error(report.problem, "infrastructure")]
        suite.add_testcase(case)
    for name, subject in report.subjects.items():
        suite.add_property(name, subject.subject)
    suite.update_statistics()  # type: ignore[no-untyped-call]
    suite.time = round(report.seconds, 3)  # after the statistics, which add up those of the cases
    whole = JUnitXml()
    whole.add_testsuite(suite)
    text: bytes = whole.tostring()  # type: ignore[no-untyped-call]
    return text.decode("utf-8")


def _measured(check: GateCheck) -> str:
    """Return a check's sentence, with its figures where it has bounds."""
    if check.low is None or check.high is None or check.estimate is None:
        return check.sentence
    mean, low, high = map(format.points, (check.estimate, check.low, check.high))
    return f"{check.sentence} Measured {mean}, bounds {low} to {high} points."


def write_reports(report: RegressionReport, paths: ReportPaths) -> None:
    """Write the requested files, each atomically."""
    if paths.json is not None:
        write_atomically(paths.json, report.model_dump_json(indent=2) + "\n")
    if paths.markdown is not None:
        write_atomically(paths.markdown, regression_markdown(report))
    if paths.junit is not None:
        write_atomically(paths.junit, junit_xml(report))
