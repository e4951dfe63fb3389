"""Nights while nobody asks: `preceptor serve --idle-minutes` runs the night of its configuration in idle windows.

The night is a child of low priority. A request that takes too long beside it stops it, and so does the end of
the server; the next idle window goes on with it, since a stopped night keeps what it has finished.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

import typer
from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.inbox.store import INBOX_FILE
from pipelines.process import child
from pipelines.serve.requests import CHAT, COMPLETIONS

LOG_FILE = "idle-nights.log"
"""In the work directory: what these nights print."""
_LOOK_SECONDS = 0.2


class IdleWindow(NamedTuple):
    """When a night may run."""

    config: Path
    """Of the night."""
    seconds: float
    """Time without a request after which it starts, above 0."""
    slow_seconds: float
    """A request that takes longer stops it, above 0."""


def night_command(config: Path, work_dir: Path) -> list[str]:
    """Return the command line of a night of low priority."""
    program = [sys.executable, "-P", "-m", "pipelines.cli", "adapt-student", str(config), "--work-dir", str(work_dir)]
    return (["nice", "-n", "10"] if shutil.which("nice") else []) + program


class IdleNights:
    """Watches requests, and runs nights between them."""

    def __init__(
        self,
        window: IdleWindow,
        work_dir: Path,
        metrics: CollectorRegistry,
        command: Sequence[str],
        is_serving: Callable[[], bool],
    ) -> None:
        """Run `command` when it is due, and count its ends in `metrics`; while nothing serves, requests may wait."""
        self._window, self._work_dir, self._command, self._is_serving = window, work_dir, command, is_serving
        self._begun: dict[object, float] = {}
        self._last, self._slowest = time.monotonic(), 0.0
        self._learned: object = None
        names = "finished, stopped for a slow request, failed"
        self._count = Counter("preceptor_idle_nights", names, ("outcome",), registry=metrics)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time of a request."""
        request, begun = object(), time.monotonic()
        self._begun[request] = begun
        try:
            yield
        finally:
            del self._begun[request]
            self._last = time.monotonic()
            self._slowest = max(self._slowest, self._last - begun)

    async def run(self) -> NoReturn:
        """Run nights until this is cancelled, which stops one that runs."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            idle = self._is_serving() and not self._begun and time.monotonic() - self._last >= self._window.seconds
            if idle and (arrived := self._arrived()) != self._learned:
                await self._night(arrived)

    async def _night(self, arrived: object) -> None:
        self._slowest, log = 0.0, self._work_dir / LOG_FILE
        typer.echo(f"idle for {self._window.seconds:g} s: a night begins; its output is in {str(log)!r}")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        async with child(self._command, environment, log) as process:
            ended = asyncio.create_task(process.wait())
            while not ended.done() and self._longest() <= self._window.slow_seconds:
                await asyncio.wait((ended,), timeout=_LOOK_SECONDS)
            code = ended.result() if ended.done() else None
        if code is None:
            outcome, told = "stopped", f"a request took {self._longest():.1f} s; the next idle window goes on with it"
        else:
            # What came after its beginning, its own notes included, makes a further look due.
            self._learned, outcome = arrived, "failed" if code else "finished"
            told = f"exit code {code}, see {str(log)!r}"
        self._last = time.monotonic()
        self._count.labels(outcome).inc()
        typer.echo(f"the night {outcome}: {told}")

    def _longest(self) -> float:
        """Return the longest time of a request since the night began, of those that wait too, in seconds."""
        now = time.monotonic()
        return max((self._slowest, *(now - begun for begun in self._begun.values())))

    def _arrived(self) -> object:
        """Return something that is another once the inbox has changed."""
        files = (self._work_dir / f"{INBOX_FILE}{end}" for end in ("", "-wal"))
        return [(file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file()]


class Watched:
    """Lets idle nights know of the requests that an application answers."""

    def __init__(self, app: ASGIApp, nights: IdleNights) -> None:
        """Wrap an application."""
        self._app, self._nights = app, nights

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"] not in (CHAT, COMPLETIONS):
            await self._app(scope, receive, send)
            return
        with self._nights.busy():
            await self._app(scope, receive, send)
