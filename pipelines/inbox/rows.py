"""Rows of JSON as a sender writes them, and what a file says of itself: both in the same fields.

```json
{"text": str, "title"?: str, "source"?: str, "id"?: str, "effective"?: "YYYY-MM-DD", "supersedes"?: str | [str],
 "route"?: "weights" | "memory", "entities"?: [str], "questions"?: [{"question": str, "answer": str}],
 "held_out_questions"?: [{"question": str, "answer": str}]}
```
A transcript has `messages` in place of `text`; keys that only the maker of the transcript knows are passed over there.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from evaluation.loaders.rows import Content, Label, QuestionRow, json_path, reason
from pipelines.inbox.blocks import UnreadableError
from pipelines.inbox.documents import Route

_MOST_REASONS = 5
"""Mistakes of one row that its refusal lists; the rest is counted."""


def _day(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"must be a day written YYYY-MM-DD, got {value!r}") from error
    if value is not None and type(value) is not datetime.date:
        raise ValueError(f"must be a day written YYYY-MM-DD, got {value!r}")
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class RowFields(BaseModel):
    """What is known of a document beside its text; None is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Content | None = None
    """The sender's own id."""
    title: Label | None = None
    source: Content | None = None
    effective: Annotated[datetime.date | None, BeforeValidator(_day)] = None
    supersedes: Annotated[list[Content] | None, BeforeValidator(_listed)] = None
    route: Route | None = None
    entities: list[Content] | None = None
    questions: list[QuestionRow] | None = None
    held_out_questions: list[QuestionRow] | None = None


class TextRow(RowFields):
    """A document in a row."""

    text: Content


class TranscriptRow(RowFields):
    """A transcript in a row; `messages` is read by `pipelines.inbox.readers.transcripts`."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    messages: Any


_Row = TypeVar("_Row", bound=RowFields)


def checked(kind: type[_Row], raw: dict[str, Any]) -> _Row:
    """Return raw fields as a row.

    Raises:
        UnreadableError: They are not; the message lists what is wrong with which field.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        wrong = []
        for details in error.errors(include_url=False):
            told = reason(details)
            if details["type"] == "extra_forbidden" and len(details["loc"]) == 1:
                told = f"is an unknown key (allowed: {', '.join(kind.model_fields)})"
            wrong.append(f"{json_path(details['loc'])} {told}".strip())
        rest = len(wrong) - _MOST_REASONS
        listed = [*wrong[:_MOST_REASONS], f"and {rest} more"] if rest > 0 else wrong
        raise UnreadableError("; ".join(listed)) from error


def row_of(raw: Any) -> TextRow | TranscriptRow:
    """Return a value of JSON as a row of one of the two kinds.

    Raises:
        UnreadableError: It is neither.
    """
    if not isinstance(raw, dict):
        raise UnreadableError("must be an object with `text`, or with `messages` for a transcript")
    return checked(TranscriptRow, raw) if "messages" in raw else checked(TextRow, raw)
