"""`preceptor compare`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.check_regression.suite import STUDENTS
from pipelines.process import JsonFile, WorkDir, find_config, flow_process, preceptor, prepare_process
from pipelines.terminal import open_console

if TYPE_CHECKING:
    from pipelines.compare_students.comparison import StudentsComparison


def compare(
    suite: Annotated[list[Path], typer.Argument(help="YAML files of suites, such as configs/suites/micro-world.yaml.")],
    student: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Repeat for each: {STUDENTS}; a pattern (adapter:'runs/*/adapter') or LABEL=WORD,WORD is several "
            "seeds of one."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Student, as given or by its label, that the others are compared with [the first]."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page with every answer to this file.")] = None,
    json_file: JsonFile = None,
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Compare several students on pinned suites: accuracy, paired differences, and every answer side by side.

    Exit code 0: done; 1: a student could not be opened or scored; 2: misuse.
    """
    from pipelines.compare_students.students import make_plan

    prepare_process()
    paths, words = list(map(find_config, suite)), student or []
    plan = make_plan(paths, words, reference, work_dir)
    files = {name: str(file) for name, file in {"html": html, "json": json_file}.items() if file is not None}
    with flow_process(work_dir):
        from pipelines.compare_students.flow import compare_students
        from pipelines.flow_run import result_of

        found = result_of(compare_students, [*map(str, paths)], words, plan.reference, str(work_dir), files)
    _show(found, html, work_dir)
    accuracies = {each.label: each.accuracy.mean for each in found.suites[0].students if each.accuracy is not None}
    others = [each for each in plan.students if each.label != plan.reference]
    best = max(others, key=lambda each: accuracies.get(each.label, 0.0)).seeds[0].text
    (known,) = [each.seeds[0].text for each in plan.students if each.label == plan.reference]
    subjects = ("--candidate", best, "--baseline", known, "--work-dir", work_dir)
    sys.stdout.write(f"For a verdict: {preceptor('check-regression', paths[0], *subjects)}\n")


def _show(found: StudentsComparison, html: Path | None, work_dir: Path) -> None:
    """Print the tables, and where all answers are."""
    from rich.text import Text

    from pipelines.compare_students.comparison import tables_of
    from pipelines.reports.format import plain_table

    console = open_console()
    for shown in tables_of(found):
        table = plain_table(shown.title, shown.caption)
        for i, head in enumerate(shown.heads):
            table.add_column(head, overflow="fold", no_wrap=bool(i))
        for row in shown.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
    page = (
        f"Every answer: {html}"
        if html
        else "Every answer: repeat the command with --html FILE, or open comparison.html"
    )
    sys.stdout.write(f"{page}\nMLflow: {found.mlflow} ({preceptor('ui', '--work-dir', work_dir)})\n")
