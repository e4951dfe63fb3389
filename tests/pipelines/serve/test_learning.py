"""Chats that a server keeps for learning: after the reply, for whom, and what becomes of feedback."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipelines.inbox.interactions import InteractionStore, Stored
from pipelines.inbox.store import INBOX_FILE
from pipelines.inbox.transcripts import last_question
from pipelines.serve.learning import FEEDBACK, Learner, Learning
from pipelines.serve.requests import CHAT, Front, Metrics, refusal

KEYS = {"ann": "k1", "ben": "k2"}


class Served:
    """A server that answers every chat, or refuses it, and keeps chats."""

    def __init__(self, inbox: Path) -> None:
        self.inbox, self.metrics, self.chats = inbox, Metrics(), 0
        self.learner = Learner(inbox, 30, self.metrics.all)
        routes = [
            Route(CHAT, self._chat, methods=["POST"]),
            Route(FEEDBACK, self.learner.feedback, methods=["POST"]),
        ]
        front = Middleware(Front, metrics=self.metrics, keys=KEYS, paths=(CHAT,))
        middleware = [front, Middleware(Learning, learner=self.learner)]
        app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: refusal})
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")

    async def _chat(self, request: Request) -> Response:
        if (await request.json()).get("refuse"):
            return JSONResponse({}, 400)
        self.chats += 1
        choices = [{"message": {"role": "assistant", "content": "2027"}}]
        return JSONResponse({"id": f"chatcmpl-{self.chats}", "choices": choices, "preceptor": {"version": 2}})

    async def post(self, path: str, content: dict[str, Any], client: str = "ann", **headers: str) -> httpx.Response:
        given = {"authorization": f"Bearer {KEYS[client]}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return await self._client.post(path, json=content, headers=given)

    async def chat(self, text: str = "Until when?", **more: Any) -> httpx.Response:
        return await self.post(CHAT, {"messages": [{"role": "user", "content": text}], **more})

    def kept(self) -> list[Stored]:
        """Return what is stored once nothing waits any more."""
        self.learner._thread.submit(lambda: None).result()
        with InteractionStore(self.inbox) as store:
            return store.interactions()

    def counted(self, outcome: str) -> float:
        return self.metrics.all.get_sample_value("preceptor_interactions_total", {"outcome": outcome}) or 0.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / INBOX_FILE)
    yield made
    made.learner._thread.shutdown()


@pytest.mark.anyio
async def test_answered_chat_is_kept_unless_its_client_declines(served: Served) -> None:
    assert (await served.chat("I am jane@mail.example. Until when?")).status_code == 200
    assert (await served.chat(refuse=True)).status_code == 400
    await served.chat(store=False)
    await served.chat(metadata={"learn": "no"})
    await served.post(CHAT, {"messages": [{"role": "user", "content": "?"}]}, x_preceptor_learn="no")
    ((kept, _),) = served.kept()
    assert (kept.id, kept.client, last_question(kept.messages), kept.version) == (
        "chatcmpl-1",
        "ann",
        "I am [email]. Until when?",
        2,
    )
    assert (served.counted("stored"), served.counted("declined"), served.counted("failed")) == (1, 3, 0)
    assert not any(b"jane" in file.read_bytes() for file in served.inbox.parent.iterdir())


@pytest.mark.anyio
async def test_store_that_fails_is_counted_and_no_reply_fails(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served.inbox.write_text("not a database, but long enough to be looked at" * 50)
    assert (await served.chat()).status_code == 200
    assert (await served.chat("x" * 1_000_001)).status_code == 200
    assert (await served.post(CHAT, {"messages": [{"text": "jane@mail.example"}]})).status_code == 200
    await asyncio.wrap_future(served.learner._thread.submit(lambda: None))
    assert (served.counted("stored"), served.counted("failed")) == (0, 3)
    assert "could not open" in (said := capsys.readouterr().out)
    assert "longer than 1,000,000 bytes" in said
    assert "it cannot be read" in said
    assert "jane" not in said
    assert (await served.post(FEEDBACK, {"id": "chatcmpl-1", "thumb": "up"})).status_code == 503


@pytest.mark.anyio
async def test_feedback_comes_with_a_later_chat_which_is_answered_once_it_is_stored(served: Served) -> None:
    name = (await served.chat()).json()["id"]
    given = {"feedback_on": name, "thumb": "down", "correction": "2029"}
    assert (await served.chat("And now?", metadata=given)).status_code == 200
    (first, _), (second, _) = served.kept()
    assert (first.thumb, first.correction, second.thumb) == ("down", "2029", None)
    for metadata, code in (
        ({"feedback_on": name, "thumb": "sideways"}, 400),
        ({"feedback_on": name}, 400),
        ({"feedback_on": "chatcmpl-9", "thumb": "up"}, 404),
    ):
        refused = await served.chat(metadata=metadata)
        assert (refused.status_code, refused.json()["error"]["code"]) == (code, code)
    assert served.chats == 2, "what is refused is not answered"
    assert (await served.chat(metadata={"feedback_on": name, "thumb": "up", "learn": "no"})).status_code == 200
    assert [each.thumb for each, _ in served.kept()] == ["up", None]


@pytest.mark.anyio
async def test_feedback_is_taken_from_the_client_whose_chat_it_was(served: Served) -> None:
    name = (await served.chat()).json()["id"]
    refused = await served.post(FEEDBACK, {"id": name, "thumb": "down"}, "ben")
    assert (refused.status_code, "not any more" in refused.json()["error"]["message"]) == (404, True)
    given = {"id": name, "thumb": "down", "correction": "2029, says jane@mail.example"}
    assert (await served.post(FEEDBACK, given)).json() == {"object": "feedback", "id": name}
    ((kept, _),) = served.kept()
    assert (kept.thumb, kept.correction) == ("down", "2029, says [email]")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"id": "x"}, "thumb"),
        ({"thumb": "up"}, "id"),
        ({"id": "x", "thumb": "sideways"}, "thumb"),
        ({"id": "x", "correction": " "}, "correction"),
        ({"id": "x", "thumbs": "up"}, "thumbs"),
    ],
)
async def test_feedback_that_says_nothing_is_refused(served: Served, content: dict[str, Any], named: str) -> None:
    refused = await served.post(FEEDBACK, content)
    assert (refused.status_code, named in refused.json()["error"]["message"]) == (400, True)
