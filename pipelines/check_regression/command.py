"""`preceptor check-regression`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evaluation.common.errors import ConfigError, InputError, PreceptorError
from pipelines.process import JsonFile, WorkDir, prepare_process

if TYPE_CHECKING:
    from pipelines.check_regression.reports import RegressionReport, ReportPaths
    from pipelines.check_regression.suite import RegressionSuite

EXIT_UNDECIDED = 3
"""Too little data, or an error while comparing."""

_SUBJECT = (
    "a student (base, adapter:DIRECTORY, version:student/NUMBER, version:student@ALIAS), or a variant (teacher:base, "
    "teacher:DIRECTORY, version:teacher/NUMBER, version:teacher@ALIAS, config:FILE)."
)


def check_regression(
    suite: Annotated[Path, typer.Argument(help="YAML file, such as configs/suites/micro-world.yaml.")],
    candidate: Annotated[str | None, typer.Option("--candidate", help=f"What to test: {_SUBJECT}")] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="What to compare it with, of the same kind.")
    ] = None,
    work_dir: WorkDir = Path(".preceptor"),
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML to this file.")] = None,
    json_file: JsonFile = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the page for reviewers here.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the bounds [the suite's].")] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Write the digests of the suite's contents into it; compare nothing.")
    ] = False,
) -> None:
    """Test on a pinned suite whether a student, or a variant of adapting it, is significantly worse than another.

    Exit code 0: it is not; 1: it is; 2: misuse; 3: undecided, for too few documents or scored self-edits, or an error.
    """
    from pipelines.check_regression.suite import load_suite

    checked = load_suite(suite)
    if pin:
        _pin(suite, checked)
        return
    if candidate is None or baseline is None:
        raise ConfigError("check-regression: give both --candidate and --baseline, or --pin alone.")
    from pipelines.check_regression.reports import ReportPaths

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
    from pipelines.check_regression.subjects import resolve
    from pipelines.check_regression.suite import load_content

    # Checked again by the flow; here misuse is refused before Prefect and its server start.
    resolve(suite, candidate, baseline, work_dir)
    load_content(suite)
    from pipelines.process import exclusive, hide_own_tracebacks

    with exclusive(work_dir):
        prepare_process(work_dir)
    from pipelines.check_regression.flow import check_regression as flow
    from pipelines.check_regression.reports import regression_markdown

    hide_own_tracebacks()
    wanted = {kind: str(file) for kind, file in paths._asdict().items() if file is not None}
    report: RegressionReport = flow(str(path), candidate, baseline, str(work_dir), seed, wanted)
    sys.stdout.write(regression_markdown(report))
    return report


def _report_problem(suite: RegressionSuite, problem: str, paths: ReportPaths) -> None:
    """Write the reports of a failed comparison, so that CI shows the reason and no older verdict stays."""
    from pipelines.check_regression.reports import RegressionReport, write_reports

    report = RegressionReport(
        suite=suite.name, suite_digest=suite.digest, outcome="undecided", problem=problem, limits=suite.limits
    )
    try:
        write_reports(report, paths)
    except OSError as error:
        sys.stderr.write(f"The reports cannot be written: {error}\n")


def _pin(path: Path, suite: RegressionSuite) -> None:
    """Write the suite's pins into its file."""
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
