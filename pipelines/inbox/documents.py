"""Documents of the inbox, and the JSON rows in which senders deliver them: documents or chat transcripts.

```json
{"text": str, "title"?: str, "source"?: str, "id"?: str, "effective"?: "YYYY-MM-DD", "supersedes"?: str | [str],
 "route"?: "weights" | "memory", "entities"?: [str], "questions"?: [{"question": str, "answer": str}],
 "held_out_questions"?: [{"question": str, "answer": str}]}
```
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ValidationError

from evaluation.common.data import Frozen, digest_json
from evaluation.sources.rows import Content, DocumentRow, QuestionRow, Text, mistakes, not_blank
from evaluation.tasks import Document, KnowledgeTask, Question
from pipelines.inbox.readers.text import Block, Extract, UnreadableError, blocks_of, one_line, truncated, valid_unicode

MAX_TITLE_CHARACTERS = 500
MAX_TEXT_CHARACTERS = 100_000
"""Far more than a teacher's context; longer documents are split."""
_MAX_NAME_CHARACTERS = 2_000
_ROLES = ("user", "assistant", "system", "developer", "tool", "function")
_TRANSCRIPT_TITLE_CHARACTERS, _ARGUMENT_CHARACTERS = 80, 200

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


def read_transcript(messages: Any) -> Extract:
    """Return a chat transcript in the OpenAI format with one paragraph per turn; the title is the first user message.

    System prompts, which are the operator's instructions, are left out. Tool calls are abbreviated, tool results
    complete; attachments appear as their type. Raises UnreadableError, with the JSON path, for any other format.
    """
    if not isinstance(messages, list) or not messages:
        raise UnreadableError("messages must be a list with at least one message")
    tools: dict[str, str] = {}
    blocks: list[Block] = []
    title = ""
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            allowed = ", ".join(_ROLES)
            raise UnreadableError(f"{place} must be an object with a role ({allowed}), got {str(message)[:60]!r}")
        if role in ("system", "developer"):
            continue
        words = _text(message.get("content"), place)
        title = title or (one_line(words) if role == "user" else "")
        if words.strip():
            tool = message.get("name") or tools.get(str(message.get("tool_call_id")), "")
            speaker = role.capitalize() if role in ("user", "assistant") else f"Tool {tool}".strip()
            blocks.append(Block(f"{speaker}: {words.strip()}"))
        for call_id, name, arguments in _calls(message, place):
            tools[call_id] = name
            blocks.append(Block(f"Assistant calls {name}({_short(arguments)})"))
    return Extract(blocks_of(blocks), truncated(title, _TRANSCRIPT_TITLE_CHARACTERS))


def _calls(message: dict[str, Any], place: str) -> Iterator[tuple[str, str, Any]]:
    """Yield each call's id, name and raw arguments, legacy `function_call` included."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise UnreadableError(f"{place}.tool_calls must be a list")
    legacy = [{"function": message["function_call"]}] if message.get("function_call") else []
    for call in (*calls, *legacy):
        made = (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
        if not isinstance(made, dict) or not made.get("name"):
            raise UnreadableError(f"{place}.tool_calls must hold functions with a name")
        yield str(call.get("id")), str(made["name"]), made.get("arguments", made.get("input", ""))


def _short(arguments: Any) -> str:
    """Return a call's arguments as `name=value, ...`, truncated."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        value = arguments
    if isinstance(value, dict):
        shown = ", ".join(f"{name}={json.dumps(item, ensure_ascii=False)}" for name, item in value.items())
    else:
        shown = "" if value in (None, "") else str(value)
    return truncated(valid_unicode(one_line(shown)), _ARGUMENT_CHARACTERS)


def _text(content: Any, place: str) -> str:
    """Return a message's content, which is a string, null or a list of parts, as text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise UnreadableError(f"{place}.content must be a text, a list of parts or null")
    words = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise UnreadableError(f"{place}.content[{i}] must be an object with a type")
        kind = f"[{part['type'].removeprefix('input_').removesuffix('_url')}]"
        words.append(next((part[key] for key in ("text", "refusal") if isinstance(part.get(key), str)), kind))
    return "\n".join(words)
