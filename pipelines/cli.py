"""The command line: `preceptor`. Heavy libraries are imported by the command that needs them, when it needs them."""

from __future__ import annotations

import os
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from evaluation.common.errors import LineageError
from evaluation.common.storage import write_atomically
from pipelines.adapt_student.forget import forget
from pipelines.adapt_student.init import examples, get_model, init
from pipelines.adapt_student.queue import list_documents, remove, show
from pipelines.ask.answerer import ask
from pipelines.check_regression.command import check_regression
from pipelines.compare_students.command import compare
from pipelines.experiments.micro_models import build_micro
from pipelines.inbox.command import app as inbox_app
from pipelines.process import (
    FlowFile,
    JsonFile,
    RoleOption,
    WorkDir,
    find_config,
    flow_process,
    preceptor,
    prepare_process,
)
from pipelines.serve.command import serve
from pipelines.terminal import STOPPED, guard_output, open_console, plain_errors, stoppable
from pipelines.upkeep import backup, doctor, restore
from pipelines.write_corpus.command import study, write_corpus

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipelines.lineage.registry import Registry
    from pipelines.lineage.versions import Move, Rollback

_GROUPS = {
    "Learn": ("train-teacher", "build-micro"),
    "Night": ("get-model", "examples", "init", "inbox", "adapt-student", "ask", "forget"),
    "Corpus": ("write-corpus", "study"),
    "Check": ("doctor", "check-regression", "compare", "config"),
    "Serve": ("serve",),
    "Store": ("ui", "versions", "promote", "rollback", "backup", "restore", "gc"),
}
"""Commands by what they are for, in the order of the help."""


class Grouped(TyperGroup):
    """Commands under headings, with help that is wrapped instead of cut; signals end them in order."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; see `stoppable`. Typer itself would only say that it was aborted."""
        with stoppable():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of `_GROUPS`, then those that are in none."""
        listed = {name for names in _GROUPS.values() for name in names}
        rest = tuple(name for name in self.commands if name not in listed)
        for title, names in {**_GROUPS, "Commands": rest}.items():
            rows = [(name, self.commands[name].get_short_help_str(500)) for name in names if name in self.commands]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


app = typer.Typer(
    name="preceptor",
    cls=Grouped,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A teacher language model learns by reinforcement to write self-edits for a separate student.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting, such as loop.rounds=3; repeatable.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved configuration and what it will cost; nothing runs.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"preceptor {version('preceptor')}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    guard_output()


@app.command("train-teacher")
def train_teacher(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/demo.yaml.", callback=find_config)],
    set_: SetOption = None,
    work_dir: WorkDir = Path(".preceptor"),
    json_file: JsonFile = None,
    dry_run: DryRun = False,
) -> None:
    """Train a teacher on a student's progress, then compare it with the untrained one on unseen documents.

    The same command goes on where a killed run was, in the same MLflow run.
    """
    from pipelines.checks import check, check_unread, findings_of
    from pipelines.settings import load, to_yaml
    from pipelines.train_teacher.config import TrainTeacherConfig

    settings = load(config, TrainTeacherConfig, set_ or ())
    if dry_run:
        from pipelines.reports.costs import cost_table, estimate
        from pipelines.train_teacher.plan import plan_run

        sys.stdout.write(to_yaml(settings))
        cost = estimate(plan_run(settings), settings, settings.data, settings.external_sampling)
        open_console().print(cost_table(cost, settings))
        check_unread(settings, work_dir)
        return
    check(settings, work_dir, findings_of)
    with flow_process(work_dir):
        from pipelines.train_teacher.flow import train_teacher as flow

        _write_json(json_file, flow(str(config), list(set_ or ()), str(work_dir)))


@app.command("adapt-student")
def adapt_student(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the night, such as configs/nights-demo.yaml.", callback=find_config)
    ],
    set_: SetOption = None,
    work_dir: WorkDir = Path(".preceptor"),
    json_file: JsonFile = None,
    dry_run: DryRun = False,
) -> None:
    """Adapt the champion student to everything new in the inbox; promote the result if it passes the gate.

    The exit code is 0 whatever the gate decides. The same command finishes a night that was killed.
    """
    from pipelines.adapt_student.config import NightConfig
    from pipelines.checks import check, check_unread, findings_of
    from pipelines.settings import load

    settings = load(config, NightConfig, set_ or ())
    if dry_run:
        from pipelines.adapt_student.plan import print_dry_run

        print_dry_run(settings, config, set_ or (), work_dir)
        check_unread(settings, work_dir)
        return
    check(settings, work_dir, findings_of)
    with flow_process(work_dir):
        from pipelines.adapt_student.flow import adapted, awaited
        from pipelines.adapt_student.page import night_lines

        with awaited(work_dir) as to_tell:
            result = to_tell(adapted(str(config), list(set_ or ()), str(work_dir)))
            store = config if settings.tracking.uri else None
            sys.stdout.write("".join(f"{line}\n" for line in night_lines(result, work_dir, store)))
            sys.stdout.flush()
            _write_json(json_file, result)


def _write_json(file: Path | None, result: BaseModel) -> None:
    if file is not None:
        write_atomically(file, result.model_dump_json(indent=2) + "\n")


@app.command("promote")
def promote(
    role: Annotated[Literal["student", "teacher"], typer.Argument(help="Whose version it is.")],
    version: Annotated[int, typer.Argument(min=1, help="Number of the registered version.")],
    despite_the_gate: Annotated[
        bool,
        typer.Option("--despite-the-gate", help="Promote it though the gate held or rejected it; needs --because."),
    ] = False,
    because: Annotated[str, typer.Option(help="Reason to overrule the gate; kept with the version.")] = "",
    config: FlowFile = None,
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Make a registered version the champion, unless the gate held or rejected it."""
    if despite_the_gate != bool(because.strip()):
        raise typer.BadParameter("and --because REASON go together", param_hint="--despite-the-gate")
    registry, despite = _registry(config, work_dir), because.strip() or None
    previous = registry.promote(role, version, despite=despite)
    before = "there was none before" if previous is None else f"the previous one is version {previous}"
    sys.stdout.write(f"Version {version} of the {role} is the champion; {before}.\n")
    if role == "student":
        from pipelines.adapt_student.state import release_promoted

        if released := release_promoted(registry, version, work_dir, despite):
            sys.stdout.write(f"No longer quarantined, since it holds them: {', '.join(released)}.\n")
        sys.stdout.write(f"To serve it: {preceptor('serve', *_place(config, work_dir))}\n")


@app.command("rollback")
def rollback(
    because: Annotated[str, typer.Option("--because", help="Reason; kept with the version that is left.")],
    role: RoleOption = "student",
    config: FlowFile = None,
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Make the previous champion the champion again, memory included; a second rollback goes one further back.

    Nothing is deleted: the version that is left keeps its files and the reason.
    """
    from pipelines.adapt_student.state import reverted_documents
    from pipelines.reports.format import counted

    registry = _registry(config, work_dir, complete=False)  # a rollback that was killed is told, too

    def reverted(found: Rollback) -> dict[str, list[str]]:
        try:
            return reverted_documents(registry, found, work_dir) if role == "student" else {}
        except LineageError as error:  # a damaged champion is left all the same
            sys.stderr.write(f"Its documents are not quarantined, and the next night learns them again: {error}\n")
            return {}

    def tell(move: Move) -> None:
        place, ids = _place(config, work_dir), [name for names in move.quarantined.values() for name in names]
        sys.stdout.write(
            f"Version {move.to} of the {role} is the champion again; version {move.left} was rolled back because: "
            f"{move.reason}\n"
        )
        if ids:
            sys.stdout.write(
                f"Quarantined with its nights: {counted(len(ids), 'document')}. To return one to the queue: "
                f"{preceptor('inbox', 'release', ids[0], '--work-dir', work_dir)}\n"
            )
        if role == "student":
            sys.stdout.write(f"To check its answers: {preceptor('ask', 'YOUR QUESTION', *place)}\n")
        sys.stdout.write(f"To see all versions: {preceptor('versions', '--role', role, *place)}\n")
        sys.stdout.flush()

    registry.rollback(role, because, reverted, tell)


@app.command("versions")
def versions(
    role: RoleOption = "student",
    config: FlowFile = None,
    work_dir: WorkDir = Path(".preceptor"),
    json: Annotated[bool, typer.Option("--json", help="Print the versions as a JSON list.")] = False,
) -> None:
    """List the registered versions: aliases, gate decisions, scores, teachers, nights, and reasons."""
    history = _registry(config, work_dir).history(role)
    if json:
        from pydantic_core import to_jsonable_python

        rows = [{**record._asdict(), "scores": dict(record.scores)} for record in history]
        sys.stdout.write(dumps(to_jsonable_python(rows), indent=2) + "\n")
    elif not history:
        sys.stdout.write(f"No version of the {role} is registered in {str(work_dir)!r}.\n")
    else:
        from pipelines.reports.console import versions_table

        open_console().print(versions_table(role, history))


@app.command("gc")
def gc(
    config: FlowFile = None,
    work_dir: WorkDir = Path(".preceptor"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
) -> None:
    """Remove what the registry holds as well and what killed commands left; every answer and run stays the same."""
    from pipelines.upkeep import collect

    collect(_registry(config, work_dir), work_dir, dry_run)


def _place(config: Path | None, work_dir: Path) -> tuple[object, ...]:
    """Return the options by which a next command finds the same store."""
    return (*(() if config is None else ("--config", config)), "--work-dir", work_dir)


def _registry(config: Path | None, work_dir: Path, *, complete: bool = True) -> Registry:
    """Return the registry of a work directory, or of a flow's file; ConfigError when it holds no runs."""
    from pipelines.lineage.registry import Registry
    from pipelines.lineage.store import require_store
    from pipelines.settings import AnyFlow, TrackingConfig, load

    tracking = TrackingConfig() if config is None else load(config, AnyFlow).tracking
    require_store(tracking, work_dir)
    prepare_process()
    return Registry.open(tracking, work_dir, complete=complete)


config_app = typer.Typer(help="The configuration files.", no_args_is_help=True, rich_markup_mode=None)


@config_app.command("reference")
def config_reference() -> None:
    """Print every setting with its type, default, range and meaning, in Markdown (docs/configuration.md)."""
    from pipelines.settings import reference

    sys.stdout.write(reference(schemas()))


def schemas() -> dict[str, type[BaseModel]]:
    """Return the schemas of the shipped files by the command that reads them."""
    from pipelines.adapt_student.config import NightConfig
    from pipelines.check_regression.suite import RegressionSuite
    from pipelines.experiments.grid import GridPlan
    from pipelines.train_teacher.config import TrainTeacherConfig
    from pipelines.write_corpus.config import WriteCorpusConfig

    return {
        "train-teacher": TrainTeacherConfig,
        "adapt-student": NightConfig,
        "write-corpus": WriteCorpusConfig,
        "check-regression": RegressionSuite,
        "make evidence": GridPlan,
    }


@app.command("ui")
def ui(
    work_dir: WorkDir = Path(".preceptor"),
    mlflow_port: Annotated[int, typer.Option(min=1024, max=65535, help="Port of MLflow's dashboard.")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1024, max=65535, help="Port of Prefect's dashboard.")] = 4200,
) -> None:
    """Open the dashboards of MLflow and Prefect on this machine's loopback address, until Ctrl-C.

    Links open on runs with accuracy and interval. With MLFLOW_TRACKING_URI they lead to the runs of that store.
    """
    prepare_process(work_dir)
    from pipelines.lineage.store import follow_move, pages
    from pipelines.lineage.views import LOCAL
    from pipelines.process import open_dashboards
    from pipelines.settings import TrackingConfig

    tracking = TrackingConfig()

    def links() -> dict[str, str]:
        here = f"http://127.0.0.1:{mlflow_port}"
        return {name: link.replace(LOCAL, here) for name, link in pages(tracking, work_dir).items()}

    follow_move(work_dir / "mlflow.db")
    ports = {"mlflow_port": mlflow_port, "prefect_port": prefect_port}
    open_dashboards(work_dir, **ports, uri=tracking.location, links=links)


app.command("build-micro")(build_micro)
app.command("serve")(serve)
app.command("write-corpus")(write_corpus)
app.command("study")(study)
app.command("doctor")(doctor)
app.command("check-regression")(check_regression)
app.command("compare")(compare)
app.command("ask")(ask)
app.command("get-model")(get_model)
app.command("init")(init)
app.command("examples")(examples)
app.command("forget")(forget)
inbox_app.command("list")(list_documents)
inbox_app.command("show")(show)
inbox_app.command("remove")(remove)
app.command("backup")(backup)
app.command("restore")(restore)
app.add_typer(inbox_app, name="inbox", cls=Grouped)
app.add_typer(config_app, name="config", cls=Grouped)


@plain_errors()
def main() -> None:
    """Run the command line."""
    guard_output()
    try:
        app()
    except SystemExit as end:
        if end.code in STOPPED:  # all is written, and to take the libraries down could last longer than the rest
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)
        raise


if __name__ == "__main__":
    main()
