"""Write-ahead ledger of endpoint calls in SQLite, with a cache of replies.

A reply is stored in the transaction that settles its call, so a kill loses no received reply. An interrupted call stays
unsettled and counts with its upper bound, since the provider may bill it. Budget check and record of a call are one
transaction, so calls in flight count, also those of other processes with the same scope.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.common.errors import EndpointError
from evaluation.common.storage import SqliteFile, checksum

_log = logging.getLogger(__name__)
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
_REPLY = "digest, text, finish_reason, prompt_tokens, completion_tokens, cost, model"
"""Columns of a reply that its checksum is made of."""
_MIGRATION_2 = f"ALTER TABLE replies ADD COLUMN checksum TEXT; UPDATE replies SET checksum = checksum({_REPLY});"


FailureReason = Literal[
    "timeout",
    "connection",
    "rate_limited",
    "server_error",
    "malformed",
    "empty_choice",
    "content_filtered",
    "prompt_too_long",
    "interrupted",
    "refused",
]
"""Why a request has no reply: `server_error` is status 409 or >= 500, `malformed` a body outside the protocol or a
completion that the server broke off, `empty_choice` no completion or one without text. In the ledger only:
`interrupted` (stopped while in flight) and `refused` (a permanent refusal, which stopped the run)."""


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """A completion; token counts are the server's, None if not reported."""

    text: str
    """Empty only if the model stopped immediately."""
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    """By the configured prices; None if unknown."""
    model: str
    """Model name reported by the server; empty if none."""
    note: str = ""
    """What was odd about the response; in the ledger it stands as the call's detail."""


@dataclass(frozen=True, slots=True)
class EndpointFailure:
    """A request without a reply, after all retries."""

    reason: FailureReason
    detail: str
    """Error message, with the key removed."""


Outcome: TypeAlias = EndpointReply | EndpointFailure


class Usage(NamedTuple):
    """Tokens of a call as reported by the server; None if unknown."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


UNKNOWN = Usage()


class Spent(Frozen):
    """Usage of a scope, including retries and killed processes."""

    calls: int
    failures: int
    """Calls without a reply."""
    tokens: int
    """As charged to the budget; an upper bound if `unsettled` is not 0."""
    cost: float | None
    """In `currency`, as charged to the budget; None if any call has no known price."""
    currency: str
    unsettled: int = Field(default=0, exclude=True)
    """Calls of unknown usage (in flight, killed, timed out, broken), counted with their upper bound."""


class Charge(NamedTuple):
    """Budget charge of a call; the cost is None without prices."""

    tokens: int
    cost: float | None


class Limits(NamedTuple):
    """Budget of a scope; None is unlimited."""

    tokens: int | None = None
    cost: float | None = None


class Ledger(SqliteFile):
    """Calls and replies in a file; every method raises EndpointError if it cannot be read or written."""

    NAME = "ledger"
    VERSION = 2
    TABLES = _TABLES + _MIGRATION_2
    MIGRATIONS = (_MIGRATION_2,)
    ERROR = EndpointError
    NEXT_STEP = (
        "No further calls were made, because paid replies must be stored. Check disk space and permissions, then run "
        "the same command again to resume."
    )

    def __init__(self, path: Path, scope: str = "") -> None:
        """Open the ledger on a local disk, created if missing.

        Usage and budgets are per `scope`, such as a run's name and purpose; replies are shared between scopes.
        """
        super().__init__(path)
        self.scope = scope

    def find(self, digests: Sequence[str]) -> dict[str, EndpointReply]:
        """Return the stored replies by digest; one that was changed or damaged since is removed, with a log message."""
        wanted = f"SELECT {_REPLY}, checksum FROM replies WHERE digest IN (SELECT value FROM json_each(?))"
        with self._reading() as db:
            rows = db.execute(wanted, (json.dumps(digests),)).fetchall()
        damaged = [(row[0],) for row in rows if row[-1] != checksum(*row[:-1])]
        if damaged:
            with self._transaction() as db:
                db.executemany("DELETE FROM replies WHERE digest = ?", damaged)
            _log.warning("%s: replies changed or damaged since, asked for again: %d", self.path, len(damaged))
        return {row[0]: EndpointReply(*row[1:-1]) for row in rows if (row[0],) not in damaged}

    def begin(self, digest: str, model: str, most: Charge, currency: str, limits: Limits) -> int | None:
        """Record a call, charged with its upper bound `most` until settled, and return its id; None if over budget."""
        with self._transaction() as db:
            # Running sums, kept by triggers: summing 50,000 calls takes 15 ms.
            row = db.execute("SELECT tokens, cost FROM charges WHERE scope = ?", (self.scope,)).fetchone()
            tokens, cost = row or (0, 0.0)
            if limits.tokens is not None and tokens + most.tokens > limits.tokens:
                return None
            # Tolerance for rounding errors of the running sum.
            if limits.cost is not None and cost + (most.cost or 0.0) > limits.cost * (1 + 1e-9):
                return None
            return db.execute(
                "INSERT INTO calls (scope, digest, model, started, tokens, cost, currency) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.scope, digest, model, time.time(), most.tokens, most.cost, currency),
            ).lastrowid

    def keep(self, call: int, digest: str, reply: EndpointReply) -> EndpointReply:
        """Settle a call and return the stored reply: this one, or an earlier one by another process."""
        usage = Usage(reply.prompt_tokens, reply.completion_tokens)
        cost = None if reply.cost is None else float(reply.cost)  # as the file returns it, for the checksum
        with self._transaction() as db:
            self._settle(db, call, usage, reply.cost, free=False)
            db.execute(
                "INSERT OR IGNORE INTO replies VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, "
                "checksum(?1, ?3, ?4, ?5, ?6, ?7, ?8))",
                (digest, call, reply.text, reply.finish_reason, *usage, cost, reply.model),
            )
            if reply.note:
                db.execute("UPDATE calls SET detail = ? WHERE id = ?", (reply.note, call))
            owner = db.execute("SELECT call FROM replies WHERE digest = ?", (digest,)).fetchone()[0]
        return reply if owner == call else self.find([digest])[digest]

    def fail(
        self, call: int, failure: EndpointFailure, *, usage: Usage = UNKNOWN, cost: float | None = None, free: bool
    ) -> None:
        """Settle a failed call with its reported usage; `free`: the server did no billable work."""
        with self._transaction() as db:
            self._settle(db, call, usage, cost, free=free)
            db.execute("UPDATE calls SET reason = ?, detail = ? WHERE id = ?", (failure.reason, failure.detail, call))

    def spent(self) -> Spent:
        """Return the usage of this scope so far."""
        with self._reading() as db:
            row = db.execute(
                "SELECT COUNT(*), COUNT(reason), CAST(TOTAL(tokens) AS INTEGER), "
                "CASE WHEN COUNT(cost) = COUNT(*) THEN TOTAL(cost) END, COALESCE(GROUP_CONCAT(DISTINCT currency), ''), "
                "CAST(TOTAL(settled = 0) AS INTEGER) FROM calls WHERE scope = ?",
                (self.scope,),
            ).fetchone()
        return Spent(**dict(zip(Spent.model_fields, row, strict=True)))

    def stored(self) -> int:
        """Return the number of replies of all scopes."""
        with self._reading() as db:
            return int(db.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def _settle(self, db: sqlite3.Connection, call: int, usage: Usage, cost: float | None, *, free: bool) -> None:
        """End a call; with unknown usage it stays unsettled, unless it was free."""
        fields: dict[str, Any] = usage._asdict()
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
