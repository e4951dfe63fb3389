"""The micro models of both domains: built, checked and told about for `preceptor build-micro`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from evaluation.checkpoints import MICRO_MODELS
from evaluation.errors import BuildError
from evaluation.microgrids.build import GRID_ROLES
from evaluation.microworld.build import SHIPPED, Role

if TYPE_CHECKING:
    from rich.console import Console

AnyRole: TypeAlias = Literal["student", "teacher", "small-student", "grid-student", "grid-teacher"]
"""`Role` and `GridRole`."""


def roles_of(role: AnyRole | None, *, shipped: bool) -> tuple[AnyRole, ...]:
    """Return the models that a command is about: one alone, all that ship, or the two of the knowledge domain."""
    if role is not None:
        return (role,)
    return (*SHIPPED, *GRID_ROLES) if shipped else SHIPPED


def place_shipped(role: AnyRole) -> Path:
    """Return the directory in which the package has a model, under the name of its role."""
    return MICRO_MODELS["micro-grid-student" if role in GRID_ROLES else "micro-student"].parent


def build(out: Path, seed: int, roles: Sequence[AnyRole], report: Callable[[str], None]) -> None:
    """Rebuild models under `out`; see the `build` of either domain."""
    from evaluation.microgrids.build import build as build_grids
    from evaluation.microworld.build import build as build_world

    grids = [role for role in roles if role in GRID_ROLES]
    world = [cast("Role", role) for role in roles if role not in GRID_ROLES]
    if world:
        build_world(out, seed, report, world)
    if grids:
        build_grids(out, seed, report, grids)


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
    from pipelines.report import plain_table

    checks = []
    for place in dict.fromkeys(places.values()):
        here = [role for role in places if places[role] == place]
        world = [cast("Role", role) for role in here if role not in GRID_ROLES]
        grids = [role for role in here if role in GRID_ROLES]
        checks += check_world(place, world) if world else []
        checks += check_grids(place, grids) if grids else []
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
    """Return what to type to run the demo with rebuilt models."""
    told = f"--set teacher.model={out}/teacher --set student.model={out}/student"
    return f"To run with them: preceptor train-teacher configs/demo.yaml {told}"
