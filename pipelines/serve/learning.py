"""`preceptor serve --learn`: chats become interactions of the inbox after their reply was sent, and get feedback.

Feedback comes in a request of its own, or in OpenAI's `metadata` of a later chat, which is answered once it is stored.
Everything but passing bytes on happens in a thread, which leaves reading and redaction to a child process: no chat can
delay a reply, and none that cannot be stored fails one.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import typer
from prometheus_client import CollectorRegistry, Counter
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evaluation.common.data import reason
from pipelines.inbox.interactions import Chat, Feedback, InteractionStore, interaction_of
from pipelines.inbox.redaction import redact
from pipelines.inbox.store import InboxError
from pipelines.inbox.worker import ReadingLimits, Worker
from pipelines.serve.requests import CHAT, CLIENT, json_of, refusal

FEEDBACK = "/v1/feedback"
_FEEDBACK_ON = "feedback_on"
"""In `metadata`, the id of the chat that `thumb` and `correction` are about."""
_MOST_WAITING, _MOST_BYTES = 256, 1_000_000
"""Chats that wait to be stored, and size of one with its reply; beyond, they are not stored."""


class Learner:
    """Stores chats and feedback in an inbox, one after the other."""

    def __init__(self, inbox: Path, days: int, metrics: CollectorRegistry) -> None:
        """Keep chats for so many days in an inbox, and count them in `metrics`."""
        self._inbox, self._days = inbox, days
        self._thread = ThreadPoolExecutor(1, "learning")  # what waits is stored when the server ends
        self._waiting = threading.Semaphore(_MOST_WAITING)
        self._worker = Worker(ReadingLimits(memory_mb=1_000))
        self._count = Counter("preceptor_interactions", "Chats for learning", ("outcome",), registry=metrics)

    def hear(self, chat: Chat) -> None:
        """Store a chat soon; returns at once."""
        if len(chat.request) + len(chat.reply) > _MOST_BYTES or not self._waiting.acquire(blocking=False):
            self._failed(f"longer than {_MOST_BYTES:,} bytes, or more than {_MOST_WAITING} wait")
            return
        self._thread.submit(self._store, chat)

    def _store(self, chat: Chat) -> None:
        try:
            interaction = self._worker.call(interaction_of, chat, self._days)
            if interaction is not None:
                with InteractionStore(self._inbox) as store:
                    store.keep(interaction)
            self._count.labels("stored" if interaction else "declined").inc()
        except Exception as error:
            self._failed(str(error) if isinstance(error, InboxError) else "it cannot be read")  # others may quote it
        finally:
            self._waiting.release()

    def _failed(self, why: str) -> None:
        self._count.labels("failed").inc()
        typer.echo(f"a chat was not stored for learning: {why}")

    async def feedback(self, request: Request) -> Response:
        """Answer a request with feedback; HTTPException as of `take`."""
        given = await self.take(await json_of(request), request.scope[CLIENT])
        return JSONResponse({"object": "feedback", "id": given.id})

    async def take(self, content: Mapping[str, Any], client: str) -> Feedback:
        """Store feedback of a client; HTTPException 400, 404, or 503 when the inbox cannot be written."""
        try:
            given = Feedback.model_validate(content)
            if given.thumb is None and given.correction is None:
                raise HTTPException(400, "feedback needs a `thumb` (up or down), a `correction`, or both")
        except ValidationError as error:
            wrong = (".".join(map(str, each["loc"])) + reason(each, Feedback) for each in error.errors())
            raise HTTPException(400, "; ".join(wrong)) from error
        try:
            # Behind the chats that wait, of which it may mean the last.
            found = await asyncio.wrap_future(self._thread.submit(self._give, given, client))
        except Exception as error:
            raise HTTPException(503, f"feedback was not stored: {error}") from error
        if not found:
            raise HTTPException(404, f"no chat of this client with the id {given.id!r} is stored, or not any more")
        return given

    def _give(self, feedback: Feedback, client: str) -> bool:
        if feedback.correction is not None:
            cleaned, _ = self._worker.call(redact, feedback.correction)
            feedback = feedback.model_copy(update={"correction": cleaned})
        with InteractionStore(self._inbox) as store:
            return store.give_feedback(feedback, client)


class Learning:
    """Lets a learner hear the chats that an application answered."""

    def __init__(self, app: ASGIApp, learner: Learner) -> None:
        """Wrap an application."""
        self._app, self._learner = app, learner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] != CHAT:
            await self._app(scope, receive, send)
            return
        parts, reply, status = [await receive()], bytearray(), 0
        while parts[-1].get("more_body"):
            parts.append(await receive())
        request, waiting = b"".join(part.get("body", b"") for part in parts), iter(parts)
        try:
            if about := _feedback_in(request):
                await self._learner.take(about, scope[CLIENT])
        except HTTPException as error:
            await refusal(None, error)(scope, receive, send)
            return

        async def received() -> Message:
            return next(waiting, None) or await receive()

        async def sent(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)
            reply.extend(message.get("body", b""))

        await self._app(scope, received, sent)
        if status == 200:
            said = Headers(scope=scope).get("x-preceptor-learn", "")
            self._learner.hear(Chat(scope[CLIENT], said, request, bytes(reply)))


def _feedback_in(request: bytes) -> dict[str, Any] | None:
    """Return the feedback on an earlier chat in the `metadata` of a chat's request, if there is some."""
    try:
        metadata = json.loads(request)["metadata"]
        about: str = metadata[_FEEDBACK_ON]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return {"id": about, **{name: metadata[name] for name in ("thumb", "correction") if name in metadata}}
