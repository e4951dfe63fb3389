"""The flow `compare-students`: a page, a plot, and a run in MLflow with a child for each student on each suite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow
from prefect.client.schemas.objects import State

from evaluation.common.storage import write_atomically
from pipelines.check_regression.suite import load_content
from pipelines.compare_students.comparison import StudentsComparison, page_of
from pipelines.compare_students.students import ComparisonPlan, make_plan, run_plan
from pipelines.flow_run import ended, entered, show_link
from pipelines.lineage.run import Lineage
from pipelines.reports.console import Reporter
from pipelines.reports.plots import plot_accuracy
from pipelines.terminal import open_console

FLOW_NAME = "compare-students"


@flow(name=FLOW_NAME, persist_result=False)
def compare_students(
    suite_paths: list[str],
    students: list[str],
    reference: str | None = None,
    work_dir: str = ".preceptor",
    files: Mapping[str, str] | None = None,
) -> State[StudentsComparison]:
    """Compare students on pinned suites, write the files and log all of it.

    Args:
        suite_paths: YAML files of suites.
        students: See `pipelines.compare_students.students.parse_student`.
        reference: Label of the student that the others are compared with; None is the first.
        work_dir: Directory with the embedded stores.
        files: `html` and `json` -> file to write.
    """
    place = Path(work_dir)
    plan = make_plan([Path(path) for path in suite_paths], students, reference, place)
    name = "-".join(suite.name for suite in plan.suites)
    with entered(place, name) as flow_run:
        with Reporter(open_console(stderr=True), len(plan.suites)) as reporter:
            found = run_plan(plan, place, reporter)
        _write(found, files or {})  # before MLflow is asked: its failure must not lose the figures
        found = _log(plan, found, place, flow_run)
        _write(found, files or {})
        show_link(FLOW_NAME, found.mlflow, f"{name}: {len(students)} students")
    return ended(found, "COMPLETED", None, f"{len(students)} students on {name}")


def _write(found: StudentsComparison, files: Mapping[str, str]) -> None:
    for kind, path in files.items():
        write_atomically(Path(path), page_of(found) if kind == "html" else found.model_dump_json(indent=2) + "\n")


def _log(plan: ComparisonPlan, found: StudentsComparison, work_dir: Path, flow_run: str) -> StudentsComparison:
    """Log a run for each suite, with a child for each student; return the comparison with addresses."""
    suites, link = [], ""
    for suite, part in zip(plan.suites, found.suites, strict=True):
        tracking = suite.tracking.model_copy(update={"experiment": f"{suite.tracking.registry_prefix}/{FLOW_NAME}"})
        settings = suite.model_copy(update={"tracking": tracking, "pins": None, "groups": {}})
        name, key = f"{suite.name}: {len(part.students)} students", f"{flow_run}/{suite.name}"
        lineage = Lineage(settings, work_dir, kind=FLOW_NAME, run_name=name, key=key, flow_run=flow_run)
        with lineage.failing(), TemporaryDirectory(prefix="preceptor-page-") as scratch:
            lineage.log_documents("test", load_content(suite).tasks)
            for student in part.students:
                params = {"suite": suite.name, "student": student.name, "words": ",".join(student.words)}
                if student.version is not None:
                    params |= {"version": str(student.version), "night": student.night}
                lineage.log_variant(student, part.found.variants.get(student.name), {}, params)
            page, plot = Path(scratch, "comparison.html"), Path(scratch, "accuracy.png")
            plot_accuracy(part.found, part.students, plot, "student")
            suites.append(part.model_copy(update={"mlflow_run_id": lineage.run_id}))
            link = link or (lineage.link if len(plan.suites) == 1 else lineage.runs_link)
            found = found.model_copy(update={"mlflow": link})
            _write(found, {"html": str(page)})
            lineage.log_comparison(part.found, part, [plot], page)
            lineage.finish("FINISHED")
    return found.model_copy(update={"suites": tuple(suites)})
