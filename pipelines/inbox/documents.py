"""A document of the inbox: what arrived, with where it is from, since when it holds and what it replaces."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict

from evaluation.digests import digest_json
from evaluation.errors import InputError
from evaluation.loaders.rows import Content, Label
from evaluation.tasks import Document, KnowledgeTask, Question

MOST_TITLE_CHARACTERS = 500
MOST_SOURCE_CHARACTERS = 2_000
MOST_TEXT_CHARACTERS = 100_000
"""Longest text of one document, in characters; far more than a teacher reads at once. Longer ones are split."""

Route: TypeAlias = Literal["weights", "memory"]
"""Where knowledge goes: into the student's weights, or into memory that is read when a question comes."""


def _at_most(most: int) -> AfterValidator:
    def check(value: str) -> str:
        if len(value) > most:
            raise ValueError(f"has {len(value)} characters, allowed are at most {most}")
        return value

    return AfterValidator(check)


_Name = Annotated[Content, _at_most(MOST_SOURCE_CHARACTERS)]


class InboxDocument(BaseModel):
    """A document that arrived. Two with the same title, text and source are the same document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Annotated[Label, _at_most(MOST_TITLE_CHARACTERS)] = ""
    """At most 500 characters; of a part of a longer document the headings above it. May be empty."""
    text: Annotated[Content, _at_most(MOST_TEXT_CHARACTERS)]
    """What is to be learned, 1 to 100,000 characters, not blank."""
    source: _Name
    """Where it came from, such as a file or an address, at most 2,000 characters; parts of one document share it."""
    name: Annotated[Label, _at_most(MOST_SOURCE_CHARACTERS)] = ""
    """The sender's own id of it; empty where the sender gave none."""
    whole: Annotated[Label, _at_most(100)] = ""
    """What a part was cut from: the digest of the whole; empty for a document that was not split."""
    effective: datetime.date | None = None
    """The day from which it holds; None where it is not known."""
    supersedes: tuple[_Name, ...] = ()
    """Ids, senders' names or sources of the earlier documents that it replaces."""
    questions: tuple[Question, ...] = ()
    """Asked to give rewards; never shown to a teacher. Empty until a question writer has written some."""
    held_out_questions: tuple[Question, ...] = ()
    """Asked in comparisons only; empty: `questions` are asked there too."""
    entities: tuple[Content, ...] = ()
    """Names of what it is about, where known; splits keep them disjoint."""
    route: Route | None = None
    """Where the sender wants it; None leaves that to the pipeline."""

    @property
    def id(self) -> str:
        """`doc-` and the first 12 hex digits of the SHA-256 of title, text and source."""
        return "doc-" + digest_json({"title": self.title, "text": self.text, "source": self.source})[:12]

    @property
    def document(self) -> Document:
        """What a teacher may see: title and text, without any question."""
        return Document(id=self.id, text=self.text, title=self.title, source=self.source, entities=self.entities)

    def as_task(self) -> KnowledgeTask:
        """Return the document with its questions, as the rest of the pipeline takes it.

        Raises:
            InputError: It has no questions.
        """
        if not self.questions:
            raise InputError(
                f"inbox document {self.id!r} ({self.source}) has no questions, so nothing tells whether it was "
                "learned. Let the question writer write some, or add the document with questions."
            )
        return KnowledgeTask(
            document=self.document, questions=self.questions, held_out_questions=self.held_out_questions
        )
