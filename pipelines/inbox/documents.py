"""Documents of the inbox, and the JSON rows in which senders deliver them.

```json
{"text": str, "title"?: str, "source"?: str, "id"?: str, "effective"?: "YYYY-MM-DD", "supersedes"?: str | [str],
 "route"?: "weights" | "memory", "entities"?: [str], "questions"?: [{"question": str, "answer": str}],
 "held_out_questions"?: [{"question": str, "answer": str}]}
```
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ValidationError

from evaluation.common.data import Frozen, digest_json
from evaluation.sources.rows import Content, DocumentRow, QuestionRow, Text, mistakes, not_blank
from evaluation.tasks import Document, KnowledgeTask, Question
from pipelines.inbox.readers.text import UnreadableError

MAX_TITLE_CHARACTERS = 500
MAX_TEXT_CHARACTERS = 100_000
"""Far more than a teacher's context; longer documents are split."""
_MAX_NAME_CHARACTERS = 2_000

Route: TypeAlias = Literal["weights", "memory"]
"""Where knowledge goes: into the student's weights, or into the external memory."""


def _at_most(limit: int) -> AfterValidator:
    def check(value: str) -> str:
        if len(value) > limit:
            raise ValueError(f"has {len(value)} characters, allowed are at most {limit}")
        return value

    return AfterValidator(check)


# Stored documents stay as they were stored: their ids are digests.
_Kept = Annotated[Text, AfterValidator(not_blank)]
_Name = Annotated[_Kept, _at_most(_MAX_NAME_CHARACTERS)]


class InboxDocument(Frozen):
    """A delivered document, identified by title, text and source."""

    title: Annotated[Text, _at_most(MAX_TITLE_CHARACTERS)] = ""
    """At most 500 characters; for a part of a split document the path of headings. May be empty."""
    text: Annotated[_Kept, _at_most(MAX_TEXT_CHARACTERS)]
    """1 to 100,000 characters, not blank."""
    source: _Name
    """File or URL, at most 2,000 characters; parts of one document share it."""
    name: Annotated[Text, _at_most(_MAX_NAME_CHARACTERS)] = ""
    """The sender's id; may be empty."""
    whole: Annotated[Text, _at_most(100)] = ""
    """Digest of the document that was split; empty if it was not."""
    effective: datetime.date | None = None
    supersedes: tuple[_Name, ...] = ()
    """Ids, sender's ids or sources of the documents that it replaces."""
    questions: tuple[Question, ...] = ()
    """For rewards, never in a prompt; empty until generated."""
    held_out_questions: tuple[Question, ...] = ()
    """For evaluation only; if empty, `questions` serve for both."""
    entities: tuple[_Kept, ...] = ()
    """Names of its subjects, if known; splits keep them disjoint."""
    route: Route | None = None
    """The sender's hint; None leaves the choice to the night's routing."""
    client: str = ""
    """The one client of a server for whom it holds; empty is everybody."""

    @property
    def id(self) -> str:
        """`doc-` and the first 12 hex digits of the SHA-256 of title, text and source."""
        return "doc-" + digest_json({"title": self.title, "text": self.text, "source": self.source})[:12]

    @property
    def document(self) -> Document:
        """What a teacher may see: everything but the questions."""
        return Document(id=self.id, text=self.text, title=self.title, source=self.source, entities=self.entities)

    def as_task(self) -> KnowledgeTask:
        """Return the document with its questions, of which it has at least one."""
        asked = {"questions": self.questions, "held_out_questions": self.held_out_questions}
        return KnowledgeTask(document=self.document, **asked)


def _date(value: Any) -> Any:
    if value is None or type(value) is datetime.date:
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"must be a date written YYYY-MM-DD, got {value!r}") from error


class InboxRow(DocumentRow):
    """A delivered JSON row, or a file's text and fields."""

    questions: list[QuestionRow] | None = None  # type: ignore[assignment]
    effective: Annotated[datetime.date | None, BeforeValidator(_date)] = None
    supersedes: Annotated[
        list[Content] | None, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = None
    route: Route | None = None


def row_of(raw: object) -> InboxRow:
    """Return a JSON value as a row; raises UnreadableError with the mistake in each field."""
    if not isinstance(raw, dict):
        raise UnreadableError("must be an object with `text`, or with `messages` for a transcript")
    try:
        return InboxRow.model_validate(raw)
    except ValidationError as error:
        raise UnreadableError(mistakes(error, kind=InboxRow)) from error
