"""The HTTP side: a small reverse proxy before vLLM that lets a few paths through and answers the others itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Path
from starlette.types import Receive, Scope, Send

from pipelines.registry import CHAMPION
from pipelines.serving.access import Access, App
from pipelines.serving.routing import FORWARDED, Refused, Renamer, Route, error_body, model_list, read_request, route
from pipelines.serving.state import Served, ServingState

T = TypeVar("T")

VERSION_HEADER = "x-preceptor-version"
"""Header of each answer: the version that gave it."""


def build_app(state: ServingState, *, key: str | None, max_body_bytes: int) -> App:
    """Return the application.

    Args:
        state: Who answers, and how things stand.
        key: That clients must show; None for none.
        max_body_bytes: Largest request.
    """

    async def health(request: Request) -> Response:
        answering = state.status in ("ok", "degraded")
        return Response(state.health().model_dump_json(), 200 if answering else 503, media_type="application/json")

    async def models(request: Request) -> Response:
        served = _answering(state)
        created = int(served.since.timestamp())
        listed = model_list(state.base, created, with_base=state.base_name is not None)
        wanted = request.path_params.get("name")
        if wanted is None:
            return JSONResponse(listed)
        found = [entry for entry in listed["data"] if entry["id"] == wanted]
        if not found:
            raise Refused(404, f"the model {wanted[:200]!r} is not served, allowed is {CHAMPION!r}; see /v1/models")
        return JSONResponse(found[0])

    async def complete(request: Request) -> Response:
        return await _forward(request, state, max_body_bytes)

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else getattr(error, "status", 500)
        message = error.detail if isinstance(error, HTTPException) else str(error)
        headers = {"retry-after": "5"} if status == 503 else None
        return JSONResponse(error_body(status, message), status, headers=headers)

    return Access(
        Starlette(
            routes=[
                Path("/health", health),
                Path("/v1/models", models),
                Path("/v1/models/{name:path}", models),
                *(Path(path, complete, methods=["POST"]) for path in FORWARDED),
            ],
            exception_handlers={Refused: refused, HTTPException: refused},
        ),
        key,
    )


def _answering(state: ServingState) -> Served:
    """Return who answers now.

    Raises:
        Refused: Nobody does yet.
    """
    if state.current is None:
        raise Refused(503, f"the server is {state.status}; see /health")
    return state.current


async def _forward(request: Request, state: ServingState, max_body_bytes: int) -> Response:
    """Let vLLM answer a request, with the adapter that answers at this moment until the end."""
    # Without this, a web page could send a request from a browser on this machine without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the request's content-type must be application/json")
    content = read_request(await _body(request, max_body_bytes))
    served = _answering(state)
    routed = route(content, champion=served.name, base=state.base, base_internal=state.base_name)
    with ExitStack() as stack:
        stack.enter_context(served.answering())
        reply = await _unless_gone(request, _send(served, request.url.path, routed))
        if reply is None:
            return Response(status_code=499)
        headers = {"content-type": reply.headers.get("content-type", "application/json")}
        headers[VERSION_HEADER] = str(served.champion.version)
        renamer = Renamer(routed.internal, routed.asked)
        if routed.stream and reply.status_code == 200:
            return _Stream(reply, renamer, headers, stack.pop_all())
        body = await _unless_gone(request, _read(reply))
        if body is None:
            return Response(status_code=499)
    renamed = renamer.whole(body)
    if reply.status_code >= 400:  # messages name the model, too
        renamed = renamed.replace(routed.internal.encode(), routed.asked.encode())
    return Response(renamed, reply.status_code, headers)


async def _body(request: Request, most: int) -> bytes:
    """Return a request's body.

    Raises:
        Refused: It is too large; what is over is not read.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refused(413, f"the request is larger than {most / 1e6:g} MB")
    return body


async def _send(served: Served, path: str, routed: Route) -> httpx.Response:
    """Return vLLM's reply with its body still to come.

    Raises:
        Refused: vLLM cannot be reached.
    """
    client = served.upstream.client
    asked = client.build_request("POST", path, content=routed.body, headers={"content-type": "application/json"})
    try:
        return await client.send(asked, stream=True)
    except httpx.HTTPError as error:
        raise Refused(502, f"vLLM did not answer: {type(error).__name__}; see /health") from error


async def _read(reply: httpx.Response) -> bytes:
    """Return a reply's whole body.

    Raises:
        Refused: vLLM died meanwhile.
    """
    try:
        body: bytes = await reply.aread()
    except httpx.HTTPError as error:
        raise Refused(502, f"vLLM ended within its answer: {type(error).__name__}; see /health") from error
    finally:
        await reply.aclose()
    return body


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what some work returns; None when the client leaves before, and the work is given up."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for waiting in (task, gone):
            waiting.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(request: Request) -> None:
    """Return when the client has closed the connection; its whole body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Stream(StreamingResponse):
    """vLLM's stream as it comes."""

    def __init__(self, reply: httpx.Response, renamer: Renamer, headers: dict[str, str], stack: ExitStack) -> None:
        """Stream a reply; `stack` is closed after its last piece, or when the client leaves."""
        super().__init__(self._pieces(), reply.status_code, {**headers, "cache-control": "no-cache"})
        self._reply, self._renamer, self._stack = reply, renamer, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; what vLLM still writes for a client that has left is given up."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stack.close()
            await self._reply.aclose()

    async def _pieces(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._reply.aiter_bytes():
                if piece := self._renamer.piece(chunk):
                    yield piece
        except httpx.HTTPError as error:
            broken = error_body(502, f"vLLM ended within its answer: {type(error).__name__}; see /health")
            yield b"data: " + json.dumps(broken).encode() + b"\n\n"
            return
        yield self._renamer.end()
