"""Processes: environment and allocator, the lock on a work directory, child processes, Prefect's server, dashboards."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager, nullcontext, suppress
from functools import cache
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from filelock import FileLock, Timeout

from evaluation.common.data import did_you_mean
from evaluation.common.errors import ConfigError, LineageError, PreceptorError
from evaluation.common.storage import disk_problem, sqlite_uri

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
    shipped = {name: file for name, file in shipped.items() if not name.startswith("kinds/")}  # which are no runs
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


FlowFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of any flow, for its store, student, device and dtype.",
        callback=find_optional_config,
    ),
]
RoleOption = Annotated[Literal["student", "teacher"], typer.Option("--role", help="Whose versions.")]


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
        _leave_damaged(home / "prefect.db")
        if os.environ.setdefault("PREFECT_HOME", str(home)) == str(home) and {*"%?"} & {*str(home)}:
            database = f"sqlite+aiosqlite:{sqlite_uri(home / 'prefect.db').partition(':')[2]}"  # Prefect quotes none
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


def _leave_damaged(database: Path) -> None:
    """Put a damaged database of Prefect's aside: nothing is resumed from it, and its server does not start with it."""
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database)) as db:
            whole = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError as error:
        whole = isinstance(error, sqlite3.OperationalError)  # such as one that is in use
    if not whole:
        database.rename(f"{database}.damaged")
        for rest in ("-wal", "-shm"):
            Path(f"{database}{rest}").unlink(missing_ok=True)
        sys.stderr.write(f"{database} is damaged: left as {database.name}.damaged, and Prefect begins a new one\n")


_NEEDED = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|TZ|TMPDIR|VIRTUAL_ENV|DO_NOT_TRACK|(HTTPS?|NO)_PROXY"
    r"|(LC|LD|XDG|CUDA|NVIDIA|NCCL|GLOO|VLLM|HF|TRANSFORMERS|TOKENIZERS|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|FLASHINFER"
    r"|OMP|GOMP|KMP|MKL|OPENBLAS|SSL|MALLOC|PREFECT|MLFLOW)_.*|PYTHON.*)",
    re.IGNORECASE,
)
_SECRET = re.compile(r".*(^|_)(KEY|TOKEN|SECRET|PASS|PASSWORD|PASSWD|CREDENTIALS?|AUTH)(_|$).*", re.IGNORECASE)
HUB_TOKENS = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables that open gated models."""


def inherited(environment: Mapping[str, str], also: Collection[str] = ()) -> dict[str, str]:
    """Return the variables that a child needs, and those in `also`: none of other services, and nothing secret."""
    return {
        name: value
        for name, value in environment.items()
        if name in also or (_NEEDED.fullmatch(name) and not _SECRET.fullmatch(name))
    }


_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_STOP_SECONDS = 10.0


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
    """Have the kernel terminate this new process with its parent; for `preexec_fn` and workers of a pool."""
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


_SERVER = """
import os, signal, socket, sys, threading, uvicorn
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(each, signal.SIG_IGN)
factory = "prefect.server.api.server:create_app"
server = uvicorn.Server(uvicorn.Config(factory, factory=True, log_level="error", lifespan="on"))
def serve():
    try:
        server.run([socket.socket(fileno=int(sys.argv[1]))])
    finally:
        os._exit(not server.started)
thread = threading.Thread(target=serve, daemon=True)
thread.start()
os.read(0, 1)
server.should_exit = True
thread.join(5)
os._exit(0)
"""
"""Prefect's server for one process. Nothing is ever written to its standard input, which ends when that process does,
however it does; signals, which a terminal or a service manager sends to a whole group, are that process's to handle."""
_SERVER_SETTINGS = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
_START_SECONDS = 600.0
"""Patience with a server that starts beside other work; one that has died refuses at once."""


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


_held: dict[Path, Any] = {}
"""Work directories that a command of this process holds for its flow, with its handler of SIGTERM."""


@contextmanager
def flow_process(work_dir: Path) -> Iterator[None]:
    """Hold a work directory for a flow, with Prefect's server for it; import flows inside, not before.

    The server is started unless the user has one, keeps its data in the work directory, and ends with this process.
    Runs that killed processes left behind in it are marked as crashed. BusyError if another process holds the
    directory, LineageError if the server did not start.
    """
    with exclusive(work_dir), ExitStack() as stack:
        prepare_process(work_dir)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        if not PREFECT_API_URL.value():
            home = Path(os.environ["PREFECT_HOME"])
            stack.enter_context(temporary_settings({PREFECT_API_URL: _embedded_server(home)}))
            if home == work_dir.resolve() / "prefect":  # else runs of other work directories are there, too
                _close_stale_flow_runs()
        for name in ("prefect.flow_runs", "prefect.task_runs"):  # Prefect would print own errors a second time
            logging.getLogger(name).addFilter(_is_news)
        _held[work_dir.resolve()] = signal.getsignal(signal.SIGTERM)
        stack.callback(_held.pop, work_dir.resolve())
        yield


@contextmanager
def embedded_flow(work_dir: Path) -> Iterator[str]:
    """Hold a flow's work directory, unless its command does (else BusyError); yield the id of Prefect's run."""
    from prefect.context import get_run_context

    held = _held.get(work_dir.resolve())
    if callable(held):  # Prefect has put another in its place, whose exception is lost where a library swallows it
        with suppress(ValueError):  # signals are for the main thread alone
            signal.signal(signal.SIGTERM, held)
    with exclusive(work_dir) if held is None else nullcontext():
        yield str(get_run_context().flow_run.id)  # type: ignore[union-attr]


@cache
def _embedded_server(home: Path) -> str:
    """Start Prefect's server with its data in a directory, and return its URL; it lives as long as this process."""
    with (
        FileLock(home / "server.lock"),  # two migrations of one database at once break it
        (home / "server.log").open("wb") as log,
        socket.create_server((_HOST, 0)) as listener,
    ):
        fd, port = listener.fileno(), listener.getsockname()[1]
        command = [sys.executable, "-P", "-c", _SERVER, str(fd)]
        environment = {**inherited(os.environ), **_SERVER_SETTINGS}
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[fd]
        )
        listener.close()  # so that a server that ends refuses the request instead of leaving it waiting
        atexit.register(_stop, server)  # when Prefect has sent all that it had queued
        try:
            with closing(HTTPConnection(_HOST, port, timeout=_START_SECONDS)) as client:
                client.request("GET", "/api/health")
                client.getresponse()
        except (OSError, HTTPException) as error:
            raise LineageError(f"Prefect's server did not start: {error}; its log is {log.name!r}.") from error
    return f"http://{_HOST}:{port}/api"


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        server.wait(_STOP_SECONDS)
    server.kill()


def _close_stale_flow_runs() -> None:
    """Mark flow runs that are said to run as crashed: nobody can be running in a work directory that is held here."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    running = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING"]}}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running):
            client.set_flow_run_state(run.id, Crashed(message="The process was killed."), force=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of Prefect's says what the command does not: own errors and signals end it anyway."""
    error = record.exc_info[1] if record.exc_info else None
    own = isinstance(error, PreceptorError) or disk_problem(error) is not None
    said = record.getMessage()
    return not own and "Finished in state" not in said and not said.startswith("Crash detected!")


_DASHBOARD_SECONDS = 180.0


def open_dashboards(
    work_dir: Path,
    *,
    mlflow_port: int,
    prefect_port: int,
    uri: str | None = None,
    links: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Run MLflow's and Prefect's dashboards on loopback until interrupted or terminated; both end with this process.

    Args:
        work_dir: Directory of Prefect's data, and of MLflow's unless `uri` names another store.
        mlflow_port: Of MLflow's dashboard, which is not started for a store that a server shows.
        prefect_port: Of Prefect's dashboard.
        uri: Of the store; None is the one in the work directory.
        links: Returns pages to print, by name.

    Raises:
        ConfigError: The work directory holds no runs, or a port is taken.
        LineageError: A server did not start.
    """
    store, served = work_dir / "mlflow.db", (uri or "").startswith(("http://", "https://"))
    if uri is None and not store.is_file():
        raise ConfigError(
            f"ui: {str(work_dir)!r} holds no runs. Give the work directory of a run with --work-dir, or make one: "
            f"{preceptor('train-teacher', 'configs/demo.yaml', '--work-dir', work_dir)}"
        )
    for port in filter(_is_taken, (prefect_port,) if served else (mlflow_port, prefect_port)):
        raise ConfigError(f"ui: port {port} is taken on {_HOST}. Give others with --mlflow-port and --prefect-port.")
    mlflow = ["mlflow", "server", "--workers", "1", "--backend-store-uri", uri or sqlite_uri(store)]
    servers = {} if served else {"MLflow": (mlflow, mlflow_port)}
    servers |= {"Prefect": (["prefect", "server", "start"], prefect_port)}
    shown = links()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio.run replaces no other, by one that cancels
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_serve_dashboards(servers, work_dir / "dashboards.log", shown))


async def _serve_dashboards(servers: Mapping[str, tuple[list[str], int]], log: Path, links: Mapping[str, str]) -> None:
    """Run servers, given by name as module with arguments and port, until one of them ends; print links to pages."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    api = f"http://{_HOST}:{servers['Prefect'][1]}/api"
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PREFECT_UI_API_URL": api, "PREFECT_API_URL": api}
    environment = {**inherited(os.environ), **environment}
    async with AsyncExitStack() as stack:
        running = []
        for module, port in servers.values():
            command = [sys.executable, "-m", *module, "--host", _HOST, "--port", str(port)]
            running.append(await stack.enter_async_context(child(command, environment, log)))
        for (name, (_, port)), process in zip(servers.items(), running, strict=True):
            await _wait_until_up(name, process, port, log)
            sys.stdout.write(f"{name:8s}http://{_HOST}:{port}\n")
        sys.stdout.write("".join(f"Runs of {name}: {link}\n" for name, link in links.items()))
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
