"""From files and directories to documents of the inbox: what is bad is refused with its reason, the rest goes on."""

from __future__ import annotations

import datetime
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evaluation.digests import digest_json
from evaluation.errors import InputError
from evaluation.loaders.files import JsonSyntaxError, parse_json
from evaluation.loaders.rows import QuestionRow, json_path, reason
from evaluation.tasks import Question
from pipelines.inbox.blocks import Extract, UnreadableError, joined, one_line, paragraphs
from pipelines.inbox.documents import MOST_TEXT_CHARACTERS, MOST_TITLE_CHARACTERS, InboxDocument, Route
from pipelines.inbox.readers import READERS, SUFFIXES, Format, format_of
from pipelines.inbox.readers.transcripts import read_transcript
from pipelines.inbox.rows import RowFields, TextRow, checked, row_of
from pipelines.inbox.sections import LEAST_CHARACTERS, MOST_CHARACTERS, shared_out, split_sections

MOST_BYTES = 50 * 2**20
"""Largest file that is read, in bytes (50 MiB)."""
STDIN = "-"
"""Stands for standard input."""
MOST_LISTED = 50
"""Refusals that a message lists; the rest is counted."""


class IntakeSettings(BaseModel):
    """How files are read, and what holds for documents that do not say it themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = Field(default=None, min_length=1)
    """Where documents came from; under a directory each file's path in it is appended. None takes the path, seen from
    the current directory where the file is under it, so that one file has one source however its path is written."""
    effective: datetime.date | None = None
    """The day from which they hold; None leaves it unknown."""
    supersedes: tuple[str, ...] = ()
    """Ids, senders' names or sources of what they replace."""
    route: Route | None = None
    """Where their sender wants them."""
    format: Format | None = None
    """Read every file as this; None goes by the names, and reads standard input as JSON Lines."""
    most_characters: int = Field(default=MOST_CHARACTERS, ge=LEAST_CHARACTERS, le=MOST_TEXT_CHARACTERS)
    """Longest document, in characters, in [200, 100000]; longer ones are split."""
    most_bytes: int = Field(default=MOST_BYTES, ge=1)
    """Largest file that is read, in bytes, at least 1."""
    with_system: bool = False
    """Keep the system prompts of transcripts."""


class Refused(NamedTuple):
    """A file, or a line of one, that was not taken."""

    place: str
    reason: str

    def __str__(self) -> str:
        """Return place and reason on one line."""
        return f"{self.place}: {self.reason}"


class Taken(NamedTuple):
    """What became of the files."""

    documents: tuple[InboxDocument, ...]
    """In the order of the files and of what is in them."""
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    """What a person should know of files that were taken."""
    files: int
    """Files looked at, at least 1."""


def take(path: Path, settings: IntakeSettings, stdin: BinaryIO | None = None) -> Taken:
    """Return the documents in a file, in a directory and those under it, or in standard input.

    Directories are read in sorted order; hidden files, and those that office programs keep beside an open file, are
    passed over.

    Args:
        path: Of the file or directory; `-` is standard input.
        settings: How to read.
        stdin: Where to read for `-`.

    Raises:
        InputError: Nothing was usable; the message lists what was refused.
    """
    intake = _Intake(settings)
    if str(path) == STDIN and stdin is not None:
        content = stdin.read(settings.most_bytes + 1)
        intake.take_content(content, "standard input", settings.format or "jsonl", settings.source or "standard input")
    elif path.is_dir():
        for file in _files(path):
            intake.take_file(file, _source(file, path, settings.source))
    else:
        intake.take_file(path, settings.source or _source(path, path.parent, None))
    if not intake.documents:
        listed = "\n".join(f"  {line}" for line in listing(intake.refused)) or "  there is no file to read in it"
        raise InputError(f"inbox: nothing in '{path}' is usable:\n{listed}\nCorrect this and run again.")
    return Taken(tuple(intake.documents), tuple(intake.refused), tuple(intake.notes), intake.files)


def listing(refused: list[Refused] | tuple[Refused, ...]) -> list[str]:
    """Return a line for each refusal, the rest counted where there are more than `MOST_LISTED`."""
    rest = len(refused) - MOST_LISTED
    return [*map(str, refused[:MOST_LISTED]), *([f"and {rest} more"] if rest > 0 else [])]


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files under a directory in sorted order; links to directories are not followed."""
    for root, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith((".", "~$")))


def _source(file: Path, directory: Path, given: str | None) -> str:
    """Return the source of a file: under the one given for its directory, or its path."""
    if given is not None:
        return f"{given}/{file.relative_to(directory).as_posix()}"
    whole = Path(os.path.abspath(file.expanduser()))  # links stay: what a person calls the file is its source
    return (whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole).as_posix()


class _Intake:
    """Collects documents and refusals."""

    def __init__(self, settings: IntakeSettings) -> None:
        self._settings = settings
        self.documents: list[InboxDocument] = []
        self.refused: list[Refused] = []
        self.notes: list[str] = []
        self.files = 0

    def take_file(self, path: Path, source: str) -> None:
        """Take what is in a file, or refuse it."""
        self.files += 1
        format_ = self._settings.format or format_of(path.name)
        try:
            if format_ is None:
                known = ", ".join(dict.fromkeys(SUFFIXES.values()))
                raise UnreadableError(
                    f"is of no kind that is read ({known}); convert it, or say what it is with --format"
                )
            content = _read(path.expanduser(), self._settings.most_bytes)
        except UnreadableError as error:
            self.refused.append(Refused(str(path), str(error)))
            return
        self.take_content(content, str(path), format_, source)

    def take_content(self, content: bytes, place: str, format_: Format, source: str) -> None:
        """Take what a file holds, or refuse it."""
        if len(content) > self._settings.most_bytes:
            self.refused.append(
                Refused(place, _too_large(f"more than {self._settings.most_bytes}", self._settings.most_bytes))
            )
        elif not content.strip():
            self.refused.append(Refused(place, "is empty"))
        elif format_ == "jsonl":
            self._take_lines(content.removeprefix(b"\xef\xbb\xbf"), place, source)
        elif format_ == "json":
            self._take_json(content.removeprefix(b"\xef\xbb\xbf"), place, source)
        else:
            self._take_whole(content, place, format_, source)

    def _take_lines(self, content: bytes, place: str, source: str) -> None:
        for number, line in enumerate(content.split(b"\n"), start=1):
            if line.strip():
                try:
                    raw = parse_json(line)
                except JsonSyntaxError as error:
                    self.refused.append(Refused(f"{place}: line {number}", str(error)))
                else:
                    self._take_row(raw, f"{place}: line {number}", place, source)

    def _take_json(self, content: bytes, place: str, source: str) -> None:
        """Take one row, a list of them, or a bare list of messages."""
        try:
            raw = parse_json(content)
        except JsonSyntaxError as error:
            self.refused.append(Refused(place, str(error)))
            return
        if isinstance(raw, list) and raw and all(isinstance(item, dict) and "role" in item for item in raw):
            raw = {"messages": raw}
        if not isinstance(raw, list):
            self._take_row(raw, place, place, source)
            return
        for number, item in enumerate(raw):
            self._take_row(item, f"{place}: [{number}]", place, source)

    def _take_row(self, raw: Any, place: str, file: str, source: str) -> None:
        try:
            row = row_of(raw)
            if isinstance(row, TextRow):
                extract = Extract(paragraphs(row.text))
                text = row.text
            else:
                extract = read_transcript(row.messages, with_system=self._settings.with_system)
                text = joined(extract.blocks)
            self._add(extract, text, row, "", source)
        except UnreadableError as error:
            self.refused.append(Refused(place, str(error)))

    def _take_whole(self, content: bytes, place: str, format_: Format, source: str) -> None:
        try:
            extract = READERS[format_](content)
            fields = checked(RowFields, dict(extract.fields))
            self._add(extract, joined(extract.blocks), fields, _stem(place), source)
        except UnreadableError as error:
            self.refused.append(Refused(place, str(error)))
        else:
            self.notes += [f"{place}: {note}" for note in extract.notes]

    def _add(self, extract: Extract, text: str, fields: RowFields, fallback_title: str, source: str) -> None:
        """Take one document, in parts where it is too long.

        Raises:
            UnreadableError: It is no document of the inbox.
        """
        if not extract.blocks:
            raise UnreadableError("holds no text")
        found = extract.title or extract.first_heading or fallback_title
        title = fields.title or (
            found if len(found) <= MOST_TITLE_CHARACTERS else found[: MOST_TITLE_CHARACTERS - 1] + "…"
        )
        whole = self._document(title, text, fields, source) if len(text) <= self._settings.most_characters else None
        self.documents += [whole] if whole is not None else self._parts(extract, title, text, fields, source)

    def _parts(self, extract: Extract, title: str, text: str, fields: RowFields, source: str) -> list[InboxDocument]:
        """Return the parts of a document, each with the questions that it answers."""
        parts = split_sections(extract.blocks, self._settings.most_characters)
        texts = [part.text for part in parts]
        asked = shared_out(_questions(fields.questions), texts)
        held_out = shared_out(_questions(fields.held_out_questions), texts)
        digest = digest_json({"title": title, "text": text, "source": fields.source or source})
        return [
            self._document(
                part.title(one_line(title), MOST_TITLE_CHARACTERS),
                part.text,
                fields,
                source,
                whole=digest if len(parts) > 1 else "",
                questions=asked[i],
                held_out_questions=held_out[i],
            )
            for i, part in enumerate(parts)
        ]

    def _document(self, title: str, text: str, fields: RowFields, source: str, **more: Any) -> InboxDocument:
        """Return a document; what its own fields leave open is as the settings say."""
        own = self._settings
        try:
            return InboxDocument.model_validate(
                {
                    "title": title,
                    "text": text,
                    "source": fields.source or source,
                    "name": fields.id or "",
                    "effective": fields.effective or own.effective,
                    "supersedes": tuple(fields.supersedes or own.supersedes),
                    "route": fields.route or own.route,
                    "entities": tuple(fields.entities or ()),
                    "questions": _questions(fields.questions),
                    "held_out_questions": _questions(fields.held_out_questions),
                    **more,
                }
            )
        except ValidationError as error:
            wrong = [f"{json_path(e['loc'])} {reason(e)}" for e in error.errors(include_url=False)]
            raise UnreadableError("; ".join(wrong)) from error


def _read(path: Path, most_bytes: int) -> bytes:
    """Return a file's content, after a look at the file system.

    Raises:
        UnreadableError: There is no such file, it is too large, or it may not be read.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UnreadableError("is not a file")
        if state.st_size > most_bytes:
            raise UnreadableError(_too_large(str(state.st_size), most_bytes))
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error


def _too_large(size: str, most: int) -> str:
    return f"has {size} bytes, allowed are {most}; split it into smaller files"


def _stem(place: str) -> str:
    return Path(place).stem


def _questions(rows: list[QuestionRow] | None) -> tuple[Question, ...]:
    return tuple(Question(question=row.question, answer=row.answer) for row in rows or ())
