"""The ledger: every call to an endpoint, written before it is made and settled when it ends, in one SQLite file.

A reply is stored in the transaction that settles its call, so that a kill loses no reply that had arrived, and the same
requests get the same texts afterwards. A call that a kill cut off stays unsettled and counts with the most that it can
have used: the provider may well bill it. Calls are written under the lock under which the budget is checked, so calls
in flight count, those of other processes on the same scope included.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

from evaluation.common.data import Frozen
from evaluation.common.errors import EndpointError
from evaluation.common.storage import SqliteFile

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
"""Why one request has no reply, while others may: `rate_limited` after the last retry, `server_error` for status 409 or
500 and above, `malformed` for a body or an end of the completion that the protocol does not know, `empty_choice` for no
completion or none with text. In the ledger only: `interrupted` (the run was stopped while the call was in flight) and
`refused` (the server refused for good, which stopped the run)."""


@dataclass(frozen=True, slots=True)
class EndpointReply:
    """A completion; token counts are the server's, None when it does not report them."""

    text: str
    """Empty only where the model ended at once."""
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    """Of the call, by the configured prices; None when unknown."""
    model: str
    """The server's name of the model that answered; empty when it gives none."""


@dataclass(frozen=True, slots=True)
class EndpointFailure:
    """A request without a reply, after all retries."""

    reason: FailureReason
    detail: str
    """Message of the server or the network, without the key."""


Outcome: TypeAlias = EndpointReply | EndpointFailure


class Usage(NamedTuple):
    """Tokens of one call by the server's count; None where unknown."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


UNKNOWN = Usage()


class Spent(Frozen):
    """What the calls of a scope took, retries and killed processes included."""

    calls: int
    failures: int
    """Calls without a reply."""
    tokens: int
    """As they count against a budget; an upper bound where `unsettled` is not 0."""
    cost: float | None
    """In `currency`, as it counts against a budget; None when there are calls without known prices."""
    currency: str
    unsettled: int = Field(default=0, exclude=True)
    """Calls of unknown use (in flight, killed, timed out, broken); each counts with the most it can have used."""


class Charge(NamedTuple):
    """What a call counts with; None without prices."""

    tokens: int
    cost: float | None


class Limits(NamedTuple):
    """What a scope may spend; None does not limit."""

    tokens: int | None = None
    cost: float | None = None


class Ledger(SqliteFile):
    """Calls and replies in a file; every method raises EndpointError when it cannot be read or written."""

    VERSION = 1
    TABLES = _TABLES

    def __init__(self, path: Path, scope: str = "") -> None:
        """Open the ledger on a local disk, created if missing.

        `scope` says whose calls `spent` and budgets count, such as a run's name and purpose; replies are found by
        request, whichever scope paid for them.
        """
        super().__init__(path)
        self.scope = scope

    def find(self, digests: Sequence[str]) -> dict[str, EndpointReply]:
        """Return the stored replies by digest; the others were never answered."""
        found: dict[str, EndpointReply] = {}
        with self._reading() as db:
            for start in range(0, len(digests), _LOOKUP):
                part = digests[start : start + _LOOKUP]
                rows = db.execute(
                    "SELECT digest, text, finish_reason, prompt_tokens, completion_tokens, cost, model FROM replies "
                    f"WHERE digest IN ({', '.join('?' * len(part))})",
                    part,
                )
                found |= {digest: EndpointReply(*fields) for digest, *fields in rows}
        return found

    def begin(self, digest: str, model: str, most: Charge, currency: str, limits: Limits) -> int | None:
        """Record that a call is about to be made, and return its number; None when the limits do not allow it.

        `most` is an upper bound of what the call can use; it counts with that until it is settled.
        """
        with self._transaction() as db:
            # Running sums, kept by triggers: summing 50,000 calls before each took 15 ms.
            row = db.execute("SELECT tokens, cost FROM charges WHERE scope = ?", (self.scope,)).fetchone()
            tokens, cost = row or (0, 0.0)
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

        When another process has stored one meanwhile, that one stays, so that both continue with the same text.
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
        """Settle a call without a reply, with its use as far as the server reported it.

        `free`: the server did no work on it, or none that anyone bills.
        """
        with self._transaction() as db:
            self._settle(db, call, usage, cost, free=free)
            db.execute("UPDATE calls SET reason = ?, detail = ? WHERE id = ?", (failure.reason, failure.detail, call))

    def spent(self) -> Spent:
        """Return what the calls of this scope took so far."""
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
        """End a call; without known use it keeps counting with the most that it can have used, unless it was free."""
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

    def _refused(self, version: int) -> EndpointError:
        return EndpointError(
            f"ledger {str(self.path)!r}: it has the form {version}, allowed is {self.VERSION}. Another version of "
            "Preceptor made it; use that one, or give another path."
        )

    def _failed(self, action: str, error: Exception) -> EndpointError:
        return EndpointError(
            f"ledger {str(self.path)!r}: could not {action} it: {error}. Nothing more was asked, because what is "
            "paid for must be stored. Check that the disk has room and the file is yours, then give the same "
            "command again: it continues where this one stopped."
        )
