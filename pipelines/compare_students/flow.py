"""The flow `compare-students`: a page, a plot, and a run in MLflow with a child for each student on each suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from prefect import flow
from prefect.client.schemas.objects import State

from evaluation.common.storage import write_atomically
from pipelines.check_regression.suite import load_content
from pipelines.compare_students.comparison import StudentsComparison, comparison_markdown, metrics_of, page_of
from pipelines.compare_students.students import ComparisonPlan, make_plan, run_plan
from pipelines.flow_run import ended, entered, show_link
from pipelines.lineage.run import Lineage
from pipelines.reports.console import Reporter
from pipelines.reports.plots import plot_scores
from pipelines.settings import Settings
from pipelines.terminal import open_console

FLOW_NAME = "compare-students"


class ComparisonSettings(Settings):
    """The parameters of a comparison's run."""

    suites: dict[str, str]
    """Name -> SHA-256 of what may change a score."""
    students: tuple[str, ...]
    """As given."""
    reference: str


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
        found = _log(plan, students, found, place, flow_run)
        _write(found, files or {})
        show_link(FLOW_NAME, found.mlflow, f"{name}: {len(students)} students")
    return ended(found, "COMPLETED", None, f"{len(students)} students on {name}")


def _write(found: StudentsComparison, files: Mapping[str, str]) -> None:
    renderers = {"html": page_of, "json": lambda comparison: comparison.model_dump_json(indent=2) + "\n"}
    for kind, path in files.items():
        write_atomically(Path(path), renderers[kind](found))


def _log(
    plan: ComparisonPlan, words: Sequence[str], found: StudentsComparison, work_dir: Path, flow_run: str
) -> StudentsComparison:
    """Log a comparison to MLflow, a child for each student on each suite; return it with its run's id and address."""
    first = plan.suites[0]
    tracking = first.tracking.model_copy(update={"experiment": f"{first.tracking.registry_prefix}/{FLOW_NAME}"})
    settings = ComparisonSettings(
        **first.model_dump(include={"name", "seed", "device", "dtype", "threads"}),
        tracking=tracking,
        suites={suite.name: suite.digest for suite in plan.suites},
        students=tuple(words),
        reference=plan.reference,
    )
    name = " ".join([*settings.suites, f"{len(plan.students)} students"])
    lineage = Lineage(settings, work_dir, kind=FLOW_NAME, run_name=name, key=flow_run, flow_run=flow_run)
    found = found.model_copy(update={"mlflow_run_id": lineage.run_id, "mlflow": lineage.link})
    with lineage.failing():
        for suite, scored in zip(plan.suites, found.suites, strict=True):
            lineage.log_documents(suite.name, load_content(suite).tasks)
            for student in scored.students:
                lineage.log_student(suite.name, student, metrics_of(student, scored))
        with TemporaryDirectory(prefix="preceptor-page-") as scratch:
            page, plot = Path(scratch, "comparison.html"), Path(scratch, "accuracy.png")
            _write(found, {"html": str(page), "json": f"{scratch}/comparison.json"})
            plot_scores({suite.title: suite.plotted() for suite in found.suites}, plot)
            lineage.log_files([page, Path(scratch, "comparison.json")], [plot], comparison_markdown(found))
        lineage.finish("FINISHED")
    return found
