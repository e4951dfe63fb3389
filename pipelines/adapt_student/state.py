"""What a version of the student holds besides its adapter: its documents, each with the night that added it.

The state lies in the version's own directory, so that moving an alias moves all of it: no second record of what was
learned can disagree with the champion.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field, ValidationError

from evaluation.common.data import digest_json
from evaluation.common.errors import LineageError
from evaluation.common.storage import write_atomically
from evaluation.tasks import KnowledgeTask
from pipelines.ask.answers import FORMAT_FILE, AnswerSettings
from pipelines.inbox.documents import Route
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.records import Record
from student.memory import MEMORY_FILE, ExternalMemory, MemoryEntry
from teacher.self_edit import SelfEdit

if TYPE_CHECKING:
    from pipelines.lineage.registry import Registry
    from pipelines.lineage.versions import Rollback
    from student.adapters import Adapter

STATE_FILE = "night.json"
"""Name of the state's file in a version's directory."""


class HeldDocument(Record):
    """A document that a student holds."""

    task: KnowledgeTask
    night: str = ""
    """Night that added it; empty in plans of earlier releases."""
    place: Route
    because: str = ""
    """Its route, and the reason for it."""
    edits: tuple[SelfEdit, ...] = ()
    """Self-edits that the weights were trained on, for replay; empty in memory."""
    effective: date | None = None
    """Date from which it holds; None if unknown."""
    superseded_by: str | None = None
    """Id of the document that replaces it: it is out of memory, and its questions are no longer asked."""
    client: str = ""
    """The one client who is given it; empty is everybody."""


class StudentState(Record):
    """All documents of a version, in the order of arrival."""

    schema_version: Literal[1] = 1
    documents: tuple[HeldDocument, ...] = ()
    parent: int | None = None
    """Number of the version that this one was trained from; None for the first."""
    scores: dict[str, float] = Field(default_factory=dict)
    """By night: accuracy on its documents right after it, in [0, 1]."""

    @property
    def ids(self) -> frozenset[str]:
        """Ids of all documents, superseded ones included."""
        return frozenset(held.task.id for held in self.documents)

    @property
    def private(self) -> dict[str, str]:
        """Client by id of a document that is given to one client alone; it is in memory."""
        return {held.task.id: held.client for held in self.documents if held.client}

    @property
    def digest(self) -> str:
        """SHA-256 of the documents, their questions, routes and self-edits."""
        return digest_json(
            [
                [held.task.id, held.task.digest, held.place, held.superseded_by, [edit.digest for edit in held.edits]]
                for held in self.documents
            ]
        )

    @property
    def active(self) -> tuple[HeldDocument, ...]:
        """The documents that are not superseded."""
        return tuple(held for held in self.documents if held.superseded_by is None)

    def groups(self) -> dict[str, tuple[HeldDocument, ...]]:
        """Return the active documents by night, in the order of the nights."""
        found: dict[str, tuple[HeldDocument, ...]] = {}
        for held in self.active:
            found[held.night] = (*found.get(held.night, ()), held)
        return found

    @property
    def memory(self) -> ExternalMemory:
        """The external memory: the active documents that were routed there."""
        return ExternalMemory(
            MemoryEntry(
                id=held.task.id,
                title=held.task.document.title,
                text=held.task.document.text,
                source=held.task.document.source,
                effective=held.effective,
                client=held.client,
            )
            for held in self.active
            if held.place == "memory"
        )

    def after(self, new: Iterable[HeldDocument], superseded: Mapping[str, str]) -> StudentState:
        """Return the state with new documents added; one that is held already stays as it is.

        `superseded` maps the id of a replaced document, if it is held, to that of its replacement.
        """
        documents = [*self.documents, *(held for held in new if held.task.id not in self.ids)]
        replaced = [held.superseded_by or superseded.get(held.task.id) for held in documents]
        marked = [held.model_copy(update={"superseded_by": by}) for held, by in zip(documents, replaced, strict=True)]
        return self.model_copy(update={"documents": tuple(marked)})

    def without(self, removed: Collection[str]) -> StudentState:
        """Return the state without some documents: neither in memory nor rehearsed nor asked about any more."""
        return self.model_copy(update={"documents": tuple(d for d in self.documents if d.task.id not in removed)})


class Erasure(Record):
    """What leaves the weights, from the first step of that to the last; without any text of it."""

    documents: tuple[str, ...]
    """Ids."""
    reason: str
    who: str
    versions: tuple[int, ...]
    """Whose weights learned them, in ascending order."""
    champion: int | None
    """The one of these that was in use; None: none was, and nothing has to be learned again."""
    clean: int | None
    """The last version in its line that did not learn them; None is the base student."""
    again: tuple[str, ...] = ()
    """Ids of what the champion held beside them and `clean` does not."""
    learned: bool = False
    """Whether the night that learns it again has ended."""
    gone: bool | None = None
    """Whether probes find nothing of them in the champion; None before they were asked."""

    @property
    def is_open(self) -> bool:
        """Whether the next night learns for it."""
        return self.champion is not None and not self.learned


_ERASURE = "erasure.json"


def read_erasure(work_dir: Path) -> Erasure | None:
    """Return the erasure that a command in this work directory has not ended yet."""
    path = work_dir / _ERASURE
    return Erasure.model_validate_json(path.read_bytes()) if path.is_file() else None


def write_erasure(erasure: Erasure | None, work_dir: Path) -> None:
    """Record how far an erasure is, before its first step and after each; None after the last."""
    if erasure is None:
        (work_dir / _ERASURE).unlink(missing_ok=True)
    else:
        write_atomically(work_dir / _ERASURE, erasure.model_dump_json(indent=2))


def read_state(directory: Path) -> StudentState:
    """Return the state in a version's directory; an empty one if no night made the version; raises LineageError."""
    path = directory / STATE_FILE
    if not path.is_file():
        return StudentState()
    try:
        return StudentState.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LineageError(
            f"student version: {str(path)!r} cannot be read: {first['msg']} at {first['loc']}. It was damaged or "
            "written by a later release; use that release, or roll back."
        ) from error


class StudentVersion(NamedTuple):
    """A student: its adapter and what it holds."""

    number: int | None
    """In the registry; None is the base student, or one that is not registered yet."""
    directory: Path | None
    adapter: Adapter | None
    """None is the base student."""
    state: StudentState

    def without(self, removed: Collection[str]) -> StudentVersion:
        """Return the student whose state is without some documents; what its weights learned of them stays."""
        return self._replace(state=self.state.without(removed))


BASE_STUDENT = StudentVersion(None, None, None, StudentState())


def student_label(version: int | None) -> str:
    """Return what messages call a version; None is the base student."""
    return "the base student" if version is None else f"version {version} of the student"


def student_directory(work_dir: Path, version: int) -> Path:
    """Return the place of a version's local copy."""
    return work_dir / "students" / str(version)


def student_version(registry: Registry, version: int | None, work_dir: Path) -> StudentVersion:
    """Return a version of the student, its files copied into the work directory once; None is the base student.

    Raises:
        LineageError: The version cannot be read.
        ModelError: Its adapter cannot be read.
    """
    if version is None:
        return BASE_STUDENT
    from student.adapters import load_adapter

    directory = registry.fetch("student", version, student_directory(work_dir, version))
    return StudentVersion(version, directory, load_adapter(directory), read_state(directory))


def version_directory(adapter_dir: Path, state: StudentState, asking: AnswerSettings, scratch: Path) -> Path:
    """Return a directory under `scratch` with all files of a version: adapter, memory, state and answer settings."""
    directory = scratch / "student"
    shutil.copytree(adapter_dir, directory)
    state.memory.save(directory / MEMORY_FILE)
    (directory / STATE_FILE).write_text(state.model_dump_json(), encoding="utf-8")
    (directory / FORMAT_FILE).write_text(asking.model_dump_json(), encoding="utf-8")
    return directory


def release_promoted(registry: Registry, version: int, work_dir: Path, despite: str | None) -> tuple[str, ...]:
    """Release from quarantine what a new champion holds, with a note on it, and return the ids.

    `despite` is why it was promoted although the gate refused it; None if the gate did not.
    """
    if not (work_dir / INBOX_FILE).is_file():
        return ()
    held = read_state(registry.fetch("student", version, student_directory(work_dir, version))).ids
    until = f"until version {version} was promoted" + (f" despite the gate: {despite}" if despite else "")
    with InboxStore(work_dir / INBOX_FILE) as inbox:
        mine = {name: why for name, why in inbox.quarantined().items() if name in held}
        inbox.note({name: f"quarantined in {night} ({why}) {until}" for name, (why, night) in mine.items()})
        return inbox.release([*mine])


def reverted_documents(registry: Registry, rollback: Rollback, work_dir: Path) -> dict[str, list[str]]:
    """Return the ids of the documents that a rollback takes back, by the night that learned them.

    They are quarantined, or the next night would learn again what was just reverted.
    """
    if not (work_dir / INBOX_FILE).is_file():
        return {}
    before, after = (student_version(registry, number, work_dir).state for number in rollback)
    nights: dict[str, list[str]] = {}
    for held in before.documents:
        if held.task.id not in after.ids:
            nights.setdefault(held.night, []).append(held.task.id)
    return nights
