"""`preceptor build-micro`: build and check the micro models of both domains."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
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


def build_and_check(
    console: Console, out: Path, seed: int, role: AnyRole | None, *, check_only: bool, shipped: bool
) -> None:
    """Build micro models (an hour for two on two cores), each in `out` / its role, and print their checks.

    Args:
        console: Gets the progress and the table.
        out: Directory of the models.
        seed: Of initial weights and texts.
        role: One model; None: those of the micro-world, or all that ship.
        check_only: Build nothing.
        shipped: Check the models that ship with the package instead.

    Raises:
        BuildError: A check failed.
        ModelError: A checkpoint could not be opened.
    """
    roles = (role,) if role is not None else (*_WORLD, *_GRIDS) if shipped else _WORLD
    builds = not (check_only or shipped)
    if builds:
        _build(out, seed, roles, lambda line: console.print(line, highlight=False))
    _print_checks(console, out, roles, shipped=shipped)
    if builds and role is None:
        options = f"--set teacher.model={out}/teacher --set student.model={out}/student"
        console.print(f"Next: preceptor train-teacher configs/demo.yaml {options}", soft_wrap=True)


def _build(out: Path, seed: int, roles: Sequence[AnyRole], report: Callable[[str], None]) -> None:
    from evaluation.microgrids.pretraining import build_one as build_grids
    from evaluation.microworld.build import build_one as build_world

    world = [role for role in roles if role not in _GRIDS]
    if world:
        with ProcessPoolExecutor(min(2, len(world)), mp_context=multiprocessing.get_context("spawn")) as pool:
            for directory in pool.map(build_world, world, [out] * len(world), [seed] * len(world)):
                report(f"saved {directory}")
    for role in roles:  # in sequence, because the grid models share stages
        if role == "grid-student" or role == "grid-teacher":
            report(f"saved {build_grids(role, out, seed)}")


def _print_checks(console: Console, out: Path, roles: Sequence[AnyRole], *, shipped: bool) -> None:
    from evaluation.microgrids.pretraining import run_checks as check_grids
    from evaluation.microworld.build import run_checks as check_world
    from pipelines.reports.format import plain_table

    checks, places = [], []
    for role in roles:
        own = MICRO_MODELS["micro-grid-student" if role in _GRIDS else "micro-student"].parent
        places.append(own if shipped else out)
        if role == "grid-student" or role == "grid-teacher":
            checks += check_grids(places[-1], [role])
        else:
            checks += check_world(places[-1], [role])
    table = plain_table(f"Checks of the micro models in {', '.join(map(str, dict.fromkeys(places)))}")
    for heading in ("check", "measured", "allowed", ""):
        table.add_column(heading)
    for check in checks:
        allowed = f"{check.low:.2f} to {check.high:.2f}"
        table.add_row(check.what, f"{check.value:.3f}", allowed, "ok" if check.passed else "FAILED")
    console.print(table)
    if failed := [check.what for check in checks if not check.passed]:
        raise BuildError(f"micro models: {len(failed)} checks failed: {'; '.join(failed)}.")
