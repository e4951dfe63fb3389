"""Requests of clients: completions go to the engine as they are, chat is answered as `preceptor ask` answers.

Of a chat the last user message is the question; `pipelines.ask.answers` chooses weights or memory, composes the prompt
as token ids, and reads what the engine wrote. So models without a chat template are served too, decoding is greedy
whatever the request's sampling parameters are, and an answer is known whole before its first byte is sent, streamed or
not.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import typer
from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evaluation.common.errors import ConfigError, ScoringError
from evaluation.exact_match import prompt_ids
from pipelines.ask.answers import Answer, Composer, Prompt
from pipelines.inbox.transcripts import last_question

if TYPE_CHECKING:
    from pipelines.serve.versions import Chosen, Versions


COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
VERSION_HEADER = "x-preceptor-version"
CLIENT = "preceptor.client"  # in a scope: the name of its key, or `-`
_REFUSED = ("n", "tools", "functions", "response_format", "logprobs")
"""What a client may ask of a chat and would not get."""


def question_of(content: Mapping[str, Any]) -> str:
    """Return the text of the last user message of a chat request; HTTPException 400 where there is none."""
    if refused := [name for name in _REFUSED if content.get(name) not in (None, False, 1, [])]:
        raise HTTPException(400, f"{', '.join(refused)}: not supported in a chat; use /v1/completions")
    if question := last_question(content.get("messages")):
        return question
    raise HTTPException(400, "messages: the last message of the role `user` must have a text, which is the question")


def completion_request(composer: Composer, prompt: Prompt, model: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the request to the engine; a client may shorten the answer, HTTPException 400 else."""
    tokenizer, _, ends = composer.vocabulary
    most = content.get("max_completion_tokens") or content.get("max_tokens") or composer.options.max_new_tokens
    if not isinstance(most, int) or most < 1:
        raise HTTPException(400, f"max_tokens: got {str(most)[:20]}, allowed is a whole number from 1")
    return {
        "model": model,
        "prompt": prompt_ids(tokenizer, prompt.text),
        "max_tokens": min(most, composer.options.max_new_tokens),
        "temperature": 0.0,
        "logprobs": 0,
        "return_token_ids": True,
        "stop_token_ids": sorted(ends),
    }


def chat_reply(answer: Answer, model: str, reply: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer in OpenAI's form of a chat completion; `reply` is the engine's to `completion_request`."""
    choice = reply["choices"][0]
    # A base model writes on after its line, up to the limit; only a line that the limit cut is not whole.
    whole = answer.text != choice["text"].strip() or choice["finish_reason"] == "stop"
    message = {"role": "assistant", "content": answer.text}
    reason = "stop" if whole else choice["finish_reason"]
    return {
        "id": f"chat{reply['id']}",
        "object": "chat.completion",
        "created": reply["created"],
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": reply["usage"],
        "preceptor": answer.model_dump(mode="json", include={"version", "by", "sources", "confidence", "guess"}),
    }


def chat_events(reply: Mapping[str, Any]) -> Iterator[str]:
    """Yield the same reply as the server-sent events of a stream; source and usage are in the last chunk."""
    (choice,) = reply["choices"]
    head = {name: reply[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    last = {name: reply[name] for name in ("usage", "preceptor")}
    for delta, reason, more in ((choice["message"], None, {}), ({}, choice["finish_reason"], last)):
        chunk: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        yield f"data: {json.dumps({**head, 'choices': [chunk], **more})}\n\n"
    yield "data: [DONE]\n\n"


def source_headers(answer: Answer) -> dict[str, str]:
    """Return the headers that name version and source; ids of documents are percent-encoded."""
    sources = ",".join(quote(source.id) for source in answer.sources)
    return {VERSION_HEADER: _label(answer.version), BY_HEADER: answer.by, "x-preceptor-sources": sources}


async def json_of(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request holds; HTTPException 400 or 415 for anything else."""
    # Without this, a web page could make a browser on this machine send a request.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the request's content-type must be application/json")
    try:
        return dict(await request.json())
    except (ValueError, TypeError, RecursionError) as error:
        raise HTTPException(400, f"the request is no JSON object: {error}") from error


class Forward:
    """Lets the engine answer a request with the version that answers when it comes, whatever is promoted meanwhile."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a client that hangs up is no error."""
        try:
            await self._answer(Request(scope, receive), send)
        except ClientDisconnect:
            return

    async def _answer(self, request: Request, send: Send) -> None:
        content = await json_of(request)
        chosen = self._versions.answering(content.get("model"))
        chosen.version.in_flight += 1  # counted before anything else can run
        try:
            if request.url.path == CHAT and chosen.version.composer is not None:
                response = await self._chat(chosen, chosen.version.composer, content, request.scope[CLIENT])
                await response(request.scope, request.receive, send)
            else:
                await self._raw(chosen, content, request, send)
        finally:
            chosen.version.in_flight -= 1

    async def _chat(self, chosen: Chosen, composer: Composer, content: dict[str, Any], client: str) -> Response:
        try:
            prompt = composer.prompt_for(question_of(content), "weights" if chosen.of_base else "auto", client)
        except ScoringError as error:
            raise HTTPException(400, str(error)) from error
        prompt = prompt._replace(adapted=prompt.adapted and not chosen.of_base)
        name = chosen.version.name if prompt.adapted else self._versions.base_name
        body = completion_request(composer, prompt, name, content)
        reply = await self._send(body, COMPLETIONS, stream=False)
        if reply.status_code != 200:
            headers = {VERSION_HEADER: _label(chosen.number)}
            return Response(reply.content, reply.status_code, headers, reply.headers.get("content-type"))
        written = reply.json()
        (choice,) = written["choices"]
        answer = composer.read(prompt, choice["token_ids"], choice["logprobs"]["token_logprobs"])
        answer = answer.model_copy(update={"version": chosen.number})
        shaped, headers = chat_reply(answer, str(content["model"]), written), source_headers(answer)
        if content.get("stream"):
            return StreamingResponse(chat_events(shaped), headers=headers, media_type="text/event-stream")
        return JSONResponse(shaped, headers=headers)

    async def _raw(self, chosen: Chosen, content: dict[str, Any], request: Request, send: Send) -> None:
        content["model"] = self._versions.base_name if chosen.of_base else chosen.version.name
        streamed = bool(content.get("stream"))
        reply = await self._send(content, request.url.path, stream=streamed)
        headers = {"content-type": reply.headers.get("content-type", ""), VERSION_HEADER: _label(chosen.number)}
        try:
            if streamed:
                parts = reply.aiter_bytes()
                first = await anext(parts, b"")  # where an engine dies before, nothing was answered
                response: Response = StreamingResponse(_passed_on(first, parts), reply.status_code, headers)
            elif reply.status_code == 200:
                named = {**reply.json(), "preceptor": {"version": chosen.number}}
                response = JSONResponse(named, headers={VERSION_HEADER: _label(chosen.number)})
            else:
                response = Response(reply.content, reply.status_code, headers)
            await response(request.scope, request.receive, send)
        except httpx.TransportError as error:
            raise _unavailable(error) from error
        finally:
            await reply.aclose()

    async def _send(self, content: dict[str, Any], path: str, *, stream: bool) -> httpx.Response:
        """Return the engine's reply, unread for a stream; HTTPException 400 for no JSON, 503 when it is gone."""
        client = self._versions.engine.client
        try:
            return await client.send(client.build_request("POST", path, json=content), stream=stream)
        except ValueError as error:  # such as NaN
            raise HTTPException(400, f"the request is no JSON object: {error}") from error
        except httpx.TransportError as error:
            raise _unavailable(error) from error


def _label(version: int | None) -> str:
    return "base" if version is None else str(version)


def _unavailable(error: httpx.TransportError) -> HTTPException:
    again = "it is started again; see /health, and send the request again"
    return HTTPException(503, f"the engine did not answer: {error!r}; {again}", {"retry-after": "5"})


async def _passed_on(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield an engine's stream; where the engine dies in the middle, an error is its last event."""
    yield first
    try:
        async for part in parts:
            yield part
    except httpx.TransportError as error:
        yield b"data: " + bytes(refusal(None, _unavailable(error)).body) + b"\n\n"


BY_HEADER = "x-preceptor-by"


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.all = CollectorRegistry()
        path, by = ("path",), "memory, weights, both, base or unknown; completion where the engine answers alone"
        self.requests = Counter("preceptor_requests", by, ("path", "source", "client"), registry=self.all)
        self.errors = Counter("preceptor_errors", "499: the client hung up", ("path", "status"), registry=self.all)
        self.latency = Histogram("preceptor_request_seconds", "To the end of the reply", path, registry=self.all)
        self.version = Info("preceptor_version", "The version that answers", registry=self.all)
        self.swaps = Counter("preceptor_swaps", "Versions placed, with the first one", registry=self.all)
        self.restarts = Counter("preceptor_engine_restarts", "Engines started after a death", registry=self.all)
        self.refusals = Counter("preceptor_refused_versions", "Versions that could not be placed", registry=self.all)


class Front:
    """Lets in whoever has a key, where there are keys; to /health everybody. Requests to `paths` are counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keys: Mapping[str, str], paths: tuple[str, ...]) -> None:
        """Wrap an application; `keys` are those of `read_api_keys`."""
        self._app, self._metrics, self._paths = app, metrics, paths
        self._expected = {name: f"Bearer {key}".encode() for name, key in keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started, status, source, path = time.perf_counter(), 499, "none", scope["path"]
        sent = Headers(scope=scope).get("authorization", "").encode()
        # All are compared, each in constant time: how long it takes says nothing about a key.
        client = "".join(name for name, key in self._expected.items() if secrets.compare_digest(sent, key))

        async def noted(message: Message) -> None:
            nonlocal status, source
            if message["type"] == "http.response.start":
                status = message["status"]
                source = Headers(raw=message["headers"]).get(BY_HEADER, "completion" if status < 400 else "none")
            await send(message)

        app, scope[CLIENT] = self._app, client or "-"
        if self._expected and not client and path != "/health":
            needs = "this server needs its key: Authorization: Bearer KEY"
            app = refusal(None, HTTPException(401, needs, {"www-authenticate": "Bearer"}))
        try:
            await app(scope, receive, noted)
        finally:
            if path in self._paths:
                counters, client, seconds = self._metrics, scope[CLIENT], time.perf_counter() - started
                answered = counters.requests.labels(path, source, client) if status < 400 else None
                (answered or counters.errors.labels(path, str(status))).inc()
                counters.latency.labels(path).observe(seconds)
                typer.echo(f"{client} {path} {status} {source} {seconds:.3f} s")


def refusal(_request: Request | None, error: Exception) -> Response:
    """Return an HTTPException in the form of OpenAI's API."""
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    content = {"message": error.detail, "type": kind, "param": None, "code": error.status_code}
    return JSONResponse({"error": content}, error.status_code, error.headers)


def read_api_keys(variable: str | None, file: Path | None = None) -> dict[str, str]:
    """Return the clients' keys by name, from an environment variable and a file; none without both.

    Each holds a line `NAME KEY` for each client, or one key alone, of the name `client`.

    Raises:
        ConfigError: A key is missing, there twice, or does not fit into a header.
    """
    keys: dict[str, str] = {}
    texts = {} if variable is None else {f"--api-key-env {variable!r}": os.environ.get(variable, "")}
    if file is not None:
        try:
            texts[f"--api-keys {str(file)!r}"] = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"serve: --api-keys {str(file)!r} cannot be read: {error}") from error
    for place, text in texts.items():
        for number, line in enumerate(text.splitlines() or [""], start=1):
            name, _, key = f"{'' if ' ' in line else 'client '}{line}".partition(" ")
            # The key itself is never shown, not even when it is refused.
            if not (name and key and key.isascii() and key.isprintable()) or " " in key:
                raise ConfigError(
                    f"serve: {place}: line {number} has no key. Allowed is a key, such as `openssl rand -hex 32` "
                    "prints, or a line `NAME KEY` for each client, in printable ASCII."
                )
            if name in keys or key in keys.values():
                raise ConfigError(f"serve: {place}: line {number} has a name or a key that is there twice.")
            keys[name] = key
    return keys
