"""Both dashboards on loopback, for the stores of one work directory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from evaluation.errors import ConfigError, LineageError

_HOST = "127.0.0.1"
_PATIENCE_SECONDS = 180.0


def serve(work_dir: Path, *, mlflow_port: int, prefect_port: int) -> None:
    """Run MLflow's and Prefect's servers until interrupted; both end with this process.

    Args:
        work_dir: Of the runs to look at.
        mlflow_port: Of MLflow.
        prefect_port: Of Prefect.

    Raises:
        ConfigError: The work directory holds no runs, or a port is taken.
        LineageError: A server did not start.
    """
    store = work_dir / "mlflow.db"
    if not store.is_file():
        raise ConfigError(
            f"ui: {str(work_dir)!r} holds no runs. Give the work directory of a run with --work-dir, or make one: "
            "preceptor train-teacher configs/demo.yaml"
        )
    for port in (mlflow_port, prefect_port):
        _check_free(port)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment["PREFECT_UI_API_URL"] = environment["PREFECT_API_URL"] = f"http://{_HOST}:{prefect_port}/api"
    commands = {
        "MLflow": [
            *(sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(mlflow_port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{store.resolve()}"),
        ],
        "Prefect": [sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(prefect_port)],
    }
    addresses = {"MLflow": f"http://{_HOST}:{mlflow_port}", "Prefect": f"http://{_HOST}:{prefect_port}"}
    # A terminated `preceptor ui` must take its servers along, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with open(work_dir / "dashboards.log", "ab") as log:
        processes = {
            name: subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            for name, command in commands.items()
        }
        try:
            for name, process in processes.items():
                _wait_until_up(name, process, addresses[name], work_dir / "dashboards.log")
                sys.stdout.write(f"{name:8s}{addresses[name]}\n")
            sys.stdout.write("Press Ctrl-C to stop.\n")
            sys.stdout.flush()
            while all(process.poll() is None for process in processes.values()):
                time.sleep(0.5)
        except KeyboardInterrupt:
            pass
        finally:
            for process in processes.values():
                _stop(process)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        if probe.connect_ex((_HOST, port)) == 0:
            raise ConfigError(
                f"ui: port {port} is taken on {_HOST}. Give others with --mlflow-port and --prefect-port."
            )


def _wait_until_up(name: str, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return once a server answers."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise LineageError(f"ui: {name} did not start on {address}; its last words are in {str(log)!r}.")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
