"""Common row schema of all sources, a collector of their mistakes, and the base of their `data` sections.

Texts, questions and answers become clean (`evaluation.common.text.clean_text`), so that digests and exact matches
depend neither on the platform nor on characters that nobody sees; questions and answers are stripped, and answers may
be numbers. NUL characters and unpaired surrogates, which tokenizers and UTF-8 cannot represent, are refused.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from evaluation.common.data import grouped, reason
from evaluation.common.errors import InputError
from evaluation.common.text import clean_text
from evaluation.tasks import DataSplit, Document, KnowledgeTask, Question

_SAMPLE_SEED = 42
"""Yields SEAL's evaluation set (arXiv 2506.10943) with 200 of SQuAD's development documents."""
MAX_LISTED_ROWS = 50
"""Maximum number of bad rows in a message."""
_MAX_LISTED_REASONS = 5
"""Maximum number of reasons per row in a message."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_SAME_NAMES: Mapping[str, str] = MappingProxyType({})

_Value = TypeVar("_Value")
_Row = TypeVar("_Row", bound=BaseModel)


class FileSplit(DataSplit):
    """A source with optional retention probes."""

    retention_path: Path | None = None
    """JSON Lines file of prior knowledge to retain (`{"question": ..., "answer": ...}`); None for no probes."""


class SampledData(FileSplit):
    """A source of which a sample can be taken."""

    max_documents: int | None = Field(default=None, ge=1)
    """Sample size, at least 1, after a seeded shuffle; None takes all, in the source's order."""

    def sample(self, items: Sequence[_Value]) -> tuple[_Value, ...]:
        """Return all `items`, or the first `max_documents` after a seeded shuffle."""
        if self.max_documents is None:
            return tuple(items)
        shuffled = list(items)
        random.Random(_SAMPLE_SEED).shuffle(shuffled)
        return tuple(shuffled[: self.max_documents])


class LocalData(FileSplit):
    """A source on this machine."""

    path: Path
    """The file, plain or gzipped, relative to the current directory; one that is not there may be one that ships."""


def _representable(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character (U+0000)")
    if _SURROGATE.search(value):
        raise ValueError("holds an unpaired surrogate, which is not Unicode text")
    return value.replace("\r\n", "\n").replace("\r", "\n")


def not_blank(value: str) -> str:
    """Return a text that is not blank; ValueError otherwise."""
    if not value.strip():
        raise ValueError("is empty" if not value else "is only white space")
    return value


class WrittenFloat(float):
    """A number that remembers how it was written, such as `1.50`."""

    def __init__(self, written: str) -> None:
        self.written = written


def as_written(value: Any) -> Any:
    """Return a number or truth value as it was written; anything else unchanged."""
    if isinstance(value, WrittenFloat):
        return value.written
    return json.dumps(value) if isinstance(value, bool | int | float) else value


Text = Annotated[str, AfterValidator(_representable)]
"""With characters as they are; possibly empty."""
Label = Annotated[Text, AfterValidator(clean_text)]
"""Possibly empty."""
Content = Annotated[Label, AfterValidator(not_blank)]
"""Not blank."""
Phrase = Annotated[Content, AfterValidator(str.strip)]
"""Not blank, stripped."""


class QuestionRow(BaseModel):
    """A question with its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    question: Phrase
    answer: Annotated[Phrase, BeforeValidator(as_written)]
    """A number counts as the text that it was written as."""


class DocumentRow(BaseModel):
    """A document with its questions; null equals absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Content | None = None
    """Unique in the source; None derives it from title and content."""
    title: Label | None = None
    text: Content
    source: Label | None = None
    """Provenance; None for the row's place."""
    entities: list[Content] | None = None
    """Entities of the document; splits keep them on one side."""
    questions: list[QuestionRow] = Field(min_length=1)
    held_out_questions: list[QuestionRow] | None = None
    """For comparisons; None uses `questions`."""


def mistakes(
    error: ValidationError, names: Mapping[str, str] = _SAME_NAMES, kind: type[BaseModel] = DocumentRow
) -> str:
    """Return the first mistakes of a row by JSON path; `names` has the source's names of fields, `kind` its schema."""
    listed = []
    for details in error.errors(include_url=False):
        head, *rest = details["loc"] or ("",)
        listed.append(_described((names.get(str(head), head), *rest), details, kind, names))
    return "; ".join(_capped(listed, _MAX_LISTED_REASONS))


class Refusals:
    """Collects the mistakes in a `source`, a name, for a single error."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._reasons: dict[str, list[str]] = {}

    def refuse(self, place: str, why: str) -> None:
        """Record a mistake at `place` (a line, a row, a JSON path)."""
        self._reasons.setdefault(place, []).append(why)

    def parse(self, place: str, raw: object, kind: type[_Row], names: Mapping[str, str] = _SAME_NAMES) -> _Row | None:
        """Return a row, or None after recording its mistakes; `names` as in `mistakes`."""
        try:
            return kind.model_validate(raw)
        except ValidationError as error:
            self.refuse(place, mistakes(error, names, kind))
            return None

    def parse_whole(self, adapter: TypeAdapter[_Value], raw: object) -> _Value | None:
        """Return a file's value, or None after recording its mistakes by JSON path."""
        try:
            return adapter.validate_python(raw)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                *parents, last = details["loc"] or ("",)
                if isinstance(last, int):
                    parents, last = [*parents, last], ""
                self.refuse(_json_path(parents) or "top level", _described([last], details))
            return None

    def check(self) -> None:
        """Raise InputError with all recorded mistakes, if any."""
        if self._reasons:
            found = [(place, "; ".join(_capped(each, _MAX_LISTED_REASONS))) for place, each in self._reasons.items()]
            listed = [f"  {self.source}: {places}: {why}" for places, why in grouped(found)]
            count = f"{len(found)} bad rows" if len(found) > 1 else "1 bad row"
            head = f"{self.source}: {count}, nothing was loaded:"
            advice = "Correct these and run again."
            if any("questions is missing" in why for _, why in found):
                advice += ' Each document has "questions": [{"question": ..., "answer": ...}].'
            raise InputError("\n".join([head, *_capped(listed, MAX_LISTED_ROWS), advice]))


class Intake(Refusals):
    """Collects the documents and mistakes of a source."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.unanswerable = 0
        """Questions without an answer, which are left out."""
        self._rows: list[tuple[str, DocumentRow]] = []
        self._first_with_id: dict[str, str] = {}

    def claim_id(self, place: str, raw: object) -> None:
        """Record the id of a row, valid or not, and a mistake if it is taken."""
        value = raw.get("id") if isinstance(raw, dict) else None
        if isinstance(value, str) and value:
            first = self._first_with_id.setdefault(value, place)
            if first != place:
                self.refuse(place, f"id {value!r} was already given at {first}")

    def add(self, place: str, row: DocumentRow) -> None:
        """Add a row whose id, if any, is claimed."""
        self._rows.append((place, row))

    def take(self, place: str, raw: object, names: Mapping[str, str] = _SAME_NAMES) -> None:
        """Add a row, or record its mistakes; `names` as in `mistakes`."""
        self.claim_id(place, raw)
        row = self.parse(place, raw, DocumentRow, names)
        if row is not None:
            self.add(place, row)

    def tasks(self) -> tuple[KnowledgeTask, ...]:
        """Return the tasks in row order; InputError as in `check`, or without rows."""
        self.check()
        left_out = f"left out, for want of an answer: {self.unanswerable} of its questions"
        if not self._rows:
            why = f" ({left_out})" if self.unanswerable else ""
            raise InputError(f"{self.source}: holds no document{why}. Give a source with at least one document.")
        if self.unanswerable:
            logging.getLogger(__name__).warning("%s: %s", self.source, left_out)
        taken, tasks = set(self._first_with_id), []
        for place, row in self._rows:
            document = Document(
                id=row.id or "to be derived",  # from the digest, which excludes the id
                title=row.title or "",
                text=row.text,
                source=row.source or f"{self.source}: {place}",
                entities=tuple(row.entities or ()),
            )
            if row.id is None:
                document = document.model_copy(update={"id": _derived_id(document, taken)})
                taken.add(document.id)
            questions, held_out = as_questions(row.questions), as_questions(row.held_out_questions or ())
            tasks.append(KnowledgeTask(document=document, questions=questions, held_out_questions=held_out))
        return tuple(tasks)


def as_questions(rows: Iterable[QuestionRow]) -> tuple[Question, ...]:
    """Convert rows to questions."""
    return tuple(Question(question=row.question, answer=row.answer) for row in rows)


def _derived_id(document: Document, taken: set[str]) -> str:
    """Return an id from title and digest, such as `Super_Bowl_50-1f2e3d4c5b6a`; repeats get `-2`, `-3`, ..."""
    title = re.sub(r"[^\w.-]+", "_", document.title).strip("_")[:40]
    stem = "-".join(part for part in (title, document.digest[:12]) if part)
    name, repeat = stem, 1
    while name in taken:
        repeat += 1
        name = f"{stem}-{repeat}"
    return name


def _json_path(location: Iterable[int | str]) -> str:
    """Return a JSON path, such as `data[3].paragraphs[2].qas[0]`; non-printable keys are escaped."""
    keys = (part if isinstance(part, int) or part.isprintable() else repr(part) for part in location)
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def _described(
    location: Iterable[int | str],
    details: ErrorDetails,
    kind: type[BaseModel] | None = None,
    names: Mapping[str, str] = _SAME_NAMES,
) -> str:
    return f"{_json_path(location)}{reason(details, kind, names)}".removeprefix(":").strip()


def _capped(items: Sequence[str], limit: int) -> list[str]:
    rest = len(items) - limit
    return [*items[:limit], f"and {rest} more"] if rest > 0 else list(items)
