"""Who may ask: a key, or, without one, programs of this machine that speak to it by a loopback name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pipelines.serving.config import is_loopback
from pipelines.serving.routing import error_body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/health"
"""The only path without a key: whoever watches over the server needs none."""


class Access:
    """ASGI middleware that turns strangers away before their request is read."""

    def __init__(self, app: App, key: str | None) -> None:
        """Stand before an application.

        Args:
            app: What is protected.
            key: That clients must show; None lets everybody in who names the server by a loopback address, so that a
                web page whose own name was made to point here gets nothing.
        """
        self._app = app
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            status, message = refusal
            body = json.dumps(error_body(status, message)).encode()
            headers = [(b"content-type", b"application/json")]
            if status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and text for a stranger."""
        headers = dict(scope["headers"])
        if self._key is None:
            if not is_loopback(_host(headers.get(b"host", b"").decode("latin-1"))):
                return 403, "without a key this server is asked by a loopback name, such as 127.0.0.1 or localhost"
            return None
        if scope["path"] == OPEN:
            return None
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and secrets.compare_digest(shown.strip(), self._key):
            return None
        return 401, "this server needs its key: Authorization: Bearer KEY"


def _host(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
