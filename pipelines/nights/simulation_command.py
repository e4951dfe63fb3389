"""`preceptor simulate-nights`: nights in a row on the micro-world, whole and with one thing left out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipelines.process import prepare_process


def simulate_nights(
    config: Annotated[Path, typer.Argument(help="YAML file of the night, such as configs/nights-demo.yaml.")],
    nights: Annotated[int, typer.Option(min=2, max=30, help="Nights of each arm.")] = 10,
    documents: Annotated[int, typer.Option(min=2, max=20, help="New documents before each night.")] = 4,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="This arm alone; may be given again.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override such as replay.documents=16.")] = None,
    work_dir: Annotated[Path, typer.Option("--work-dir", help="Gets a directory for each arm.")] = Path(
        ".preceptor/simulated"
    ),
    json_file: Annotated[Path | None, typer.Option("--json", help="File that gets the result for scripts.")] = None,
) -> None:
    """Run nights in a row on the embedded micro-world, and the same ones without replay, gate or memory.

    Half-way through comes a night of wrong documents; two documents replace earlier ones. A killed simulation goes on
    with the same command.
    """
    from evaluation.errors import ConfigError
    from pipelines.config import read_config
    from pipelines.nights.config import NightConfig

    settings = read_config(config, NightConfig, set_ or ())
    prepare_process(work_dir)
    from rich.console import Console

    from pipelines.embedded import hide_own_tracebacks
    from pipelines.nights.simulate import ARMS, SimulationPlan, simulate
    from pipelines.nights.simulation_report import arms_table, draw_matrix, sentences

    unknown = [name for name in arm or () if name not in ARMS]
    if unknown:
        raise ConfigError(f"--arm: got {unknown}, allowed are {list(ARMS)}.")
    hide_own_tracebacks()
    wrong = nights // 2 + 1 if nights > 3 else None
    plan = SimulationPlan(nights=nights, documents=documents, superseding=(nights // 2 - 1, nights - 2), poisoned=wrong)
    arms = simulate(config, set_ or (), plan, work_dir, settings.seed, arm or list(ARMS))
    console = Console()
    console.print(arms_table(arms))
    for line in sentences(arms):
        console.print(line, highlight=False)
    figure = work_dir / "nights.png"
    draw_matrix(arms, figure)
    console.print(f"Figure: {figure}", highlight=False, soft_wrap=True)
    console.print(f"Last morning page: {arms[0].nights[-1].page}", highlight=False, soft_wrap=True)
    full = shlex.quote(str(work_dir / arms[0].name.replace(" ", "-")))
    console.print(f"To see all versions: preceptor versions --work-dir {full}", highlight=False, soft_wrap=True)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        content = [
            {**each.model_dump(mode="json"), "kept": each.kept, "lost_probes": each.lost_probes} for each in arms
        ]
        json_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
