"""Interactions: chats that a server answered, with their feedback, kept for a time in the inbox's file.

An interaction teaches nothing itself: `pipelines.inbox.corrections` decides what becomes of a correction, and
`pipelines.inbox.behaviour` what becomes of the procedures and preferences that it shows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StringConstraints

from evaluation.common.data import Frozen
from pipelines.inbox.behaviour import route_lessons
from pipelines.inbox.corrections import Correction, accepted, clients_of, route_corrections
from pipelines.inbox.documents import InboxDocument
from pipelines.inbox.lessons import Conversation, lessons_of
from pipelines.inbox.redaction import redact
from pipelines.inbox.schema import SET_CONTENT, SET_INTERACTION, SET_PLACE, into
from pipelines.inbox.store import INBOX_FILE, InboxStore
from pipelines.inbox.transcripts import last_question, read_transcript

TEACHES_NOTHING = "teaches nothing: "
"""Begins the note on an interaction whose lessons were refused."""


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
    note: str = ""
    """What it shows that is not confirmed, or why it teaches nothing (`TEACHES_NOTHING`)."""
    read: bool = False
    """It shows nothing that a later chat could confirm, and is not read again for lessons unless it gets feedback."""


class Stored(NamedTuple):
    """An interaction in the inbox."""

    interaction: Interaction
    document: str
    """Id of the document that its correction or lesson became, or empty."""


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
                changed = Interaction.model_validate_json(content).model_copy(update={**given, "read": False})
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
        """Erase interactions whose time is over, and let corrections and lessons become documents, or wait."""
        now = datetime.now(UTC)
        stored = self.interactions()
        if expired := [(each.interaction.id,) for each in stored if each.interaction.expires <= now]:
            with self._erasing() as db:
                db.executemany("DELETE FROM interactions WHERE id = ?", expired)
        new = [each.interaction for each in stored if each.interaction.expires > now and not each.document]
        said = ((each, last_question(each.messages), each.correction) for each in new)
        corrections = [Correction(each.id, each.client, asked, right) for each, asked, right in said if right]
        if corrections:
            routed = route_corrections(corrections, self._in_force(), self.quarantined())
            self._place(new, *routed)
        if unread := [each for each in new if not each.read]:
            self._learn(unread)

    def _learn(self, new: Sequence[Interaction]) -> None:
        """Let lessons become documents, or note on their interactions what they show, or why they teach nothing."""
        found = {each.id: lessons_of(_conversation(each)) for each in new}
        routed = route_lessons([lesson for each in found.values() for lesson in each.lessons], self._in_force())
        if routed.places:
            self._place(new, routed.documents, routed.quarantined, routed.places)
        refused = {name: TEACHES_NOTHING + each.refused for name, each in found.items() if each.refused}
        notes, changed = routed.waiting | refused, list[tuple[str, str, str]]()
        for each in new:
            told = {"note": notes.get(each.id, ""), "read": not found[each.id].lessons}
            changed.append((each.id, _row(each.model_copy(update=told))[4], _row(each)[4]))
        if changed := [row for row in changed if row[1] != row[2]]:
            with self._transaction() as db:
                db.executemany(SET_INTERACTION, changed)

    def _in_force(self) -> list[InboxDocument]:
        """Return the documents that nothing supersedes, or nothing but what waits for a person."""
        superseded, quarantined = self.superseded(), self.quarantined()
        return [each for each in self.documents() if superseded.get(each.id, each.id) in (each.id, *quarantined)]

    def _place(
        self,
        new: Sequence[Interaction],
        documents: Sequence[InboxDocument],
        quarantined: Mapping[str, str],
        places: Mapping[str, str],
    ) -> None:
        """Store what interactions became: `quarantined` has reasons by document, `places` documents by interaction."""
        gone = self.removed()  # and said again
        waiting = {name: why for name, why in quarantined.items() if name not in gone}
        self.add([each for each in documents if each.id not in gone], quarantined=waiting)
        # Unless a client has corrected its correction meanwhile.
        placed = [(each.id, places[each.id], _row(each)[4]) for each in new if each.id in places]
        with self._transaction() as db:
            db.executemany(SET_PLACE, placed)

    def reports(self) -> dict[str, str]:
        """Return what people are to know: chats that teach nothing, and documents of clients that wait for a person."""
        quarantined = self.quarantined()
        found = {each.id: (each, quarantined[each.id][0]) for each in self.documents() if each.id in quarantined}
        reports = {f"{name} ({each.title})": why for name, (each, why) in found.items() if clients_of(each)}
        chats = (each for each, _ in self.interactions() if each.note.startswith(TEACHES_NOTHING))
        return reports | {f"chat {each.id} of {each.client}": each.note for each in chats}


def _conversation(each: Interaction) -> Conversation:
    end: Literal["well", "badly", ""] = "badly" if each.correction or each.thumb == "down" else ""
    return Conversation(each.id, each.client, each.messages, "well" if each.thumb == "up" and not end else end)


def _row(interaction: Interaction, document: str = "") -> tuple[str, ...]:
    times = interaction.arrived.isoformat(), interaction.expires.isoformat()
    return (interaction.id, interaction.client, *times, interaction.model_dump_json(), document)


def reports(work_dir: Path) -> dict[str, str]:
    """Return the reports of a work directory's inbox, if there is one; see `InteractionStore.reports`."""
    if not (work_dir / INBOX_FILE).is_file():
        return {}
    with InteractionStore(work_dir / INBOX_FILE) as store:
        return store.reports()


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
        feedback = f"corrected: {each.correction}" + ("" if document else "; for the next night")
    feedback += (f"; see {document}" if document else "") + (f"; {each.note}" if each.note else "")
    counts = ", ".join(f"{count} {kind}" for kind, count in each.redacted.items())
    redacted = f"; replaced: {counts}" if counts else ""
    by = f"version {each.version}" if each.version else "the base student"
    told = f"on {each.arrived:%Y-%m-%d}, by {by}; {feedback}{redacted}; erased on {each.expires:%Y-%m-%d}"
    return f"with {each.client} {told}"
