"""The flow `check-regression`: both subjects on the pinned suite, a verdict, reports, and a run in MLflow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prefect import flow

from pipelines.embedded import embedded_flow
from pipelines.progress import Reporter
from pipelines.regression.adapting import measure_way, total_units
from pipelines.regression.lineage import FLOW_NAME, log_report
from pipelines.regression.pins import check_pins
from pipelines.regression.reports import EditsRecord, RegressionReport, ReportPaths, SubjectRecord, write_reports
from pipelines.regression.scoring import OpenStudent, StudentScores, open_student, paired, score_students
from pipelines.regression.subjects import (
    Located,
    OpenedSubject,
    Subject,
    locate_subject,
    open_subject,
    parse_subjects,
)
from pipelines.regression.suite import RegressionSuite, SuiteContent, load_content, load_suite
from pipelines.regression.verdict import Compared, find_verdict
from pipelines.regression.way_scores import WayScores, paired_ways
from pipelines.regression.ways import Way, way_of


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
    """Return the report on two students or two ways of adapting one, nothing written or logged yet.

    Args:
        suite: Pinned.
        candidate: See `pipelines.regression.subjects.FORMS`.
        baseline: The same.
        work_dir: Of the registry; what ways of adapting took is kept there too.
        seed: Of the bounds; None is the suite's.

    Raises:
        ConfigError: A subject is none, the two do not compare, or the suite is not pinned.
        InputError: The data were refused, or are not what was pinned.
        PreceptorError: Whatever else could not be done.
    """
    started = time.perf_counter()
    limits = suite.limits if seed is None else suite.limits.model_copy(update={"seed": seed})
    subjects = parse_subjects(candidate, baseline)
    ways = [way_of(suite, subject) for subject in subjects if subject.adapts]
    content = load_content(suite)
    student = open_student(suite)
    check_pins(suite, student.pins(content))
    with tempfile.TemporaryDirectory(prefix="preceptor-regression-") as name:
        scratch = Path(name)
        if ways:
            located = [locate_subject(subject, suite.tracking, work_dir, scratch) for subject in subjects]
            measured = _compare_ways(suite, content, student, ways, located, work_dir)
        else:
            opened = [open_subject(subject, suite.tracking, work_dir, scratch) for subject in subjects]
            measured = _compare_students(suite, content, student, opened)
    found = find_verdict(measured.compared, suite.groups, limits)
    unscored = measured.compared.unscored
    return RegressionReport(
        suite=suite.name,
        suite_digest=suite.digest,
        outcome=found.outcome,
        candidate=measured.candidate,
        baseline=measured.baseline,
        checks=found.checks,
        limits=limits,
        minimum_detectable=found.minimum_detectable,
        documents=len(content.tasks),
        left_out=() if unscored is None else unscored.left_out,
        questions=len(measured.compared.documents),
        seconds=time.perf_counter() - started,
    )


class _Measured(NamedTuple):
    compared: Compared
    candidate: SubjectRecord
    baseline: SubjectRecord


def _compare_students(
    suite: RegressionSuite, content: SuiteContent, student: OpenStudent, opened: Sequence[OpenedSubject]
) -> _Measured:
    """Return two students on the suite, asked in one bank."""
    adapters, names = [subject.adapter for subject in opened], [subject.text for subject in opened]
    scores = score_students(suite, content, student, adapters, names)
    records = [_student_record(subject, mine) for subject, mine in zip(opened, scores, strict=True)]
    return _Measured(paired(*scores), *records)


def _compare_ways(
    suite: RegressionSuite,
    content: SuiteContent,
    student: OpenStudent,
    ways: Sequence[Way],
    located: Sequence[Located],
    work_dir: Path,
) -> _Measured:
    """Return two ways of adapting on the suite, one after another."""
    from rich.console import Console

    with Reporter(Console(stderr=True), sum(total_units(content, way) for way in ways)) as reporter:
        scores = [
            measure_way(suite, content, student, way, place, work_dir, reporter)
            for way, place in zip(ways, located, strict=True)
        ]
    compared = paired_ways(content, *scores)
    shared = list(dict.fromkeys(score.document for score in compared.documents))
    records = [
        _way_record(way.subject, place, mine, shared) for way, place, mine in zip(ways, located, scores, strict=True)
    ]
    return _Measured(compared, *records)


def _student_record(subject: OpenedSubject, scores: StudentScores) -> SubjectRecord:
    probes = sum(score.exact for score in scores.probes) / len(scores.probes) if scores.probes else None
    return SubjectRecord(
        subject=subject.text,
        adapter_digest=None if subject.adapter is None else subject.adapter.digest,
        version=subject.version,
        accuracy=scores.accuracy,
        probability=scores.probability,
        probes=probes,
    )


def _way_record(subject: Subject, located: Located, scores: WayScores, documents: Sequence[str]) -> SubjectRecord:
    accuracy, probability, probes = scores.on(documents)
    return SubjectRecord(
        subject=subject.text,
        adapter_digest=scores.adapter_digest,
        version=located.version,
        accuracy=accuracy,
        probability=probability,
        probes=probes,
        edits=EditsRecord(digest=scores.digest, written=scores.written, unscored=scores.unscored),
    )
