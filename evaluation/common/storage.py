"""Crash-safe storage: files that are replaced whole or not at all, and SQLite files for many threads and processes."""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

from evaluation.common.errors import PreceptorError

_BUSY_SECONDS = 60.0
"""Longest wait for another process that writes; one write takes milliseconds."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a staging path that replaces `path` when the block ends without an error.

    Readers find the old file, none, or the whole new one, after a kill or a power cut too.
    """
    # A name that nobody else has: threads and processes may write the same file at once, and the last one stays.
    staging = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield staging
        _flush_to_disk(staging)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write one file (text in UTF-8) and its directories, whole or not at all, and return its path; see `replacing`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staging:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _flush_to_disk(path: Path) -> None:
    """Wait until a file's content is on the disk (0.3 ms for some kilobytes).

    Otherwise a file system may keep the new name and lose the content when the power fails. The directory is not
    flushed: where the move is lost, the old file is there.
    """
    file = os.open(path, os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)


class SqliteFile(ABC):
    """A file with the tables of a subclass, for any number of threads and processes; close it, or use it as a context.

    Writers wait for each other, and a kill leaves all of a transaction or nothing.
    """

    VERSION: ClassVar[int]
    """Version of the tables, at least 1; written into the file."""
    TABLES: ClassVar[str]
    """SQL that creates the tables in an empty file."""

    def __init__(self, path: Path) -> None:
        """Open the file on a local disk, created if missing.

        Raises:
            PreceptorError: Of the subclass: the file is unusable, or another version of Preceptor wrote it.
        """
        from filelock import FileLock

        self.path = path
        self._lock = threading.Lock()
        with self._errors("open"):
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite does not wait for its lock while the journal mode changes, so one process at a time sets up.
            with FileLock(f"{path}.lock", timeout=_BUSY_SECONDS):
                self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                known = 0 <= version <= self.VERSION
                if known:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = FULL")  # survives a power cut
                if version == 0:
                    self._db.executescript(f"BEGIN;{self.TABLES}PRAGMA user_version = {self.VERSION};COMMIT;")
        if not known:
            self.close()
            raise self._refused(version)

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _refused(self, version: int) -> PreceptorError:
        """Return the error for tables of an unknown version."""

    @abstractmethod
    def _failed(self, action: str, error: Exception) -> PreceptorError:
        """Return the error for a file that could not be opened, read or written (`action`)."""

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Keep this process's other threads off the file while it is read."""
        with self._errors("read"), self._lock:
            yield self._db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Hold the file's lock from the first read to the end, and write all or nothing."""
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
            raise self._failed(action, error) from error
