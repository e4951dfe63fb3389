"""Crash-safe storage: atomic file replacement, and SQLite files for many threads and processes."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from evaluation.common.data import digest_json
from evaluation.common.errors import PreceptorError

_BUSY_SECONDS = 60.0
"""Timeout for concurrent writers; a write takes milliseconds."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a staging path that atomically and durably replaces `path` if the block succeeds."""
    # Unique: concurrent writers of the same file do not interfere, and the last one wins.
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield staging
        with staging.open("r+b") as file:
            os.fsync(file.fileno())  # else a power cut could keep the new name and lose the content
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def replacing_directory(directory: Path) -> Iterator[Path]:
    """Yield a path for a new directory that replaces `directory` if the block succeeds.

    Concurrent readers see the old one, the new one or, for an instant, none; nothing is left beside it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        yield new
        if directory.exists():  # a full directory cannot be replaced
            os.replace(directory, old)
        os.replace(new, directory)


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write a file (text in UTF-8) and its directories atomically and return its path; see `replacing`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staging:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def checksum(*parts: Any) -> str:
    """Return the checksum (32 hex digits) of a stored record: JSON-serialisable parts, with the key it is stored under.

    With the key, so that a record in another one's place is as wrong as a changed one.
    """
    return digest_json(parts)[:32]


def sqlite_uri(path: Path) -> str:
    """Return the URI by which SQLAlchemy, and with it MLflow, opens a file, whatever characters its path has."""
    place = str(path.resolve())
    quoted = place.replace("%", "%25").replace("?", "%3F")
    # Of a URI that does not name the driver, MLflow makes the parent directory as it stands, quoted.
    return f"sqlite{'' if quoted == place else '+pysqlite'}:///{quoted}"


class SqliteFile:
    """A SQLite file with serialised writers; close it, or use it as a context manager."""

    NAME: ClassVar[str]
    """What the file is, for messages."""
    VERSION: ClassVar[int]
    """Schema version, at least 1, stored in the file."""
    TABLES: ClassVar[str]
    """SQL that creates the tables in an empty file."""
    MIGRATIONS: ClassVar[tuple[str, ...]] = ()
    """SQL that takes a file from each earlier schema version, from 1, to the next one."""
    ERROR: ClassVar[type[PreceptorError]]
    """Raised for an unusable file or an unknown schema version."""
    NEXT_STEP: ClassVar[str]
    """What to do about an unusable file."""

    def __init__(self, path: Path) -> None:
        """Open the file on a local disk, created if missing."""
        from filelock import FileLock

        self.path = path
        self._lock = threading.Lock()
        with self._errors("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite does not wait for locks while the journal mode changes, so set-up is serialised.
            with FileLock(f"{path}.lock", timeout=_BUSY_SECONDS):
                self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
                self._db.create_function("checksum", -1, checksum, deterministic=True)  # for SQL that writes records
                self._db.text_factory = lambda text: text.decode("utf-8", "replace")  # damage is for checksums to find
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                known = 0 <= version <= self.VERSION
                if known:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = FULL")  # survives a power cut
                if known and version < self.VERSION:
                    steps = (self.TABLES,) if version == 0 else self.MIGRATIONS[version - 1 :]
                    self._db.executescript(f"BEGIN;{''.join(steps)}PRAGMA user_version = {self.VERSION};COMMIT;")
        if not known:
            self.close()
            raise self.ERROR(
                f"{self.NAME} {str(path)!r}: it has schema version {version}, this version of Preceptor reads up to "
                f"{self.VERSION}. A newer version wrote it; use that one, or another path."
            )

    def close(self) -> None:
        """Close the file; idempotent."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Exclude other threads of this process while reading."""
        with self._errors("read"), self._lock:
            yield self._db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock of an all-or-nothing transaction."""
        with self._errors("write"), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:  # a lock timeout is an OSError too
            raise self.ERROR(
                f"{self.NAME} {str(self.path)!r}: could not {action} it: {error}. {self.NEXT_STEP}"
            ) from error


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
_FULL = "database or disk is full"


def disk_problem(error: BaseException | None) -> str | None:
    """Return a message if a full disk, or one that refuses, is behind an error; None for any other."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in _DISK) or _FULL in str(error):
            where = f" at {str(error.filename)!r}" if isinstance(error, OSError) and error.filename else ""
            return (
                f"disk: {getattr(error, 'strerror', None) or _FULL}{where}. What was finished is kept. Make room or "
                "check the permissions, then repeat the command: it goes on from there."
            )
        error = error.__cause__ or error.__context__
    return None
