"""`preceptor build-micro`: build and check the micro models of both domains."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from evaluation.common.checkpoints import MICRO_MODELS
from evaluation.common.errors import BuildError
from pipelines.process import end_with_parent, preceptor, prepare_process

WorldRole: TypeAlias = Literal["student", "teacher", "small-student"]
GridRole: TypeAlias = Literal["grid-student", "grid-teacher"]
_WORLD: tuple[WorldRole, ...] = ("student", "teacher")
_GRIDS: tuple[GridRole, ...] = ("grid-student", "grid-teacher")


def build_micro(
    out: Annotated[Path, typer.Option("--out", help="Directory that gets a directory for each model.")] = Path(
        "build/micro"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights and texts.")] = 0,
    shipped: Annotated[
        bool, typer.Option("--shipped", help="Check the models that ship with the package; build nothing.")
    ] = False,
    role: Annotated[
        Literal[WorldRole, GridRole] | None,
        typer.Option("--role", help="This model alone; without it the two of the knowledge domain."),
    ] = None,
) -> None:
    """Rebuild micro models from a seed (an hour for two on two cores) and print the checks that they must pass."""
    prepare_process()
    from evaluation.microgrids.pretraining import run_checks as check_grids
    from evaluation.microworld.build import run_checks as check_world
    from pipelines.reports.format import plain_table
    from pipelines.terminal import open_console

    world, grids = _WORLD, _GRIDS if shipped else ()
    if role is not None:
        grids = tuple(name for name in _GRIDS if name == role)
        world = () if role == "grid-student" or role == "grid-teacher" else (role,)
    console, own = open_console(), [MICRO_MODELS[f"micro-{name}"].parent for name in ("student", "grid-student")]
    if not shipped:
        for directory in _build(out, seed, world, grids):
            console.print(f"saved {directory}", highlight=False)
    places = own if shipped else [out, out]
    checks = [*check_world(places[0], world), *check_grids(places[1], grids)]
    table = plain_table("Checks of the micro models", heads=("check", "measured", "allowed", ""))
    for check in checks:
        allowed = f"{check.low:.2f} to {check.high:.2f}"
        table.add_row(check.what, f"{check.value:.3f}", allowed, "ok" if check.passed else "FAILED")
    console.print(table)
    if failed := [check.what for check in checks if not check.passed]:
        raise BuildError(f"micro models: {len(failed)} checks failed: {'; '.join(failed)}.")
    if not shipped and role is None:
        models = ("--set", f"teacher.model={out}/teacher", "--set", f"student.model={out}/student")
        console.print(f"Next: {preceptor('train-teacher', 'configs/demo.yaml', *models)}", soft_wrap=True)


def _build(out: Path, seed: int, world: Sequence[WorldRole], grids: Sequence[GridRole]) -> Iterator[Path]:
    from evaluation.microgrids.pretraining import build_one as build_grids
    from evaluation.microworld.build import build_one as build_world

    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        yield from pool.map(build_world, world, [out] * len(world), [seed] * len(world))
    for role in grids:  # in sequence, because the grid models share stages
        yield build_grids(role, out, seed)
