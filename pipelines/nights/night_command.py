"""`preceptor adapt-student`: one night."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.process import prepare_process

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.nights.config import NightConfig
    from pipelines.nights.results import NightResult


def adapt_student(
    config: Annotated[Path, typer.Argument(help="YAML file of the night, such as configs/nights-demo.yaml.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override such as replay.documents=16.")] = None,
    work_dir: Annotated[
        Path, typer.Option("--work-dir", help="Directory of the inbox, the nights and the embedded stores.")
    ] = Path(".preceptor"),
    json_file: Annotated[Path | None, typer.Option("--json", help="File that gets the result for scripts.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and what the night will cost; no night.")
    ] = False,
) -> None:
    """Adapt the champion student to everything new in the inbox; promote it if the gate lets it through.

    Whatever the gate decides, the exit code is 0. A night that was killed is finished by the same command.
    """
    from pipelines.config import read_config
    from pipelines.nights.config import NightConfig

    settings = read_config(config, NightConfig, set_ or ())
    if dry_run:
        _print_dry_run(settings, config, set_ or (), work_dir)
        return
    from pipelines.embedded import exclusive, hide_own_tracebacks

    with exclusive(work_dir):  # checked again by the flow; here before Prefect and its server start
        prepare_process(work_dir)
    from rich.console import Console

    from pipelines.nights.adapt_student import adapt_student as flow

    hide_own_tracebacks()
    result = flow(str(config), list(set_ or ()), str(work_dir))
    print_night(Console(), result, work_dir)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _print_dry_run(settings: NightConfig, config: Path, overrides: Sequence[str], work_dir: Path) -> None:
    """Print the resolved configuration, the estimate for what waits now, and the next command."""
    from rich.console import Console

    from pipelines.config import to_yaml
    from pipelines.nights.ahead import look_ahead
    from pipelines.nights.cost_table import next_command, night_cost_table
    from pipelines.nights.costs import estimate_night

    sys.stdout.write(to_yaml(settings))
    ahead = look_ahead(settings, work_dir)
    cost = estimate_night(settings, ahead)
    Console().print(night_cost_table(cost, settings, ahead))
    sys.stdout.write(f"{next_command(cost, config, overrides, work_dir)}\n")


def print_night(console: Console, result: NightResult, work_dir: Path) -> None:
    """Print a night in a few lines, with what to type next."""
    from pipelines.nights.summary import night_lines

    for line in night_lines(result, work_dir):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
