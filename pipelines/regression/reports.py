"""What a regression test found: the record for scripts, a page for people, and JUnit XML for CI servers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from evaluation.files import write_atomically
from evaluation.gate.checks import points
from evaluation.gate.page import check_table, escaped
from evaluation.gate.records import GateCheck
from pipelines.records import Record
from pipelines.regression.verdict import EXIT_CODES, Outcome, VerdictConfig


class EditsRecord(Record):
    """The self-edits of a way of adapting."""

    digest: str
    """SHA-256 of all that decides the scores of the way on the suite: teacher, prompt, sampling, recipe."""
    written: int
    """How many were to be written, at least 1."""
    unscored: dict[str, int]
    """How many of these came to no score, by reason; no score is made up for them."""

    @property
    def missing(self) -> int:
        """How many came to no score, in [0, written]."""
        return sum(self.unscored.values())


class SubjectRecord(Record):
    """One of the two students, or of the two ways of adapting one."""

    subject: str
    """As written on the command line."""
    adapter_digest: str | None
    """SHA-256 of its adapter, for a way of adapting the teacher's; None for a base."""
    version: int | None
    """Number of the registered version; None for others."""
    accuracy: float | None
    """Mean over documents of the share of right answers, in [0, 1]. Of ways, over the documents that both have scores
    for, and over each document's updates; None without any."""
    probability: float | None
    """Mean over documents of the mean probability of the gold answers, in [0, 1]; None as above."""
    probes: float | None
    """Share of retention probes answered, in [0, 1], of ways after each update; None without any."""
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
    """Loss over all documents that would be told from none with the power asked for; None if it is not known."""
    documents: int = 0
    """Of the suite."""
    left_out: tuple[str, ...] = ()
    """Ids of those that a way of adapting has no score for."""
    questions: int = 0
    """Of the others."""
    seconds: float = 0.0
    mlflow_run_id: str | None = None

    @property
    def exit_code(self) -> int:
        """What the command exits with."""
        return EXIT_CODES[self.outcome]


class ReportPaths(NamedTuple):
    """Files to write; None writes none."""

    junit: Path | None = None
    json: Path | None = None
    markdown: Path | None = None


_HEADINGS: dict[Outcome, str] = {
    "passed": "PASSED: the candidate is no worse",
    "regressed": "REGRESSED: the candidate is worse",
    "undecided": "UNDECIDED: it could not be decided",
}


def regression_markdown(report: RegressionReport) -> str:
    """Return the page that a reviewer reads: the verdict, why, and a table of the checks, in Markdown."""
    lines = [f"# {_HEADINGS[report.outcome]}", "", f"Suite {escaped(report.suite)} (`{report.suite_digest[:12]}`)", ""]
    if report.problem:
        return "\n".join([*lines, f"Nothing was compared: {escaped(report.problem)}"]) + "\n"
    reasons = [check for check in report.checks if check.verdict != "pass"]
    lines += [f"- {escaped(check.name)}: {escaped(check.sentence)}" for check in reasons]
    lines += [""] if reasons else []
    lines += _subjects_table(report)
    lines += ["", *check_table(report.checks), "", _footnote(report)]
    return "\n".join(lines) + "\n"


def _subjects_table(report: RegressionReport) -> list[str]:
    """Return the lines of a table of both subjects."""
    subjects = [(name, s) for name in ("candidate", "baseline") if (s := getattr(report, name)) is not None]
    ways = any(subject.edits is not None for _, subject in subjects)
    columns = ["way of adapting" if ways else "student", "right answers", "probability of the right answer"]
    columns += ["retention probes", *(["self-edits", "without a score"] if ways else [])]
    rows = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    for name, subject in subjects:
        figures = (subject.accuracy, subject.probability, subject.probes)
        cells = [f"{name} `{escaped(subject.subject)}`", *("" if f is None else f"{f:.1%}" for f in figures)]
        if subject.edits is not None:
            reasons = ", ".join(f"{reason} {count}" for reason, count in subject.edits.unscored.items())
            cells += [str(subject.edits.written), f"{subject.edits.missing} ({reasons})" if reasons else "0"]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _footnote(report: RegressionReport) -> str:
    limits, seen = report.limits, report.minimum_detectable
    left_out = f", {len(report.left_out)} left out" if report.left_out else ""
    told = (
        f"{report.documents} documents{left_out}, {report.questions} questions. Changes are candidate minus baseline "
        f"in points, with one-sided {limits.confidence:.0%} bounds over documents; `needed` documents would decide "
        f"with a chance of {limits.power:.0%}."
    )
    if seen is None:
        return told
    return f"{told} A loss of {points(seen)} would be told from none with a chance of {limits.power:.0%}."


def junit_xml(report: RegressionReport) -> str:
    """Return JUnit XML with one test case for each check.

    A loss is a failure, what could not be decided an error; an undecided group decides nothing and is skipped.
    """
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    suite = TestSuite(f"preceptor check-regression {report.suite}")
    for check in report.checks:
        case = TestCase(check.name, classname=report.suite)
        if check.verdict == "fail":
            case.result = [Failure(_told(check), "regression")]
        elif check.verdict == "undecided":
            kind = Skipped if check.name.startswith("group ") else Error
            case.result = [kind(_told(check), "undecided")]
        suite.add_testcase(case)
    if report.problem:
        case = TestCase("comparison", classname=report.suite)
        case.result = [Error(report.problem, "infrastructure")]
        suite.add_testcase(case)
    for name in ("candidate", "baseline"):
        student: SubjectRecord | None = getattr(report, name)
        if student is not None:
            suite.add_property(name, student.subject)
    suite.update_statistics()  # type: ignore[no-untyped-call]
    suite.time = round(report.seconds, 3)  # after the statistics, which add up those of the cases
    whole = JUnitXml()
    whole.add_testsuite(suite)
    text: bytes = whole.tostring()  # type: ignore[no-untyped-call]
    return text.decode("utf-8")


def write_reports(report: RegressionReport, paths: ReportPaths) -> None:
    """Write the files that are asked for, each whole or not at all."""
    if paths.json is not None:
        write_atomically(paths.json, report.model_dump_json(indent=2) + "\n")
    if paths.markdown is not None:
        write_atomically(paths.markdown, regression_markdown(report))
    if paths.junit is not None:
        write_atomically(paths.junit, junit_xml(report))


def _told(check: GateCheck) -> str:
    figures = ""
    if check.low is not None and check.high is not None and check.estimate is not None:
        figures = (
            f" Measured {100 * check.estimate:+.1f}, bounds {100 * check.low:+.1f} to {100 * check.high:+.1f} points."
        )
    return f"{check.sentence}{figures}"
