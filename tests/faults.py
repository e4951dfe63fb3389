"""A real HTTP server with faults: it stands before another server, or answers by itself when it has none behind it."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

Fault = Literal[
    "429", "429 for long", "500", "hang", "truncated", "cut", "not json", "empty", "no text", "reset", "newer limit"
]
ALL_PASSING: tuple[Fault, ...] = ("429", "500", "hang", "truncated", "cut", "not json", "empty", "no text", "reset")
MODEL = "tiny"
RETRY_AFTER = 0.4
COMPLETION_TOKENS = 7


class Seen(NamedTuple):
    """A completion request that reached the server."""

    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    fault: Fault | None


class FaultyServer:
    """Serves on loopback from a thread until it is closed; use it as a context."""

    def __init__(
        self,
        upstream: str | None = None,
        *,
        key: str = "",
        delay: float = 0.0,
        context: int = 10_000,
        tells_usage: bool = True,
    ) -> None:
        """Start.

        Args:
            upstream: Base URL of the server that answers; None answers here.
            key: Asked for, when not empty.
            delay: Before each answer of its own, in seconds.
            context: Longest prompt and completion of its own, in words and tokens.
            tells_usage: Whether its own answers count tokens.
        """
        self.upstream = None if upstream is None else urlsplit(upstream)
        self.key, self.delay, self.context, self.tells_usage = key, delay, context, tells_usage
        self.first: deque[Fault] = deque()
        """Faults of the next requests."""
        self.always: dict[str, Fault] = {}
        """Faults of all requests whose prompt contains a text."""
        self.replies: Callable[[str], str] | None = None
        """Own answer to a prompt; None is a digest of prompt and seed."""
        self.seen: list[Seen] = []
        self.peak = 0
        self._now = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"faulty": self}))
        self._server.daemon_threads = True
        self._server.request_queue_size = 256
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def prompts(self) -> list[str]:
        return [seen.prompt for seen in self.seen]

    def fail_next(self, faults: Iterable[Fault]) -> None:
        self.first.extend(faults)

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FaultyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def enter(self, body: dict[str, Any], headers: dict[str, str]) -> Seen:
        """Note a request and draw its fault."""
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)
            chosen = next((fault for text, fault in self.always.items() if text in prompt), None)
            fault = chosen or (self.first.popleft() if self.first else None)
            self.seen.append(Seen(prompt, body, headers, time.monotonic(), fault))
            return self.seen[-1]

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def wait(self, seconds: float) -> None:
        self._closing.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    faulty: FaultyServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._send(*self._forward(b""))

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        seen = self.faulty.enter(json.loads(content), {name.lower(): value for name, value in self.headers.items()})
        try:
            self._answer(seen, content)
        except OSError:
            self.close_connection = True  # the client has gone
        finally:
            self.faulty.leave()

    def _answer(self, seen: Seen, content: bytes) -> None:
        if seen.fault == "429":
            return self._send(429, _error("slow down"), {"Retry-After": str(RETRY_AFTER)})
        if seen.fault == "429 for long":
            return self._send(429, _error("come back tomorrow"), {"Retry-After": "86400"})
        if seen.fault == "newer limit" and "max_tokens" in seen.body:
            return self._send(400, _error("Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead."))
        if seen.fault == "500":
            return self._send(500, _error("out of order"))
        if seen.fault == "hang":
            self.faulty.wait(30.0)
            self.close_connection = True
            return None
        if seen.fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return None
        status, body = self._forward(content)
        return self._send_damaged(status, body, seen.fault)

    def _send_damaged(self, status: int, body: bytes, fault: Fault | None) -> None:
        if fault == "truncated":
            body = body[: len(body) // 2]
        elif fault == "not json":
            body = b"<html>bad gateway</html>"
        elif fault == "empty":
            body = json.dumps(json.loads(body) | {"choices": []}).encode()
        elif fault == "no text":
            choice = {"index": 0, "finish_reason": "stop", "text": "", "message": {"content": None}}
            body = json.dumps({"choices": [choice], "usage": None}).encode()
        self._send(status, body, sent=len(body) // 2 if fault == "cut" else None)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:sent])
        self.close_connection = self.close_connection or sent is not None

    def _forward(self, content: bytes) -> tuple[int, bytes]:
        """Return the answer of the server behind, or of this one."""
        upstream = self.faulty.upstream
        if upstream is None:
            return self._own(json.loads(content)) if content else self._models()
        assert upstream.hostname is not None
        connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=120)
        kept = {
            name: value for name, value in self.headers.items() if name.lower() in ("authorization", "content-type")
        }
        connection.request(self.command, self.path, content or None, kept)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body

    def _models(self) -> tuple[int, bytes]:
        if not self.path.endswith("/models"):
            return 404, _error("no such place")
        if self.faulty.key and self.headers["authorization"] != f"Bearer {self.faulty.key}":
            return 401, _error("wrong key")
        return 200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()

    def _own(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        """Answer with a text that depends on prompt and seed, and nothing else."""
        self.faulty.wait(self.faulty.delay)
        if self.faulty.key and self.headers["authorization"] != f"Bearer {self.faulty.key}":
            return 401, _error(f"wrong key {self.headers['authorization']}")
        if asked["model"] != MODEL:
            return 404, _error(f"The model `{asked['model']}` does not exist.")
        prompt = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
        words = len(prompt.split())
        most = asked.get("max_tokens") or asked["max_completion_tokens"]
        if words + most > self.faulty.context:
            return 400, _error(f"This model's maximum context length is {self.faulty.context} tokens.")
        planned = self.faulty.replies
        text = hashlib.sha256(f"{prompt} {asked.get('seed')}".encode()).hexdigest()[:24]
        text = text if planned is None else planned(prompt)
        used = min(COMPLETION_TOKENS, most)
        ended = "length" if used == most else "stop"
        choice = {"index": 0, "finish_reason": ended, "text": text, "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": words, "completion_tokens": used, "total_tokens": words + used}
        answer = {"id": "x", "object": "text_completion", "model": MODEL, "choices": [choice]}
        return 200, json.dumps(answer | ({"usage": usage} if self.faulty.tells_usage else {})).encode()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "test", "code": None}}).encode()
