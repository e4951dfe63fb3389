"""The embedded Prefect server: what a killed run leaves behind is put in order before the next one starts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from evaluation.errors import PreceptorError

if TYPE_CHECKING:
    import psutil  # type: ignore[import-untyped]

LOCK = "run.lock"
"""File in the work directory that a run holds."""
_RECORD = "prefect-server.json"
_MARK = "prefect.server.api.server"


class BusyError(PreceptorError, RuntimeError):
    """Another run is using the work directory."""


@contextmanager
def exclusive(work_dir: Path) -> Iterator[None]:
    """Hold the work directory; the kernel frees it when the process dies, however it dies.

    Raises:
        BusyError: Another process holds it.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work_dir / LOCK)
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout as error:
        raise BusyError(
            f"work directory {str(work_dir)!r} is in use by another run. Wait until it ends, or give another "
            "directory with --work-dir."
        ) from error


@contextmanager
def embedded_flow(work_dir: Path, name: str) -> Iterator[str]:
    """Hold the work directory for the flow that runs here, what killed runs left put in order; yield its run's id.

    Args:
        work_dir: Of the flow.
        name: Of the flow.

    Raises:
        BusyError: Another process holds it.
    """
    from prefect.context import get_run_context
    from prefect.settings import PREFECT_API_URL

    with exclusive(work_dir):
        stop_orphans(work_dir)
        record_server(work_dir)
        flow_run = str(get_run_context().flow_run.id)  # type: ignore[union-attr]
        if not PREFECT_API_URL.value():  # a server of the user's has runs of other work directories too
            close_stale_flow_runs(name, flow_run)
        yield flow_run


def left_servers(work_dir: Path) -> list[psutil.Process]:
    """Return the embedded servers that other processes noted for this directory and that are alive."""
    import psutil

    try:
        recorded = json.loads((work_dir / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    alive = []
    for entry in recorded:
        try:
            process = psutil.Process(entry["pid"])
            # A process number is used again one day; start time and command make sure that it is the one noted.
            noted = process.create_time() == entry["created"] and _MARK in " ".join(process.cmdline())
            # Several flows of one process share its server.
            if noted and process.ppid() != os.getpid():
                alive.append(process)
        except psutil.Error:
            continue
    return alive


def stop_orphans(work_dir: Path) -> int:
    """Stop embedded servers that killed runs of this work directory left running; return how many."""
    import psutil

    stopped = 0
    for process in left_servers(work_dir):
        try:
            process.terminate()
            stopped += 1
        except psutil.Error:
            continue
    (work_dir / _RECORD).unlink(missing_ok=True)
    return stopped


def record_server(work_dir: Path) -> None:
    """Note the embedded server of this process, so that `stop_orphans` finds it after a kill."""
    import psutil

    children = []
    for child in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if _MARK in " ".join(child.cmdline()):
                children.append({"pid": child.pid, "created": child.create_time()})
        except psutil.Error:
            continue
    (work_dir / _RECORD).write_text(json.dumps(children))


def close_stale_flow_runs(flow_name: str, own_id: str) -> int:
    """Mark flow runs of this flow that are said to run, but are not ours, as crashed; return how many.

    Only for the embedded server of a work directory that this process holds: nobody else can be running there.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.states import Crashed

    query: dict[str, Any] = {
        "flow_filter": FlowFilter.model_validate({"name": {"any_": [flow_name]}}),
        "flow_run_filter": FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}}),
    }
    with get_client(sync_client=True) as client:
        stale = [run for run in client.read_flow_runs(**query) if str(run.id) != own_id]
        for run in stale:
            client.set_flow_run_state(run.id, Crashed(message="The process was killed."), force=True)
    return len(stale)


class _WithoutTraceback(logging.Filter):
    """Takes the traceback off Prefect's lines about our own errors; whatever else fails keeps it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], PreceptorError):
            record.exc_info = record.exc_text = None
        return True


def hide_own_tracebacks() -> None:
    """Let Prefect report the project's own errors in a line, since their text is meant for the user as it is."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_WithoutTraceback())
