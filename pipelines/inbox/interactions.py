"""Interactions: chats that a server answered, with their feedback, kept for a time in the inbox's file.

An interaction teaches nothing itself; `pipelines.inbox.corrections` decides what becomes of a correction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints

from evaluation.common.data import Frozen
from pipelines.inbox.corrections import Correction, accepted, clients_of, route_corrections
from pipelines.inbox.redaction import redact
from pipelines.inbox.schema import SET_CONTENT, SET_PLACE, into
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.inbox.transcripts import last_question, read_transcript


class Feedback(Frozen):
    """What a client says about an answer."""

    id: str = Field(min_length=1, max_length=200)
    thumb: Literal["up", "down"] | None = None
    correction: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2_000)] | None = None
    """The right answer, 1 to 2,000 characters."""


class Interaction(Frozen):
    """A chat with its answer and feedback, without secrets and personal data."""

    id: str
    """Of the chat completion."""
    client: str
    arrived: datetime
    expires: datetime
    messages: list[dict[str, Any]]
    """Of the request, with calls of tools and their results, and the answer."""
    version: int | None
    """Of the student that answered; None outside the registry."""
    thumb: Literal["up", "down"] | None = None
    correction: str | None = None
    redacted: dict[str, int] = Field(default_factory=dict)
    """Spans that were replaced before it was stored, by kind."""


class Stored(NamedTuple):
    """An interaction in the inbox."""

    interaction: Interaction
    document: str
    """Id of the document that its correction became, or empty."""


class Chat(NamedTuple):
    """A chat as it went over the wire."""

    client: str
    learn: str
    """The client's header `x-preceptor-learn`; may be empty."""
    request: bytes
    reply: bytes
    """JSON, or the server-sent events of a stream."""


def interaction_of(chat: Chat, days: int) -> Interaction | None:
    """Return what is stored of a chat for so many days, redacted; None if its client declines.

    UnreadableError for messages of no known format.
    """
    content = json.loads(chat.request)
    metadata = content.get("metadata")
    said = (chat.learn, metadata.get("learn") if isinstance(metadata, dict) else "")
    if content.get("store") is False or any(str(each).strip().lower() in ("no", "false", "off", "0") for each in said):
        return None
    read_transcript(content["messages"])
    reply = _reply(chat.reply)
    (messages, counts), now = redact([*content["messages"], reply["choices"][0]["message"]]), datetime.now(UTC)
    return Interaction(
        id=reply["id"],
        client=chat.client,
        arrived=now,
        expires=now + timedelta(days=days),
        messages=messages,
        version=reply.get("preceptor", {}).get("version"),
        redacted=counts,
    )


def _reply(content: bytes) -> dict[str, Any]:
    """Return a chat completion; the chunks of a stream are joined."""
    if not content.startswith(b"data:"):
        return dict(json.loads(content))
    chunks = [json.loads(line[5:]) for line in content.splitlines() if line.startswith(b"data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    return {**chunks[-1], "choices": [{"message": {"role": "assistant", "content": text}}]}


class InteractionStore(InboxStore):
    """An inbox with its interactions."""

    def keep(self, interaction: Interaction) -> None:
        """Store a new interaction."""
        with self._transaction() as db:
            db.execute(f"INSERT {into('interactions')}", _row(interaction))

    def interactions(self) -> list[Stored]:
        """Return all interactions in the order in which they came."""
        rows = self._whole("interactions", "1 ORDER BY arrived, id")
        return [Stored(Interaction.model_validate_json(content), document) for *_, content, document in rows]

    def give_feedback(self, feedback: Feedback, client: str) -> bool:
        """Store what a client says about an answer of its own; return whether there is one. Unset parts stay."""
        given = feedback.model_dump(include={"thumb", "correction"}, exclude_none=True)
        with self._transaction() as db:
            rows = self._select(db, "interactions", "id = ? AND client = ?", feedback.id, client)
            for *_, content, document in rows:
                changed = Interaction.model_validate_json(content).model_copy(update=given)
                routed = "" if feedback.correction else document
                db.execute(f"REPLACE {into('interactions')}", _row(changed, routed))
        return bool(rows)

    def release(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Return documents to the queue, as `InboxStore.release`.

        A correction is accepted with that, also one that waits for nobody: it replaces its rivals and holds for all.
        """
        released, documents = super().release(ids), self.documents()
        chosen = [each for each in documents if each.id in released or (each.id in ids and each.client)]
        corrections = [accepted(each, documents) for each in chosen if clients_of(each)]
        self.add(corrections)
        with self._transaction() as db:
            db.executemany(SET_CONTENT, [(each.model_dump_json(), each.id) for each in corrections])
        return tuple(dict.fromkeys((*released, *(each.id for each in corrections))))

    def tend(self) -> None:
        """Erase interactions whose time is over, and let new corrections become documents, or wait for a person."""
        now = datetime.now(UTC)
        stored = self.interactions()
        if expired := [(each.interaction.id,) for each in stored if each.interaction.expires <= now]:
            with self._erasing() as db:
                db.executemany("DELETE FROM interactions WHERE id = ?", expired)
        new = [each.interaction for each in stored if each.interaction.expires > now and not each.document]
        said = ((each, last_question(each.messages), each.correction) for each in new)
        corrections = [Correction(each.id, each.client, asked, right) for each, asked, right in said if right]
        if not corrections:
            return
        superseded, quarantined = self.superseded(), self.quarantined()
        in_force = [each for each in self.documents() if superseded.get(each.id, each.id) in (each.id, *quarantined)]
        routed = route_corrections(corrections, in_force, quarantined)
        gone = self.removed()  # and said again
        waiting = {name: why for name, why in routed.quarantined.items() if name not in gone}
        self.add([each for each in routed.documents if each.id not in gone], quarantined=waiting)
        # Unless a client has corrected its correction meanwhile.
        placed = [(each.id, routed.places[each.id], _row(each)[4]) for each in new if each.id in routed.places]
        with self._transaction() as db:
            db.executemany(SET_PLACE, placed)


def _row(interaction: Interaction, document: str = "") -> tuple[str, ...]:
    times = interaction.arrived.isoformat(), interaction.expires.isoformat()
    return (interaction.id, interaction.client, *times, interaction.model_dump_json(), document)


def tend(work_dir: Path) -> None:
    """Do what is due in a work directory's inbox, if there is one; see `InteractionStore.tend`."""
    if (work_dir / INBOX_FILE).is_file():
        with InteractionStore(work_dir / INBOX_FILE) as store:
            store.tend()


def summary(stored: Stored) -> str:
    """Return for people whose interaction it is, what it teaches, and when it is erased."""
    each, document = stored
    feedback = f"thumb {each.thumb}" if each.thumb else "no feedback"
    if each.correction:
        feedback = f"corrected: {each.correction}; " + (f"see {document}" if document else "for the next night")
    counts = ", ".join(f"{count} {kind}" for kind, count in each.redacted.items())
    redacted = f"; replaced: {counts}" if counts else ""
    by = f"version {each.version}" if each.version else "the base student"
    told = f"on {each.arrived:%Y-%m-%d}, by {by}; {feedback}{redacted}; erased on {each.expires:%Y-%m-%d}"
    return f"with {each.client} {told}"
