"""`preceptor rollback` and `preceptor versions`: going back to the champion before, and what became of each version."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.process import prepare_process

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.promotions import VersionRecord
    from pipelines.registry import Registry

_Role = Annotated[Literal["student", "teacher"], typer.Option("--role", help="Whose versions.")]
_Because = Annotated[str, typer.Option("--because", help="Why, in a sentence; kept with the version that is left.")]
StoreConfig = Annotated[Path | None, typer.Option("--config", help="YAML file of a run or a night, for its store.")]
"""Option of the commands that look into the store of runs and nights alone."""
_WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]


def rollback(
    because: _Because,
    role: _Role = "student",
    config: StoreConfig = None,
    work_dir: _WorkDir = Path(".preceptor"),
) -> None:
    """Put the champion before in use again, memory included; a second rollback goes one further back.

    Nothing is deleted: the version that is left keeps its files, and the reason.
    """
    registry = open_registry(config, work_dir)
    found = registry.rollback(role, because)
    place = shlex.quote(str(work_dir))
    sys.stdout.write(
        f"Version {found.to_version} of the {role} is the champion again; version {found.from_version} was rolled "
        f"back because: {because.strip()}\n"
    )
    if role == "student":
        from pipelines.nights.undone import set_undone_aside

        undone = set_undone_aside(registry, found, work_dir, because.strip())
        if undone:
            sys.stdout.write(
                f"{len(undone)} documents of the nights that were undone are set aside; to let one be learned again: "
                f"preceptor inbox release {undone[0]} --work-dir {place}\n"
            )
        sys.stdout.write(f"To check its answers: preceptor ask 'QUESTION' --work-dir {place}\n")
    sys.stdout.write(f"To see all versions: preceptor versions --role {role} --work-dir {place}\n")


def versions(
    role: _Role = "student",
    config: StoreConfig = None,
    work_dir: _WorkDir = Path(".preceptor"),
) -> None:
    """List the registered versions: which is in use, what the gate decided, and why some were rolled back."""
    from rich.console import Console

    history = open_registry(config, work_dir).history(role)
    if not history:
        sys.stdout.write(f"No version of the {role} is registered in {str(work_dir)!r}.\n")
        return
    Console().print(version_table(history, f"Versions of the {role}"))


def version_table(history: list[VersionRecord], title: str) -> Table:
    """Return versions as a table, in their order; times are in UTC."""
    from rich.table import Table

    table = Table(title=title)
    for heading in ("version", "aliases", "gate", "replaced", "made", "rolled back because"):
        table.add_column(heading)
    for record in history:
        table.add_row(
            str(record.version),
            ", ".join(record.aliases),
            record.decision or "",
            "" if record.parent is None else str(record.parent),
            f"{record.created:%Y-%m-%d %H:%M}",
            record.reason or "",
        )
    return table


def open_registry(config: Path | None, work_dir: Path) -> Registry:
    """Return the registry of a work directory.

    Args:
        config: YAML file of a run or of a night; None is the store in the work directory.
        work_dir: Of runs and nights.

    Raises:
        ConfigError: The configuration is refused, or nothing has been run there.
    """
    from pipelines.lineage_store import require_store
    from pipelines.run_or_night import tracking_of

    tracking = tracking_of(config)
    require_store(tracking, work_dir)
    prepare_process()
    from pipelines.registry import Registry

    return Registry.open(tracking, work_dir)
