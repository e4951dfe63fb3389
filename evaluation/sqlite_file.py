"""An SQLite file that any number of threads and processes read and write at once: opened, locked, written as a whole.

Whoever keeps something in such a file gives the tables and the words of its errors; how the file is opened, how
writers wait for each other, and that a kill leaves all of a transaction or nothing is the same for all.
"""

from __future__ import annotations

import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

from evaluation.errors import PreceptorError

_BUSY_SECONDS = 60.0
"""Longest wait for another process that writes; one write takes milliseconds."""


class SqliteFile(ABC):
    """A file with the tables of a subclass; close it, or use it as a context."""

    VERSION: ClassVar[int]
    """Form of the tables, at least 1; written into the file."""
    TABLES: ClassVar[str]
    """SQL that makes the tables in an empty file."""

    def __init__(self, path: Path) -> None:
        """Open the file, made if it does not exist.

        Args:
            path: Of the file, on a local disk.

        Raises:
            PreceptorError: As the subclass says: the file cannot be used, or another version of Preceptor made it.
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
                    self._db.execute("PRAGMA synchronous = FULL")  # what was written outlives a power cut as well
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
        """Return the error of a file whose tables have a form that is not known."""

    @abstractmethod
    def _failed(self, action: str, error: Exception) -> PreceptorError:
        """Return the error of a file that could not be opened, read or written.

        Args:
            action: Which of the three, as a verb.
            error: What SQLite or the system says.
        """

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
        except (sqlite3.Error, OSError) as error:  # a lock that was not got in time is an OSError too
            raise self._failed(action, error) from error
