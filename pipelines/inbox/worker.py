"""A child process in which files are read: one that asks too much ends the child, and the other files go on."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from pydantic import Field

from evaluation.common.data import Frozen

_Result = TypeVar("_Result")
MEGABYTE = 10**6
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""Of the environment: what reads hostile files is given no keys."""
_START_SECONDS = 120.0
_NEARLY = 0.9
_STATUS = Path("/proc/self/status")


class ReadingLimits(Frozen):
    """What a file may take; one that takes more is refused with the limit's name, and the others are read."""

    seconds: float = Field(default=60.0, gt=0.0, le=86_400.0)
    """Time to read it, in seconds, in (0, 86400]."""
    memory_mb: int = Field(default=2_000, ge=100, le=1_000_000)
    """Memory to read it, in MB (10^6 bytes), in [100, 1000000]; enforced on Linux."""
    file_mb: int = Field(default=50, ge=1, le=1_000_000)
    """Its size, in MB, in [1, 1000000]."""
    documents: int = Field(default=10_000, ge=1, le=10_000_000)
    """Documents that it holds, after splitting, in [1, 10000000]."""

    def exceeded(self, name: str, what: str) -> str:
        """Return the reason for refusing a file that, for example, `has more than {} MB`."""
        limit = what.format(f"{getattr(self, name):,g}")
        return f"{limit} (limits.{name}); split it, or raise the limit in a night's file and give that with --config"


class ExceededError(Exception):
    """A file takes more than a limit allows; the message is the reason alone."""


class Worker:
    """Calls functions in a child process, which is started when it is needed and replaced when it had to be ended."""

    def __init__(self, limits: ReadingLimits) -> None:
        self._limits = limits
        self._child: tuple[Connection, Callable[[], object]] | None = None

    def call(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Return what a function of a module returns; it and its arguments are pickled.

        Raises:
            ExceededError: It exceeded a limit or raised an exception; the child has ended.
        """
        if self._child is None:
            self._child = self._start()
        connection, end = self._child
        reason = self._limits.exceeded("memory_mb", "needs more than {} MB of memory")
        try:
            connection.send((function, arguments))
            if connection.poll(_START_SECONDS):  # what it imports is no part of the file
                connection.recv()
            if not connection.poll(self._limits.seconds):
                reason = self._limits.exceeded("seconds", "takes more than {} seconds to read")
            else:
                answer = connection.recv()
                if not isinstance(answer, BaseException):
                    return answer  # type: ignore[no-any-return]
                reason = reason if isinstance(answer, MemoryError) else str(answer)
        except (EOFError, ConnectionError):
            pass  # it was killed, or a library gave up without memory
        end()
        self._child = None
        raise ExceededError(reason)

    def _start(self) -> tuple[Connection, Callable[[], object]]:
        from pipelines.process import end_with_parent

        ours, theirs = socket.socketpair()
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
        code = f"from {__name__} import serve; serve({theirs.fileno()}, {self._limits.memory_mb * MEGABYTE})"
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, with which the child ends
                preexec_fn=end_with_parent,
            )
        connection = Connection(ours.detach())
        return connection, weakref.finalize(self, _end, process, connection)


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    process.kill()
    process.wait()
    connection.close()


def serve(descriptor: int, memory: int) -> None:
    """Answer calls until the connection closes; each may take `memory` bytes more than the process has then."""
    connection = Connection(descriptor)
    answer: object
    with suppress(EOFError, ConnectionError):
        while True:
            function, arguments = connection.recv()
            with suppress(ValueError, OSError):  # macOS has no such limit
                resource.setrlimit(resource.RLIMIT_AS, (_address_space("VmSize") + memory, resource.RLIM_INFINITY))
            connection.send(None)
            try:
                answer = function(*arguments)
            except ExceededError as error:
                answer = error
            except Exception as error:
                reason = f"cannot be read: {type(error).__name__}: {error}"
                answer = MemoryError() if is_out_of_memory(error) else ExceededError(reason)
            connection.send(answer)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error comes from a lack of memory; libraries in C and readers call it by other names."""
    while error is not None and not isinstance(error, MemoryError):
        error = error.__cause__ or error.__context__
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return error is not None or (limit > 0 and _address_space("VmPeak") > _NEARLY * limit)


def _address_space(name: str) -> int:
    """Return a size of this process in bytes; 0 where the system has no such figure."""
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
