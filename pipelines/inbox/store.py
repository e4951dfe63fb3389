"""The inbox's store, one SQLite file for any number of processes, and which documents replace which.

Adding is idempotent by content: a document that is there stays as it is. A document's claim to replace something is
stored beside it, also where only the claim is new: an unchanged section of a new version of a handbook is known, and
yet part of the version that replaces the old one. Documents and claims share one order of arrival, a delivery's claims
behind all of its documents, so that no two documents can replace each other.
"""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from evaluation.common.errors import InputError, PreceptorError
from evaluation.common.storage import SqliteFile
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument

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
# Not OR IGNORE, which would also hide other violations.
_ADD_DOCUMENT = "INSERT INTO documents VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
_ADD_CLAIM = "INSERT INTO claims VALUES (?, ?, ?, ?) ON CONFLICT (document, whole, target) DO NOTHING"
_LAST_PLACE = (
    "SELECT MAX(COALESCE((SELECT MAX(place) FROM documents), 0), COALESCE((SELECT MAX(place) FROM claims), 0))"
)


class InboxError(PreceptorError, RuntimeError):
    """The inbox's store could not be opened, read or written."""


class Added(NamedTuple):
    """Ids of documents that were given to the store, in the order given."""

    new: tuple[str, ...]
    known: tuple[str, ...]
    """There already; their content stays as it was."""


class Quarantined(NamedTuple):
    """Why a document is not learned for now."""

    reason: str
    night: str
    """Name of the night that was rejected."""
    since: datetime.datetime
    """In UTC."""


class Arrival(NamedTuple):
    """A document in the order of arrival."""

    id: str
    title: str
    name: str
    """The sender's own id; may be empty."""
    source: str
    place: int
    """In the order of documents and claims, at least 1."""


class Claim(NamedTuple):
    """A document's claim to replace something."""

    document: str
    whole: str
    """What the document was part of then; claims of one whole do not retire each other's documents."""
    target: str
    """Id, sender's name or source of what is replaced."""
    place: int
    """In the order of documents and claims, at least 1."""


class InboxStore(SqliteFile):
    """Documents in a file, for any number of threads and processes; close it, or use it as a context.

    All methods raise `InboxError` where the file cannot be used, and those that take ids `InputError` for unknown ones,
    before anything changes.
    """

    VERSION = 1
    TABLES = _TABLES

    def add(self, documents: Iterable[InboxDocument]) -> Added:
        """Store documents that are not there yet, all of them or none; they may replace each other in any order."""
        given = list(documents)
        new: list[str] = []
        with self._transaction() as db:
            place = int(db.execute(_LAST_PLACE).fetchone()[0])
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
        """Return all documents in the order of arrival, superseded and quarantined ones included."""
        return tuple(self._document(text) for (text,) in self._rows("SELECT content FROM documents ORDER BY place"))

    def find(self, document: str) -> InboxDocument:
        """Return the document with an id."""
        rows = self._rows("SELECT content FROM documents WHERE id = ?", document)
        if not rows:
            raise self._no_document([document])
        return self._document(rows[0][0])

    def superseded(self) -> dict[str, str]:
        """Return the id of each replaced document with that of its newest replacement; see `newest`."""
        return newest(*self._order())

    def unknown_targets(self) -> dict[str, tuple[str, ...]]:
        """Return by id the replaced names that no other document has: mistyped, or never delivered."""
        return unknown_targets(*self._order())

    def quarantine(self, ids: Sequence[str], reason: str, night: str) -> None:
        """Keep a night's documents from being learned until a person releases them; the last reason given counts."""
        with self._transaction() as db:
            self._check_known(db, ids)
            rows = [(document, reason, night, _now().isoformat()) for document in ids]
            db.executemany("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?)", rows)

    def release(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return documents to the queue; return the ids of those that were quarantined."""
        delete = "DELETE FROM aside WHERE document = ?"
        with self._transaction() as db:
            self._check_known(db, ids)
            return tuple(name for name in dict.fromkeys(ids) if db.execute(delete, (name,)).rowcount)

    def quarantined(self) -> dict[str, Quarantined]:
        """Return the quarantined documents by id."""
        rows = self._rows("SELECT document, reason, night, since FROM aside ORDER BY since, document")
        return {row[0]: Quarantined(row[1], row[2], datetime.datetime.fromisoformat(row[3])) for row in rows}

    def put_questions(
        self, document: str, questions: Sequence[Question], held_out: Sequence[Question] = ()
    ) -> InboxDocument:
        """Replace the questions of a document, those for rewards and those for comparisons alone, and return it."""
        asked = {"questions": tuple(questions), "held_out_questions": tuple(held_out)}
        with self._transaction() as db:
            self._check_known(db, [document])
            text = db.execute("SELECT content FROM documents WHERE id = ?", (document,)).fetchone()[0]
            changed = self._document(text).model_copy(update=asked)
            db.execute("UPDATE documents SET content = ? WHERE id = ?", (changed.model_dump_json(), document))
        return changed

    def _order(self) -> tuple[list[Arrival], list[Claim]]:
        """Return documents and claims of one moment."""
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
        try:
            return InboxDocument.model_validate_json(text)
        except ValidationError as error:
            raise InboxError(
                f"inbox {str(self.path)!r}: it holds a document that cannot be read: {error}. The file was changed or "
                "damaged; restore it from a copy."
            ) from error

    def _check_known(self, db: sqlite3.Connection, ids: Sequence[str]) -> None:
        query = "SELECT 1 FROM documents WHERE id = ?"
        if missing := [name for name in ids if db.execute(query, (name,)).fetchone() is None]:
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


class _Claims:
    """Claims with the documents that they may mean."""

    def __init__(self, arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> None:
        self.ids = {arrival.id: arrival for arrival in arrivals}
        self._named: dict[str, list[Arrival]] = {}
        for arrival in arrivals:
            for called in {arrival.name, arrival.source} - {""}:
                self._named.setdefault(called, []).append(arrival)
        self._members: dict[str, set[str]] = {}
        for claim in claims:
            self._members.setdefault(claim.whole, set()).add(claim.document)

    def meant(self, claim: Claim) -> list[Arrival]:
        """Return the documents that a claim means, those of its own whole left out; an id goes before names."""
        target = claim.target
        found = [self.ids[target]] if target in self.ids else self._named.get(target, [])
        return [arrival for arrival in found if arrival.id not in self._members[claim.whole]]


def newest(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> dict[str, str]:
    """Return the id of each retired document with that of the newest one that replaces it.

    A claim retires a document that came before it, where a document's last claim counts as its coming, too: a section
    that a later version brings back is in force again. So whatever retires a document came later, and chains of
    replacements end. Of several replacements in one whole, the one with the same title is named.

    Args:
        arrivals: All documents.
        claims: All claims, in order of place.
    """
    index = _Claims(arrivals, claims)
    came = {arrival.id: arrival.place for arrival in arrivals}
    for claim in claims:
        came[claim.document] = max(came[claim.document], claim.place)
    retired_by: dict[str, Claim] = {}
    for claim in claims:
        for old in index.meant(claim):
            if came[old.id] < claim.place:
                before, same_title = retired_by.get(old.id), index.ids[claim.document].title == old.title
                if before is None or before.whole != claim.whole or same_title:
                    retired_by[old.id] = claim

    def end(document: str) -> str:
        while document in retired_by:
            document = retired_by[document].document
        return document

    return {old: end(old) for old in retired_by}


def unknown_targets(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> dict[str, tuple[str, ...]]:
    """Return by document the targets that mean no document but those of the claim's own whole."""
    index = _Claims(arrivals, claims)
    found: dict[str, tuple[str, ...]] = {}
    for claim in claims:
        if not index.meant(claim):
            found[claim.document] = (*found.get(claim.document, ()), claim.target)
    return found
