"""`preceptor build-micro`: builds and checks of the micro models of both domains."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from evaluation.common.checkpoints import MICRO_MODELS
from evaluation.common.errors import BuildError

if TYPE_CHECKING:
    from rich.console import Console

AnyRole: TypeAlias = Literal["student", "teacher", "small-student", "grid-student", "grid-teacher"]
"""Roles of the micro-world (`evaluation.microworld.build.Role`) and of the micro-grids."""
_WORLD: tuple[AnyRole, ...] = ("student", "teacher")
_GRIDS: tuple[AnyRole, ...] = ("grid-student", "grid-teacher")


def roles_of(role: AnyRole | None, *, shipped: bool) -> tuple[AnyRole, ...]:
    """Return the models that a command is about: one alone, all that ship, or the two of the micro-world."""
    if role is not None:
        return (role,)
    return (*_WORLD, *_GRIDS) if shipped else _WORLD


def place_shipped(role: AnyRole) -> Path:
    """Return the directory in which the package has a model, under the name of its role."""
    return MICRO_MODELS["micro-grid-student" if role in _GRIDS else "micro-student"].parent


def build(out: Path, seed: int, roles: Sequence[AnyRole], report: Callable[[str], None]) -> None:
    """Rebuild models under `out`, each in a directory with the name of its role; an hour for two of them, on two cores.

    Args:
        out: Gets the directories.
        seed: Of initial weights and texts.
        roles: Which models; those of the micro-grids share stages, so they are built one after another.
        report: Called with a line when a model is done.
    """
    from evaluation.microgrids.pretraining import build_one as build_grids
    from evaluation.microworld.build import build_one as build_world

    world = [role for role in roles if role not in _GRIDS]
    if world:
        with ProcessPoolExecutor(min(2, len(world)), mp_context=multiprocessing.get_context("spawn")) as pool:
            for directory in pool.map(build_world, world, [out] * len(world), [seed] * len(world)):
                report(f"saved {directory}")
    for role in roles:
        if role == "grid-student" or role == "grid-teacher":
            report(f"saved {build_grids(role, out, seed)}")


def print_checks(console: Console, places: Mapping[AnyRole, Path]) -> None:
    """Print the checks of models.

    Args:
        console: Gets the table.
        places: By role, the directory that has the model under the name of its role.

    Raises:
        BuildError: A check failed.
        ModelError: A checkpoint could not be opened.
    """
    from evaluation.microgrids.checks import run_checks as check_grids
    from evaluation.microworld.checks import run_checks as check_world
    from pipelines.reports.format import plain_table

    checks = []
    for role, place in places.items():
        if role == "grid-student" or role == "grid-teacher":
            checks += check_grids(place, [role])
        else:
            checks += check_world(place, [role])
    table = plain_table(f"Checks of the micro models in {', '.join(map(str, dict.fromkeys(places.values())))}", "")
    for heading in ("check", "measured", "allowed", ""):
        table.add_column(heading)
    for check in checks:
        allowed = f"{check.low:.2f} to {check.high:.2f}"
        table.add_row(check.what, f"{check.value:.3f}", allowed, "ok" if check.passed else "FAILED")
    console.print(table)
    failed = [check.what for check in checks if not check.passed]
    if failed:
        raise BuildError(f"micro models: {len(failed)} checks failed: {'; '.join(failed)}.")


def run_with(out: Path) -> str:
    """Return the command that runs the demo with rebuilt models."""
    options = f"--set teacher.model={out}/teacher --set student.model={out}/student"
    return f"To run with them: preceptor train-teacher configs/demo.yaml {options}"
