"""What a rollback means for the inbox: documents of the nights that were undone wait until a person releases them."""

from __future__ import annotations

from pathlib import Path

from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.nights.opening import student_version
from pipelines.promotions import Rollback
from pipelines.registry import Registry


def set_undone_aside(registry: Registry, found: Rollback, work_dir: Path, because: str) -> tuple[str, ...]:
    """Set aside the documents that the version before does not hold, and return their ids.

    Without it the next night would learn again what a person has just taken back.

    Args:
        registry: Where the versions are.
        found: The rollback.
        work_dir: Of the nights; without an inbox there is nothing to set aside.
        because: Why it was rolled back.

    Raises:
        LineageError: A version cannot be read.
        InboxError: The inbox cannot be written.
    """
    if not (work_dir / INBOX_FILE).is_file():
        return ()
    left = student_version(registry, found.from_version, work_dir).state
    back = student_version(registry, found.to_version, work_dir).state
    nights = {held.task.id: held.night for held in left.documents if held.task.id not in back.ids}
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        there = {document.id for document in inbox.documents()}
        for night in dict.fromkeys(nights.values()):
            inbox.set_aside([name for name, its in nights.items() if its == night and name in there], because, night)
    return tuple(name for name in nights if name in there)
