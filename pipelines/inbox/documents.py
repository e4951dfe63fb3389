"""Documents of the inbox, and the rows of JSON in which senders deliver them.

```json
{"text": str, "title"?: str, "source"?: str, "id"?: str, "effective"?: "YYYY-MM-DD", "supersedes"?: str | [str],
 "route"?: "weights" | "memory", "entities"?: [str], "questions"?: [{"question": str, "answer": str}],
 "held_out_questions"?: [{"question": str, "answer": str}]}
```
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from evaluation.common.data import digest_json
from evaluation.common.errors import InputError
from evaluation.sources.rows import Content, DocumentRow, Label, QuestionRow, mistakes
from evaluation.tasks import Document, KnowledgeTask, Question
from pipelines.inbox.readers.text import UnreadableError

MOST_TITLE_CHARACTERS = 500
MOST_SOURCE_CHARACTERS = 2_000
MOST_TEXT_CHARACTERS = 100_000
"""Far more than a teacher reads at once; longer documents are split."""

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
    """A delivered document. Two with the same title, text and source are the same document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: Annotated[Label, _at_most(MOST_TITLE_CHARACTERS)] = ""
    """At most 500 characters; of a part of a longer document the headings above it. May be empty."""
    text: Annotated[Content, _at_most(MOST_TEXT_CHARACTERS)]
    """What is to be learned, 1 to 100,000 characters, not blank."""
    source: _Name
    """A file or an address, at most 2,000 characters; parts of one document share it."""
    name: Annotated[Label, _at_most(MOST_SOURCE_CHARACTERS)] = ""
    """The sender's own id; may be empty."""
    whole: Annotated[Label, _at_most(100)] = ""
    """Digest of the document that a part was cut from; empty for a document that was not split."""
    effective: datetime.date | None = None
    """The day from which it holds; None where unknown."""
    supersedes: tuple[_Name, ...] = ()
    """Ids, senders' names or sources of the earlier documents that it replaces."""
    questions: tuple[Question, ...] = ()
    """Asked for rewards; never shown to a teacher. Empty until a question writer has written some."""
    held_out_questions: tuple[Question, ...] = ()
    """Asked in comparisons only; empty: `questions` are asked there too."""
    entities: tuple[Content, ...] = ()
    """Names of what it is about, where known; splits keep them disjoint."""
    route: Route | None = None
    """The sender's hint; None leaves the route to the night."""

    @property
    def id(self) -> str:
        """`doc-` and the first 12 hex digits of the SHA-256 of title, text and source."""
        return "doc-" + digest_json({"title": self.title, "text": self.text, "source": self.source})[:12]

    @property
    def document(self) -> Document:
        """What a teacher may see: title and text, without any question."""
        return Document(id=self.id, text=self.text, title=self.title, source=self.source, entities=self.entities)

    def as_task(self) -> KnowledgeTask:
        """Return the document with its questions.

        Raises:
            InputError: It has no questions.
        """
        if not self.questions:
            raise InputError(
                f"inbox document {self.id!r} ({self.source}) has no questions, so nothing measures whether it was "
                "learned. Let the question writer write some, or add the document with questions."
            )
        return KnowledgeTask(
            document=self.document, questions=self.questions, held_out_questions=self.held_out_questions
        )


def _day(value: Any) -> Any:
    if value is None or type(value) is datetime.date:
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be a day written YYYY-MM-DD, got {value!r}") from error


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class InboxRow(DocumentRow):
    """A delivered row, or the fields of a file with its text; questions are optional."""

    questions: list[QuestionRow] | None = None  # type: ignore[assignment]
    effective: Annotated[datetime.date | None, BeforeValidator(_day)] = None
    supersedes: Annotated[list[Content] | None, BeforeValidator(_listed)] = None
    route: Route | None = None


def row_of(raw: object) -> InboxRow:
    """Return a value of JSON as a row.

    Raises:
        UnreadableError: It is none; the message lists what is wrong with which field.
    """
    if not isinstance(raw, dict):
        raise UnreadableError("must be an object with `text`, or with `messages` for a transcript")
    try:
        return InboxRow.model_validate(raw)
    except ValidationError as error:
        raise UnreadableError(mistakes(error, InboxRow)) from error
