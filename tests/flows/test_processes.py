"""Signals that end a run or a night: nothing stays behind, the runs are closed, and the command says how to go on."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipelines.adapt_student.plan import NIGHTS
from tests.flows import settings
from tests.flows.test_nights import deliver, night

pytestmark = [pytest.mark.flow, pytest.mark.timeout(600)]

SOON_SECONDS = 15.0
"""Far more than a command takes to end (some 2 s), far less than a client waits for a server that is gone."""


def soon(reached: Callable[[], bool]) -> bool:
    """Return whether something is so within `SOON_SECONDS`."""
    deadline = time.monotonic() + SOON_SECONDS
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached()


def _as_a_shell_starts_it() -> None:
    """Take the terminal, and Ctrl-C as it is by default: tests that run in the background inherit it ignored."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command at a terminal of its own, which is what its Ctrl-C comes from."""

    def __init__(self, arguments: Sequence[str], home: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments,
            cwd=settings.ROOT,
            env=settings.environment(home),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_as_a_shell_starts_it,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self._printed = b""

    @property
    def output(self) -> str:
        with suppress(OSError):  # nothing to read now, or nobody there any more
            while part := os.read(self._master, 65536):
                self._printed += part
        return self._printed.decode("utf-8", "replace")

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + settings.PATIENCE_SECONDS
        while not reached():
            printed = self.output  # a full terminal would block the command
            assert self.process.poll() is None, printed
            assert time.monotonic() < deadline, printed
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def wait(self, seconds: float = SOON_SECONDS) -> int:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self.output  # noqa: B018 - see above
            time.sleep(0.02)
        assert self.process.returncode is not None, f"still running:\n{self.output[-3000:]}"
        return self.process.returncode

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._master)


@contextmanager
def started(kind: str, place: Path) -> Iterator[tuple[Terminal, Path, list[str]]]:
    """Yield a command in the middle of its work, its work directory and its arguments."""
    if kind == "night":
        work_dir = deliver(place)
        arguments, reached = night(work_dir, place / "result.json"), (work_dir / NIGHTS / "current.json").exists
    else:
        work_dir = place / "work"
        arguments = settings.command(settings.CONFIGS / "demo.yaml", work_dir, settings.TINY, place / "result.json")
        reached = lambda: settings.counts(work_dir)["sample"] > 0  # noqa: E731
    terminal = Terminal(arguments, place / "home")
    try:
        terminal.wait_until(reached)
        yield terminal, work_dir, arguments
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("kind", "how", "code"),
    [
        ("night", "Ctrl-C", 130),
        ("run", "SIGTERM", 143),
        pytest.param("run", "Ctrl-C", 130, marks=pytest.mark.slow),
        pytest.param("night", "SIGTERM", 143, marks=pytest.mark.slow),
        pytest.param("night", "SIGTERM to all", 143, marks=pytest.mark.slow),
    ],
)
def test_stopped_command_ends_soon_closes_its_runs_and_says_how_to_go_on(
    tmp_path: Path, kind: str, how: str, code: int
) -> None:
    with started(kind, tmp_path) as (terminal, work_dir, arguments):
        if how == "Ctrl-C":
            terminal.press_ctrl_c()
        elif how == "SIGTERM":
            terminal.process.terminate()
        else:  # as service managers do
            os.killpg(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait() == code, terminal.output
        said = " ".join(terminal.output.replace("\r\n", "\n").split())
    assert soon(lambda: not settings.left_behind(work_dir))
    assert settings.flow_states(work_dir) == ["CRASHED"]
    assert said.count(shlex.join(arguments[3:])) == 1, said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["night", "run"])
def test_killed_command_leaves_no_process_and_the_next_start_closes_its_run(tmp_path: Path, kind: str) -> None:
    with started(kind, tmp_path) as (terminal, work_dir, arguments):
        terminal.process.kill()
        terminal.process.wait()
    assert soon(lambda: not settings.left_behind(work_dir)), settings.left_behind(work_dir)
    assert settings.flow_states(work_dir) == ["RUNNING"]
    code, output = settings.run_command(arguments, tmp_path / "home")
    assert code == 0, output
    assert settings.flow_states(work_dir) == ["CRASHED", "COMPLETED"]
    assert not settings.left_behind(work_dir)


@pytest.mark.slow
def test_of_two_first_starts_in_a_new_directory_one_runs_and_the_other_says_why_not(tmp_path: Path) -> None:
    work_dir = tmp_path / "work"
    both = [
        settings.Child(
            settings.command(settings.CONFIGS / "demo.yaml", work_dir, settings.TINY), tmp_path / f"home {i}"
        )
        for i in range(2)
    ]
    try:
        with suppress(subprocess.TimeoutExpired):
            for child in both:
                child.process.wait(timeout=settings.PATIENCE_SECONDS)
        codes = sorted(child.process.returncode for child in both)
        assert codes == [0, 1], [child.output[-2000:] for child in both]
        refused = next(child for child in both if child.process.returncode)
        assert "in use by another run" in refused.output
        assert "Traceback" not in refused.output
        assert settings.flow_states(work_dir) == ["COMPLETED"]
    finally:
        for child in both:
            child.kill()
