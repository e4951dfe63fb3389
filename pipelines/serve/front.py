"""In front of every request: who asks, what was answered, and how long it took, for Prometheus and the log.

No text of a request or reply and no key is in either.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import typer
from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evaluation.common.errors import ConfigError

BY_HEADER = "x-preceptor-by"


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.all = CollectorRegistry()
        path, by = ("path",), "memory, weights, both, base or unknown; completion where vLLM answers alone"
        self.requests = Counter("preceptor_requests", by, ("path", "source", "client"), registry=self.all)
        self.errors = Counter("preceptor_errors", "499: the client hung up", ("path", "status"), registry=self.all)
        self.latency = Histogram("preceptor_request_seconds", "To the end of the reply", path, registry=self.all)
        self.version = Info("preceptor_version", "The version that answers", registry=self.all)
        self.swaps = Counter("preceptor_swaps", "Versions placed, with the first one", registry=self.all)
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

        app = self._app
        if self._expected and not client and path != "/health":
            needs = "this server needs its key: Authorization: Bearer KEY"
            app = refusal(None, HTTPException(401, needs, {"www-authenticate": "Bearer"}))
        try:
            await app(scope, receive, noted)
        finally:
            if path in self._paths:
                counters, client, seconds = self._metrics, client or "-", time.perf_counter() - started
                answered = counters.requests.labels(path, source, client) if status < 400 else None
                (answered or counters.errors.labels(path, str(status))).inc()
                counters.latency.labels(path).observe(seconds)
                typer.echo(f"{client} {path} {status} {source} {seconds:.3f} s")


def refusal(_request: Request | None, error: Exception) -> Response:
    """Return an HTTPException in the form of OpenAI's API."""
    assert isinstance(error, HTTPException)
    content = {"message": error.detail, "type": "invalid_request_error", "param": None, "code": error.status_code}
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
