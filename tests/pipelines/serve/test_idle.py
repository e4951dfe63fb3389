"""Nights in idle windows: when they begin, what stops them, and that none outlives the server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from evaluation.common.errors import ConfigError
from pipelines.cli import app
from pipelines.inbox.interactions import InteractionStore
from pipelines.inbox.store import INBOX_FILE
from pipelines.serve.idle import LOG_FILE, IdleNights, IdleWindow, night_command
from tests.flows.settings import CONFIGS
from tests.pipelines.inbox.chats import stored

_NIGHT = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("stopped", flush=True)))
print("began", flush=True)
time.sleep({seconds})
print("ended", flush=True)
sys.exit({code})
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Idle:
    """Nights that are processes of a given length."""

    def __init__(self, work_dir: Path, seconds: float, code: int = 0) -> None:
        self.work_dir, self.metrics = work_dir, CollectorRegistry()
        command = [sys.executable, "-c", _NIGHT.format(seconds=seconds, code=code)]
        window = IdleWindow(work_dir / "night.yaml", 0.5, 1.0)
        self.serving = True
        self.nights = IdleNights(window, work_dir, self.metrics, command, lambda: self.serving)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.nights.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def arrive(self, name: str) -> None:
        with InteractionStore(self.work_dir / INBOX_FILE) as store:
            store.keep(stored("Where is Orrin?", name=name))

    @property
    def said(self) -> list[str]:
        file = self.work_dir / LOG_FILE
        return file.read_text().split() if file.exists() else []

    def ends(self, outcome: str) -> float:
        return self.metrics.get_sample_value("preceptor_idle_nights_total", {"outcome": outcome}) or 0.0


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.02)


@pytest.mark.anyio
async def test_night_begins_when_nobody_asks_and_again_once_something_came(tmp_path: Path) -> None:
    it = Idle(tmp_path, 0.0)
    it.arrive("a")
    it.serving = False
    async with it.running():
        await asyncio.sleep(1.0)
        it.serving = True
        with it.nights.busy():
            await asyncio.sleep(1.5)
            assert it.said == [], "nothing served yet, then a request was being answered"
        await until(lambda: it.ends("finished") == 1)
        await asyncio.sleep(1.5)
        assert it.said == ["began", "ended"], "nothing came since"
        it.arrive("b")
        await until(lambda: it.ends("finished") == 2)


@pytest.mark.anyio
async def test_slow_request_stops_a_night_and_the_next_window_goes_on(tmp_path: Path) -> None:
    it = Idle(tmp_path, 4.0)
    it.arrive("a")
    async with it.running():
        await until(lambda: it.said == ["began"])
        with it.nights.busy():
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert it.said == ["began"], "a quick request changes nothing"
        with it.nights.busy():
            await until(lambda: it.ends("stopped") == 1)  # while the request still waits
        await until(lambda: it.ends("finished") == 1)
    assert it.said == ["began", "stopped", "began", "ended"]


@pytest.mark.anyio
async def test_failed_night_is_told_and_not_repeated_until_something_comes(tmp_path: Path) -> None:
    it = Idle(tmp_path, 0.0, code=3)
    it.arrive("a")
    async with it.running():
        await until(lambda: it.ends("failed") == 1)
        await asyncio.sleep(1.5)
        assert it.ends("failed") == 1


@pytest.mark.anyio
async def test_night_ends_with_the_server(tmp_path: Path) -> None:
    it = Idle(tmp_path, 60.0)
    it.arrive("a")
    async with it.running():
        await until(lambda: it.said == ["began"])
    assert it.said == ["began", "stopped"]


def test_idle_window_needs_the_configuration_of_a_night(tmp_path: Path) -> None:
    place = ["--work-dir", str(tmp_path)]
    assert CliRunner().invoke(app, ["serve", "--idle-minutes", "1", *place]).exit_code == 2
    demo = str(CONFIGS / "demo.yaml")
    refused = CliRunner().invoke(app, ["serve", "--idle-minutes", "1", "--config", demo, *place])
    assert isinstance(refused.exception, ConfigError)
    assert "adapt-student" in night_command(Path(demo), tmp_path)
