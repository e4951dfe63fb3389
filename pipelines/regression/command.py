"""`preceptor check-regression`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation.errors import ConfigError, InputError, PreceptorError
from pipelines.process import prepare_process

if TYPE_CHECKING:
    from pipelines.regression.reports import RegressionReport, ReportPaths
    from pipelines.regression.suite import RegressionSuite

EXIT_UNDECIDED = 3
"""Nothing could be decided: too little data, or something broke."""

_Suite = Annotated[Path, typer.Argument(help="YAML file, such as configs/suites/micro-world.yaml.")]
_SUBJECT = (
    "a student (base, adapter:DIRECTORY, version:student/NUMBER, version:student@ALIAS), or a way of adapting one "
    "(teacher:base, teacher:DIRECTORY, version:teacher/NUMBER, version:teacher@ALIAS, config:FILE)."
)
_Candidate = Annotated[str | None, typer.Option("--candidate", help=f"What to test: {_SUBJECT}")]
_Baseline = Annotated[str | None, typer.Option("--baseline", help="What to compare it with, of the same kind.")]
_WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]
_Junit = Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML to this file.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the result for scripts to this file.")]
_Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write a page for reviewers to this file.")]
_Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of the bounds [the suite's].")]
_Pin = Annotated[
    bool, typer.Option("--pin", help="Write the digests of the suite's contents into it; compare nothing.")
]


def check_regression(
    suite: _Suite,
    candidate: _Candidate = None,
    baseline: _Baseline = None,
    work_dir: _WorkDir = Path(".preceptor"),
    junit: _Junit = None,
    json_file: _Json = None,
    markdown: _Markdown = None,
    seed: _Seed = None,
    pin: _Pin = False,
) -> None:
    """Test whether a student, or a way of adapting one, is worse than another by more than noise, on a pinned suite.

    Exits with 0 when it is not, 1 when it is, 2 when something was asked for that cannot be, and 3 when it could not be
    decided: too few documents or too few self-edits with a score, or something broke.
    """
    from pipelines.regression.suite import load_suite

    checked = load_suite(suite)
    if pin:
        _pin(suite, checked)
        return
    if candidate is None or baseline is None:
        raise ConfigError("check-regression: give both --candidate and --baseline, or --pin alone.")
    from pipelines.regression.reports import ReportPaths

    paths = ReportPaths(junit, json_file, markdown)
    try:
        report = _compare(suite, checked, candidate, baseline, work_dir, seed, paths)
    except (ConfigError, InputError):
        raise
    except Exception as error:
        # Python would exit with 1, which says that the candidate regressed.
        own = isinstance(error, PreceptorError)
        sys.stderr.write(f"{error}\n" if own else traceback.format_exc())
        _report_problem(checked, str(error) if own else f"{type(error).__name__}: {error}", paths)
        raise typer.Exit(EXIT_UNDECIDED) from error
    raise typer.Exit(report.exit_code)


def _compare(
    path: Path,
    suite: RegressionSuite,
    candidate: str,
    baseline: str,
    work_dir: Path,
    seed: int | None,
    paths: ReportPaths,
) -> RegressionReport:
    """Return the report, printed, written and logged."""
    from pipelines.regression.subjects import check_store, parse_subjects
    from pipelines.regression.suite import load_content
    from pipelines.regression.ways import way_of

    # All of it is checked again by the flow; here it is refused before Prefect and its server start.
    subjects = parse_subjects(candidate, baseline)
    for subject in subjects:
        if subject.adapts:
            way_of(suite, subject)
    check_store(subjects, suite.tracking, work_dir)
    load_content(suite)
    from pipelines.embedded import exclusive, hide_own_tracebacks

    with exclusive(work_dir):
        prepare_process(work_dir)
    from pipelines.regression.check import check_regression as flow
    from pipelines.regression.reports import regression_markdown

    hide_own_tracebacks()
    wanted = {kind: str(file) for kind, file in paths._asdict().items() if file is not None}
    report: RegressionReport = flow(str(path), candidate, baseline, str(work_dir), seed, wanted)
    sys.stdout.write(regression_markdown(report))
    return report


def _report_problem(suite: RegressionSuite, problem: str, paths: ReportPaths) -> None:
    """Write the reports of a test that could not be made: a CI server shows why, and no older verdict stays."""
    from pipelines.regression.reports import RegressionReport, write_reports

    report = RegressionReport(
        suite=suite.name, suite_digest=suite.digest, outcome="undecided", problem=problem, limits=suite.limits
    )
    try:
        write_reports(report, paths)
    except OSError as error:
        sys.stderr.write(f"The reports cannot be written: {error}\n")


def _pin(path: Path, suite: RegressionSuite) -> None:
    """Write the digests of what the suite asks, and of whom."""
    from pipelines.regression.pins import write_pins
    from pipelines.regression.suite import load_content

    content = load_content(suite)
    prepare_process()
    from pipelines.regression.scoring import open_student, teacher_digest

    write_pins(path, open_student(suite).pins(content, teacher_digest(suite)))
    asked = sum(map(len, content.questions.values()))
    sys.stdout.write(
        f"Pinned {len(content.tasks)} documents with {asked} questions and {len(content.probes)} probes in {path}. "
        "Commit the file.\n"
    )
