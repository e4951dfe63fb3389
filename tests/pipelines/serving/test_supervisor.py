"""A server that dies is started again, and given up in the end; a plain one stands where vLLM would be."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from evaluation.errors import ServeError
from pipelines.config import TrackingConfig
from pipelines.serving import server
from pipelines.serving.champions import Champion, Champions
from pipelines.serving.config import ServeConfig
from pipelines.serving.options import ServingOptions
from pipelines.serving.probes import ProbeRecord
from pipelines.serving.state import ServingState
from pipelines.serving.upstream import Upstream
from tests.pipelines.serving.parts import Shelf, small_adapter
from tests.pipelines.serving.test_proxy import PROBE

RESTARTS = 1


class Passing:
    """In place of the prover, which has tests of its own."""

    def __init__(self, *_: object) -> None:
        pass

    def prepare(self, champion: Champion) -> None:
        pass

    async def close(self) -> None:
        pass

    async def prove(self, upstream: Upstream, name: str, champion: Champion) -> ProbeRecord:
        return PROBE


def plain_command(config: ServeConfig, model: str, rank: int, modules: Sequence[str], port: int) -> list[str]:
    return [sys.executable, "-m", "tests.pipelines.serving.stand_in", str(port)]


def broken_command(*_: Any) -> list[str]:
    return [sys.executable, "-c", "raise SystemError('no such model')"]


def supervisor(work_dir: Path, said: list[str]) -> tuple[server.Supervisor, ServingState]:
    shelf = Shelf(work_dir)
    shelf.promote(shelf.add(small_adapter(1)))
    files = work_dir / "serving"
    files.mkdir()
    config = ServeConfig(work_dir=work_dir, options=ServingOptions(restarts=RESTARTS, with_base=True))
    state, champions = ServingState("student", "micro-student"), Champions(TrackingConfig(), work_dir, "student", files)
    return server.Supervisor(config, state, champions, champions.fetch(1), files, said.append), state


def plain_servers() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.cmdline()[1:3] == ["-m", "tests.pipelines.serving.stand_in"]]


def test_server_that_dies_is_started_again_and_then_given_up(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "vllm_command", plain_command)
    monkeypatch.setattr(server, "Prover", Passing)
    said: list[str] = []
    names: list[str] = []
    watched, state = supervisor(work_dir, said)

    def ready() -> None:
        assert state.current is not None
        assert state.base_name is not None
        names.append(state.current.name)

    async def test() -> None:
        running = asyncio.create_task(watched.run(ready))
        for count in range(1, RESTARTS + 2):
            while len(names) < count:
                await asyncio.sleep(0.02)
                assert not running.done() or running.result()
            assert (state.status, state.restarts) == ("ok", count - 1)
            (process,) = plain_servers()
            process.kill()
            while state.current is not None:
                await asyncio.sleep(0.02)
        with pytest.raises(ServeError, match="giving up after 1 restarts"):
            await running

    asyncio.run(asyncio.wait_for(test(), 60))
    assert names == ["student-v1-" + names[0].split("-")[2] + f"-{number}" for number in (2, 4)]
    assert len(said) == RESTARTS
    assert plain_servers() == []


def test_server_that_never_starts_is_not_tried_again(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "vllm_command", broken_command)
    monkeypatch.setattr(server, "Prover", Passing)
    watched, state = supervisor(work_dir, [])
    with pytest.raises(ServeError, match=r"exit code 1.*SystemError: no such model"):
        asyncio.run(asyncio.wait_for(watched.run(lambda: None), 60))
    assert state.restarts == 0
