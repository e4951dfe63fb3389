"""The flow `check-regression`: both subjects on the pinned suite, a verdict, reports, and a run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect import flow

from pipelines.check_regression.compare import compare_subjects
from pipelines.check_regression.reports import (
    RegressionReport,
    ReportPaths,
    junit_xml,
    regression_markdown,
    write_reports,
)
from pipelines.check_regression.suite import RegressionSuite, load_suite
from pipelines.lineage.run import NOTE, log_finished
from pipelines.lineage.store import run_tags
from pipelines.process import embedded_flow

FLOW_NAME = "check-regression"


@flow(name=FLOW_NAME, persist_result=False)
def check_regression(
    suite_path: str,
    candidate: str,
    baseline: str,
    work_dir: str = ".preceptor",
    seed: int | None = None,
    reports: Mapping[str, str] | None = None,
) -> RegressionReport:
    """Compare a candidate with a baseline on a pinned suite, write the reports and log them.

    Args:
        suite_path: YAML file of the suite.
        candidate: See `pipelines.check_regression.subjects.FORMS`.
        baseline: The same.
        work_dir: Directory with the embedded stores.
        seed: Of the bounds; None is the suite's.
        reports: `junit`, `json` and `markdown` -> file to write.
    """
    place, suite = Path(work_dir), load_suite(Path(suite_path))
    paths = ReportPaths(**{kind: Path(path) for kind, path in (reports or {}).items()})
    with embedded_flow(place, FLOW_NAME) as flow_run:
        report = compare_subjects(suite, candidate, baseline, place, seed)
        write_reports(report, paths)  # before MLflow is asked: its failure must not lose a verdict
        report = report.model_copy(update={"mlflow_run_id": _log(suite, report, place, flow_run)})
        write_reports(report, paths)
    return report


def _log(suite: RegressionSuite, report: RegressionReport, work_dir: Path, flow_run: str) -> str:
    """Log a report as a run of its own, and return the run's id."""
    page = regression_markdown(report)
    tags = run_tags(suite, FLOW_NAME, flow_run)
    tags |= {"preceptor.seed": str(report.limits.seed), "preceptor.outcome": report.outcome, NOTE: page}
    metrics = {f"change/{check.name}": check.estimate for check in report.checks}
    for name, subject in report.subjects.items():
        tags |= {
            f"preceptor.{name}": subject.subject,
            f"preceptor.{name}_adapter_sha": subject.adapter_digest or "base",
        }
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
            "regression.json": report.model_dump_json(indent=2),
            "regression.xml": junit_xml(report),
        },
    )
