"""How a night begins: from the champion and the inbox, or from the plan that a killed night left."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from evaluation.digests import digest_json
from evaluation.files import write_atomically
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.nights.config import NightConfig
from pipelines.nights.plan import NightPlan, PlannedDocument, choose_documents
from pipelines.nights.state import STATE_FILE, StudentState, read_state, write_state
from pipelines.nights.versions import student_place, version_files
from pipelines.registry import CHAMPION, Registry
from student.external_memory import MEMORY_FILE

if TYPE_CHECKING:
    from student.adapters import Adapter

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
    from student.adapters import load_adapter

    place = version_files(registry, "student", version, student_place(work_dir, version))
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
    champion = student_version(registry, number, work_dir)
    left = read_plan(work_dir)
    if left is not None:
        if is_finished_first(left, config, number, champion.state):
            say(f"finishing {left.night}, which was cut off")
            return left, student_version(registry, left.parent, work_dir)
        say(f"{left.night} was cut off and is left: the champion or the configuration is another one now")
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        arrived, aside, superseded = inbox.documents(), inbox.aside(), inbox.superseded()
    chosen, waiting = choose_documents(
        arrived, champion.state, aside=aside, superseded=superseded, routing=config.routing
    )
    if not chosen:
        close_plan(work_dir)
        return None, champion
    plan = NightPlan(
        night=f"night-{_last_night(work_dir) + 1:04d}",
        parent=champion.version,
        parent_digest=champion.digest,
        config_digest=config.digest,
        documents=chosen,
        superseded=replaced(superseded, champion.state, chosen),
        without_questions=waiting,
    )
    write_atomically(work_dir / NIGHTS / plan.night / "plan.json", plan.model_dump_json())
    write_atomically(work_dir / NIGHTS / _CURRENT, plan.model_dump_json())
    return plan, champion


def close_plan(work_dir: Path) -> None:
    """Note that no night is under way."""
    (work_dir / NIGHTS / _CURRENT).unlink(missing_ok=True)


def write_night_file(work_dir: Path, night: str, name: str, content: str) -> Path:
    """Write a file of a night, whole or not at all, and return its path."""
    return write_atomically(work_dir / NIGHTS / night / name, content)


def read_plan(work_dir: Path) -> NightPlan | None:
    """Return the plan of the night that is under way, or was cut off; None where there is none."""
    try:
        return NightPlan.model_validate_json((work_dir / NIGHTS / _CURRENT).read_bytes())
    except (OSError, ValidationError):
        return None


def is_finished_first(left: NightPlan, config: NightConfig, champion: int | None, state: StudentState) -> bool:
    """Return whether a night that was cut off is finished before another one begins.

    Args:
        left: Its plan.
        config: Of tonight.
        champion: Version in use, which must be the one that the night adapts, or the one that it made.
        state: Of that version.
    """
    same = champion == left.parent or left.night in state.groups()
    return same and left.config_digest == config.digest


def replaced(superseded: Mapping[str, str], state: StudentState, chosen: Sequence[PlannedDocument]) -> dict[str, str]:
    """Return by id of a document that is held, or chosen for tonight, that of the one among them that replaces it."""
    holding = state.ids | {planned.task.id for planned in chosen}
    return {old: new for old, new in superseded.items() if old in holding and new in holding}


def _last_night(work_dir: Path) -> int:
    """Return the number of the last night that was planned, 0 before any."""
    names = [path.name for path in (work_dir / NIGHTS).glob("night-*")]
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


def version_directory(adapter_place: Path, state: StudentState, scratch: Path) -> Path:
    """Return a directory under `scratch` with all files of a version: adapter, memory and state."""
    place = scratch / "student"
    shutil.copytree(adapter_place, place)
    for stale in (STATE_FILE, MEMORY_FILE):
        (place / stale).unlink(missing_ok=True)
    state.memory.save(place / MEMORY_FILE)
    write_state(state, place)
    return place
