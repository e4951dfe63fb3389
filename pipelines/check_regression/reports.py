"""Reports of a regression test: a Markdown page for reviewers, a record for scripts, JUnit XML for CI servers.

In a step of GitHub Actions the page also goes to the job's summary, and each lost question is an annotation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.common.storage import write_atomically
from evaluation.gate.checks import GateCheck, points
from evaluation.gate.decisions import check_table, escaped
from evaluation.statistics import POWER
from pipelines.check_regression.verdict import ComparedQuestion, Outcome, RegressionReport
from pipelines.reports import format
from pipelines.terminal import printable

HEADINGS: dict[Outcome, str] = {
    "passed": "the candidate is no worse",
    "regressed": "the candidate is worse",
    "undecided": "too little data, or an error",
    "misuse": "an argument, the suite or its data were refused",
}
_LEVELS: dict[Outcome, str] = {"passed": "notice", "regressed": "error", "undecided": "warning", "misuse": "error"}
"""Of annotations: by chance an unchanged candidate loses some questions, too, which is no warning."""


def regression_markdown(report: RegressionReport) -> str:
    """Return the page for reviewers: the verdict, its reasons, and a table of the checks."""
    heading = f"# {report.outcome.upper()}: {HEADINGS[report.outcome]}"
    lines = [heading, "", f"Suite {escaped(report.suite)} (`{report.suite_digest[:12]}`)", ""]
    if report.problem:
        return printable("\n".join([*lines, f"Nothing was compared: {escaped(report.problem)}"]) + "\n", "\n")
    reasons = [check for check in report.checks if check.verdict != "pass"]
    lines += [f"- {escaped(check.name)}: {escaped(check.sentence)}" for check in reasons]
    lines += [""] if reasons else []
    lines += [_subjects_table(report), "", *check_table(report.checks), ""]
    if report.lost:
        rows = [
            [*map(escaped, (each.document, each.question, each.gold, *_before_and_after(each)))] for each in report.lost
        ]
        heads = ["lost most: document", "question", "gold", "before", "after"]
        lines += [f"{_lost_heading(report)} (probability of the gold answer):", ""]
        lines += [format.markdown_table(heads, rows), ""]
    left_out = f", {len(report.left_out)} left out" if report.left_out else ""
    seen = report.minimum_detectable
    least = "" if seen is None else f" Smallest loss detectable with {POWER:.0%} power: {points(seen)}."
    lines.append(
        f"{report.documents} documents{left_out}, {report.questions} questions. Changes are candidate minus baseline "
        f"in points, with one-sided {report.limits.confidence:.0%} bounds over documents; `needed` documents would "
        f"decide with {POWER:.0%} power.{least}"
    )
    lines += ["", f"MLflow: {report.mlflow}"] if report.mlflow else []
    return printable("\n".join(lines) + "\n", "\n")


def _before_and_after(question: ComparedQuestion) -> tuple[str, str]:
    """Return what baseline and candidate answer, or else whether that is right, with the gold answer's probability."""

    def shown(text: str, share: float | None, probability: float | None) -> str:
        verdict = {1.0: "right", 0.0: "wrong"}.get(share or 0.0, f"{format.percent(share)}% right")
        return text or verdict if probability is None else f"{text or verdict} ({format.percent(probability)}%)"

    return (
        shown(question.baseline_answer, question.baseline, question.baseline_probability),
        shown(question.candidate_answer, question.candidate, question.candidate_probability),
    )


def _lost_heading(report: RegressionReport) -> str:
    most = f", the {len(report.lost)} worst of them" if len(report.lost) < report.lost_count else ""
    return f"{format.counted(report.lost_count, 'question')} got worse{most}"


def _lost_text(question: ComparedQuestion) -> str:
    before, after = _before_and_after(question)
    return f"{question.question}\ngold: {question.gold}\nbefore: {before}\nafter: {after}"


def _subjects_table(report: RegressionReport) -> str:
    variants = any(subject.edits is not None for subject in report.subjects.values())
    heads = ["variant" if variants else "student", "right answers", "probability of the right answer"]
    heads += ["retention probes", *(["self-edits", "without a score"] if variants else [])]
    rows = []
    for name, subject in report.subjects.items():
        figures = (subject.accuracy, subject.probability, subject.probes)
        cells = [f"{name} `{escaped(subject.subject)}`"]
        cells += ["" if share is None else f"{format.percent(share)}%" for share in figures]
        if subject.edits is not None:
            reasons = ", ".join(f"{reason} {count}" for reason, count in subject.edits.unscored.items())
            cells += [str(subject.edits.written), f"{subject.edits.missing} ({reasons})" if reasons else "0"]
        rows.append(cells)
    return format.markdown_table(heads, rows)


def junit_xml(report: RegressionReport) -> str:
    """Return JUnit XML with one test case for each check.

    A loss is a failure, whose text names the questions that got worse, and an undecided check an error; an undecided
    group decides nothing and is skipped. Without a failure the first case's output names the questions.
    """
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    # Of what documents are called, XML does not even have all characters.
    report = RegressionReport.model_validate(_printable(report.model_dump()))
    suite = TestSuite(f"preceptor check-regression {report.suite}")
    lost = [f"document {each.document}: {_lost_text(each)}" for each in report.lost]
    named = "\n\n".join([f"{_lost_heading(report)}:", *lost]) if lost else ""
    failed = any(each.verdict == "fail" for each in report.checks)
    for each in report.checks:
        case = TestCase(each.name, classname=report.suite)
        if each.verdict == "fail":
            failure = Failure(_measured(each), "regression")
            failure.text = "\n\n".join(filter(None, (_measured(each), named)))
            case.result = [failure]
        elif each.verdict == "undecided":
            kind = Skipped if each.name.startswith("group ") else Error
            case.result = [kind(_measured(each), "undecided")]
        if named and not failed and each is report.checks[0]:
            case.system_out = named
        suite.add_testcase(case)
    if report.problem:
        case = TestCase("comparison", classname=report.suite)
        case.result = [Error(report.problem, "misuse" if report.outcome == "misuse" else "infrastructure")]
        suite.add_testcase(case)
    for name, subject in report.subjects.items():
        suite.add_property(name, subject.subject)
    suite.update_statistics()  # type: ignore[no-untyped-call]
    suite.time = round(report.seconds, 3)  # after the statistics, which add up those of the cases
    whole = JUnitXml()
    whole.add_testsuite(suite)
    text: bytes = whole.tostring()  # type: ignore[no-untyped-call]
    return text.decode("utf-8")


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable(name): _printable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(part) for part in value]
    return printable(value, "\n\t") if isinstance(value, str) else value


def _measured(check: GateCheck) -> str:
    """Return a check's sentence, with its figures where it has bounds."""
    if check.low is None or check.high is None or check.estimate is None:
        return check.sentence
    mean, low, high = map(format.points, (check.estimate, check.low, check.high))
    return f"{check.sentence} Measured {mean}, bounds {low} to {high} points."


def json_text(report: RegressionReport) -> str:
    """Return the record for scripts."""
    return report.model_dump_json(indent=2) + "\n"


def write_reports(report: RegressionReport, paths: Mapping[str, str]) -> None:
    """Write the files of `paths` by kind (`junit`, `json`, `markdown`), each atomically."""
    renderers = {"junit": junit_xml, "json": json_text, "markdown": regression_markdown}
    for kind, path in paths.items():
        write_atomically(Path(path), renderers[kind](report))


def tell_github(report: RegressionReport, suite: str) -> None:
    """Annotate the suite's file, and give summary and outputs (`outcome`, `exit-code`) to the step of GitHub's.

    Nothing is done elsewhere. It needs no option, since GitHub sets GITHUB_ACTIONS and the two files for each step, and
    a step that forgot it would fail without a reason on the pull request.
    """
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return
    level = "error" if report.problem else _LEVELS[report.outcome]
    told = [(f"check-regression: {report.outcome}", report.problem)] if report.problem else []
    told += [(f"got worse: {each.document}", _lost_text(each)) for each in report.lost]
    for title, text in told:
        sys.stdout.write(f"::{level} file={_command(suite, ':,')},title={_command(title, ':,')}::{_command(text)}\n")
    outputs = f"outcome={report.outcome}\nexit-code={report.exit_code}\n"
    for name, added in {"GITHUB_STEP_SUMMARY": regression_markdown(report), "GITHUB_OUTPUT": outputs}.items():
        if file := os.environ.get(name):
            with Path(file).open("a", encoding="utf-8") as stream:
                stream.write(added)


def _command(text: str, also: str = "") -> str:
    """Return a text as a workflow command's message, or with `also` as its property, in which GitHub decodes these."""
    return "".join(f"%{ord(each):02X}" if each in f"%\r\n{also}" else each for each in text)
