"""How a night begins: from the champion and the inbox, or from the plan that a killed night left."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from evaluation.digests import digest_json
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.nights.config import NightConfig
from pipelines.nights.plan import NightPlan, choose_documents
from pipelines.nights.state import STATE_FILE, StudentState, read_state, write_state
from pipelines.registry import CHAMPION, Registry
from student.adapters import Adapter, load_adapter
from student.external_memory import MEMORY_FILE

NIGHTS = "nights"
"""Directory in the work directory: a directory for each night, and the plan of the one that is running."""
_CURRENT = "current.json"
RESULT = "result.json"
"""File in a night's directory, written last."""


class Champion(NamedTuple):
    """The student in use."""

    version: int | None
    """In the registry; None where there is none yet, which is the base student without a memory."""
    directory: Path | None
    """Of its files."""
    adapter: Adapter | None
    state: StudentState

    @property
    def digest(self) -> str:
        """SHA-256 of the adapter and of all that it holds."""
        return digest_json([None if self.adapter is None else self.adapter.digest, self.state.digest])


def student_version(registry: Registry, version: int | None, work_dir: Path) -> Champion:
    """Return a version of the student, its files copied into the work directory once; None is the base student.

    Raises:
        LineageError: The version cannot be read.
        ModelError: Its adapter cannot be read.
    """
    if version is None:
        return Champion(None, None, None, StudentState())
    place = work_dir / "students" / str(version)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            os.replace(registry.download("student", version, Path(scratch)), place)
    return Champion(version, place, load_adapter(place), read_state(place))


def open_plan(
    config: NightConfig, work_dir: Path, registry: Registry, say: Callable[[str], None]
) -> tuple[NightPlan | None, Champion]:
    """Return the plan of tonight, or of the night that was killed, and the student that it adapts.

    The plan is on disk before this returns. None when nothing new has come.

    Args:
        config: Of the night.
        work_dir: Of the nights.
        registry: Where the champion is.
        say: Told of what was found.

    Raises:
        LineageError: The champion cannot be read.
        InboxError: The inbox cannot be read.
    """
    number = registry.aliases("student").get(CHAMPION)
    left = _read_plan(work_dir)
    if left is not None:
        made_it = number is not None and left.night in student_version(registry, number, work_dir).state.groups()
        if left.config_digest == config.digest and (number == left.parent or made_it):
            say(f"finishing {left.night}, which was cut off")
            return left, student_version(registry, left.parent, work_dir)
        say(f"{left.night} was cut off and is left: the champion or the configuration is another one now")
    champion = student_version(registry, number, work_dir)
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        arrived, aside, superseded = inbox.documents(), inbox.aside(), inbox.superseded()
    chosen, waiting = choose_documents(
        arrived, champion.state, aside=aside, superseded=superseded, routing=config.routing
    )
    if not chosen:
        close_plan(work_dir)
        return None, champion
    holding = champion.state.ids | {planned.task.id for planned in chosen}
    plan = NightPlan(
        night=f"night-{_last_night(work_dir) + 1:04d}",
        parent=champion.version,
        parent_digest=champion.digest,
        config_digest=config.digest,
        documents=chosen,
        superseded={old: new for old, new in superseded.items() if old in holding and new in holding},
        without_questions=waiting,
    )
    _write_whole(work_dir / NIGHTS / plan.night / "plan.json", plan.model_dump_json())
    _write_whole(work_dir / NIGHTS / _CURRENT, plan.model_dump_json())
    return plan, champion


def close_plan(work_dir: Path) -> None:
    """Note that no night is under way."""
    (work_dir / NIGHTS / _CURRENT).unlink(missing_ok=True)


def write_night_file(work_dir: Path, night: str, name: str, content: str) -> Path:
    """Write a file of a night, whole or not at all, and return its path."""
    return _write_whole(work_dir / NIGHTS / night / name, content)


def _read_plan(work_dir: Path) -> NightPlan | None:
    try:
        return NightPlan.model_validate_json((work_dir / NIGHTS / _CURRENT).read_bytes())
    except (OSError, ValidationError):
        return None


def _last_night(work_dir: Path) -> int:
    """Return the number of the last night that was planned, 0 before any."""
    names = [path.name for path in (work_dir / NIGHTS).glob("night-*")]
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


def _write_whole(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
    return path


def version_directory(adapter_place: Path, state: StudentState, scratch: Path) -> Path:
    """Return a directory under `scratch` with all files of a version: adapter, memory and state."""
    place = scratch / "student"
    shutil.copytree(adapter_place, place)
    for stale in (STATE_FILE, MEMORY_FILE):
        (place / stale).unlink(missing_ok=True)
    state.memory.save(place / MEMORY_FILE)
    write_state(state, place)
    return place
