"""What a regression test found: the record for scripts, a page for people, and JUnit XML for CI servers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from evaluation.gate.checks import points
from evaluation.gate.page import check_table, escaped
from evaluation.gate.records import GateCheck
from pipelines.records import Record
from pipelines.regression.verdict import EXIT_CODES, Outcome, VerdictConfig


class SubjectRecord(Record):
    """One of the two students."""

    subject: str
    """As written on the command line."""
    adapter_digest: str | None
    """SHA-256 of its adapter; None for the base."""
    version: int | None
    """Number of the registered version; None for others."""
    accuracy: float
    """Mean over documents of the share of right answers, in [0, 1]."""
    probability: float
    """Mean over documents of the mean probability of the gold answers, in [0, 1]."""
    probes: float | None
    """Share of retention probes answered, in [0, 1]; None without any."""


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
    questions: int = 0
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
    lines += [
        "| student | right answers | probability of the right answer | retention probes |",
        "|---|---:|---:|---:|",
    ]
    for name, student in (("candidate", report.candidate), ("baseline", report.baseline)):
        if student is not None:
            probes = "" if student.probes is None else f"{student.probes:.1%}"
            told = f"{name} `{escaped(student.subject)}`"
            lines.append(f"| {told} | {student.accuracy:.1%} | {student.probability:.1%} | {probes} |")
    lines += ["", *check_table(report.checks), "", _footnote(report)]
    return "\n".join(lines) + "\n"


def _footnote(report: RegressionReport) -> str:
    limits, seen = report.limits, report.minimum_detectable
    told = (
        f"{report.documents} documents, {report.questions} questions. Changes are candidate minus baseline in points, "
        f"with one-sided {limits.confidence:.0%} bounds over documents; `needed` documents would decide with a chance "
        f"of {limits.power:.0%}."
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
        _write(paths.json, report.model_dump_json(indent=2) + "\n")
    if paths.markdown is not None:
        _write(paths.markdown, regression_markdown(report))
    if paths.junit is not None:
        _write(paths.junit, junit_xml(report))


def _told(check: GateCheck) -> str:
    figures = ""
    if check.low is not None and check.high is not None and check.estimate is not None:
        figures = (
            f" Measured {100 * check.estimate:+.1f}, bounds {100 * check.low:+.1f} to {100 * check.high:+.1f} points."
        )
    return f"{check.sentence}{figures}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)  # temporary files are the owner's alone
    os.replace(name, path)
