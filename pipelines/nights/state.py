"""What a version of the student holds besides its adapter: which documents, learned in which night, and where.

It lies as a file in the version's own directory, so that moving an alias moves all of it: there is no second record of
what has been learned that could disagree with the champion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from evaluation.digests import digest_json
from evaluation.errors import LineageError
from evaluation.tasks import KnowledgeTask
from pipelines.inbox.documents import Route
from pipelines.records import Record
from student.external_memory import ExternalMemory, MemoryEntry
from teacher.self_edit import SelfEdit

STATE_FILE = "night.json"
"""Name of the file in a version's directory."""


class HeldDocument(Record):
    """A document that a student holds."""

    task: KnowledgeTask
    night: str
    """In which it was taken in."""
    place: Route
    because: str = ""
    """Why there."""
    edits: tuple[SelfEdit, ...] = ()
    """What weights were trained on, for replay; empty in memory."""
    effective: date | None = None
    """From when on it holds; None where that is not known."""
    superseded_by: str | None = None
    """Id of the document that replaces it: its questions are asked no more, and its memory entry is gone."""

    @property
    def asked(self) -> bool:
        """Its questions still count."""
        return self.superseded_by is None


class StudentState(Record):
    """All documents of a version, in the order in which they came."""

    schema_version: Literal[1] = 1
    documents: tuple[HeldDocument, ...] = ()
    parent: int | None = None
    """Number of the version that this one was made from; None for the first."""
    scores: dict[str, float] = Field(default_factory=dict)
    """By night: accuracy on its documents right after it, in [0, 1]."""

    @property
    def ids(self) -> frozenset[str]:
        """Of all documents, superseded ones too."""
        return frozenset(held.task.id for held in self.documents)

    @property
    def digest(self) -> str:
        """SHA-256 of what is held: documents, questions, places, and what was trained on."""
        return digest_json(
            [
                [held.task.id, held.task.digest, held.place, held.superseded_by, [edit.digest for edit in held.edits]]
                for held in self.documents
            ]
        )

    def groups(self) -> dict[str, tuple[HeldDocument, ...]]:
        """Return documents whose questions still count by night, in the order of the nights."""
        found: dict[str, list[HeldDocument]] = {}
        for held in self.documents:
            if held.asked:
                found.setdefault(held.night, []).append(held)
        return {night: tuple(group) for night, group in found.items()}

    @property
    def memory(self) -> ExternalMemory:
        """The external memory: what is there and not superseded."""
        return ExternalMemory(
            MemoryEntry(
                id=held.task.id,
                title=held.task.document.title,
                text=held.task.document.text,
                source=held.task.document.source,
                effective=held.effective,
            )
            for held in self.documents
            if held.place == "memory" and held.asked
        )

    def after(self, new: Iterable[HeldDocument], superseded: Mapping[str, str]) -> StudentState:
        """Return the state with new documents.

        Args:
            new: Not held yet; one of an id that is held is passed over.
            superseded: By id of an old document, that of the one that replaces it; ids that are not held say nothing.
        """
        documents = [*self.documents, *(held for held in new if held.task.id not in self.ids)]
        marked = (
            held.model_copy(update={"superseded_by": superseded[held.task.id]})
            if held.task.id in superseded and held.superseded_by is None
            else held
            for held in documents
        )
        return self.model_copy(update={"documents": tuple(marked)})


def read_state(directory: Path) -> StudentState:
    """Return the state in a version's directory; an empty one where a version was made by no night.

    Raises:
        LineageError: The file is damaged, or was written by a later release.
    """
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


def write_state(state: StudentState, directory: Path) -> None:
    """Write a state into the directory of a version that is being made."""
    (directory / STATE_FILE).write_text(state.model_dump_json(), encoding="utf-8")
