"""Processes that must not outlive their owner."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from pipelines.serving import guard
from pipelines.serving.child import Child, last_words
from tests.pipelines.serving.parts import alive

_FAMILY = """
import os, signal, subprocess, sys, time
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"
worker = subprocess.Popen([sys.executable, "-c", deaf])
open({file!r} + ".new", "w").write(f"{{os.getpid()}} {{worker.pid}}")
os.rename({file!r} + ".new", {file!r})
time.sleep(99)
"""


def family(file: Path, *, stubborn: bool = False) -> list[str]:
    """Return a command with a worker that ignores SIGTERM; it writes both numbers to a file."""
    return [sys.executable, "-c", _FAMILY.format(file=str(file), stubborn=stubborn)]


def members(file: Path) -> list[psutil.Process]:
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return [psutil.Process(int(number)) for number in file.read_text().split()]


def gone(processes: list[psutil.Process], patience: float) -> bool:
    end = time.monotonic() + patience
    while any(alive(process) for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("stubborn", [False, True])
def test_killed_owner_takes_the_command_and_its_workers_along(tmp_path: Path, stubborn: bool) -> None:
    command = [sys.executable, guard.__file__, "0.5", *family(tmp_path / "pids", stubborn=stubborn)]
    code = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); time.sleep(99)"
    owner = subprocess.Popen([sys.executable, "-c", code, *command])
    try:
        running = members(tmp_path / "pids")
        assert all(alive(process) for process in running)
        os.kill(owner.pid, signal.SIGKILL)
        assert gone(running, 10)
    finally:
        owner.kill()
        owner.wait()


def test_command_that_dies_leaves_no_workers(tmp_path: Path) -> None:
    command = [sys.executable, guard.__file__, "0.5", *family(tmp_path / "pids")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    leader, worker = members(tmp_path / "pids")
    leader.kill()
    assert process.wait(timeout=10) == 128 + signal.SIGKILL
    assert gone([worker], 5)


def test_signals_to_the_guard_do_not_leave_the_command_alone(tmp_path: Path) -> None:
    command = [sys.executable, guard.__file__, "0.5", *family(tmp_path / "pids")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    running = members(tmp_path / "pids")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert gone(running, 5)


def test_child_stops_gives_its_code_and_keeps_its_log(tmp_path: Path) -> None:
    async def test() -> None:
        log = tmp_path / "log"
        child = await Child.start(family(tmp_path / "pids"), dict(os.environ), log)
        running = await asyncio.to_thread(members, tmp_path / "pids")
        assert child.code is None
        await child.stop()
        assert child.code is not None
        assert gone(running, 5)
        failing = [sys.executable, "-c", "print('fine'); raise SystemError('it broke')"]
        child = await Child.start(failing, dict(os.environ), log)
        assert await child.wait() == 1
        assert last_words(log) == "SystemError: it broke"

    asyncio.run(asyncio.wait_for(test(), 60))
