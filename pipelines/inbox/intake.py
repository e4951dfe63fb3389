"""Files, directories and standard input as documents of the inbox; bad ones are skipped with a reason.

Long documents are split at headings, then paragraphs, then sentences, as far as needed. Nothing is lost or changed but
white space at the boundaries.
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from pydantic import ValidationError

from evaluation.answers import normalize_answer
from evaluation.common.data import digest_json
from evaluation.common.errors import InputError
from evaluation.sources.files import JsonSyntaxError, in_utf8, json_lines, parse_json
from evaluation.sources.rows import as_questions, mistakes
from evaluation.sources.sections import PAGE
from evaluation.tasks import Question
from pipelines.inbox.documents import (
    MAX_TITLE_CHARACTERS,
    InboxDocument,
    InboxRow,
    Route,
    row_of,
)
from pipelines.inbox.readers import READERS, SUFFIXES, Format
from pipelines.inbox.readers.text import Block, Extract, UnreadableError, one_line, paragraphs, truncated, with_marks
from pipelines.inbox.transcripts import is_transcript, read_transcript
from pipelines.inbox.worker import MEGABYTE, ExceededError, ReadingLimits, Worker, is_out_of_memory
from pipelines.terminal import printable

DEFAULT_CHARACTERS, MIN_CHARACTERS = 4_000, 200
"""Length limit of a document: the default, about 1,000 tokens of English, and the smallest."""
_MAX_LISTED, _MAX_NAMED = 50, 3
"""Reasons, and places of each, that are listed."""
_PATH_SEPARATOR = " > "
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BOUNDARIES = (
    re.compile(r"\n+"),
    re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|[。！？]+[\"'”’」』）)\]]*\s*"),
    re.compile(r"\s+"),
)
"""Of lines, sentences and words."""
_MARKS = re.compile(rf"\A(?:{PAGE}\d+ )?#{{1,6}} ")
_SEPARATOR = "\n\n"
"""Between paragraphs."""


@dataclass
class Intake:
    """Reads files into documents and collects what was skipped; the settings apply to all of them."""

    source: str | None = None
    """Source of the documents; for a directory each file's path in it is appended. None: the path, relative to `root`
    if the file is below it, so that a file has one source however its path is written."""
    effective: datetime.date | None = None
    supersedes: tuple[str, ...] = ()
    route: Route | None = None
    """For documents that do not set these themselves; see `InboxDocument`."""
    format: Format | None = None
    """Format of every file; None: by file name extension, JSON Lines for standard input."""
    most_characters: int = DEFAULT_CHARACTERS
    """Length limit of a document, in characters, in [200, 100000]; longer ones are split."""
    root: Path = field(default_factory=Path.cwd)
    """Directory, without symbolic links, to which sources are relative."""
    limits: ReadingLimits = field(default_factory=ReadingLimits)
    """What each file may take."""
    marked: bool = False
    """Mark headings and pages in the texts, for `evaluation.sources.sections`."""
    documents: list[InboxDocument] = field(default_factory=list, init=False)
    """In the order of the files and their content."""
    skipped: dict[str, str] = field(default_factory=dict, init=False)
    """By file or line that was not usable: the reason."""
    notes: list[str] = field(default_factory=list, init=False)
    """Warnings about accepted files."""
    refused: dict[str, str] = field(default_factory=dict, init=False)
    """The same of files that exist, by their path below `root`."""
    files: list[str] = field(default_factory=list, init=False)
    """Paths below `root` of what was read or refused."""
    contents: dict[str, list[str]] = field(default_factory=dict, init=False)
    """By file (its path below `root`, or absolute), or row of a file with an id or a title (a digest on another line):
    the ids of the documents that it holds now."""
    named_by_path: set[str] = field(default_factory=set, init=False)
    """Ids of documents whose source is the path of their file: they are the same under another path."""
    _worker: Worker | None = field(default=None, init=False, repr=False)

    def read(self, path: Path, stdin: BinaryIO | None = None) -> Self:
        """Add the documents in a file, a directory tree or, for the path `-`, standard input.

        Directories are read in sorted order, without hidden files and Office lock files.
        """
        if str(path) == "-" and stdin is not None:
            source = self.source or "standard input"
            content = stdin.read(self.limits.file_mb * MEGABYTE + 1)
            self._add_apart(content, "standard input", self.format or "jsonl", source)
        elif os.path.isdir(path):
            files = list(_files(path))
            for file in files:
                self.add_file(file, self.source and f"{self.source}/{file.relative_to(path).as_posix()}")
            if not files:
                self.skipped[str(path)] = "the directory has no files"
        else:
            self.add_file(path, self.source)
        return self

    def check(self, *, verbose: bool = False) -> Self:
        """Raise InputError if nothing was usable; the message lists what was skipped, all of it if `verbose`."""
        if not self.documents:
            listed = "\n  ".join(["inbox: nothing is usable:", *listing(self.skipped, verbose)])
            raise InputError(f"{listed}\nCorrect this and run again.")
        return self

    def add_file(self, path: Path, source: str | None = None) -> None:
        """Add the documents of a file, or skip it."""
        format_ = self.format or SUFFIXES.get(path.suffix.lower())
        try:
            if format_ is None and os.path.exists(path.expanduser()):
                known = ", ".join(dict.fromkeys(SUFFIXES.values()))
                raise UnreadableError(f"has no supported format ({known}); convert it, or set --format")
            content = _read(path.expanduser(), self.limits)
        except UnreadableError as error:
            self.files.append(self._relative(path))
            self.skipped[str(path)] = str(error)
            if os.path.exists(path.expanduser()):
                self.refused[self.files[-1]] = str(error)
        else:
            # Names that are not UTF-8 come as surrogates, which no database takes.
            place, file, source = (
                os.fsencode(name).decode("utf-8", "backslashreplace")
                for name in (path, self._relative(path), source or self._relative(path))
            )
            self._add_apart(content, place, format_ or "", source, file)

    def _relative(self, file: Path) -> str:
        """Return a file's path below `root`, else its absolute one; a link to a file keeps its name."""
        whole = Path(os.path.abspath(file.expanduser()))
        absolute = whole.parent.resolve() / whole.name
        return (absolute.relative_to(self.root) if absolute.is_relative_to(self.root) else absolute).as_posix()

    def _add_apart(self, content: bytes, place: str, format_: Format, source: str, file: str = "") -> None:
        """Add the documents of the content of `file` in a child process within the limits, or skip it."""
        self._worker = self._worker or Worker(self.limits)
        try:
            if len(content) > self.limits.file_mb * MEGABYTE:
                raise ExceededError(self.limits.exceeded("file_mb", "has more than {} MB"))
            found = self._worker.call(_with_content, replace(self), content, place, format_, source, file)
        except ExceededError as error:
            self.files.append(file or place)
            self.skipped[place] = self.refused[self.files[-1]] = str(error)
            return
        self.documents += found.documents
        self.files += found.files
        self.skipped |= found.skipped
        self.refused |= found.refused
        self.notes += found.notes
        self.named_by_path |= found.named_by_path
        for key, ids in found.contents.items():
            self._hold(key, ids)

    def add_content(self, content: bytes, place: str, format_: Format, source: str, file: str = "") -> None:
        """Add the documents of the content of `file` (empty: of no file), or skip it; raises ExceededError."""
        self.files.append(file or place)
        try:
            if not content.strip():
                raise UnreadableError("is empty")
            if format_ in ("jsonl", "json"):
                self._add_rows(content.removeprefix(_BYTE_ORDER_MARK), place, source, file, lines=format_ == "jsonl")
                return
            extract = READERS[format_](content)
            self._hold(file, self._add(extract, extract.fields, Path(place).stem, source))
            self.notes += [f"{place}: {note}" for note in extract.notes]
        except (UnreadableError, JsonSyntaxError) as error:
            if is_out_of_memory(error):
                raise MemoryError from error
            self.skipped[place] = self.refused[self.files[-1]] = str(error)
        self.named_by_path = {each.id for each in self.documents if file and each.source == file}

    def _hold(self, key: str, ids: list[str]) -> None:
        """Record what a file, or a row of it, holds; an empty key is of no file."""
        if key:
            self.contents.setdefault(key, []).extend(ids)

    def _add_rows(self, content: bytes, place: str, source: str, file: str, *, lines: bool) -> None:
        """Add JSON Lines or a JSON document, in either: rows, a list of rows, or a bare list of messages."""
        content, rows = in_utf8(content), list[tuple[str, Any]]()
        whole: Any = None
        with suppress(JsonSyntaxError) if lines else nullcontext():
            whole = parse_json(content) if not lines or content.lstrip().startswith(b"[") else None
        if lines and not is_transcript(whole):
            for each in json_lines(content, lambda at, why: rows.append((at, UnreadableError(why)))):
                rows.append(each)
            turns = [row for _, row in rows]
            rows = [("", {"messages": turns})] if is_transcript(turns) else rows
        elif isinstance(whole, list) and not is_transcript(whole):
            rows = [(f"[{i}]", item) for i, item in enumerate(whole)]
        else:
            rows = [("", whole)]
        for within, raw in rows:
            at = f"{place}: {within}" if within else place
            try:
                if isinstance(raw, UnreadableError):
                    raise raw
                row = {"messages": raw} if is_transcript(raw) else raw
                ids = self._add_row(row, source, at)
                label = row.get("id") or row.get("title")
                row_key = f"{file}\n{digest_json(label)[:12]}" if file and label else ""
                self._hold(file if not within else row_key, ids)
            except UnreadableError as error:
                self.skipped[at] = self.refused[self.files[-1] + at.removeprefix(place)] = str(error)

    def _add_row(self, raw: Any, source: str, place: str) -> list[str]:
        if isinstance(raw, dict) and "messages" in raw:  # its other keys belong to the agent
            fields = {key: value for key, value in raw.items() if key in InboxRow.model_fields}
            extract = read_transcript(raw["messages"])
            self.notes += [f"{place}: {note}" for note in extract.notes]
            return self._add(extract, fields, "", source)
        text = row_of(raw).text
        return self._add(Extract(paragraphs(text)), raw, "", source, text)

    def _add(
        self, extract: Extract, fields: Mapping[str, Any], fallback_title: str, source: str, text: str = ""
    ) -> list[str]:
        """Add a document, split if it is too long, and return the ids; defaults fill the fields that it leaves out."""
        if not extract.blocks:
            raise UnreadableError("holds no text")
        blocks = tuple(with_marks(extract.blocks)) if self.marked else extract.blocks
        row = row_of({**fields, "text": text or _joined(blocks)})
        headings = sorted((block for block in extract.blocks if block.level), key=lambda block: block.level)
        own_title = extract.title or (one_line(headings[0].text) if headings else fallback_title)
        title = row.title or truncated(own_title, MAX_TITLE_CHARACTERS)
        shared = {
            "source": row.source or source,
            "name": row.id or "",
            "effective": row.effective or self.effective,
            "supersedes": tuple(row.supersedes or self.supersedes),
            "route": row.route or self.route,
            "entities": tuple(row.entities or ()),
        }
        questions, held_out = as_questions(row.questions or ()), as_questions(row.held_out_questions or ())
        parts = [(title, row.text, questions, held_out)]
        if len(row.text) > self.most_characters:
            sections = split_sections(blocks, self.most_characters)
            texts = [each.text for each in sections]
            titles = [each.title(one_line(title), MAX_TITLE_CHARACTERS) for each in sections]
            shares = assign_questions(questions, texts), assign_questions(held_out, texts)
            parts = list(zip(titles, texts, *shares, strict=True))
            if len(parts) > 1:
                shared["whole"] = digest_json({"title": title, "text": row.text, "source": shared["source"]})
        try:
            made = [
                InboxDocument(title=title, text=text, questions=asked, held_out_questions=kept, **shared)
                for title, text, asked, kept in parts
            ]
        except ValidationError as error:
            raise UnreadableError(mistakes(error)) from error
        self.documents += made
        if len(self.documents) > self.limits.documents:
            raise ExceededError(self.limits.exceeded("documents", "holds more than {} documents"))
        return [document.id for document in made]


def listing(skipped: Mapping[str, str], verbose: bool = False) -> list[str]:
    """Return a line for each skipped file or row; unless `verbose`, equal reasons share one, by file name extension."""
    groups: dict[tuple[str, str], list[str]] = {}
    for place, reason in skipped.items():
        suffix = Path(place.partition(": ")[0]).suffix
        groups.setdefault((reason, place if verbose else suffix), []).append(printable(place))
    lines = []
    for (reason, suffix), places in groups.items():
        count = f"{len(places)} {suffix or 'without suffix'}: " if len(places) > 1 else ""
        lines.append(f"{count}{named(places)}: {printable(reason)}")
    most = len(lines) if verbose else _MAX_LISTED
    return [*lines[:most], *([f"and {len(lines) - most} more reasons; --verbose lists all"] if lines[most:] else [])]


def named(names: Sequence[str]) -> str:
    """Return up to three names and a count of the others."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files of a directory tree in sorted order; links to directories are not followed."""
    for root, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith((".", "~$")))


def _with_content(intake: Intake, *content: Any) -> Intake:
    """Return an intake, in a child process, after it has added some content."""
    intake.add_content(*content)
    return intake


def _read(path: Path, limits: ReadingLimits) -> bytes:
    """Return the content of a regular file that is small enough."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UnreadableError("is not a regular file")
        if state.st_size > limits.file_mb * MEGABYTE:
            raise UnreadableError(limits.exceeded("file_mb", "has more than {} MB"))
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error


def _joined(blocks: Sequence[Block]) -> str:
    return _SEPARATOR.join(block.text for block in blocks)


class Section(NamedTuple):
    """A part of a document."""

    path: tuple[str, ...]
    """Headings above it, the highest first; its own first heading is the last."""
    text: str

    def title(self, document: str, limit: int) -> str:
        """Return the document's title and the path within `limit` characters; higher headings are dropped first."""
        path = [document] if document and self.path[:1] != (document,) else []
        path += self.path
        while len(path) > 2 and len(_PATH_SEPARATOR.join(path)) > limit:
            del path[1]
        return truncated(_PATH_SEPARATOR.join(path), limit)


class _Piece(NamedTuple):
    """Blocks with the levels and texts of the headings above."""

    path: tuple[tuple[int, str], ...]
    blocks: tuple[Block, ...]


def split_sections(blocks: Sequence[Block], limit: int) -> list[Section]:
    """Return at least one block in sections of at most `limit` characters."""
    if len(_joined(blocks)) <= limit:
        return [Section((), _joined(blocks))]
    return [
        Section(tuple(heading for _, heading in piece.path), text)
        for piece in _with_lone_headings(_at_headings(_Piece((), tuple(blocks)), 1, limit), limit)
        for text in _packed([block.text for block in piece.blocks], limit)
    ]


def _at_headings(piece: _Piece, level: int, limit: int) -> Iterator[_Piece]:
    """Yield a piece split before its headings of `level` and, if still too long, of lower levels."""
    if level > 6 or len(_joined(piece.blocks)) <= limit:
        yield piece
        return
    starts = [i for i, block in enumerate(piece.blocks) if block.level == level]
    for start, end in zip([0, *starts], [*starts, len(piece.blocks)], strict=True):
        if part := piece.blocks[start:end]:
            above = tuple(item for item in piece.path if item[0] < level)
            path = (*above, (level, _MARKS.sub("", one_line(part[0].text)))) if part[0].level == level else piece.path
            yield from _at_headings(_Piece(path, part), level + 1, limit)


def _with_lone_headings(pieces: Iterator[_Piece], limit: int) -> list[_Piece]:
    """Return the pieces; those of headings alone are put in front of the next one."""
    merged: list[_Piece] = []
    for piece in pieces:
        if merged and all(block.level for block in merged[-1].blocks):
            together = merged[-1].blocks + piece.blocks
            if len(_joined(together)) <= limit:
                merged[-1] = _Piece(piece.path, together)
                continue
        merged.append(piece)
    return merged


def _packed(texts: Sequence[str], limit: int, depth: int = 0) -> Iterator[str]:
    """Yield paragraphs (or lines, sentences, words), greedily joined up to `limit` characters; longer ones are cut."""
    held, separator = "", "" if depth else _SEPARATOR
    for text in texts:
        for piece in [text] if len(text.strip()) <= limit else _cut(text, limit, depth):
            if held.strip() and len(f"{held}{separator}{piece}".strip()) > limit:
                yield held.strip()
                held = ""
            held = f"{held}{separator}{piece}" if held else piece
    if held.strip():
        yield held.strip()


def _cut(text: str, limit: int, depth: int) -> Iterator[str]:
    """Yield a paragraph cut at lines, else sentences, else words, else anywhere."""
    if depth == len(_BOUNDARIES):
        yield from (text[start : start + limit] for start in range(0, len(text), limit))
        return
    # Closing quotes that a match holds stay with the sentence before it, and so does the white space.
    ends = [0, *(match.end() for match in _BOUNDARIES[depth].finditer(text)), len(text)]
    yield from _packed([text[start:end] for start, end in itertools.pairwise(ends)], limit, depth + 1)


def assign_questions(questions: Sequence[Question], texts: Sequence[str]) -> list[tuple[Question, ...]]:
    """Return questions by section: the whole answer decides, then the word overlap, then the order."""
    shares: list[list[Question]] = [[] for _ in texts]
    normal = [normalize_answer(text) for text in texts]
    words = [set(text.split()) for text in normal]
    for question in questions:
        answer = normalize_answer(question.answer)
        asked = set(f"{normalize_answer(question.question)} {answer}".split())
        fits = [
            (bool(answer) and f" {answer} " in f" {text} ", len(asked & held))
            for text, held in zip(normal, words, strict=True)
        ]
        shares[max(range(len(texts)), key=lambda i: (fits[i], -i))].append(question)
    return [tuple(share) for share in shares]
