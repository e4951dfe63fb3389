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
_TRIGGERS = """
CREATE TRIGGER begun AFTER INSERT ON calls BEGIN
    INSERT INTO charges VALUES (NEW.scope, NEW.tokens)
    ON CONFLICT (scope) DO UPDATE SET tokens = tokens + excluded.tokens;
END;
CREATE TRIGGER settled AFTER UPDATE OF tokens ON calls BEGIN
    UPDATE charges SET tokens = tokens + NEW.tokens - OLD.tokens WHERE scope = NEW.scope;
END;
"""
_TABLES = f"""
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, scope TEXT NOT NULL, digest TEXT NOT NULL, model TEXT NOT NULL,
    started REAL NOT NULL, seconds REAL, reason TEXT, detail TEXT, settled INTEGER NOT NULL DEFAULT 0,
    prompt_tokens INTEGER, completion_tokens INTEGER, tokens INTEGER NOT NULL
);
CREATE INDEX calls_of_scope ON calls (scope);
CREATE TABLE charges (scope TEXT PRIMARY KEY, tokens INTEGER NOT NULL);
CREATE TABLE replies (
    digest TEXT PRIMARY KEY, call INTEGER NOT NULL REFERENCES calls (id), text TEXT NOT NULL,
    finish_reason TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, model TEXT NOT NULL, checksum TEXT
);
{_TRIGGERS}
"""
_REPLY = "digest, text, finish_reason, prompt_tokens, completion_tokens, model"
"""Columns of a reply that its checksum is made of."""
_PRICED = "digest, text, finish_reason, prompt_tokens, completion_tokens, cost, model"
_MIGRATIONS = (
    f"ALTER TABLE replies ADD COLUMN checksum TEXT; UPDATE replies SET checksum = checksum({_PRICED});",
    f"""
    UPDATE replies SET checksum = CASE checksum WHEN checksum({_PRICED}) THEN checksum({_REPLY}) END;
    DROP TRIGGER begun; DROP TRIGGER settled;
    ALTER TABLE calls DROP COLUMN cost; ALTER TABLE calls DROP COLUMN currency;
    ALTER TABLE charges DROP COLUMN cost; ALTER TABLE replies DROP COLUMN cost;
    {_TRIGGERS}
    """,
)


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
    unsettled: int = Field(default=0, exclude=True)
    """Calls of unknown usage (in flight, killed, timed out, broken), counted with their upper bound."""


class Ledger(SqliteFile):
    """Calls and replies in a file; every method raises EndpointError if it cannot be read or written."""

    NAME = "ledger"
    VERSION = 3
    TABLES = _TABLES
    MIGRATIONS = _MIGRATIONS
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

    def begin(self, digest: str, model: str, most: int, budget: int | None = None) -> int | None:
        """Record a call, charged with `most` tokens until settled, and return its id; None if that is over budget."""
        with self._transaction() as db:
            # Running sums, kept by triggers: summing 50,000 calls takes 15 ms.
            row = db.execute("SELECT tokens FROM charges WHERE scope = ?", (self.scope,)).fetchone()
            if budget is not None and (row or (0,))[0] + most > budget:
                return None
            return db.execute(
                "INSERT INTO calls (scope, digest, model, started, tokens) VALUES (?, ?, ?, ?, ?)",
                (self.scope, digest, model, time.time(), most),
            ).lastrowid

    def keep(self, call: int, digest: str, reply: EndpointReply) -> EndpointReply:
        """Settle a call and return the stored reply: this one, or an earlier one by another process."""
        usage = Usage(reply.prompt_tokens, reply.completion_tokens)
        with self._transaction() as db:
            self._settle(db, call, usage, free=False)
            db.execute(
                "INSERT OR IGNORE INTO replies VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, checksum(?1, ?3, ?4, ?5, ?6, ?7))",
                (digest, call, reply.text, reply.finish_reason, *usage, reply.model),
            )
            if reply.note:
                db.execute("UPDATE calls SET detail = ? WHERE id = ?", (reply.note, call))
            owner = db.execute("SELECT call FROM replies WHERE digest = ?", (digest,)).fetchone()[0]
        return reply if owner == call else self.find([digest])[digest]

    def fail(self, call: int, failure: EndpointFailure, *, usage: Usage = UNKNOWN, free: bool) -> None:
        """Settle a failed call with its reported usage; `free`: the server did no billable work."""
        with self._transaction() as db:
            self._settle(db, call, usage, free=free)
            db.execute("UPDATE calls SET reason = ?, detail = ? WHERE id = ?", (failure.reason, failure.detail, call))

    def spent(self) -> Spent:
        """Return the usage of this scope so far."""
        with self._reading() as db:
            row = db.execute(
                "SELECT COUNT(*), COUNT(reason), CAST(TOTAL(tokens) AS INTEGER), CAST(TOTAL(settled = 0) AS INTEGER) "
                "FROM calls WHERE scope = ?",
                (self.scope,),
            ).fetchone()
        return Spent(**dict(zip(Spent.model_fields, row, strict=True)))

    def stored(self) -> int:
        """Return the number of replies of all scopes."""
        with self._reading() as db:
            return int(db.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    @staticmethod
    def _settle(db: sqlite3.Connection, call: int, usage: Usage, *, free: bool) -> None:
        """End a call; with unknown usage it stays unsettled, unless it was free."""
        fields: dict[str, Any] = usage._asdict()
        if usage.prompt_tokens is not None and usage.completion_tokens is not None:
            fields |= {"settled": 1, "tokens": usage.prompt_tokens + usage.completion_tokens}
        elif free:
            fields |= {"settled": 1, "tokens": 0}
        assigned = ", ".join(f"{name} = ?" for name in fields)
        db.execute(
            f"UPDATE calls SET {assigned}, seconds = MAX(0, ? - started) WHERE id = ?",
            (*fields.values(), time.time(), call),
        )
