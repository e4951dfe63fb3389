"""Processes: environment and allocator, the lock on a work directory, child processes, Prefect's server, dashboards."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from filelock import FileLock, Timeout

from evaluation.common.errors import ConfigError, InputError, LineageError, PreceptorError
from evaluation.common.mistakes import did_you_mean
from evaluation.common.storage import sqlite_uri

WorkDir = Annotated[Path, typer.Option("--work-dir", help="Directory for records, adapters and the embedded stores.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the result for scripts to this file.")]

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
"""The configurations that ship."""


def find_config(path: Path) -> Path:
    """Return a configuration file: the one given, or else the packaged one of that name, which is said in a line.

    Raises:
        ConfigError: There is neither; the message lists those that ship.
    """
    if path.exists():
        return path
    shipped = {file.relative_to(CONFIGS).as_posix(): file for file in sorted(CONFIGS.rglob("*.yaml"))}
    shipped |= {name.rpartition("/")[2]: file for name, file in shipped.items()}
    wanted = path.as_posix().removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if found := shipped.get(wanted):
        sys.stderr.write(f"{path} is not in this directory; reading the packaged {found}\n")
        return found
    hint, names = did_you_mean(wanted.rpartition("/")[2], shipped), sorted({file.stem for file in shipped.values()})
    raise ConfigError(
        f"config {str(path)!r} cannot be read: no such file{hint or '.'} Give the path of a YAML file, or one that "
        f"ships: {', '.join(names)}."
    )


def find_optional_config(path: Path | None) -> Path | None:
    """Return the same, or None for none."""
    return None if path is None else find_config(path)


def preceptor(*arguments: object) -> str:
    """Return a command to paste into a shell, with the path of `preceptor` where it is not on PATH."""
    script = Path(sys.argv[0] if Path(sys.argv[0]).name == "preceptor" else Path(sys.executable).parent / "preceptor")
    found, program = shutil.which("preceptor"), "preceptor"
    if script.is_file() and (found is None or not script.samefile(found)):
        program = os.path.relpath(script) if script.absolute().is_relative_to(Path.cwd()) else str(script.absolute())
    return shlex.join([program, *map(str, arguments)])


# glibc's names for these are not in any Python module (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "KINETO_LOG_LEVEL": "6",
    "MPLBACKEND": "Agg",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "20000",
}
"""Defaults for environment variables: no telemetry, no noise. Waiting threads spin for some 50 us, which bridges the
gap between two small operations (a bank of the micro student took 0.13 s an adapter, not 0.20), and then sleep."""

_PREFECT = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
}
"""With one transaction for each event, Prefect's SQLite falls behind its tasks and answers 503."""


def prepare_process(work_dir: Path | None = None) -> None:
    """Set allocator and environment; call it before torch, prefect or mlflow are imported.

    What the user has set in the environment stays. Freed memory is kept by the process instead of going back to the
    kernel at every tensor, which made small training loops several times faster. Prefect keeps its database and results
    in the work directory; None leaves Prefect's own default.
    """
    for name, value in {**_QUIET, **_PREFECT}.items():
        os.environ.setdefault(name, value)
    if work_dir is not None:
        home = work_dir.resolve() / "prefect"
        home.mkdir(parents=True, exist_ok=True)  # Prefect's server does not start without it
        if os.environ.setdefault("PREFECT_HOME", str(home)) == str(home) and "%" in str(home):  # Prefect quotes none
            database = sqlite_uri(home / "prefect.db").replace("sqlite", "sqlite+aiosqlite", 1)
            os.environ.setdefault("PREFECT_API_DATABASE_CONNECTION_URL", database)
        # Prefect derives these from the home in its own defaults, not from the one in the environment.
        os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(home / "storage"))
        os.environ.setdefault("PREFECT_MEMO_STORE_PATH", str(home / "memo_store.toml"))
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):  # musl has neither the file nor the function
            return
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 1 << 28)


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STOP_SECONDS = 10.0


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with a message for the project's own errors; exit code 2: misuse, nothing was started; else 1."""
    atexit.register(gc.freeze)  # Python's last collection, over MLflow's modules, would take a second of CPU time
    try:
        yield
    except PreceptorError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2 if isinstance(error, ConfigError | InputError) else 1)


@asynccontextmanager
async def child(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command, its output appended to a file; afterwards it and its workers are gone."""
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for this process, which ends the child in its own order
            preexec_fn=end_with_parent,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def end_with_parent() -> None:
    """Have the kernel terminate a new child when this process is killed; for `preexec_fn`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_HOST = "127.0.0.1"


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0


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
    try:
        with FileLock(work_dir / "run.lock", timeout=0):
            yield
    except Timeout as error:
        raise BusyError(
            f"work directory {str(work_dir)!r} is in use by another run. Wait until it ends, or give another "
            "directory with --work-dir."
        ) from error


@contextmanager
def embedded_flow(work_dir: Path, name: str) -> Iterator[str]:
    """Hold a flow's work directory and tidy up after killed runs; yield the id of Prefect's run.

    Raises:
        BusyError: Another process holds it.
    """
    from prefect.context import get_run_context
    from prefect.settings import PREFECT_API_URL

    with exclusive(work_dir):
        _stop_orphans(work_dir)
        _record_server(work_dir)
        flow_run = str(get_run_context().flow_run.id)  # type: ignore[union-attr]
        if not PREFECT_API_URL.value():  # a server of the user's has runs of other work directories too
            _close_stale_flow_runs(name, flow_run)
        yield flow_run


def _stop_orphans(work_dir: Path) -> None:
    """Stop embedded servers that killed runs of this work directory left running."""
    import psutil  # type: ignore[import-untyped]

    try:
        recorded = json.loads((work_dir / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for entry in recorded:
        with suppress(psutil.Error):
            process = psutil.Process(entry["pid"])
            # A process number is used again one day; start time and command make sure that it is the one noted.
            noted = process.create_time() == entry["created"] and _MARK in " ".join(process.cmdline())
            if noted and process.ppid() != os.getpid():  # several flows of one process share its server
                process.terminate()


def _record_server(work_dir: Path) -> None:
    """Note the embedded server of this process, so that `_stop_orphans` finds it after a kill."""
    import psutil

    servers = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if _MARK in " ".join(process.cmdline()):
                servers.append({"pid": process.pid, "created": process.create_time()})
    (work_dir / _RECORD).write_text(json.dumps(servers))


def _close_stale_flow_runs(flow_name: str, own_id: str) -> None:
    """Mark flow runs of this flow that are said to run, but are not ours, as crashed.

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
        for run in client.read_flow_runs(**query):
            if str(run.id) != own_id:
                client.set_flow_run_state(run.id, Crashed(message="The process was killed."), force=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of Prefect's says what the command does not: its own errors end the command anyway."""
    own = bool(record.exc_info) and isinstance(record.exc_info[1], PreceptorError)  # type: ignore[index]
    return not own and "Finished in state Failed(" not in record.getMessage()


def prepare_flow(work_dir: Path) -> None:
    """Prepare this process for a flow; BusyError if another holds the work directory.

    The report of the project's own errors is left to the command: Prefect would print them a second time.
    """
    with exclusive(work_dir):
        prepare_process(work_dir)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_is_news)


_DASHBOARD_SECONDS = 180.0


def open_dashboards(work_dir: Path, *, mlflow_port: int, prefect_port: int) -> None:
    """Run MLflow's and Prefect's dashboards on loopback until interrupted or terminated; both end with this process.

    Raises:
        ConfigError: The work directory holds no runs, or a port is taken.
        LineageError: A server did not start.
    """
    store = work_dir / "mlflow.db"
    if not store.is_file():
        raise ConfigError(
            f"ui: {str(work_dir)!r} holds no runs. Give the work directory of a run with --work-dir, or make one: "
            f"{preceptor('train-teacher', 'configs/demo.yaml', '--work-dir', work_dir)}"
        )
    for port in filter(_is_taken, (mlflow_port, prefect_port)):
        raise ConfigError(f"ui: port {port} is taken on {_HOST}. Give others with --mlflow-port and --prefect-port.")
    mlflow = ["mlflow", "server", "--workers", "1", "--backend-store-uri", sqlite_uri(store)]
    servers = {"MLflow": (mlflow, mlflow_port), "Prefect": (["prefect", "server", "start"], prefect_port)}
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_serve_dashboards(servers, work_dir / "dashboards.log"))


async def _serve_dashboards(servers: Mapping[str, tuple[list[str], int]], log: Path) -> None:
    """Run servers, given by name as module with arguments and port, until one of them ends."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    api = f"http://{_HOST}:{servers['Prefect'][1]}/api"
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PREFECT_UI_API_URL": api, "PREFECT_API_URL": api}
    async with AsyncExitStack() as stack:
        running = []
        for module, port in servers.values():
            command = [sys.executable, "-m", *module, "--host", _HOST, "--port", str(port)]
            running.append(await stack.enter_async_context(child(command, {**os.environ, **environment}, log)))
        for (name, (_, port)), process in zip(servers.items(), running, strict=True):
            await _wait_until_up(name, process, port, log)
            sys.stdout.write(f"{name:8s}http://{_HOST}:{port}\n")
        sys.stdout.write("Press Ctrl-C to stop.\n")
        sys.stdout.flush()
        await asyncio.wait([asyncio.ensure_future(p.wait()) for p in running], return_when=asyncio.FIRST_COMPLETED)


async def _wait_until_up(name: str, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    deadline = time.monotonic() + _DASHBOARD_SECONDS
    while time.monotonic() < deadline and process.returncode is None:
        if _is_taken(port):
            return
        await asyncio.sleep(0.2)
    raise LineageError(f"ui: {name} did not start on port {port}; its log is {str(log)!r}.")
