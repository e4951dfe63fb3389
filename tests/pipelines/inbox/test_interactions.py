"""Chats as they are stored, and how long."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from evaluation.common.errors import InputError
from pipelines.inbox.interactions import Chat, Feedback, Interaction, InteractionStore, interaction_of, tend
from pipelines.inbox.readers.text import UnreadableError
from pipelines.inbox.store import INBOX_FILE, InboxError, InboxStore
from pipelines.inbox.transcripts import last_question
from tests.pipelines.inbox.files import document

USER = {"role": "user", "content": "Mail ann@mail.example: until when does it run?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"password": "hunter2 x"}'}}
MESSAGES = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "found"},
    USER,
]
REPLY: dict[str, Any] = {
    "id": "chatcmpl-1",
    "preceptor": {"version": 3},
    "choices": [{"message": {"role": "assistant", "content": "2027"}}],
}


def chat(request: dict[str, Any] | None = None, reply: bytes = b"", learn: str = "") -> Chat:
    asked = json.dumps({"model": "champion", "messages": MESSAGES, **(request or {})})
    return Chat("ann", learn, asked.encode(), reply or json.dumps(REPLY).encode())


def interaction(name: str = "chatcmpl-1", client: str = "ann", days: int = 30, **changes: Any) -> Interaction:
    found = interaction_of(chat(), days)
    assert found is not None
    return found.model_copy(update={"id": name, "client": client, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[InteractionStore]:
    with InteractionStore(tmp_path / INBOX_FILE) as opened:
        yield opened


def test_chat_is_kept_with_its_calls_and_without_secrets() -> None:
    found = interaction_of(chat(), 30)
    assert found is not None
    assert (found.id, found.client, found.version) == ("chatcmpl-1", "ann", 3)
    assert last_question(found.messages) == "Mail [email]: until when does it run?"
    assert found.messages[-1] == {"role": "assistant", "content": "2027"}
    assert found.messages[0]["tool_calls"][0]["function"]["arguments"] == '{"password": "[secret]"}'
    assert (found.redacted, found.expires - found.arrived) == ({"email": 1, "secret": 1}, timedelta(days=30))
    assert "hunter2" not in found.model_dump_json()


def test_stream_is_kept_like_a_reply() -> None:
    chunks = [
        {"id": "chatcmpl-1", "choices": [{"delta": {"role": "assistant", "content": "20"}}]},
        {"id": "chatcmpl-1", "choices": [{"delta": {"content": "27"}}]},
        {"id": "chatcmpl-1", "choices": [{"delta": {}}], "preceptor": {"version": 3}},
    ]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    found, expected = interaction_of(chat(reply=stream.encode()), 30), interaction()
    assert found is not None
    assert (found.messages, found.version) == (expected.messages, 3)


@pytest.mark.parametrize(
    ("request_", "learn"),
    [({}, "no"), ({}, " False"), ({"metadata": {"learn": "no"}}, ""), ({"store": False}, "yes")],
)
def test_client_can_decline(request_: dict[str, Any], learn: str) -> None:
    assert interaction_of(chat(request_, learn=learn), 30) is None


def test_messages_of_no_known_format_are_refused() -> None:
    with pytest.raises(UnreadableError, match="role"):
        interaction_of(chat({"messages": [{"text": "?"}]}), 30)


def test_feedback_is_for_the_client_whose_chat_it_was(store: InteractionStore) -> None:
    store.keep(interaction())
    assert not store.give_feedback(Feedback(id="chatcmpl-1", thumb="down"), "ben")
    assert not store.give_feedback(Feedback(id="chatcmpl-2", thumb="down"), "ann")
    assert store.give_feedback(Feedback(id="chatcmpl-1", thumb="down"), "ann")
    assert store.give_feedback(Feedback(id="chatcmpl-1", correction=" 2029 "), "ann")
    ((found, place),) = store.interactions()
    assert (found.thumb, found.correction, place) == ("down", "2029", "")


def test_expired_interaction_is_in_no_file_any_more(tmp_path: Path) -> None:
    tend(tmp_path)
    assert not list(tmp_path.iterdir()), "no inbox is made"
    past, now = datetime.now(UTC) - timedelta(days=31), datetime.now(UTC)
    with InteractionStore(tmp_path / INBOX_FILE) as store:
        marked = [{"role": "user", "content": "Kestrels everywhere"}]
        store.keep(interaction("old", expires=past, messages=marked, correction="all Kestrels"))
        store.keep(interaction("young", expires=now + timedelta(days=1)))
    tend(tmp_path)
    with InteractionStore(tmp_path / INBOX_FILE) as store:
        assert [each.interaction.id for each in store.interactions()] == ["young"]
        assert store.documents() == (), "what is over teaches nothing"
    assert not any(b"Kestrels" in file.read_bytes() for file in tmp_path.iterdir())


def test_corrections_become_documents_once_and_thumbs_alone_teach_nothing(store: InteractionStore) -> None:
    store.add([document("The contract runs until 2027: mail and it run.", source="a.md")])
    store.keep(interaction("a", thumb="up"))
    store.keep(interaction("b", thumb="down"))
    store.tend()
    assert len(store.documents()) == 1
    store.give_feedback(Feedback(id="a", correction="2029"), "ann")
    store.keep(interaction("c", "ben", correction="2030"))
    for _ in range(2):
        store.tend()
        _, mine, others = store.documents()
        assert (mine.source, others.source) == ("feedback of ann", "feedback of ben")
        assert store.quarantined() == {
            mine.id: ("contradicts the correction of ben", ""),
            others.id: ("contradicts the correction of ann", ""),
        }
        assert {s.interaction.id: s.document for s in store.interactions()} == {"a": mine.id, "b": "", "c": others.id}
    assert store.superseded() == {}
    store.release([others.id])
    store.tend()
    assert store.superseded() == {mine.id: others.id}, "the one that a person accepts holds"
    _, mine, others = store.documents()
    assert (mine.client, others.client) == ("ann", ""), "and holds for everybody"


def test_person_opens_an_unconfirmed_correction_to_all_clients(store: InteractionStore) -> None:
    store.keep(interaction("a", correction="2029"))
    store.tend()
    (made,) = store.documents()
    assert (made.client, store.quarantined()) == ("ann", {})
    assert store.release([made.id]) == (made.id,)
    assert store.release([made.id]) == ()
    store.tend()
    assert [(each.id, each.client) for each in store.documents()] == [(made.id, "")]


def test_removed_document_of_a_correction_does_not_come_back(store: InteractionStore) -> None:
    store.keep(interaction("a", correction="2029"))
    store.tend()
    (made,) = store.documents()
    store.remove([made.id], "wrong", "ada")
    store.keep(interaction("b", correction="2029"))
    store.tend()
    assert (store.documents(), store.quarantined()) == ((), {})


def test_correction_that_comes_back_does_not_overrule_two_clients(store: InteractionStore) -> None:
    for number, (client, answer) in enumerate((("ann", "2028"), ("ann", "2029"), ("ben", "2029"), ("ann", "2028"))):
        store.keep(interaction(f"c{number}", client, correction=answer))
        store.tend()
    first, second, both = store.documents()
    assert both.source == "feedback of ann, ben"
    assert store.superseded() == {first.id: both.id, second.id: both.id}
    store.remove([first.id], "wrong", "ada")
    store.keep(interaction("again", correction="2028"))
    store.tend()
    assert both.id not in store.superseded()
    store.keep(interaction("other", "cy", correction="2030"))
    store.tend()
    assert store.superseded()[second.id] == both.id, "what waits does not bring back what was replaced"


def test_client_may_change_its_mind_as_often_as_it_likes(store: InteractionStore) -> None:
    for number, answer in enumerate(("2028", "2029", "2028", "2029", "2028")):
        store.keep(interaction(f"c{number}", correction=answer))
        store.tend()
        superseded = store.superseded()
        (valid,) = [each for each in store.documents() if each.id not in superseded]
        assert valid.text.endswith(answer)


def test_removed_interaction_leaves_nothing(store: InteractionStore, tmp_path: Path) -> None:
    store.keep(interaction("a", messages=[{"role": "user", "content": "Kestrels"}]))
    store.remove(["a"], "asked to", "ada")
    assert (store.interactions(), store.removed()) == ([], {})
    assert not any(b"Kestrels" in file.read_bytes() for file in tmp_path.iterdir())
    with pytest.raises(InputError):
        store.remove(["a"], "asked to", "ada")


def test_changed_interaction_is_refused(store: InteractionStore, tmp_path: Path) -> None:
    store.keep(interaction())
    with sqlite3.connect(tmp_path / INBOX_FILE) as db:
        db.execute("UPDATE interactions SET client = 'ben'")
    with pytest.raises(InboxError, match="invalid record"):
        store.interactions()


def test_inbox_of_the_earlier_release_gets_the_table(tmp_path: Path) -> None:
    with InboxStore(tmp_path / INBOX_FILE) as store:
        store.add([document("One.")])
    with sqlite3.connect(tmp_path / INBOX_FILE) as db:
        db.executescript("DROP TABLE interactions; PRAGMA user_version = 3;")
    with InteractionStore(tmp_path / INBOX_FILE) as again:
        again.keep(interaction())
        assert (len(again.documents()), len(again.interactions())) == (1, 1)
