"""Files of registered versions in the work directory: copied there once, and found there by every later night."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pipelines.registry import Registry, Role


def student_place(work_dir: Path, version: int) -> Path:
    """Return where the files of a version of the student are, once they were copied."""
    return work_dir / "students" / str(version)


def version_files(registry: Registry, role: Role, version: int, place: Path) -> Path:
    """Return `place`, with the files of a version in it; whole or not there, whenever a night is killed.

    Args:
        registry: Where the version is.
        role: Whose version it is.
        version: Its number.
        place: Directory that its files are copied to, where they are not there yet.

    Raises:
        LineageError: There is no such version, or its files cannot be read.
    """
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            os.replace(registry.download(role, version, Path(scratch)), place)
    return place
