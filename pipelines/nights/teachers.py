"""Which teacher writes at night: the champion of the registry, or the checkpoint as it is."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

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
    place = ws.policy_dir(name)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            os.replace(registry.download("teacher", number, Path(scratch)), place)
    return name, f"version {number} of the teacher"
