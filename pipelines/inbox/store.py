"""SQLite store of the inbox, and supersession: which documents replace which.

Adding is idempotent by content. Claims to supersede something are stored separately, also those of known documents: an
unchanged section of a handbook's new version is known, and yet part of the version that supersedes the old one.
Documents and claims share one sequence, in which the claims of a delivery follow all its documents, so that documents
cannot supersede each other.
"""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from evaluation.common.errors import InputError, PreceptorError
from evaluation.common.storage import SqliteFile
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument

INBOX_FILE = "inbox.db"
"""In a work directory."""
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
# Not OR IGNORE, which would also hide violations of other constraints.
_ADD_DOCUMENT = "INSERT INTO documents VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
_ADD_CLAIM = "INSERT INTO claims VALUES (?, ?, ?, ?) ON CONFLICT (document, whole, target) DO NOTHING"
# Not among the tables above: inboxes of earlier releases have none.
_NOTES = (
    "CREATE TABLE IF NOT EXISTS notes (document TEXT PRIMARY KEY REFERENCES documents (id), reason TEXT NOT NULL, "
    "since TEXT NOT NULL)"
)
_LAST_PLACE = (
    "SELECT MAX(COALESCE((SELECT MAX(place) FROM documents), 0), COALESCE((SELECT MAX(place) FROM claims), 0))"
)


class InboxError(PreceptorError, RuntimeError):
    """The inbox's store could not be opened, read or written."""


class Arrival(NamedTuple):
    """A document (see `InboxDocument`) in the sequence of documents and claims."""

    id: str
    title: str
    name: str
    source: str
    position: int


class Claim(NamedTuple):
    """A document's claim to supersede something."""

    document: str
    whole: str
    """What the document was part of; claims of one whole do not supersede each other's documents."""
    target: str
    """Id, sender's id or source of what is superseded."""
    position: int


class InboxStore(SqliteFile):
    """Documents of an inbox; safe for concurrent threads and processes.

    All methods raise `InboxError` for an unusable file, and `InputError` for unknown ids, before anything changes.
    """

    NAME = "inbox"
    VERSION = 1
    TABLES = _TABLES
    ERROR = InboxError
    NEXT_STEP = (
        "Check free disk space, and that the file is an inbox that you may write; then repeat the command: adding "
        "twice is harmless."
    )

    def add(self, documents: Iterable[InboxDocument]) -> dict[str, bool]:
        """Store documents in one transaction; they may supersede each other in any order.

        Returns:
            By id: whether the document is new; one that was in the inbox is unchanged.
        """
        given = list(documents)
        found: dict[str, bool] = {}
        with self._transaction() as db:
            position = int(db.execute(_LAST_PLACE).fetchone()[0])
            for document in given:
                row = (document.id, position + 1, _now(), document.model_dump_json())
                added = db.execute(_ADD_DOCUMENT, row).rowcount
                found[document.id] = found.get(document.id, False) or bool(added)
                position += added
            claimed = [(doc.id, doc.whole or doc.id, target) for doc in given for target in doc.supersedes]
            for claim in claimed:
                position += db.execute(_ADD_CLAIM, (*claim, position + 1)).rowcount
        return found

    def documents(self) -> tuple[InboxDocument, ...]:
        """Return all documents in order of arrival, including superseded and quarantined ones."""
        return tuple(self._document(text) for (text,) in self._rows("SELECT content FROM documents ORDER BY place"))

    def find(self, document: str) -> InboxDocument:
        """Return the document with an id."""
        for (text,) in self._rows("SELECT content FROM documents WHERE id = ?", document):
            return self._document(text)
        raise self._no_document([document])

    def superseded(self) -> dict[str, str]:
        """Return superseded ids -> ids of the newest replacements; see `newest`."""
        return newest(*self._order())

    def unknown_targets(self) -> dict[str, tuple[str, ...]]:
        """Return ids -> targets that match no other document: misspelled, or never delivered."""
        return unknown_targets(*self._order())

    def quarantine(self, ids: Sequence[str], reason: str, night: str) -> None:
        """Exclude documents from learning until a person releases them; the latest reason is kept."""
        with self._transaction() as db:
            self._check_known(db, ids)
            rows = [(document, reason, night, _now()) for document in ids]
            db.executemany("INSERT OR REPLACE INTO aside VALUES (?, ?, ?, ?)", rows)

    def release(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return documents to the queue; those that were quarantined are returned."""
        delete = "DELETE FROM aside WHERE document = ?"
        with self._transaction() as db:
            self._check_known(db, ids)
            return tuple(name for name in dict.fromkeys(ids) if db.execute(delete, (name,)).rowcount)

    def quarantined(self) -> dict[str, tuple[str, str]]:
        """Return the reason and the night of each quarantined document by id."""
        rows = self._rows("SELECT document, reason, night FROM aside ORDER BY since, document")
        return {name: (reason, night) for name, reason, night in rows}

    def note(self, reasons: Mapping[str, str]) -> None:
        """Record by id what a night found out about documents, such as why one waits; the latest note is kept."""
        with self._transaction() as db:
            self._check_known(db, list(reasons))
            db.execute(_NOTES)
            rows = [(document, reason, _now()) for document, reason in reasons.items()]
            db.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", rows)

    def notes(self) -> dict[str, str]:
        """Return the note of each document that has one, by id."""
        if not self._rows("SELECT 1 FROM sqlite_master WHERE name = 'notes'"):
            return {}
        return dict(self._rows("SELECT document, reason FROM notes ORDER BY since, document"))

    def put_questions(self, document: str, questions: Sequence[Question]) -> None:
        """Replace a document's questions; every second one is held out."""
        asked = {"questions": tuple(questions[::2]), "held_out_questions": tuple(questions[1::2])}
        with self._transaction() as db:
            self._check_known(db, [document])
            text = db.execute("SELECT content FROM documents WHERE id = ?", (document,)).fetchone()[0]
            changed = self._document(text).model_copy(update=asked)
            db.execute("UPDATE documents SET content = ? WHERE id = ?", (changed.model_dump_json(), document))

    def _order(self) -> tuple[list[Arrival], list[Claim]]:
        """Return a consistent snapshot of documents and claims, in order."""
        with self._reading() as db:
            db.execute("BEGIN")
            try:
                arrivals = db.execute("SELECT place, content FROM documents ORDER BY place").fetchall()
                claims = db.execute("SELECT document, whole, target, place FROM claims ORDER BY place").fetchall()
            finally:
                db.execute("COMMIT")
        documents = [(position, self._document(text)) for position, text in arrivals]
        return [Arrival(d.id, d.title, d.name, d.source, at) for at, d in documents], [Claim(*c) for c in claims]

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._reading() as db:
            return db.execute(query, values).fetchall()

    def _document(self, text: str) -> InboxDocument:
        try:
            return InboxDocument.model_validate_json(text)
        except ValidationError as error:
            raise InboxError(
                f"inbox {str(self.path)!r}: it holds an invalid document: {error}. The file was changed or damaged; "
                "restore it from a backup."
            ) from error

    def _check_known(self, db: sqlite3.Connection, ids: Sequence[str]) -> None:
        query = "SELECT 1 FROM documents WHERE id = ?"
        if missing := [name for name in ids if db.execute(query, (name,)).fetchone() is None]:
            raise self._no_document(missing)

    def _no_document(self, ids: Sequence[str]) -> InputError:
        return InputError(
            f"inbox {str(self.path)!r}: got {', '.join(map(repr, ids))}, but there is no such document. "
            "`preceptor inbox list` shows the ids."
        )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def _resolved(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> list[tuple[Claim, list[Arrival]]]:
    """Return claims with the documents that they mean outside their own whole; ids take precedence over names."""
    by_id = {arrival.id: arrival for arrival in arrivals}
    by_name: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        for called in {arrival.name, arrival.source} - {""}:
            by_name.setdefault(called, []).append(arrival)
    members: dict[str, set[str]] = {}
    for claim in claims:
        members.setdefault(claim.whole, set()).add(claim.document)

    def meant(claim: Claim) -> list[Arrival]:
        found = [by_id[claim.target]] if claim.target in by_id else by_name.get(claim.target, [])
        return [arrival for arrival in found if arrival.id not in members[claim.whole]]

    return [(claim, meant(claim)) for claim in claims]


def newest(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> dict[str, str]:
    """Return superseded ids -> ids of the newest replacements.

    A claim (in order of position) supersedes what arrived before it, and a document arrives again with its last claim:
    a section that a later version restores is valid again. So replacements are always later, and chains end. Of several
    replacements in one whole, the one with the same title is named.
    """
    titles = {arrival.id: arrival.title for arrival in arrivals}
    arrived = {arrival.id: arrival.position for arrival in arrivals}
    for claim in claims:
        arrived[claim.document] = max(arrived[claim.document], claim.position)
    replaced_by: dict[str, Claim] = {}
    for claim, meant in _resolved(arrivals, claims):
        for old in meant:
            before = replaced_by.get(old.id)
            other = before is None or before.whole != claim.whole or titles[claim.document] == old.title
            if other and arrived[old.id] < claim.position:
                replaced_by[old.id] = claim

    ends = {old: claim.document for old, claim in replaced_by.items()}
    for name in ends:
        while ends[name] in ends:
            ends[name] = ends[ends[name]]
    return ends


def unknown_targets(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> dict[str, tuple[str, ...]]:
    """Return ids -> targets that match no document outside the claim's own whole."""
    found: dict[str, tuple[str, ...]] = {}
    for claim, meant in _resolved(arrivals, claims):
        if not meant:
            found[claim.document] = (*found.get(claim.document, ()), claim.target)
    return found
