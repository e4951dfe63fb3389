"""`preceptor doctor`: the command. Nothing heavy is imported before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.process import prepare_process

EXIT_UNUSABLE = 1
"""Something that is needed is missing or broken."""


def doctor(
    work_dir: Annotated[
        Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")
    ] = Path(".preceptor"),
    config: Annotated[Path | None, typer.Option("--config", help="YAML file whose needs are checked as well.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result for scripts to this file.")] = None,
) -> None:
    """Say what is installed and usable here, and the command that mends what is not.

    Downloads nothing and changes nothing. The exit code is 1 when something that is needed is missing or broken.
    """
    from pipelines.config import load_config

    settings = None if config is None else load_config(config)
    prepare_process()
    from rich.console import Console

    from pipelines.doctor.examine import examine
    from pipelines.doctor.report import print_doctor_report

    console = Console()
    report = examine(work_dir, settings, console)
    print_doctor_report(console, report)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if not report.usable:
        raise typer.Exit(EXIT_UNUSABLE)
