"""A flow's run as Prefect shows it: its name, its log, a report, and the state that it ends in."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

from evaluation.common.storage import write_atomically
from pipelines.process import embedded_flow, prepare_process
from pipelines.terminal import LOG

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import State

_Result = TypeVar("_Result")
Ending = Literal["COMPLETED", "FAILED", "CANCELLED"]
"""Type of a final state: green, red or grey in Prefect's pages."""


@contextmanager
def entered(work_dir: Path, name: str) -> Iterator[str]:
    """Hold a flow's work directory, name its run, and send what it says to the run's log; yield the run's id.

    Raises:
        BusyError: Another process holds the directory.
    """
    from prefect.logging.handlers import APILogHandler

    prepare_process()  # a worker starts flows without it
    with embedded_flow(work_dir) as flow_run:
        name_run(name)
        handler = APILogHandler()
        handler.addFilter(lambda record: bool(record.__dict__.setdefault("flow_run_id", flow_run)))  # in any thread
        LOG.addHandler(handler)
        try:
            _close_dead_run(work_dir, flow_run)
            yield flow_run
        finally:
            LOG.removeHandler(handler)


def _close_dead_run(work_dir: Path, flow_run: str) -> None:
    """Mark the run that a dead process left behind in a work directory as crashed, and note the one that holds it.

    A worker reports a flow's process that SIGKILL or SIGTERM ended. If it died with it, as in a power cut, or there is
    none, nobody does, and a server of one's own would show the run as running for ever.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    file = work_dir / "prefect" / "flow-run.json"
    try:
        last: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = {"flow_run": flow_run}
    if last["flow_run"] != flow_run:  # else a retry of Prefect's
        with get_client(sync_client=True) as client, suppress(ObjectNotFound):  # the last one was on another server
            run = client.read_flow_run(UUID(last["flow_run"]))
            if run.state is not None and run.state.type.value in ("PENDING", "RUNNING", "CANCELLING"):
                message = (
                    f"Process {last['process']} on {last['host']} died: its work directory was free for flow run "
                    f"{flow_run}, which goes on from there."
                )
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)
                LOG.info(f"flow run {run.name} of a process that died is marked as crashed")
    note = {"flow_run": flow_run, "process": os.getpid(), "host": socket.gethostname()}
    write_atomically(file, json.dumps(note))


def name_run(name: str) -> None:
    """Give the flow run that goes on here a name; without one nothing is done."""
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_name(context.flow_run.id, name)


def show_report(key: str, markdown: str, description: str) -> None:
    """Show a report on the run's page; those of one `key` are a series on Prefect's page of artifacts."""
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(markdown, key, description)


def show_link(key: str, link: str, description: str) -> None:
    """Show an address on the run's page; see `show_report`."""
    from prefect.artifacts import create_link_artifact

    create_link_artifact(link, key=key, description=description)


def ended(result: _Result, ending: Ending, name: str | None, message: str) -> State[_Result]:
    """Return the final state of a run: a name in the colour of its type, and why; None is Prefect's own name."""
    from prefect.client.schemas.objects import State, StateType

    return State(type=StateType(ending), name=name, message=message, data=result)


def result_of(flow: Flow[..., Any], *arguments: Any) -> Any:
    """Run a flow here and return its result, whatever state it ends in; what it raises is raised."""
    state: Any = flow(*arguments, return_state=True)
    found = state.result(raise_on_failure=False)
    if isinstance(found, BaseException):
        raise found
    return found


def page_of_run(flow_run: str) -> str:
    """Return the address of a flow run's page on Prefect's server; empty where that is not known."""
    from prefect.utilities.urls import url_for

    return url_for("flow-run", UUID(flow_run)) or ""
