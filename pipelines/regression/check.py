"""The flow `check-regression`: both students on the pinned suite, a verdict, reports, and a run in MLflow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from prefect import flow

from pipelines.embedded import embedded_flow
from pipelines.lineage_store import (
    flatten_params,
    git_tags,
    lineage_errors,
    log_in_batches,
    open_store,
    run_tags,
)
from pipelines.regression.reports import (
    RegressionReport,
    ReportPaths,
    SubjectRecord,
    junit_xml,
    regression_markdown,
    write_reports,
)
from pipelines.regression.scoring import StudentScores, open_student, paired, score_students
from pipelines.regression.subjects import OpenedSubject, open_subject, parse_subject
from pipelines.regression.suite import RegressionSuite, check_pins, load_content, load_suite
from pipelines.regression.verdict import find_verdict
from pipelines.workspace import code_digest

FLOW_NAME = "check-regression"

_LONGEST_NOTE = 5000
"""Characters; MLflow refuses longer values of tags, and a suite may have many groups. The whole page is an artifact."""


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
        candidate: See `pipelines.regression.subjects.FORMS`.
        baseline: The same.
        work_dir: Directory with the embedded stores.
        seed: Of the bounds; None is the suite's.
        reports: `junit`, `json` and `markdown` -> file to write.
    """
    place, suite = Path(work_dir), load_suite(Path(suite_path))
    paths = ReportPaths(**{kind: Path(path) for kind, path in (reports or {}).items()})
    with embedded_flow(place, FLOW_NAME) as flow_run:
        report = compare_subjects(suite, candidate, baseline, place, seed)
        write_reports(report, paths)  # before the store is asked: its failure must not lose a verdict
        report = report.model_copy(update={"mlflow_run_id": log_report(suite, report, place, flow_run)})
        write_reports(report, paths)
    return report


def compare_subjects(
    suite: RegressionSuite, candidate: str, baseline: str, work_dir: Path, seed: int | None = None
) -> RegressionReport:
    """Return the report on two students, nothing written or logged yet.

    Args:
        suite: Pinned.
        candidate: See `pipelines.regression.subjects.FORMS`.
        baseline: The same.
        work_dir: Of the registry.
        seed: Of the bounds; None is the suite's.

    Raises:
        ConfigError: A subject is none, or the suite is not pinned.
        InputError: The data were refused, or are not what was pinned.
        PreceptorError: Whatever else could not be done.
    """
    started = time.perf_counter()
    limits = suite.limits if seed is None else suite.limits.model_copy(update={"seed": seed})
    content, subjects = load_content(suite), [parse_subject(text) for text in (candidate, baseline)]
    student = open_student(suite)
    check_pins(suite, student.pins(content))
    with tempfile.TemporaryDirectory(prefix="preceptor-regression-") as scratch:
        opened = [open_subject(subject, suite.tracking, work_dir, Path(scratch)) for subject in subjects]
        adapters, names = [subject.adapter for subject in opened], [subject.text for subject in opened]
        scores = score_students(suite, content, student, adapters, names)
    compared = paired(*scores)
    found = find_verdict(compared, suite.groups, limits)
    return RegressionReport(
        suite=suite.name,
        suite_digest=suite.digest,
        outcome=found.outcome,
        candidate=_subject_record(opened[0], scores[0]),
        baseline=_subject_record(opened[1], scores[1]),
        checks=found.checks,
        limits=limits,
        minimum_detectable=found.minimum_detectable,
        documents=len(content.tasks),
        questions=len(compared.documents),
        seconds=time.perf_counter() - started,
    )


def log_report(suite: RegressionSuite, report: RegressionReport, work_dir: Path, flow_run: str) -> str:
    """Log a report as a run of its own, and return the run's id.

    Args:
        suite: Gives the parameters.
        report: What was found.
        work_dir: Of the store.
        flow_run: Of Prefect.

    Raises:
        LineageError: The store refused.
    """
    store = open_store(suite.tracking, work_dir)
    page = regression_markdown(report)
    params = flatten_params(suite.model_dump(mode="json", exclude={"tracking", "pins", "groups"}))
    subjects = {"candidate": report.candidate, "baseline": report.baseline}
    tags = run_tags(
        kind=FLOW_NAME,
        seed=report.limits.seed,
        config_digest=suite.digest,
        code_digest=code_digest(),
        flow_run_id=flow_run,
        note=page[:_LONGEST_NOTE],
    ) | {"preceptor.outcome": report.outcome}
    metrics: dict[str, float] = {}
    for name, student in subjects.items():
        if student is not None:
            tags[f"preceptor.{name}"] = student.subject
            tags[f"preceptor.{name}_adapter_sha"] = student.adapter_digest or "base"
            metrics |= {f"{name}/accuracy": student.accuracy, f"{name}/probability": student.probability}
    for check in report.checks:
        if check.estimate is not None:
            metrics[f"change/{check.name}"] = check.estimate
    with lineage_errors(f"log the regression test of {suite.name!r}", store.uri):
        client = store.client
        run_id: str = client.create_run(store.experiment_id, run_name=f"{suite.name} {report.outcome}").info.run_id
        log_in_batches(client, run_id, params=params, tags={**git_tags(), **tags})
        for name, value in metrics.items():
            client.log_metric(run_id, _metric_name(name), value)
        client.log_text(run_id, page, "regression.md")
        client.log_text(run_id, report.model_dump_json(indent=2), "regression.json")
        client.log_text(run_id, junit_xml(report), "regression.xml")
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _metric_name(name: str) -> str:
    """Return a name that MLflow takes: other characters than its own become `_`."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _subject_record(subject: OpenedSubject, scores: StudentScores) -> SubjectRecord:
    probes = sum(score.exact for score in scores.probes) / len(scores.probes) if scores.probes else None
    return SubjectRecord(
        subject=subject.text,
        adapter_digest=None if subject.adapter is None else subject.adapter.digest,
        version=subject.version,
        accuracy=scores.accuracy,
        probability=scores.probability,
        probes=probes,
    )
