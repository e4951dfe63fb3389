"""Which requests reach vLLM, and what is written over in them: pure functions on bytes and JSON."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from pipelines.registry import CHAMPION

FORWARDED = ("/v1/completions", "/v1/chat/completions")
"""Paths that vLLM answers; it has others, which change what it holds, and none of them is reached."""


class Refused(Exception):
    """A request that is answered here instead of by vLLM."""

    def __init__(self, status: int, message: str) -> None:
        """Refuse with an HTTP status in [400, 599] and a text for the client."""
        super().__init__(message)
        self.status = status


class Route(NamedTuple):
    """A request as vLLM gets it."""

    body: bytes
    asked: str
    """Name that the client used for the model."""
    internal: str
    """Name that vLLM uses."""
    stream: bool


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return an error in the form of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def model_list(base: str, created: int, *, with_base: bool) -> dict[str, Any]:
    """Return what `GET /v1/models` answers.

    Args:
        base: Name of the base model.
        created: When the champion began to answer, in s since 1970.
        with_base: The base is offered as well.
    """
    entry = {"object": "model", "created": created, "owned_by": "preceptor"}
    listed: list[dict[str, Any]] = [{"id": CHAMPION, **entry, "root": base, "parent": base}]
    if with_base:
        listed.append({"id": base, **entry, "root": base, "parent": None})
    return {"object": "list", "data": listed}


def read_request(body: bytes) -> dict[str, Any]:
    """Return a request's JSON object.

    Raises:
        Refused: It is not one, or names no model.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), str):
        raise Refused(400, f"the request must be a JSON object with a model, such as {CHAMPION!r}")
    return content


def route(content: dict[str, Any], *, champion: str, base: str, base_internal: str | None) -> Route:
    """Return a request as vLLM gets it.

    Args:
        content: The client's request; left as it is.
        champion: vLLM's name of the adapter that answers now.
        base: Name of the base model.
        base_internal: vLLM's name of the adapter that stands for the base; None when the base is not offered.

    Raises:
        Refused: It asks for a model that is not served.
    """
    asked = content["model"]
    if asked == CHAMPION:
        internal = champion
    elif asked == base and base_internal is not None:
        internal = base_internal
    elif asked == base:
        raise Refused(
            404,
            f"the base model {base!r} is not served beside {CHAMPION!r}: on a CPU, vLLM mixes up requests with and "
            "without an adapter. `preceptor serve --with-base` serves it safely.",
        )
    else:
        raise Refused(404, f"the model {asked[:200]!r} is not served, allowed is {CHAMPION!r}; see /v1/models")
    try:
        body = json.dumps({**content, "model": internal}, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, UnicodeEncodeError) as error:
        raise Refused(400, f"the request holds what JSON does not: {error}") from error
    return Route(body, asked, internal, content.get("stream") is True)


class Renamer:
    """Puts the client's name for the model back into replies, piece by piece.

    Only members called `model` are touched. Text in a reply cannot look like one, because its quotes are escaped.
    """

    def __init__(self, internal: str, asked: str) -> None:
        """Rename one model.

        Args:
            internal: vLLM's name, of letters, digits and `-`.
            asked: The client's name.
        """
        self._member = re.compile(rb'"model"(\s*:\s*)"' + re.escape(internal.encode()) + rb'"')
        self._new = json.dumps(asked).encode()
        self._rest = b""

    def whole(self, body: bytes) -> bytes:
        """Return a whole reply."""
        return self._member.sub(lambda found: b'"model"' + found.group(1) + self._new, body)

    def piece(self, chunk: bytes) -> bytes:
        """Return what can be passed on of a stream: whole lines, since a chunk may end inside a name."""
        lines, newline, self._rest = (self._rest + chunk).rpartition(b"\n")
        return self.whole(lines) + newline

    def end(self) -> bytes:
        """Return what is left when the stream has ended."""
        rest, self._rest = self._rest, b""
        return self.whole(rest)
