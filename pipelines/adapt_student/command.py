"""`preceptor adapt-student`: one night."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.process import JsonFile, prepare_process

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.adapt_student.config import NightConfig
    from pipelines.adapt_student.plan import DryRun


def adapt_student(
    config: Annotated[Path, typer.Argument(help="YAML file of the night, such as configs/nights-demo.yaml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override such as replay.documents=16.")] = None,
    work_dir: Annotated[
        Path, typer.Option("--work-dir", help="Directory of the inbox, the nights and the embedded stores.")
    ] = Path(".preceptor"),
    json_file: JsonFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and what the night will cost; no night.")
    ] = False,
) -> None:
    """Adapt the champion student to everything new in the inbox; promote the result if it passes the gate.

    The exit code is 0 whatever the gate decides. The same command finishes a night that was killed.
    """
    from pipelines.adapt_student.config import NightConfig
    from pipelines.settings import load

    settings = load(config, NightConfig, set_ or ())
    if dry_run:
        _print_dry_run(settings, config, set_ or (), work_dir)
        return
    from pipelines.process import exclusive, hide_own_tracebacks

    with exclusive(work_dir):  # checked again by the flow; here before Prefect and its server start
        prepare_process(work_dir)
    from rich.console import Console

    from pipelines.adapt_student.flow import adapt_student as flow
    from pipelines.adapt_student.page import night_lines

    hide_own_tracebacks()
    result = flow(str(config), list(set_ or ()), str(work_dir))
    for line in night_lines(result, work_dir):
        Console().print(line, highlight=False, soft_wrap=True, markup=False)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _print_dry_run(settings: NightConfig, config: Path, overrides: Sequence[str], work_dir: Path) -> None:
    """Print the resolved configuration, what the next night would do, and the next command."""
    from rich.console import Console

    from pipelines.adapt_student.plan import dry_run
    from pipelines.reports.costs import cost_table, estimate
    from pipelines.settings import to_yaml

    sys.stdout.write(to_yaml(settings))
    found = dry_run(settings, work_dir)
    console = Console()
    console.print(_table(found, settings.name))
    if found.stages:
        console.print(cost_table(estimate(found.stages, settings), settings))
    place = ["--work-dir", str(work_dir)]
    if found.stages:
        given = [part for override in overrides for part in ("--set", override)]
        start = shlex.join(["preceptor", "adapt-student", str(config), *given, *place])
        sys.stdout.write(f"To start it: {start}\n")
    else:
        sys.stdout.write(f"Nothing new in the inbox. To add documents: preceptor inbox add FILE {shlex.join(place)}\n")


def _table(found: DryRun, name: str) -> Table:
    """Return what the next night would do; rows without anything are left out, except for new documents."""
    from pipelines.reports.format import counted, plain_table

    plan = found.plan
    rows = {
        "Starts from": "the base student" if plan.parent is None else f"version {plan.parent} of the student",
        "Finishes": f"{plan.night}, which was interrupted" if found.interrupted else "",
        "New documents": f"{len(plan.documents):,}",
        "  to weights": f"{len(plan.to_weights):,}",
        "  to memory": f"{len(plan.documents) - len(plan.to_weights):,}",
        "Questions generated": f"for {counted(found.unasked, 'document')}" if found.unasked else "",
        "Waiting for questions": f"{len(plan.without_questions):,}" if plan.without_questions else "",
        "Quarantined": f"{found.quarantined:,}" if found.quarantined else "",
    }
    table = plain_table(title=f"The next night of {name}")
    table.add_column("Inbox", no_wrap=True)
    table.add_column("", justify="right")
    for quantity, value in rows.items():
        if value:
            table.add_row(quantity, value)
    return table
