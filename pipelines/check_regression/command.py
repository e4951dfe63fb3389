"""`preceptor check-regression`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation.common.errors import ConfigError, InputError, PreceptorError
from evaluation.common.storage import disk_problem
from pipelines.process import JsonFile, WorkDir, find_config, flow_process, prepare_process

if TYPE_CHECKING:
    from pipelines.check_regression.suite import RegressionSuite
    from pipelines.check_regression.verdict import Outcome, RegressionReport

_SUBJECT = (
    "a student (base, adapter:DIRECTORY, version:student/NUMBER, version:student@ALIAS), or a variant (teacher:base, "
    "teacher:DIRECTORY, version:teacher/NUMBER, version:teacher@ALIAS, config:FILE)."
)


def check_regression(
    suite: Annotated[Path, typer.Argument(help="YAML file, such as configs/suites/micro-world.yaml.")],
    candidate: Annotated[str | None, typer.Option(help=f"What to test: {_SUBJECT}")] = None,
    baseline: Annotated[str | None, typer.Option(help="What to compare it with, of the same kind.")] = None,
    work_dir: WorkDir = Path(".preceptor"),
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    json_file: JsonFile = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the page for reviewers here.")] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Write the digests of the suite's contents into it; compare nothing.")
    ] = False,
) -> None:
    """Test on a pinned suite whether a student, or a variant of adapting it, is significantly worse than another.

    Exit code 0: it is not; 1: it is; 2: misuse; 3: undecided, for too few documents or scored self-edits, or an error.
    In a step of GitHub Actions the page is also the job's summary, and each lost question an annotation.
    """
    from pipelines.check_regression.suite import RegressionSuite
    from pipelines.settings import load

    if pin:
        _pin(path := find_config(suite), load(path, RegressionSuite))
        return
    files = {"junit": junit, "json": json_file, "markdown": markdown}
    reports = {kind: str(file) for kind, file in files.items() if file is not None}
    checked = None
    try:
        path = find_config(suite)
        checked = load(path, RegressionSuite)
        report = _compare(path, checked, candidate, baseline, work_dir, reports)
    except (ConfigError, InputError) as error:
        _report_problem(suite, checked, "misuse", str(error), reports)
        raise
    except Exception as error:
        # Python would exit with 1, which says that the candidate regressed.
        known = str(error) if isinstance(error, PreceptorError) else disk_problem(error)
        sys.stderr.write(f"{known}\n" if known else traceback.format_exc())
        code = _report_problem(suite, checked, "undecided", known or f"{type(error).__name__}: {error}", reports)
        raise typer.Exit(code) from error
    from pipelines.check_regression.reports import regression_markdown, tell_github

    sys.stdout.write(regression_markdown(report))
    tell_github(report, str(suite))
    raise typer.Exit(report.exit_code)


def _compare(
    path: Path,
    suite: RegressionSuite,
    candidate: str | None,
    baseline: str | None,
    work_dir: Path,
    reports: dict[str, str],
) -> RegressionReport:
    if candidate is None or baseline is None:
        raise ConfigError("check-regression: give both --candidate and --baseline, or --pin alone.")
    _refuse_misuse(suite, candidate, baseline, work_dir)
    with flow_process(work_dir):
        from pipelines.check_regression.flow import check_regression as flow
        from pipelines.flow_run import result_of

        report: RegressionReport = result_of(flow, str(path), candidate, baseline, str(work_dir), reports)
    return report


def _refuse_misuse(suite: RegressionSuite, candidate: str, baseline: str, work_dir: Path) -> None:
    """Check what the flow checks again, before Prefect and its server start."""
    from pipelines.check_regression import suite as suites
    from pipelines.checks import check

    subjects = suites.resolve(suite, candidate, baseline, work_dir)
    pins = suites.pins_of(suite, suites.load_content(suite), suite.pins.student if suite.pins else "0" * 64)
    suites.check_pins(suite, pins)
    check(suite, work_dir, suites.suite_findings)
    prepare_process()
    suites.require_versions(subjects, suite, work_dir)


def _report_problem(
    path: Path, suite: RegressionSuite | None, outcome: Outcome, problem: str, reports: dict[str, str]
) -> int:
    """Write the reports of a failed comparison, so that CI shows the reason and no older verdict stays."""
    from pipelines.check_regression.reports import tell_github, write_reports
    from pipelines.check_regression.verdict import RegressionReport, VerdictConfig

    name, digest, limits = (suite.name, suite.digest, suite.limits) if suite else (path.stem, "", VerdictConfig())
    report = RegressionReport(suite=name, suite_digest=digest, outcome=outcome, problem=problem, limits=limits)
    try:
        write_reports(report, reports)
        tell_github(report, str(path))
    except OSError as error:
        sys.stderr.write(f"The reports cannot be written: {error}\n")
    return report.exit_code


def _pin(path: Path, suite: RegressionSuite) -> None:
    from pipelines.check_regression.suite import load_content, write_pins

    content = load_content(suite)
    prepare_process()
    from pipelines.check_regression.compare import current_pins

    write_pins(path, current_pins(suite, content))
    asked = sum(len(task.comparison_questions) for task in content.tasks)
    sys.stdout.write(
        f"Pinned {len(content.tasks)} documents with {asked} questions and {len(content.probes)} probes in {path}. "
        "Commit the file.\n"
    )
