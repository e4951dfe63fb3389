"""The flow `check-regression`: both subjects on the pinned suite, a verdict, a run in MLflow, and reports.

Reports are a record for scripts, a Markdown page for reviewers, and JUnit XML for CI servers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from evaluation.common.storage import write_atomically
from evaluation.gate.checks import GateCheck, points
from evaluation.gate.decisions import check_table, escaped
from evaluation.statistics import POWER
from pipelines.check_regression.compare import compare_subjects
from pipelines.check_regression.suite import RegressionSuite, suite_findings
from pipelines.check_regression.verdict import Outcome, RegressionReport
from pipelines.checks import check
from pipelines.flow_run import Ending, ended, entered, show_report
from pipelines.lineage.run import EVALUATION, NOTE, SHOWN_TABLES, log_finished, shown_tables
from pipelines.lineage.store import run_tags
from pipelines.lineage.tables import change_metrics, evaluation_table
from pipelines.reports import format
from pipelines.settings import load
from pipelines.terminal import printable

FLOW_NAME = "check-regression"


@flow(name=FLOW_NAME, persist_result=False)
def check_regression(
    suite_path: str,
    candidate: str,
    baseline: str,
    work_dir: str = ".preceptor",
    reports: Mapping[str, str] | None = None,
) -> State[RegressionReport]:
    """Compare a candidate with a baseline on a pinned suite, write the reports and log them.

    The run ends green, as Regressed, or as Undecided, with the reason.

    Args:
        suite_path: YAML file of the suite.
        candidate: See `pipelines.check_regression.suite.parse_subject`.
        baseline: The same.
        work_dir: Directory with the embedded stores.
        reports: `junit`, `json` and `markdown` -> file to write.
    """
    place, suite = Path(work_dir), load(Path(suite_path), RegressionSuite)
    check(suite, place, suite_findings)
    with entered(place, suite.name) as flow_run:
        report = compare_subjects(suite, candidate, baseline, place)
        write_reports(report, reports or {})  # before MLflow is asked: its failure must not lose a verdict
        run_id, link = _log(suite, report, place, flow_run)
        report = report.model_copy(update={"mlflow_run_id": run_id, "mlflow": link})
        write_reports(report, reports or {})
        show_report(FLOW_NAME, regression_markdown(report), f"{suite.name}: {report.outcome}")
    why = " ".join(each.sentence for each in report.checks if each.verdict != "pass")
    return ended(report, *_ENDINGS[report.outcome], f"{_HEADINGS[report.outcome]}. {why}".strip())


def _log(suite: RegressionSuite, report: RegressionReport, work_dir: Path, flow_run: str) -> tuple[str, str]:
    """Log a test to MLflow and return its run's id and address."""
    page = regression_markdown(report)
    tags = run_tags(suite, FLOW_NAME, flow_run)
    tags |= {"preceptor.outcome": report.outcome, NOTE: page, SHOWN_TABLES: shown_tables(EVALUATION)}
    metrics: dict[str, float | None] = {**change_metrics(report.checks)}
    for name, subject in report.subjects.items():
        adapter = subject.adapter_digest or "base"
        tags |= {f"preceptor.{name}": subject.subject, f"preceptor.{name}_adapter_sha": adapter}
        figures = {"accuracy": subject.accuracy, "probability": subject.probability, "probes": subject.probes}
        if subject.edits is not None:
            tags[f"preceptor.{name}_variant_sha"] = subject.edits.digest
            figures["unscored"] = subject.edits.missing / subject.edits.written
        metrics |= {f"{name}/{figure}": value for figure, value in figures.items()}
    return log_finished(
        suite.tracking,
        work_dir,
        f"{suite.name} {report.outcome}",
        params=suite.model_dump(mode="json", exclude={"tracking", "pins", "groups"}),
        tags=tags,
        metrics={name: value for name, value in metrics.items() if value is not None},
        texts={
            "regression.md": page,
            "regression.json": _json(report),
            "regression.xml": junit_xml(report),
            EVALUATION: json.dumps(evaluation_table(report.answers, suite.seed, "candidate", "baseline")),
        },
    )


_ENDINGS: dict[Outcome, tuple[Ending, str | None]] = {
    "passed": ("COMPLETED", None),
    "regressed": ("FAILED", "Regressed"),
    "undecided": ("CANCELLED", "Undecided"),
}
_MOST_LOST = 10
"""Questions on the page that the candidate answers worse."""
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
        return printable("\n".join([*lines, f"Nothing was compared: {escaped(report.problem)}"]) + "\n", "\n")
    reasons = [check for check in report.checks if check.verdict != "pass"]
    lines += [f"- {escaped(check.name)}: {escaped(check.sentence)}" for check in reasons]
    lines += [""] if reasons else []
    lines += [_subjects_table(report), "", *check_table(report.checks), ""]
    worst = sorted((each for each in report.answers if each.lost > 0.0), key=lambda each: -each.lost)[:_MOST_LOST]
    if worst:
        cells = [[each.document, each.question, each.gold] for each in worst]
        shares = [[f"{format.percent(each.baseline)}%", f"{format.percent(each.candidate)}%"] for each in worst]
        rows = [[*map(escaped, texts), *figures] for texts, figures in zip(cells, shares, strict=True)]
        lines += [format.markdown_table(["lost most: document", "question", "gold", "before", "after"], rows), ""]
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

    A loss is a failure and an undecided check an error; an undecided group decides nothing and is skipped.
    """
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    # Of what documents are called, XML does not even have all characters.
    report = RegressionReport.model_validate(_printable(report.model_dump()))
    suite = TestSuite(f"preceptor check-regression {report.suite}")
    for each in report.checks:
        case = TestCase(each.name, classname=report.suite)
        if each.verdict == "fail":
            case.result = [Failure(_measured(each), "regression")]
        elif each.verdict == "undecided":
            kind = Skipped if each.name.startswith("group ") else Error
            case.result = [kind(_measured(each), "undecided")]
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


def _json(report: RegressionReport) -> str:
    return report.model_dump_json(indent=2) + "\n"


def write_reports(report: RegressionReport, paths: Mapping[str, str]) -> None:
    """Write the files of `paths` by kind (`junit`, `json`, `markdown`), each atomically."""
    renderers = {"junit": junit_xml, "json": _json, "markdown": regression_markdown}
    for kind, path in paths.items():
        write_atomically(Path(path), renderers[kind](report))
