"""What the tests of the server share: a registry with adapters of the micro student, and the command as a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from pipelines.config import TrackingConfig
from pipelines.lineage_store import open_store
from pipelines.registry import Registry
from student.adapters import Adapter, save_adapter
from tests.pipelines.factories import make_adapter

PATIENCE_SECONDS = 240.0


class Shelf:
    """A real registry to fill."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.store = open_store(TrackingConfig(), work_dir)
        self.registry = Registry(self.store, "preceptor")
        self.run_id: str = self.store.client.create_run(self.store.experiment_id).info.run_id
        self.store.client.log_param(self.run_id, "student.model", "micro-student")

    def add(self, adapter: Adapter, *, damaged: bool = False, tags: Mapping[str, str] = {}) -> int:
        """Register an adapter and return its version; `damaged` changes a byte of what was stored."""
        place = save_adapter(adapter, self.work_dir / "made" / adapter.digest[:12])
        digest = adapter.digest
        made = self.registry.register("student", place, digest=digest, run_id=self.run_id, tags=tags)
        if damaged:
            (weights,) = (self.work_dir / "artifacts").rglob(f"{made.model_id}/**/adapter_model.safetensors")
            content = bytearray(weights.read_bytes())
            content[-3] ^= 0xFF
            weights.write_bytes(content)
        return made.version

    def promote(self, version: int) -> None:
        self.registry.promote("student", version)


def small_adapter(seed: int, rank: int = 2) -> Adapter:
    """Return an adapter that no model is needed for."""
    return make_adapter(float(seed)) if rank == 2 else _wider(make_adapter(float(seed)), rank)


def _wider(adapter: Adapter, rank: int) -> Adapter:
    import torch

    factors = {
        name: (torch.ones(rank, a.shape[1]), torch.ones(b.shape[0], rank)) for name, (a, b) in adapter.factors.items()
    }
    return Adapter(factors, rank, 2.0 * rank, adapter.base_digest)


class ServeProcess:
    """`preceptor serve` in a process of its own."""

    def __init__(self, arguments: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "serve", *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.seen: set[psutil.Process] = set()
        """All processes that it started, found by `descendants`."""

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def descendants(self) -> set[psutil.Process]:
        """Return the processes that it has started, and remember them."""
        with suppress(psutil.Error):
            self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return {process for process in self.seen if alive(process)}

    def wait_until(self, reached: Callable[[], Any], patience: float = PATIENCE_SECONDS) -> Any:
        """Return what is reached, as soon as it is; fail when the command ends before."""
        end = time.monotonic() + patience
        while not (found := reached()):
            assert self.process.poll() is None, f"the command ended early:\n{self.output[-4000:]}"
            assert time.monotonic() < end, f"not reached in time:\n{self.output[-4000:]}"
            time.sleep(0.05)
        return found

    def gone(self, patience: float = 40.0) -> bool:
        """Return whether all that was seen of it ends within some seconds."""
        end = time.monotonic() + patience
        while self.descendants():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def clean_up(self) -> None:
        """Leave nothing behind, whatever happened."""
        left = self.descendants()
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        for process in left:
            with suppress(psutil.Error):
                process.kill()


def alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that waits to be reaped by the init process does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def command_line(process: psutil.Process) -> str:
    """Return a process's command line; empty when it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
