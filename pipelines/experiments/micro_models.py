"""`preceptor build-micro`: rebuild the micro models of both domains from a seed."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from pipelines.process import end_with_parent, preceptor, prepare_process

_Role: TypeAlias = Literal["student", "teacher", "small-student", "grid-student", "grid-teacher"]


def build_micro(
    out: Annotated[Path, typer.Option("--out", help="Directory that gets a directory for each model.")] = Path(
        "build/micro"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and texts.")] = 0,
    role: Annotated[
        _Role | None, typer.Option("--role", help="This model alone; without it the two of the knowledge domain.")
    ] = None,
) -> None:
    """Rebuild micro models from a seed (an hour for two on two cores)."""
    prepare_process()
    roles: tuple[_Role, ...] = ("student", "teacher") if role is None else (role,)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        for directory in pool.map(_build, roles, repeat(out), repeat(seed)):
            typer.echo(f"saved {directory}")
    if role is None:
        models = ("--set", f"teacher.model={out}/teacher", "--set", f"student.model={out}/student")
        typer.echo(f"Next: {preceptor('train-teacher', 'configs/demo.yaml', *models)}")


def _build(role: _Role, out: Path, seed: int) -> Path:
    from evaluation.microgrids.pretraining import build_one as build_grids
    from evaluation.microworld.pretraining import build_one as build_world

    if role == "grid-student" or role == "grid-teacher":
        return build_grids(role, out, seed)
    return build_world(role, out, seed)
