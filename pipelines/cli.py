"""The command line: `preceptor`. Heavy libraries are imported by the command that needs them, when it needs them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from evaluation.errors import ConfigError, InputError, PreceptorError
from pipelines.ask_command import ask
from pipelines.bench.command import app as bench_app
from pipelines.doctor.command import doctor
from pipelines.inbox.command import app as inbox_app
from pipelines.micro_models import AnyRole
from pipelines.nights.night_command import adapt_student
from pipelines.nights.simulation_command import simulate_nights
from pipelines.process import prepare_process
from pipelines.regression.command import check_regression
from pipelines.rollback import StoreConfig, open_registry, rollback, versions
from pipelines.serving.command import serve

if TYPE_CHECKING:
    from pipelines.config import RunConfig

EXIT_FAILED = 1
"""A run started and failed."""
EXIT_MISUSE = 2
"""Configuration, documents or arguments were refused; nothing was started."""

app = typer.Typer(
    name="preceptor",
    help="A teacher language model learns by reinforcement to write self-edits for a separate student.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]


@app.command("train-teacher")
def train_teacher(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/demo.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as loop.rounds=3; repeatable.")
    ] = None,
    work_dir: WorkDir = Path(".preceptor"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result for scripts to this file.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and what the run will cost; no run.")
    ] = False,
) -> None:
    """Train a teacher on a student's progress, then compare it with the untrained one on unseen documents.

    The same command goes on where a killed run was, in the same MLflow run.
    """
    from pipelines.config import load_config

    settings = load_config(config, set_ or ())
    if dry_run:
        _print_dry_run(settings)
        return
    from pipelines.documents import load_documents
    from pipelines.embedded import exclusive, hide_own_tracebacks

    # Both are checked again by the flow; here they are refused before Prefect and its server start.
    load_documents(settings)
    with exclusive(work_dir):
        prepare_process(work_dir)
    from pipelines.train_teacher import train_teacher as flow

    hide_own_tracebacks()
    result = flow(str(config), list(set_ or ()), str(work_dir))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _print_dry_run(settings: RunConfig) -> None:
    """Print the resolved configuration and the estimate."""
    from rich.console import Console

    from pipelines.config import to_yaml
    from pipelines.costs import cost_table, estimate

    sys.stdout.write(to_yaml(settings))
    Console().print(cost_table(estimate(settings), settings))


@app.command("promote")
def promote(
    role: Annotated[Literal["student", "teacher"], typer.Argument(help="Whose version it is.")],
    version: Annotated[int, typer.Argument(min=1, help="Number of the registered version.")],
    config: StoreConfig = None,
    work_dir: WorkDir = Path(".preceptor"),
) -> None:
    """Make a registered version the champion; promoting the previous one is a rollback."""
    found = open_registry(config, work_dir).promote(role, version)
    before = "there was none before" if found.previous is None else f"the previous one is version {found.previous}"
    sys.stdout.write(f"Version {found.champion} of the {role} is the champion; {before}.\n")
    if role == "student":
        sys.stdout.write(f"To serve it: preceptor serve --work-dir {shlex.quote(str(work_dir))}\n")


@app.command("build-micro")
def build_micro(
    out: Annotated[Path, typer.Option("--out", help="Directory that gets a directory for each model.")] = Path(
        "build/micro"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and texts.")] = 0,
    check_only: Annotated[bool, typer.Option("--check-only", help="Check the models in --out; build nothing.")] = False,
    shipped: Annotated[bool, typer.Option("--shipped", help="Check the models that ship with the package.")] = False,
    role: Annotated[
        AnyRole | None, typer.Option("--role", help="This model alone; without it the two of the knowledge domain.")
    ] = None,
) -> None:
    """Rebuild micro models from a seed and print the checks that they must pass."""
    prepare_process()
    from rich.console import Console

    from pipelines.micro_models import build, place_shipped, print_checks, roles_of, run_with

    console, roles = Console(), roles_of(role, shipped=shipped)
    if not (check_only or shipped):
        build(out, seed, roles, lambda line: console.print(line, highlight=False))
    print_checks(console, {name: place_shipped(name) if shipped else out for name in roles})
    if not (check_only or shipped) and role is None:
        console.print(run_with(out), soft_wrap=True)


@app.command("ui")
def ui(
    work_dir: WorkDir = Path(".preceptor"),
    mlflow_port: Annotated[int, typer.Option(min=1024, max=65535, help="Port of MLflow's dashboard.")] = 5000,
    prefect_port: Annotated[int, typer.Option(min=1024, max=65535, help="Port of Prefect's dashboard.")] = 4200,
) -> None:
    """Open the dashboards of MLflow and Prefect on this machine's loopback address, until Ctrl-C."""
    prepare_process(work_dir)
    from pipelines.dashboards import serve

    serve(work_dir, mlflow_port=mlflow_port, prefect_port=prefect_port)


app.command("serve")(serve)
app.command("doctor")(doctor)
app.command("check-regression")(check_regression)
app.command("adapt-student")(adapt_student)
app.command("simulate-nights")(simulate_nights)
app.command("ask")(ask)
app.command("rollback")(rollback)
app.command("versions")(versions)
app.add_typer(bench_app, name="bench")
app.add_typer(inbox_app, name="inbox")


def main() -> None:
    """Run the command line; the project's own errors become one message and an exit code."""
    try:
        app()
    except (ConfigError, InputError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_MISUSE)
    except PreceptorError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
