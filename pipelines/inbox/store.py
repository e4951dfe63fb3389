"""SQLite store of the inbox, and supersession: which documents replace which.

Adding is idempotent by content. Claims to supersede something are stored separately, also those of known documents: an
unchanged section of a handbook's new version is known, and yet part of the version that supersedes the old one.
Documents and claims share one sequence, in which the claims of a delivery follow all its documents, so that documents
cannot supersede each other. Beside claims, what a file no longer holds is superseded by what it holds now.
"""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from evaluation.common.data import digest_json
from evaluation.common.errors import InputError, PreceptorError
from evaluation.common.storage import SqliteFile, checksum
from evaluation.tasks import Question
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.schema import (
    ADD_CLAIM,
    ADD_DOCUMENT,
    COLUMNS,
    LAST_PLACE,
    MIGRATION_2,
    MIGRATION_3,
    MIGRATION_4,
    SET_CONTENT,
    TABLES,
    into,
)
from pipelines.reports.format import counted

INBOX_FILE = "inbox.db"
"""In a work directory."""


class InboxError(PreceptorError, RuntimeError):
    """The inbox's store could not be opened, read or written."""


class Arrival(NamedTuple):
    """A document (see `InboxDocument`) in the sequence of documents and claims."""

    id: str
    title: str
    name: str
    source: str
    position: int
    paths: tuple[str, ...] = ()
    """Of files that hold it or held it: further sources."""


class Claim(NamedTuple):
    """A document's claim to supersede something."""

    document: str
    whole: str
    """What the document was part of; claims of one whole do not supersede each other's documents."""
    target: str
    """Id, sender's id or source of what is superseded."""
    position: int


class Content(NamedTuple):
    """A document that a file holds or held."""

    file: str
    document: str
    state: int
    """0: no longer in the file; 1: in it; 2: no longer in it, and kept in force all the same."""
    position: int
    """Of the delivery that made it so; 0 for the file's first one."""


class Removal(NamedTuple):
    """The record of a removed document, whose text is erased."""

    source: str
    reason: str
    who: str
    since: str
    """ISO 8601, UTC."""


class InboxStore(SqliteFile):
    """Documents of an inbox; safe for concurrent threads and processes.

    All methods raise `InboxError` for an unusable file, and `InputError` for unknown ids, before anything changes.
    """

    NAME = "inbox"
    VERSION = 4
    TABLES = TABLES
    MIGRATIONS = (MIGRATION_2, MIGRATION_3, MIGRATION_4)
    ERROR = InboxError
    NEXT_STEP = (
        "Check free disk space, and that the file is an inbox that you may write; then repeat the command: adding "
        "twice is harmless."
    )

    def add(
        self,
        documents: Iterable[InboxDocument],
        files: Mapping[str, Collection[str]] | None = None,
        *,
        keep_both: bool = False,
        same: Mapping[str, str] = MappingProxyType({}),
        quarantined: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, bool]:
        """Store documents in one transaction; they may supersede each other in any order.

        Args:
            documents: To add.
            files: By file, the ids of the documents that it holds now; those that it held before are superseded.
            keep_both: These stay in force; for an unchanged file those of its last change come into force again.
            same: Ids of documents that are not stored -> ids of those of the same content that stand for them.
            quarantined: Ids of documents that wait for a person from the beginning -> the reason.

        Returns:
            By id: whether the document is new; one that was in the inbox, or was removed from it, is unchanged.
        """
        delivered = list(documents)
        given = [document for document in delivered if document.id not in same]
        found = dict.fromkeys(same.values(), False)
        with self._transaction() as db:
            position = int(db.execute(LAST_PLACE).fetchone()[0])
            for document in given:
                row = (document.id, position + 1, _now(), document.model_dump_json())
                added = db.execute(ADD_DOCUMENT, row).rowcount
                found[document.id] = found.get(document.id, False) or bool(added)
                position += added
            position += 1
            for file, ids in (files or {}).items():
                self._replace(db, file, [same.get(name, name) for name in ids], position, keep_both)
            claimed = [(doc.id, doc.whole or doc.id, target) for doc in delivered for target in doc.supersedes]
            for name, *claim in claimed:
                position += db.execute(ADD_CLAIM, (same.get(name, name), *claim, position + 1)).rowcount
            aside = [(name, reason, "", _now()) for name, reason in quarantined.items()]
            db.executemany(f"REPLACE {into('aside')}", aside)
        return found

    @staticmethod
    def _replace(db: sqlite3.Connection, file: str, ids: Collection[str], position: int, keep_both: bool) -> None:
        """Record what a file holds now."""
        rows = db.execute("SELECT document, state, place FROM files WHERE file = ?", (file,)).fetchall()
        before = {document for document, state, _ in rows if state == 1}
        gone = before.difference(ids)
        if keep_both and before == set(ids):
            last = max((place for _, state, place in rows if not state), default=0)
            gone = {document for document, state, place in rows if not state and place == last}
        changed = [(file, name, 2 if keep_both else 0, position) for name in gone]
        since = position if rows else 0  # what a file's first delivery finds in the inbox did not arrive again
        come = [(file, name, 1, since) for name in ids if name not in before]
        db.executemany(f"REPLACE {into('files')}", [*changed, *come])

    def documents(self) -> tuple[InboxDocument, ...]:
        """Return all documents in order of arrival, including superseded and quarantined ones."""
        return tuple(self._document(text) for *_, text in self._whole("documents", "content != '' ORDER BY place"))

    def find(self, document: str) -> InboxDocument:
        """Return the document with an id."""
        for *_, text in self._whole("documents", "id = ? AND content != ''", document):
            return self._document(text)
        raise self._no_document([document])

    def copies(self, documents: Iterable[InboxDocument], ids: Collection[str]) -> dict[str, str]:
        """Return ids of new documents (those among `ids`) -> ids of others of the same title and text.

        These are in force, or were given before.
        """
        known, superseded = self._whole("documents", "1 ORDER BY place"), self.superseded()
        names = {name for name, *_ in known}
        first: dict[str, str] = {}
        for name, *_, text in known:
            if text and name not in superseded:
                content = json.loads(text)
                first.setdefault(digest_json([content["title"], content["text"]]), name)
        found = {}
        for document in documents:
            name = first.setdefault(digest_json([document.title, document.text]), document.id)
            if name != document.id and document.id in ids and document.id not in names:
                found[document.id] = name
        return found

    def paths(self, document: str) -> list[str]:
        """Return the files that hold a document."""
        rows = self._whole("files", "document = ? AND state = 1 ORDER BY rowid", document)
        return list(dict.fromkeys(file.partition("\n")[0] for file, *_ in rows))

    def former(self, files: Iterable[str]) -> list[tuple[str, str]]:
        """Return files with the ids of the documents that they do not hold any more."""
        held = (row for file in files for row in self._whole("files", "file = ? AND NOT state ORDER BY place", file))
        return [(file, name) for file, name, *_ in held]

    def remove(self, ids: Sequence[str], reason: str, who: str) -> None:
        """Erase documents from the file, all but their records, by which they stay removed when they are added again.

        Removing twice completes an erasure that another process prevented; the first record stays. Of an interaction,
        and of a refused file or row (see `refuse`), nothing is kept.
        """
        with self._erasing() as db:
            for table, key in (("refused", "place"), ("interactions", "id")):
                delete = f"DELETE FROM {table} WHERE {key} = ?"
                ids = [name for name in ids if not db.execute(delete, (name,)).rowcount]
            self._check_known(db, ids, removed=True)
            for name in ids:
                ((*_, content),) = self._select(db, "documents", "id = ?", name)
                if content:
                    record = (name, self._document(content).source, reason, who, _now())
                    db.execute(f"INSERT {into('removed')}", record)
                db.execute(SET_CONTENT, ("", name))
                for table in ("aside", "notes"):
                    db.execute(f"DELETE FROM {table} WHERE document = ?", (name,))

    @contextmanager
    def _erasing(self) -> Iterator[sqlite3.Connection]:
        """Hold a transaction; what it deletes or overwrites is in no file of the inbox any more afterwards."""
        with self._transaction() as db:
            db.execute("PRAGMA secure_delete = ON")
            yield db
        with self._errors("erase text from"), self._lock:
            self._db.execute("VACUUM")
            # The log beside the file holds what was written, until it is taken over and emptied.
            if self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise sqlite3.OperationalError("another process reads it")

    def removed(self) -> dict[str, Removal]:
        """Return the records of removed documents by id, in the order of removal."""
        rows = self._whole("removed", "1 ORDER BY since, document")
        return {name: Removal(*record) for name, *record in rows}

    def refuse(self, files: Iterable[str], reasons: Mapping[str, str]) -> None:
        """Record which of some files, or rows of them (`FILE: line 3`), were refused now and why; see `refused`."""
        delete = "DELETE FROM refused WHERE place = ?1 OR substr(place, 1, length(?1) + 2) = ?1 || ': '"
        with self._transaction() as db:
            db.executemany(delete, [(file,) for file in files])
            rows = [(place, reason, _now()) for place, reason in reasons.items()]
            db.executemany(f"REPLACE {into('refused')}", rows)

    def refused(self) -> dict[str, str]:
        """Return the reasons for refused files and rows, until they are read, or removed from the list."""
        return {place: reason for place, reason, _ in self._whole("refused", "1 ORDER BY since, place")}

    def note(self, reasons: Mapping[str, str]) -> None:
        """Record why documents wait, or what else a night found out about them, by id; the latest note is kept."""
        with self._transaction() as db:
            self._check_known(db, list(reasons))
            rows = [(document, reason, _now()) for document, reason in reasons.items()]
            db.executemany(f"REPLACE {into('notes')}", rows)

    def notes(self) -> dict[str, str]:
        """Return the notes by id of the document."""
        return {name: reason for name, reason, _ in self._whole("notes", "1 ORDER BY since, document")}

    def superseded(self) -> dict[str, str]:
        """Return superseded ids -> ids of the newest replacements; see `newest`."""
        return newest(*self._order())

    def unknown_targets(self) -> dict[str, tuple[str, ...]]:
        """Return ids -> targets that match no other document: misspelled, or never delivered."""
        arrivals, claims, _ = self._order()
        return unknown_targets(arrivals, claims)

    def quarantine(self, ids: Sequence[str], reason: str, night: str) -> None:
        """Exclude documents from learning until a person releases them; the latest reason is kept."""
        with self._transaction() as db:
            self._check_known(db, ids)
            rows = [(document, reason, night, _now()) for document in ids]
            db.executemany(f"REPLACE {into('aside')}", rows)

    def release(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return documents to the queue; those that were quarantined are returned."""
        delete = "DELETE FROM aside WHERE document = ?"
        with self._transaction() as db:
            self._check_known(db, ids)
            return tuple(name for name in dict.fromkeys(ids) if db.execute(delete, (name,)).rowcount)

    def quarantined(self) -> dict[str, tuple[str, str]]:
        """Return the reason and the night of each quarantined document by id."""
        rows = self._whole("aside", "1 ORDER BY since, document")
        return {name: (reason, night) for name, reason, night, _ in rows}

    def put_questions(self, document: str, questions: Sequence[Question]) -> None:
        """Replace a document's questions; every second one is held out."""
        asked = {"questions": tuple(questions[::2]), "held_out_questions": tuple(questions[1::2])}
        with self._transaction() as db:
            self._check_known(db, [document])
            ((*_, text),) = self._select(db, "documents", "id = ?", document)
            changed = self._document(text).model_copy(update=asked)
            db.execute(SET_CONTENT, (changed.model_dump_json(), document))

    def _order(self) -> tuple[list[Arrival], list[Claim], list[Content]]:
        """Return a consistent snapshot of documents, claims and the content of files, in order."""
        with self._reading() as db:
            db.execute("BEGIN")
            try:
                rows = self._select(db, "documents", "1 ORDER BY place")
                claims = self._select(db, "claims", "1 ORDER BY place")
                held = self._select(db, "files", "1 ORDER BY place, rowid")
            finally:
                db.execute("COMMIT")
        documents = [(at, name, self._document(text) if text else None) for name, at, _, text in rows]
        paths: dict[str, list[str]] = {name: [] for name, *_ in rows}
        for file, name, *_ in held:
            paths[name].append(file)
        arrivals = [  # of removed documents only the id is left
            Arrival(name, d.title, d.name, d.source, at, tuple(paths.get(name, ())))
            if d
            else Arrival(name, "", "", "", at)
            for at, name, d in documents
        ]
        return arrivals, [Claim(*row) for row in claims], [Content(*row) for row in held]

    def _whole(self, table: str, condition: str, *values: str) -> list[tuple[Any, ...]]:
        with self._reading() as db:
            return self._select(db, table, condition, *values)

    def _select(self, db: sqlite3.Connection, table: str, condition: str, *values: str) -> list[tuple[Any, ...]]:
        """Return rows of a table in the order of `COLUMNS`, each with its checksum verified."""
        query = f"SELECT {COLUMNS[table]}, checksum FROM {table} WHERE {condition}"
        rows = db.execute(query, values).fetchall()
        if wrong := [row[0] for row in rows if row[-1] != checksum(*row[:-1])]:
            what = "document" if table == "documents" else f"record in {table!r}"
            raise InboxError(
                f"inbox {str(self.path)!r}: it holds {counted(len(wrong), f'invalid {what}')}, first {wrong[0]!r}: the "
                "file was changed or damaged after it was written; restore it from a backup."
            )
        return [row[:-1] for row in rows]

    def _document(self, text: str) -> InboxDocument:
        try:
            return InboxDocument.model_validate_json(text)
        except ValidationError as error:
            raise InboxError(
                f"inbox {str(self.path)!r}: it holds an invalid document: {error}. The file was changed or damaged; "
                "restore it from a backup."
            ) from error

    def _check_known(self, db: sqlite3.Connection, ids: Sequence[str], *, removed: bool = False) -> None:
        query = "SELECT 1 FROM documents WHERE id = ? AND (content != '' OR ?)"
        if missing := [name for name in ids if db.execute(query, (name, removed)).fetchone() is None]:
            raise self._no_document(missing)

    def _no_document(self, ids: Sequence[str]) -> InputError:
        return InputError(
            f"inbox {str(self.path)!r}: got {', '.join(map(repr, ids))}, but there is no such document. "
            "`preceptor inbox list` shows the ids."
        )


def removed_documents(work_dir: Path) -> frozenset[str]:
    """Return the ids of what was removed from a work directory's inbox; none where there is no inbox."""
    if not (work_dir / INBOX_FILE).is_file():
        return frozenset()
    with InboxStore(work_dir / INBOX_FILE) as store:
        return frozenset(store.removed())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat()


def _resolved(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> list[tuple[Claim, list[Arrival]]]:
    """Return claims with the documents that they mean outside their own whole; ids take precedence over names."""
    by_id = {arrival.id: arrival for arrival in arrivals}
    by_name: dict[str, list[Arrival]] = {}
    for arrival in arrivals:
        for called in {arrival.name, arrival.source, *arrival.paths} - {""}:
            by_name.setdefault(called, []).append(arrival)
    members: dict[str, set[str]] = {}
    for claim in claims:
        members.setdefault(claim.whole, set()).add(claim.document)

    def meant(claim: Claim) -> list[Arrival]:
        found = [by_id[claim.target]] if claim.target in by_id else by_name.get(claim.target, [])
        return [arrival for arrival in found if arrival.id not in members[claim.whole]]

    return [(claim, meant(claim)) for claim in claims]


def newest(arrivals: Sequence[Arrival], claims: Sequence[Claim], contents: Sequence[Content] = ()) -> dict[str, str]:
    """Return superseded ids -> ids of the newest replacements.

    A claim (in order of position) supersedes what arrived before it, and a document arrives again with its last claim,
    or when a file holds it again: a section that a later version restores is valid again. So replacements are always
    later, and chains end. Of several replacements in one whole, the one with the same title is named. What no file
    holds any more is superseded by what its file holds now, unless that was superseded by it.
    """
    titles = {arrival.id: arrival.title for arrival in arrivals}
    arrived = {arrival.id: arrival.position for arrival in arrivals}
    again = [(claim.document, claim.position) for claim in claims]
    again += [(content.document, content.position) for content in contents if content.state]
    for name, position in again:
        arrived[name] = max(arrived[name], position)
    replaced_by: dict[str, Claim] = {}
    for claim, meant in _resolved(arrivals, claims):
        for old in meant:
            before = replaced_by.get(old.id)
            other = before is None or before.whole != claim.whole or titles[claim.document] == old.title
            if other and arrived[old.id] < claim.position:
                replaced_by[old.id] = claim

    ends = {old: claim.document for old, claim in replaced_by.items()}
    for gone, held in _replaced_in_files(titles, contents).items():
        if _end(ends, held) != gone:
            ends.setdefault(gone, held)
    return {name: _end(ends, name) for name in ends}


def _end(ends: Mapping[str, str], name: str) -> str:
    """Return the end of the chain of replacements from a document."""
    while name in ends:
        name = ends[name]
    return name


def _replaced_in_files(titles: Mapping[str, str], contents: Sequence[Content]) -> dict[str, str]:
    """Return the documents that no file holds any more -> a document, of the same title if any, that its file holds."""
    present = {content.document for content in contents if content.state}
    now: dict[str, dict[str, str]] = {}
    for content in contents:
        if content.state == 1:
            now.setdefault(content.file, {}).setdefault(titles[content.document], content.document)
    found = {}
    for content in contents:
        if content.document not in present and (held := now.get(content.file)):
            found[content.document] = held.get(titles[content.document], next(iter(held.values())))
    return found


def unknown_targets(arrivals: Sequence[Arrival], claims: Sequence[Claim]) -> dict[str, tuple[str, ...]]:
    """Return ids -> targets that match no document outside the claim's own whole."""
    found: dict[str, tuple[str, ...]] = {}
    for claim, meant in _resolved(arrivals, claims):
        if not meant:
            found[claim.document] = (*found.get(claim.document, ()), claim.target)
    return found
