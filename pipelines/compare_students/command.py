"""`preceptor compare`: the command. Nothing heavy is imported before its arguments are checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.check_regression.suite import STUDENTS
from pipelines.process import JsonFile, WorkDir, find_config, flow_process, preceptor, prepare_process
from pipelines.terminal import open_console


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
    paths, given = list(map(find_config, suite)), student or []
    plan = make_plan(paths, given, reference, work_dir)
    files = {name: str(file) for name, file in {"html": html, "json": json_file}.items() if file is not None}
    with flow_process(work_dir):
        from pipelines.compare_students.comparison import tables_of
        from pipelines.compare_students.flow import compare_students
        from pipelines.flow_run import result_of

        found = result_of(compare_students, [*map(str, paths)], given, plan.reference, str(work_dir), files)
    console = open_console()
    for part in found.suites:
        for table in tables_of(part):
            console.print(table)
            console.print()
    page = html or "repeat the command with --html FILE, or open comparison.html in MLflow"
    sys.stdout.write(f"Every answer: {page}\nMLflow: {found.mlflow}\n")
    accuracy, words = found.suites[0].found.variants, {each.label: each.seeds[0].text for each in plan.students}
    best = max(words.keys() - {plan.reference}, key=lambda label: accuracy[label].mean)
    subjects = "--candidate", words[best], "--baseline", words[plan.reference], "--work-dir", work_dir
    sys.stdout.write(f"For a verdict: {preceptor('check-regression', paths[0], *subjects)}\n")
