"""Slow checks as child processes side by side: each has a time limit, and one that crashes takes nothing along."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.doctor.probes import MARK

_PROBES = Path(__file__).with_name("probes.py")
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe to run: a function of `probes.py` with its arguments."""

    name: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables, for what must not be seen in the list of processes."""
    seconds: float = 45.0
    """Longest time it may take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a probe said; exactly one of `data`, `error` and `late` tells something."""

    data: Mapping[str, Any] | None = None
    error: str = ""
    """Why there is no data: the exception's type and text, or how the process ended."""
    late: float | None = None
    """Seconds after which it was stopped."""


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    output: Path
    deadline: float


def run_probes(
    probes: Sequence[Probe],
    environment: Mapping[str, str],
    *,
    at_once: int,
    begun: Callable[[Sequence[str]], None],
    ended: Callable[[str], None],
) -> dict[str, Outcome]:
    """Return each probe's outcome by its name; none is left running, whatever ends this.

    Args:
        probes: What to run, started in this order.
        environment: Of the processes.
        at_once: Processes at the same time, at least 1.
        begun: Told the names of those that run, each time one starts.
        ended: Told the name of one that ended.
    """
    waiting, running, outcomes = list(probes), dict[str, tuple[Probe, _Running]](), dict[str, Outcome]()
    scratch = Path(tempfile.mkdtemp(prefix="preceptor-doctor-"))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                probe = waiting.pop(0)
                running[probe.name] = (probe, _start(probe, environment, scratch / probe.name))
                begun(list(running))
            time.sleep(_POLL_SECONDS)
            for name, (probe, child) in list(running.items()):
                outcome = _outcome(probe, child)
                if outcome is not None:
                    outcomes[name] = outcome
                    del running[name]
                    ended(name)
    finally:
        for _, child in running.values():
            _stop(child)
        shutil.rmtree(scratch, ignore_errors=True)
    return outcomes


def _start(probe: Probe, environment: Mapping[str, str], output: Path) -> _Running:
    # -P: neither the current directory nor this one may stand in for an installed package.
    command = [sys.executable, "-P", str(_PROBES), probe.name, *probe.arguments]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={**environment, **probe.environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _Running(process, output, time.monotonic() + probe.seconds)


def _outcome(probe: Probe, child: _Running) -> Outcome | None:
    """Return what a process came to; None while it runs."""
    code = child.process.poll()
    if code is None and time.monotonic() < child.deadline:
        return None
    _stop(child)
    if code is None:
        return Outcome(late=probe.seconds)
    lines = child.output.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    if not said:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
        return Outcome(error=f"ended with {how}: {last[:200]}")
    answer = json.loads(said[-1])
    return Outcome(data=answer["data"]) if "data" in answer else Outcome(error=answer["error"])


def _stop(child: _Running) -> None:
    """End a process and those that it started."""
    with suppress(OSError):
        os.killpg(child.process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a driver that hangs cannot be killed, and must not hang this
        child.process.wait(timeout=5)
