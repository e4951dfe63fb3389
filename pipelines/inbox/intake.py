"""From files and directories to documents of the inbox: bad ones are refused with a reason, the others are taken.

Long documents are split on headings, then on paragraphs, then on sentences, as far as needed. A section that fits stays
whole, and nothing is lost or changed but white space at the cuts.
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evaluation.common.data import digest_json
from evaluation.common.errors import InputError
from evaluation.graders import normalize_answer
from evaluation.sources.files import JsonSyntaxError, parse_json
from evaluation.sources.rows import as_questions, mistakes
from evaluation.tasks import Question
from pipelines.inbox.documents import (
    MOST_TEXT_CHARACTERS,
    MOST_TITLE_CHARACTERS,
    InboxDocument,
    InboxRow,
    Route,
    row_of,
)
from pipelines.inbox.readers import READERS, SUFFIXES, Format, format_of
from pipelines.inbox.readers.text import (
    Block,
    Extract,
    UnreadableError,
    cut,
    joined,
    one_line,
    paragraphs,
    read_transcript,
)

MOST_BYTES = 50 * 2**20
"""Largest file that is read, in bytes (50 MiB)."""
STDIN = "-"
"""Stands for standard input."""
MOST_LISTED = 50
"""Refusals that a message lists; the rest is counted."""
MOST_CHARACTERS, LEAST_CHARACTERS = 4_000, 200
"""Longest part by default, about 1,000 tokens of English, which leaves a teacher room to write; and the smallest limit,
below which sentences would be torn from what they are about."""
_PATH_MARK, _GAP = " > ", "\n\n"
_CUTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\n+"), "\n"),
    (re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|(?<=[。！？])"), " "),
    (re.compile(r"\s+"), " "),
)
"""Where a paragraph may be cut, the best first, and what joins the pieces again: lines, sentences, words."""


class IntakeSettings(BaseModel):
    """How files are read, and defaults for fields that documents leave open."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = Field(default=None, min_length=1)
    """Source of the documents; under a directory each file's path in it is appended. None takes the path, relative to
    the current directory where the file is under it, so that one file has one source however its path is written."""
    effective: datetime.date | None = None
    """The day from which they hold; None leaves it unknown."""
    supersedes: tuple[str, ...] = ()
    """Ids, senders' names or sources of what they replace."""
    route: Route | None = None
    """The sender's hint."""
    format: Format | None = None
    """Format of every file; None goes by the names, and reads standard input as JSON Lines."""
    most_characters: int = Field(default=MOST_CHARACTERS, ge=LEAST_CHARACTERS, le=MOST_TEXT_CHARACTERS)
    """Longest document, in characters, in [200, 100000]; longer ones are split."""
    with_system: bool = False
    """Keep the system prompts of transcripts."""


class Refused(NamedTuple):
    """A refused file, or line of one."""

    place: str
    reason: str

    def __str__(self) -> str:
        """Return place and reason on one line."""
        return f"{self.place}: {self.reason}"


class Taken(NamedTuple):
    """The documents of some files."""

    documents: tuple[InboxDocument, ...]
    """In the order of the files and of what is in them."""
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    """Warnings about files that were taken."""
    files: int
    """Files looked at, at least 1."""


def take(path: Path, settings: IntakeSettings, stdin: BinaryIO | None = None) -> Taken:
    """Return the documents in a file, in a directory and those under it, or in standard input.

    Directories are read in sorted order; hidden files, and those that office programs keep beside an open file, are
    left out.

    Args:
        path: Of the file or directory; `-` is standard input.
        settings: How to read.
        stdin: Where to read for `-`.

    Raises:
        InputError: Nothing was usable; the message lists what was refused.
    """
    intake = _Intake(settings)
    if str(path) == STDIN and stdin is not None:
        content, source = stdin.read(MOST_BYTES + 1), settings.source or "standard input"
        intake.take_content(content, "standard input", settings.format or "jsonl", source)
    elif path.is_dir():
        for file in _files(path):
            inside = file.relative_to(path).as_posix()
            intake.take_file(file, _source(file) if settings.source is None else f"{settings.source}/{inside}")
    else:
        intake.take_file(path, settings.source or _source(path))
    if not intake.documents:
        listed = "\n".join(f"  {line}" for line in listing(intake.refused)) or "  there is no file to read in it"
        raise InputError(f"inbox: nothing in '{path}' is usable:\n{listed}\nCorrect this and run again.")
    return Taken(tuple(intake.documents), tuple(intake.refused), tuple(intake.notes), intake.files)


def listing(refused: Sequence[Refused]) -> list[str]:
    """Return a line for each refusal, the rest counted where there are more than `MOST_LISTED`."""
    rest = len(refused) - MOST_LISTED
    return [*map(str, refused[:MOST_LISTED]), *([f"and {rest} more"] if rest > 0 else [])]


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files under a directory in sorted order; links to directories are not followed."""
    for root, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith((".", "~$")))


def _source(file: Path) -> str:
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
                raise UnreadableError(f"is of no kind that is read ({known}); convert it, or give its kind as --format")
            content = _read(path.expanduser())
        except UnreadableError as error:
            self.refused.append(Refused(str(path), str(error)))
        else:
            self.take_content(content, str(path), format_, source)

    def take_content(self, content: bytes, place: str, format_: Format, source: str) -> None:
        """Take what a file holds, or refuse it."""
        try:
            if len(content) > MOST_BYTES:
                raise UnreadableError(_too_large(f"more than {MOST_BYTES}"))
            if not content.strip():
                raise UnreadableError("is empty")
            if format_ in ("jsonl", "json"):
                self._take_rows(content.removeprefix(b"\xef\xbb\xbf"), place, source, lines=format_ == "jsonl")
                return
            extract = READERS[format_](content)
            self._add(extract, joined(extract.blocks), dict(extract.fields), Path(place).stem, source)
            self.notes += [f"{place}: {note}" for note in extract.notes]
        except UnreadableError as error:
            self.refused.append(Refused(place, str(error)))

    def _take_rows(self, content: bytes, place: str, source: str, *, lines: bool) -> None:
        """Take rows of JSON: one a line; or one, a list of them, or a bare list of messages."""
        if lines:
            numbered = [(f"{place}: line {i}", line) for i, line in enumerate(content.split(b"\n"), start=1)]
            rows: list[tuple[str, Any]] = [(at, line) for at, line in numbered if line.strip()]
        else:
            raw = _parsed(content)
            if isinstance(raw, list) and raw and all(isinstance(item, dict) and "role" in item for item in raw):
                raw = {"messages": raw}
            rows = (
                [(f"{place}: [{i}]", item) for i, item in enumerate(raw)] if isinstance(raw, list) else [(place, raw)]
            )
        for at, raw in rows:
            try:
                self._take_row(_parsed(raw) if lines else raw, source)
            except UnreadableError as error:
                self.refused.append(Refused(at, str(error)))

    def _take_row(self, raw: Any, source: str) -> None:
        if isinstance(raw, dict) and "messages" in raw:  # its other keys are the maker's own
            extract = read_transcript(raw["messages"], with_system=self._settings.with_system)
            fields = {key: value for key, value in raw.items() if key in InboxRow.model_fields}
            self._add(extract, joined(extract.blocks), fields, "", source)
        else:
            row = row_of(raw)
            self._add(Extract(paragraphs(row.text)), row.text, raw, "", source)

    def _add(self, extract: Extract, text: str, fields: dict[str, Any], fallback_title: str, source: str) -> None:
        """Take one document, in parts where it is too long; each part has the questions that it answers.

        Raises:
            UnreadableError: It is no document of the inbox.
        """
        if not extract.blocks:
            raise UnreadableError("holds no text")
        row = row_of({**fields, "text": text})
        title = row.title or cut(extract.title or extract.first_heading or fallback_title, MOST_TITLE_CHARACTERS)
        questions, held_out = as_questions(row.questions or ()), as_questions(row.held_out_questions or ())
        if len(text) <= self._settings.most_characters:
            self.documents.append(self._document(row, source, title, text, questions, held_out))
            return
        parts = split_sections(extract.blocks, self._settings.most_characters)
        texts = [part.text for part in parts]
        shares = zip(parts, shared_out(questions, texts), shared_out(held_out, texts), strict=True)
        digest = digest_json({"title": title, "text": text, "source": row.source or source})
        whole = digest if len(parts) > 1 else ""
        made = [
            (part.title(one_line(title), MOST_TITLE_CHARACTERS), part.text, own, compared)
            for part, own, compared in shares
        ]
        self.documents += [self._document(row, source, *part, whole=whole) for part in made]

    def _document(
        self,
        row: InboxRow,
        source: str,
        title: str,
        text: str,
        questions: tuple[Question, ...],
        held_out: tuple[Question, ...],
        whole: str = "",
    ) -> InboxDocument:
        """Return a document; the settings fill the fields that its row leaves open."""
        own = self._settings
        try:
            return InboxDocument(
                title=title,
                text=text,
                source=row.source or source,
                name=row.id or "",
                whole=whole,
                effective=row.effective or own.effective,
                supersedes=tuple(row.supersedes or own.supersedes),
                route=row.route or own.route,
                entities=tuple(row.entities or ()),
                questions=questions,
                held_out_questions=held_out,
            )
        except ValidationError as error:
            raise UnreadableError(mistakes(error, InboxDocument)) from error


def _parsed(content: bytes) -> Any:
    try:
        return parse_json(content)
    except JsonSyntaxError as error:
        raise UnreadableError(str(error)) from error


def _read(path: Path) -> bytes:
    """Return a file's content, after a look at the file system.

    Raises:
        UnreadableError: There is no such file, it is too large, or it may not be read.
    """
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UnreadableError("is not a file")
        if state.st_size > MOST_BYTES:
            raise UnreadableError(_too_large(str(state.st_size)))
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error


def _too_large(size: str) -> str:
    return f"has {size} bytes, allowed are {MOST_BYTES}; split it into smaller files"


class Part(NamedTuple):
    """A part of a document."""

    path: tuple[str, ...]
    """Headings above it, the highest first; its own first heading is the last."""
    text: str
    """Not blank, at most as long as asked."""

    def title(self, whole: str, most: int) -> str:
        """Return the document's title and the headings in at most `most` characters; the highest fall out first."""
        path = [whole] if whole and self.path[:1] != (whole,) else []
        path += self.path
        while len(path) > 2 and len(_PATH_MARK.join(path)) > most:
            del path[1]
        return cut(_PATH_MARK.join(path), most)


class _Piece(NamedTuple):
    """Blocks under a path of headings with their levels."""

    path: tuple[tuple[int, str], ...]
    blocks: tuple[Block, ...]


def split_sections(blocks: Sequence[Block], most_characters: int) -> list[Part]:
    """Return a document of at least one block in parts of at most `most_characters`, at least `LEAST_CHARACTERS`."""
    whole = joined(blocks)
    if len(whole) <= most_characters:
        return [Part((), whole)]
    pieces = _glued(list(_on_headings(_Piece((), tuple(blocks)), 1, most_characters)), most_characters)
    return [
        Part(tuple(heading for _, heading in piece.path), text)
        for piece in pieces
        for text in _packed([block.text for block in piece.blocks], _GAP, most_characters, _cut_paragraph)
    ]


def _on_headings(piece: _Piece, level: int, most: int) -> Iterator[_Piece]:
    """Yield a piece cut before its headings of `level` and, where that is not enough, of lower levels."""
    if level > 6 or len(joined(piece.blocks)) <= most:
        yield piece
        return
    starts = [i for i, block in enumerate(piece.blocks) if block.level == level]
    for start, end in zip([0, *starts], [*starts, len(piece.blocks)], strict=True):
        part = piece.blocks[start:end]
        if part:
            above = tuple(item for item in piece.path if item[0] < level)
            opens = part[0].level == level
            path = (*above, (level, one_line(part[0].text))) if opens else piece.path
            yield from _on_headings(_Piece(path, part), level + 1, most)


def _glued(pieces: list[_Piece], most: int) -> list[_Piece]:
    """Return the pieces with those that are nothing but headings put in front of the one that follows."""
    glued: list[_Piece] = []
    for piece in pieces:
        if glued and all(block.level for block in glued[-1].blocks):
            together = glued[-1].blocks + piece.blocks
            if len(joined(together)) <= most:
                glued[-1] = _Piece(piece.path, together)
                continue
        glued.append(piece)
    return glued


def _packed(texts: Sequence[str], mark: str, most: int, cut_up: Callable[[str, int], Iterator[str]]) -> Iterator[str]:
    """Yield the texts, as many joined as fit; those that do not fit alone are cut."""
    held = ""
    for text in texts:
        for piece in [text] if len(text) <= most else cut_up(text, most):
            if held and len(held) + len(mark) + len(piece) > most:
                yield held
                held = ""
            held = f"{held}{mark}{piece}" if held else piece
    if held:
        yield held


def _cut_paragraph(text: str, most: int, depth: int = 0) -> Iterator[str]:
    """Yield a paragraph in pieces: cut at lines, else at sentences, else at words, at worst within a word."""
    if depth == len(_CUTS):
        yield from (text[start : start + most] for start in range(0, len(text), most))
        return
    pattern, mark = _CUTS[depth]
    # What a match holds beside white space stays with what is before it.
    ends = [0, *(match.end() for match in pattern.finditer(text)), len(text)]
    pieces = [piece for start, end in itertools.pairwise(ends) if (piece := text[start:end].strip())]
    yield from _packed(pieces, mark, most, lambda piece, size: _cut_paragraph(piece, size, depth + 1))


def shared_out(questions: Sequence[Question], texts: Sequence[str]) -> list[tuple[Question, ...]]:
    """Return the questions of each of a document's parts: each goes to the part that says most of what it asks.

    That is the first with the whole answer, of several the one with most of the question's words; without any such
    part, the one with most words of question and answer.
    """
    shares: list[list[Question]] = [[] for _ in texts]
    normal = [normalize_answer(text) for text in texts]
    words = [Counter(text.split()) for text in normal]
    for question in questions:
        answer = normalize_answer(question.answer)
        asked = set(f"{normalize_answer(question.question)} {answer}".split())
        fits = [
            (bool(answer) and f" {answer} " in f" {text} ", sum(word in held for word in asked))
            for text, held in zip(normal, words, strict=True)
        ]
        shares[max(range(len(texts)), key=lambda i: (fits[i], -i))].append(question)
    return [tuple(share) for share in shares]
