"""The ledger: every call to an endpoint, written before it is made and settled when it ends, in one SQLite file.

A reply is stored with the settling of its call, in one transaction, so that a kill at any moment loses no reply that
had arrived, and the same requests are answered with the same texts afterwards. A call that a kill cut off stays
unsettled and counts with the most that it can have used: the provider may well bill it. Since a call is written under
the same lock as the budget is checked, calls in flight count, those of other processes on the same scope included.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.endpoints.records import UNKNOWN, EndpointFailure, EndpointReply, Spent, Usage
from evaluation.errors import EndpointError
from evaluation.sqlite_file import SqliteFile

_LOOKUP = 500
"""Digests in one query."""

_TABLES = """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, scope TEXT NOT NULL, digest TEXT NOT NULL, model TEXT NOT NULL,
    started REAL NOT NULL, seconds REAL, reason TEXT, detail TEXT, settled INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER, completion_tokens INTEGER, tokens INTEGER NOT NULL, cost REAL, currency TEXT NOT NULL
);
CREATE INDEX calls_of_scope ON calls (scope);
CREATE TABLE charges (scope TEXT PRIMARY KEY, tokens INTEGER NOT NULL, cost REAL NOT NULL);
CREATE TRIGGER begun AFTER INSERT ON calls BEGIN
    INSERT INTO charges VALUES (NEW.scope, NEW.tokens, COALESCE(NEW.cost, 0))
    ON CONFLICT (scope) DO UPDATE SET tokens = tokens + excluded.tokens, cost = cost + excluded.cost;
END;
CREATE TRIGGER settled AFTER UPDATE OF tokens, cost ON calls BEGIN
    UPDATE charges SET tokens = tokens + NEW.tokens - OLD.tokens,
        cost = cost + COALESCE(NEW.cost, 0) - COALESCE(OLD.cost, 0) WHERE scope = NEW.scope;
END;
CREATE TABLE replies (
    digest TEXT PRIMARY KEY, call INTEGER NOT NULL REFERENCES calls (id), text TEXT NOT NULL,
    finish_reason TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL, model TEXT NOT NULL
);
"""


class Charge(NamedTuple):
    """What a call counts with."""

    tokens: int
    cost: float | None
    """In the currency of the endpoint; None without prices."""


class Limits(NamedTuple):
    """What a scope may spend; None does not limit."""

    tokens: int | None = None
    cost: float | None = None


class Ledger(SqliteFile):
    """Calls and replies in a file, for any number of threads and processes; close it, or use it as a context."""

    VERSION = 1
    TABLES = _TABLES

    def __init__(self, path: Path, scope: str = "") -> None:
        """Open the ledger, made if it does not exist.

        Args:
            path: Of the file, on a local disk.
            scope: Whose calls `spent` and budgets count, such as a run's name and purpose; replies are found by what
                was asked, whichever scope paid for them.

        Raises:
            EndpointError: The file cannot be used, or another version of Preceptor made it.
        """
        super().__init__(path)
        self.scope = scope

    def find(self, digests: Sequence[str]) -> dict[str, EndpointReply]:
        """Return the stored replies, by digest; what is not there was never answered.

        Raises:
            EndpointError: The ledger cannot be read.
        """
        found: dict[str, EndpointReply] = {}
        with self._reading() as db:
            for start in range(0, len(digests), _LOOKUP):
                part = digests[start : start + _LOOKUP]
                marks = ", ".join("?" * len(part))
                rows = db.execute(
                    "SELECT digest, text, finish_reason, prompt_tokens, completion_tokens, cost, model FROM replies "
                    f"WHERE digest IN ({marks})",
                    part,
                )
                for digest, text, ended, prompt, completion, cost, model in rows:
                    found[digest] = EndpointReply(text, ended, prompt, completion, cost, model, from_ledger=True)
        return found

    def begin(self, digest: str, model: str, most: Charge, currency: str, limits: Limits) -> int | None:
        """Write that a call is about to be made, and return its number; None when the limits do not allow it.

        Args:
            digest: Of the request.
            model: As it is asked for.
            most: Upper bound of what the call can use; it counts with that until it is settled.
            currency: Of costs and limits.
            limits: Of the scope.

        Raises:
            EndpointError: The ledger cannot be written, so nothing may be paid for.
        """
        with self._transaction() as db:
            tokens, cost = self._charged(db)
            if limits.tokens is not None and tokens + most.tokens > limits.tokens:
                return None
            # Sums of many small costs carry rounding errors; they must not refuse what fits exactly.
            if limits.cost is not None and cost + (most.cost or 0.0) > limits.cost * (1 + 1e-9):
                return None
            return db.execute(
                "INSERT INTO calls (scope, digest, model, started, tokens, cost, currency) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.scope, digest, model, time.time(), most.tokens, most.cost, currency),
            ).lastrowid

    def keep(self, call: int, digest: str, reply: EndpointReply) -> EndpointReply:
        """Settle a call with its reply, and return the reply that is stored under the digest from now on.

        When another process has stored one meanwhile, that one stays, so that both go on with the same text.

        Raises:
            EndpointError: The ledger cannot be written.
        """
        usage = Usage(reply.prompt_tokens, reply.completion_tokens)
        with self._transaction() as db:
            self._settle(db, call, usage, reply.cost, free=False)
            db.execute(
                "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (digest, call, reply.text, reply.finish_reason, *usage, reply.cost, reply.model),
            )
            owner = db.execute("SELECT call FROM replies WHERE digest = ?", (digest,)).fetchone()[0]
        return reply if owner == call else self.find([digest])[digest]

    def fail(
        self, call: int, failure: EndpointFailure, *, usage: Usage = UNKNOWN, cost: float | None = None, free: bool
    ) -> None:
        """Settle a call that brought no reply.

        Args:
            call: From `begin`.
            failure: What became of it.
            usage: As far as the server told it.
            cost: Of that usage.
            free: The server did no work on it, or none that anyone bills.

        Raises:
            EndpointError: The ledger cannot be written.
        """
        with self._transaction() as db:
            self._settle(db, call, usage, cost, free=free)
            db.execute("UPDATE calls SET reason = ?, detail = ? WHERE id = ?", (failure.reason, failure.detail, call))

    def spent(self) -> Spent:
        """Return what the calls of this scope took so far.

        Raises:
            EndpointError: The ledger cannot be read.
        """
        with self._reading() as db:
            row = db.execute(
                "SELECT COUNT(*), COUNT(reason), TOTAL(settled = 0), TOTAL(prompt_tokens), TOTAL(completion_tokens), "
                "TOTAL(tokens), CASE WHEN COUNT(cost) = COUNT(*) THEN TOTAL(cost) END, "
                "COALESCE(GROUP_CONCAT(DISTINCT currency), ''), TOTAL(seconds) FROM calls WHERE scope = ?",
                (self.scope,),
            ).fetchone()
        calls, failures, unsettled, prompt, completion, tokens = (int(value) for value in row[:6])
        return Spent(calls, failures, unsettled, prompt, completion, tokens, *row[6:])

    def stored(self) -> int:
        """Return the number of replies in the ledger, of all scopes."""
        with self._reading() as db:
            return int(db.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def _charged(self, db: sqlite3.Connection) -> tuple[int, float]:
        """Return the running sums of the scope, kept by triggers: summing 50,000 calls before each took 15 ms."""
        row = db.execute("SELECT tokens, cost FROM charges WHERE scope = ?", (self.scope,)).fetchone()
        return (0, 0.0) if row is None else (int(row[0]), float(row[1]))

    def _settle(self, db: sqlite3.Connection, call: int, usage: Usage, cost: float | None, *, free: bool) -> None:
        """End a call; without known use it keeps counting with the most that it can have used, unless it was free."""
        fields: dict[str, Any] = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        if usage.prompt_tokens is not None and usage.completion_tokens is not None:
            fields |= {"settled": 1, "tokens": usage.prompt_tokens + usage.completion_tokens, "cost": cost}
        elif free:
            fields |= {"settled": 1, "tokens": 0}
        assigned = ", ".join(f"{name} = ?" for name in fields)
        free_cost = ", cost = cost * 0" if free and "cost" not in fields else ""  # unknown prices stay unknown
        db.execute(
            f"UPDATE calls SET {assigned}{free_cost}, seconds = MAX(0, ? - started) WHERE id = ?",
            (*fields.values(), time.time(), call),
        )

    def _refused(self, version: int) -> EndpointError:
        return EndpointError(
            f"ledger {str(self.path)!r}: it has the form {version}, allowed is {self.VERSION}. Another version of "
            "Preceptor made it; use that one, or give another path."
        )

    def _failed(self, action: str, error: Exception) -> EndpointError:
        return EndpointError(
            f"ledger {str(self.path)!r}: could not {action} it: {error}. Nothing more was asked, because what is "
            "paid for must be stored. Check that the disk has room and the file is yours, then give the same "
            "command again: it goes on where this one stopped."
        )
