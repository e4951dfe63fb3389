"""The flow `check-regression`: both subjects on the pinned suite, a verdict, a run in MLflow, and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State

from pipelines.check_regression.compare import compare_subjects
from pipelines.check_regression.reports import HEADINGS, json_text, junit_xml, regression_markdown, write_reports
from pipelines.check_regression.suite import RegressionSuite, suite_findings
from pipelines.check_regression.verdict import Outcome, RegressionReport
from pipelines.checks import check
from pipelines.flow_run import Ending, ended, entered, show_report
from pipelines.lineage.run import EVALUATION, NOTE, SHOWN_TABLES, log_finished, shown_tables
from pipelines.lineage.store import run_tags
from pipelines.lineage.tables import change_metrics, evaluation_table
from pipelines.settings import load

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
    return ended(report, *_ENDINGS[report.outcome], f"{HEADINGS[report.outcome]}. {why}".strip())


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
            "regression.json": json_text(report),
            "regression.xml": junit_xml(report),
            EVALUATION: json.dumps(evaluation_table(report.answers, suite.seed, "candidate", "baseline")),
        },
    )


_ENDINGS: dict[Outcome, tuple[Ending, str | None]] = {
    "passed": ("COMPLETED", None),
    "regressed": ("FAILED", "Regressed"),
    "undecided": ("CANCELLED", "Undecided"),
}
