"""What clients did, for Prometheus and for the log; no text of a request or reply is in either."""

from __future__ import annotations

import time
from collections.abc import Mapping

import typer
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, Info, generate_latest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BY_HEADER = "x-preceptor-by"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the latency histogram's buckets."""


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._all = CollectorRegistry()
        self.requests = Counter(
            "preceptor_requests",
            "Requests by source: memory, weights, both, base or unknown; completion where vLLM answers alone.",
            ("path", "source", "client"),
            registry=self._all,
        )
        self.errors = Counter(
            "preceptor_errors",
            "Requests that were not answered, by HTTP status; 499 for a client that hung up.",
            ("path", "status"),
            registry=self._all,
        )
        self.latency = Histogram(
            "preceptor_request_seconds",
            "Time to the end of the reply.",
            ("path",),
            buckets=_SECONDS,
            registry=self._all,
        )
        self.version = Info("preceptor_version", "The version that answers.", registry=self._all)
        self.swaps = Counter("preceptor_swaps", "Versions placed, the first one included.", registry=self._all)
        self.refusals = Counter(
            "preceptor_refused_versions", "Attempts to place a version that failed.", registry=self._all
        )

    def placed(self, facts: Mapping[str, str]) -> None:
        """Count a version that answers from now on."""
        self.version.info(dict(facts))
        self.swaps.inc()

    def observe(self, path: str, client: str, status: int, source: str, seconds: float) -> None:
        """Count a request, and log it with its client's name."""
        if status < 400:
            self.requests.labels(path, source, client).inc()
        else:
            self.errors.labels(path, str(status)).inc()
        self.latency.labels(path).observe(seconds)
        typer.echo(f"{client} {path} {status} {source} {seconds:.3f} s")

    async def page(self, _request: Request) -> Response:
        """Return all of it in Prometheus' text format."""
        return Response(generate_latest(self._all), media_type=CONTENT_TYPE_LATEST)


class Measured:
    """Observes the requests to some paths, refused ones included."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: tuple[str, ...]) -> None:
        """Wrap an application."""
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] not in self._paths:
            await self._app(scope, receive, send)
            return
        started, status, source = time.perf_counter(), 499, "none"

        async def noted(message: Message) -> None:
            nonlocal status, source
            if message["type"] == "http.response.start":
                status = message["status"]
                source = Headers(raw=message["headers"]).get(BY_HEADER, "completion" if status < 400 else "none")
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            client = scope["user"].display_name if "user" in scope else ""
            self._metrics.observe(scope["path"], client or "-", status, source, time.perf_counter() - started)
