"""What the parts of the server know in common: who answers now, and how things stand. One event loop uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipelines.registry import Role
from pipelines.serving.champions import Champion
from pipelines.serving.probes import ProbeRecord
from pipelines.serving.upstream import Upstream

Status = Literal["starting", "ok", "degraded", "down"]


@dataclass(eq=False, slots=True)
class Served:
    """An adapter that vLLM holds, with the requests that it is answering."""

    name: str
    """In vLLM, of these weights alone."""
    champion: Champion
    upstream: Upstream
    since: datetime
    probe: ProbeRecord
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while it answers no request."""

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request."""
        self.in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()


class Health(BaseModel):
    """How the server stands; what `GET /health` answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    """`ok`; `degraded`: an older champion answers, or the registry cannot be read; `starting` and `down`: nobody
    answers yet, or vLLM died and is being restarted."""
    role: Role
    base: str
    """Model under the adapter."""
    version: int | None
    """That answers now."""
    wanted: int | None
    """That the alias `champion` stood on at the last check."""
    digest: str | None
    """SHA-256 of the adapter that answers."""
    served_name: str | None
    """Of that adapter in vLLM."""
    since: datetime | None
    """When it began to answer, UTC."""
    in_flight: int
    """Requests that it is answering."""
    last_probe: ProbeRecord | None
    """Outcome of the latest probes, passed or not."""
    last_probe_version: int | None
    last_check: datetime | None
    """When the registry was read last, UTC."""
    last_error: str | None
    """Why the status is not `ok`."""
    restarts: int
    """How often vLLM died and was started again."""


class ServingState:
    """Mutable state of one server."""

    def __init__(self, role: Role, base: str) -> None:
        """Begin as starting."""
        self.role: Role = role
        self.base = base
        self.current: Served | None = None
        """Who answers; replaced in one step."""
        self.base_name: str | None = None
        """vLLM's name of the adapter that stands for the base; None when the base is not offered."""
        self.wanted: int | None = None
        self.last_check: datetime | None = None
        self.last_probe: tuple[int, ProbeRecord] | None = None
        self.error: str | None = None
        self.restarts = 0

    @property
    def status(self) -> Status:
        """How things stand."""
        if self.current is None:
            return "starting" if self.error is None else "down"
        return "ok" if self.error is None else "degraded"

    def health(self) -> Health:
        """Return what `GET /health` answers."""
        served, probe = self.current, self.last_probe
        return Health(
            status=self.status,
            role=self.role,
            base=self.base,
            version=served.champion.version if served else None,
            wanted=self.wanted,
            digest=served.champion.digest if served else None,
            served_name=served.name if served else None,
            since=served.since if served else None,
            in_flight=served.in_flight if served else 0,
            last_probe=probe[1] if probe else None,
            last_probe_version=probe[0] if probe else None,
            last_check=self.last_check,
            last_error=self.error,
            restarts=self.restarts,
        )


def now() -> datetime:
    """Return the time, UTC."""
    return datetime.now(UTC)
