"""The inbox's store: one SQLite file that any number of processes add to and read from at once.

Adding is idempotent by content: a document that is there already stays as it is. What a document says it replaces is
kept as a claim beside it, also when only the claim is new: an unchanged section of a new version of a handbook is
known, and yet part of the version that replaces the old one. Everything has its place in one order of arrival, the
claims of a delivery behind all of its documents, so that no two documents can replace each other.
"""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from evaluation.errors import InputError, PreceptorError
from evaluation.sqlite_file import SqliteFile
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.superseding import Arrival, Claim, newest, unknown_targets

INBOX_FILE = "inbox.db"
"""Name of the store in a work directory."""
_TABLES = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, arrived TEXT NOT NULL, content TEXT NOT NULL
);
CREATE TABLE claims (
    document TEXT NOT NULL REFERENCES documents (id), whole TEXT NOT NULL, target TEXT NOT NULL,
    place INTEGER NOT NULL UNIQUE, PRIMARY KEY (document, whole, target)
);
CREATE TABLE aside (
    document TEXT PRIMARY KEY REFERENCES documents (id), reason TEXT NOT NULL, night TEXT NOT NULL, since TEXT NOT NULL
);
"""
# Not OR IGNORE, which would also pass over what must not happen.
_ADD_DOCUMENT = "INSERT INTO documents VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
_ADD_CLAIM = "INSERT INTO claims VALUES (?, ?, ?, ?) ON CONFLICT (document, whole, target) DO NOTHING"


class InboxError(PreceptorError, RuntimeError):
    """The inbox's store could not be opened, read or written."""


class Added(NamedTuple):
    """What became of documents that were given to the store, by id, in the order given."""

    new: tuple[str, ...]
    known: tuple[str, ...]
    """There already; their content stays as it was."""


class Aside(NamedTuple):
    """Why a document is not learned for now."""

    reason: str
    night: str
    """Name of the night that was rejected."""
    since: datetime.datetime
    """When it was set aside, in UTC."""


class InboxStore(SqliteFile):
    """Documents in a file, for any number of threads and processes; close it, or use it as a context.

    Opening it raises `InboxError` where the file cannot be used, or a newer version of Preceptor made it.
    """

    VERSION = 1
    TABLES = _TABLES

    def add(self, documents: Iterable[InboxDocument]) -> Added:
        """Store documents that are not there yet, all of them or none.

        Args:
            documents: In any number; what they supersede may be among them, in any order.

        Raises:
            InboxError: The store cannot be written; nothing was added.
        """
        given = list(documents)
        new: list[str] = []
        with self._transaction() as db:
            place = self._last_place(db)
            for document in given:
                row = (document.id, place + 1, _now().isoformat(), document.model_dump_json())
                if db.execute(_ADD_DOCUMENT, row).rowcount:
                    new.append(document.id)
                    place += 1
            claimed = [(doc.id, doc.whole or doc.id, target) for doc in given for target in doc.supersedes]
            for claim in claimed:
                place += db.execute(_ADD_CLAIM, (*claim, place + 1)).rowcount
        fresh, ids = set(new), dict.fromkeys(document.id for document in given)
        return Added(tuple(new), tuple(name for name in ids if name not in fresh))

    def documents(self) -> tuple[InboxDocument, ...]:
        """Return all documents in the order of arrival, superseded ones and those set aside included.

        Raises:
            InboxError: The store cannot be read, or holds something else.
        """
        return tuple(self._document(text) for (text,) in self._rows("SELECT content FROM documents ORDER BY place"))

    def find(self, document: str) -> InboxDocument:
        """Return one document.

        Raises:
            InputError: There is none with this id.
            InboxError: The store cannot be read, or holds something else.
        """
        rows = self._rows("SELECT content FROM documents WHERE id = ?", document)
        if not rows:
            raise self._no_document([document])
        return self._document(rows[0][0])

    def superseded(self) -> dict[str, str]:
        """Return the id of each replaced document with that of its newest replacement.

        A target that is a document's id means that document, any other the documents with that sender's name or
        source, the other parts of the same whole left out. Of several replacements the one with the same title is
        named.

        Raises:
            InboxError: The store cannot be read.
        """
        return newest(*self._order())

    def unknown_targets(self) -> dict[str, tuple[str, ...]]:
        """Return by id what documents say they supersede that is in no other document: mistyped, or never delivered.

        Raises:
            InboxError: The store cannot be read.
        """
        return unknown_targets(*self._order())

    def set_aside(self, ids: Sequence[str], reason: str, night: str) -> None:
        """Keep documents from being learned until a person releases them; the last reason given counts.

        Args:
            ids: Of the documents of a rejected night.
            reason: Why it was rejected, in words for that person.
            night: Name of the night.

        Raises:
            InputError: There is no document with one of these ids; nothing was set aside.
            InboxError: The store cannot be written.
        """
        with self._transaction() as db:
            self._check_known(db, ids)
            rows = [(document, reason, night, _now().isoformat()) for document in ids]
            db.executemany("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?)", rows)

    def release(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Let documents be learned again, and return the ids of those that were set aside.

        Raises:
            InputError: There is no document with one of these ids; nothing was released.
            InboxError: The store cannot be written.
        """
        with self._transaction() as db:
            self._check_known(db, ids)
            return tuple(
                document
                for document in dict.fromkeys(ids)
                if db.execute("DELETE FROM aside WHERE document = ?", (document,)).rowcount
            )

    def aside(self) -> dict[str, Aside]:
        """Return what is set aside, by id.

        Raises:
            InboxError: The store cannot be read.
        """
        rows = self._rows("SELECT document, reason, night, since FROM aside ORDER BY since, document")
        return {row[0]: Aside(row[1], row[2], datetime.datetime.fromisoformat(row[3])) for row in rows}

    def put_questions(
        self, document: str, questions: Sequence[Question], held_out: Sequence[Question] = ()
    ) -> InboxDocument:
        """Store the questions of a document in place of what it had, and return it.

        Args:
            document: Its id.
            questions: For rewards.
            held_out: For comparisons alone.

        Raises:
            InputError: There is no document with this id.
            InboxError: The store cannot be written, or holds something else.
        """
        with self._transaction() as db:
            self._check_known(db, [document])
            text = db.execute("SELECT content FROM documents WHERE id = ?", (document,)).fetchone()[0]
            changed = self._document(text).model_copy(
                update={"questions": tuple(questions), "held_out_questions": tuple(held_out)}
            )
            db.execute("UPDATE documents SET content = ? WHERE id = ?", (changed.model_dump_json(), document))
        return changed

    def _order(self) -> tuple[list[Arrival], list[Claim]]:
        """Return documents and claims, of one moment."""
        with self._reading() as db:
            db.execute("BEGIN")
            try:
                arrivals = db.execute("SELECT place, content FROM documents ORDER BY place").fetchall()
                claims = db.execute("SELECT document, whole, target, place FROM claims ORDER BY place").fetchall()
            finally:
                db.execute("COMMIT")
        documents = [(place, self._document(text)) for place, text in arrivals]
        return [Arrival(d.id, d.title, d.name, d.source, place) for place, d in documents], [Claim(*c) for c in claims]

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._reading() as db:
            return db.execute(query, values).fetchall()

    def _document(self, text: str) -> InboxDocument:
        from pydantic import ValidationError

        try:
            return InboxDocument.model_validate_json(text)
        except ValidationError as error:
            raise InboxError(
                f"inbox {str(self.path)!r}: it holds a document that cannot be read: {error}. The file was changed or "
                "damaged; restore it from a copy."
            ) from error

    @staticmethod
    def _last_place(db: sqlite3.Connection) -> int:
        query = (
            "SELECT MAX(COALESCE((SELECT MAX(place) FROM documents), 0), COALESCE((SELECT MAX(place) FROM claims), 0))"
        )
        return int(db.execute(query).fetchone()[0])

    def _check_known(self, db: sqlite3.Connection, ids: Sequence[str]) -> None:
        found = db.execute
        missing = [i for i in ids if found("SELECT 1 FROM documents WHERE id = ?", (i,)).fetchone() is None]
        if missing:
            raise self._no_document(missing)

    def _no_document(self, ids: Sequence[str]) -> InputError:
        return InputError(
            f"inbox {str(self.path)!r}: got {', '.join(map(repr, ids))}, but there is no document with such an id. "
            "`preceptor inbox list` shows the ids."
        )

    def _refused(self, version: int) -> InboxError:
        return InboxError(
            f"inbox {str(self.path)!r}: it has the form {version}, this version of Preceptor knows up to "
            f"{self.VERSION}. A newer version made it; use that one, or give another --work-dir."
        )

    def _failed(self, action: str, error: Exception) -> InboxError:
        return InboxError(
            f"inbox {str(self.path)!r}: could not {action} it: {error}. Check that the disk has room, that the "
            "file is an inbox and yours, then give the same command again; adding twice does no harm."
        )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
