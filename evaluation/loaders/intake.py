"""The intake of a source: collects good rows and every mistake, so that one error can list them all."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from evaluation.data_config import SampledData
from evaluation.errors import InputError
from evaluation.loaders.rows import DocumentRow, Location, QuestionRow, json_path, reason
from evaluation.tasks import Document, KnowledgeTask, Question

MAX_LISTED_ROWS = 50
"""Bad rows that an error message lists; the rest is counted."""
MAX_LISTED_REASONS = 5
"""Reasons that an error message lists for one row; the rest is counted."""

_Value = TypeVar("_Value")


class Refusals:
    """Collects every mistake in a source, so that one error can list them all.

    Args:
        source: The file or data set, as messages call it.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._reasons: dict[str, list[str]] = {}

    def refuse(self, place: str, reason: str) -> None:
        """Note a mistake at `place` (a line, a row, a JSON path)."""
        self._reasons.setdefault(place, []).append(reason)

    def parse_whole(self, adapter: TypeAdapter[_Value], raw: object) -> _Value | None:
        """Return a whole file's value, or None with its mistakes noted under their JSON paths."""
        try:
            return adapter.validate_python(raw)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                *parents, last = details["loc"] or ("",)
                if isinstance(last, int):
                    parents, last = [*parents, last], ""
                self.refuse(json_path(tuple(parents)) or "top level", f"{last} {reason(details)}".strip())
            return None

    def check(self) -> None:
        """Go on if there was no mistake.

        Raises:
            InputError: A mistake was noted; the message lists all bad rows.
        """
        if self._reasons:
            raise InputError(self._refusal())

    def _refusal(self) -> str:
        listed = [
            f"  {self.source}: {place}: {'; '.join(_capped(reasons, MAX_LISTED_REASONS))}"
            for place, reasons in self._reasons.items()
        ]
        count = f"{len(listed)} bad rows" if len(listed) > 1 else "1 bad row"
        lines = _capped(listed, MAX_LISTED_ROWS)
        return "\n".join([f"{self.source}: {count}, nothing was loaded:", *lines, "Correct these and run again."])


class Intake(Refusals):
    """Collects the rows of one source beside its mistakes.

    Args:
        source: The file or data set, as messages call it.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._rows: list[tuple[str, DocumentRow]] = []
        self._first_with_id: dict[str, str] = {}

    def claim_id(self, place: str, value: object) -> None:
        """Note that the row at `place` gives `value` as its id, and a mistake when an earlier row did.

        Called with raw values, so that a repeat is found even where one of the two rows has other mistakes.
        """
        if isinstance(value, str) and value:
            first = self._first_with_id.setdefault(value, place)
            if first != place:
                self.refuse(place, f"id {value!r} was already given at {first}")

    def parse(self, place: str, raw: object, names: Mapping[Location, str] | None = None) -> DocumentRow | None:
        """Return the row, or None with its mistakes noted.

        Args:
            place: Where the row is.
            raw: The row as parsed from the source.
            names: What the source calls a value, where that differs from `DocumentRow`; keyed by location.
        """
        try:
            return DocumentRow.model_validate(raw)
        except ValidationError as error:
            for details in error.errors(include_url=False):
                name = (names or {}).get(details["loc"]) or json_path(details["loc"])
                self.refuse(place, f"{name} {reason(details)}".strip())
            return None

    def add(self, place: str, row: DocumentRow) -> None:
        """Take a good row in."""
        self._rows.append((place, row))

    def tasks(self) -> tuple[KnowledgeTask, ...]:
        """Return the tasks, in the order of the rows.

        Raises:
            InputError: A mistake was noted, or there is no row; the message lists all bad rows.
        """
        self.check()
        if not self._rows:
            raise InputError(f"{self.source}: holds no document. Give a source with at least one document.")
        taken, tasks = set(self._first_with_id), []
        for place, row in self._rows:
            document = Document(
                id=row.id or "to be derived",  # from the digest, of which the id is no part
                title=row.title or "",
                text=row.text,
                source=row.source or f"{self.source}: {place}",
                entities=tuple(row.entities or ()),
            )
            if row.id is None:
                document = document.model_copy(update={"id": derived_id(document, taken)})
                taken.add(document.id)
            held_out = _questions(row.held_out_questions or ())
            tasks.append(
                KnowledgeTask(document=document, questions=_questions(row.questions), held_out_questions=held_out)
            )
        return tuple(tasks)


def derived_id(document: Document, taken: set[str]) -> str:
    """Return an id from title and digest, such as `Super_Bowl_50-1f2e3d4c5b6a`.

    It does not depend on what else the source holds or in which order, save that a repeat of the same document gets
    `-2`, `-3` and so on.
    """
    title = re.sub(r"[^\w.-]+", "_", document.title).strip("_")[:40]
    stem = "-".join(part for part in (title, document.digest[:12]) if part)
    name, repeat = stem, 1
    while name in taken:
        repeat += 1
        name = f"{stem}-{repeat}"
    return name


def sample_documents(items: Sequence[_Value], config: SampledData) -> tuple[_Value, ...]:
    """Return `items` as they are, or `config.max_documents` of them, in the order of a seeded shuffle."""
    if config.max_documents is None:
        return tuple(items)
    shuffled = list(items)
    random.Random(config.sample_seed).shuffle(shuffled)
    return tuple(shuffled[: config.max_documents])


def _questions(rows: Sequence[QuestionRow]) -> tuple[Question, ...]:
    return tuple(Question(question=row.question, answer=row.answer) for row in rows)


def _capped(items: Sequence[str], limit: int) -> list[str]:
    rest = len(items) - limit
    return [*items[:limit], f"and {rest} more"] if rest > 0 else list(items)
