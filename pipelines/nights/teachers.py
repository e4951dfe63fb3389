"""Which teacher writes at night: the champion of the registry, or the checkpoint as it is."""

from __future__ import annotations

from pipelines.nights.versions import version_files
from pipelines.registry import CHAMPION, Registry
from pipelines.workspace import Workspace


def champion_teacher(ws: Workspace, registry: Registry) -> tuple[str | None, str]:
    """Return the name of the champion's state in the work directory, and what to call the teacher.

    Args:
        ws: The night's workspace, whose teacher the champion must be an adapter of.
        registry: Where the champion is.

    Raises:
        LineageError: Its files cannot be read.
    """
    number = registry.aliases("teacher").get(CHAMPION) if ws.taught_locally else None
    if number is None:
        return None, f"{ws.config.teacher.model} as it is"
    name = f"version-{number}-of-{registry.name('teacher')}"
    version_files(registry, "teacher", number, ws.policy_dir(name))
    return name, f"version {number} of the teacher"
