"""Runs a command that must not outlive its owner: `python guard.py SECONDS COMMAND...`.

The owner holds the other end of standard input. When that closes, because the owner wants it or because it was killed
in whatever way, the command is asked to end, and after some seconds its whole process group is killed. The group is
also killed when the command ends by itself, so that it leaves no workers behind. Standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(patience: float, command: Sequence[str]) -> int:
    """Run a command and return its exit code as a shell gives it.

    Args:
        patience: Seconds between asking and killing.
        command: Program and arguments.
    """
    # A signal to this process must not leave the command alone; a handler, because "ignore" would be inherited.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_dies_with_parent())
    threading.Thread(target=_end_with_owner, args=(child.pid, patience), daemon=True).start()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet, so the group's number is still its own
    _signal_group(child.pid, signal.SIGKILL)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _dies_with_parent() -> Callable[[], object] | None:
    """Return what makes the kernel kill the command when this process is killed; None where it cannot."""
    if sys.platform != "linux":
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_owner(pid: int, patience: float) -> None:
    """Wait until the owner is gone, then end the command: asked first, then killed."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)  # the command alone, which ends its workers in its own order
    threading.Event().wait(patience)
    _signal_group(pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
