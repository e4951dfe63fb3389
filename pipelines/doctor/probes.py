"""Run as a script: looks at one library from inside and prints what it saw as JSON. Imports nothing of Preceptor."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "preceptor-doctor: "
"""Begins the line with the answer, among whatever libraries print."""

STORE_VARIABLE = "PRECEPTOR_DOCTOR_STORE"
"""Environment variable with the URI of a database; it may hold a password, so it is no argument."""

_SIZE = 1024
"""Rows and columns of the matrices."""
_REPEATS = 5


def gpus() -> dict[str, Any]:
    """Return name, memory and driver of each NVIDIA GPU as the driver tells them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr).strip() or f"nvidia-smi: exit code {done.returncode}")
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return {"gpus": [dict(zip(("name", "memory", "driver"), row, strict=False)) for row in rows]}


def torch() -> dict[str, Any]:
    """Return torch's build and how fast and how exactly it multiplies matrices."""
    import torch as library

    device_count = library.cuda.device_count() if library.cuda.is_available() else 0
    devices = [library.cuda.get_device_properties(i) for i in range(device_count)]
    error = ""
    if library.version.cuda and not devices:
        try:
            library.zeros(1, device="cuda")
        except (RuntimeError, AssertionError) as failure:
            error = str(failure)
    return {
        "version": library.__version__,
        "cuda": library.version.cuda,
        "threads": library.get_num_threads(),
        "capability": library.backends.cpu.get_cpu_capability(),
        "cpu": _matmul(library, "cpu"),
        "devices": [{"name": d.name, "bytes": d.total_memory} for d in devices],
        "gpu": _matmul(library, "cuda") if devices else None,
        "cuda_error": error,
    }


def _matmul(library: Any, device: str) -> dict[str, float]:
    """Return the rate of a product in float32, in GFLOP/s, and its relative error against float64."""
    generator = library.Generator().manual_seed(0)
    left, right = (library.rand(_SIZE, _SIZE, generator=generator).to(device) for _ in range(2))
    product = left @ right
    exact = left.double() @ right.double()
    seconds = []
    for _ in range(_REPEATS):
        if device == "cuda":
            library.cuda.synchronize()
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            library.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    error = ((product.double() - exact).abs() / exact).max().item()
    return {"gflops": 2 * _SIZE**3 / min(seconds) / 1e9, "error": error}


def prefect() -> dict[str, Any]:
    """Return whether Prefect's server can be imported, and whether a configured one answers."""
    try:
        importlib.import_module("prefect.server.api.server")
        server_error = ""
    except Exception as failure:
        server_error = _in_short(failure)
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    health = None
    if url is not None:
        unwell = get_client(sync_client=True).api_healthcheck()
        health = "" if unwell is None else _in_short(unwell)
    return {"server_error": server_error, "url": url, "health_error": health}


def vllm() -> dict[str, Any]:
    """Return the device that the installed vLLM runs on, and the compiled extension that it loads."""
    _ = importlib.import_module("vllm").LLM  # imported at first use only
    platform = importlib.import_module("vllm.platforms").current_platform
    platform.import_kernels()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        files = {line.split()[-1].rpartition("/")[2] for line in maps if "/vllm/" in line}
    return {"device": platform.device_type, "extensions": sorted(f for f in files if f.startswith("_C"))}


def imports(*names: str) -> dict[str, Any]:
    """Return why each module cannot be imported; empty where it can."""
    found = {}
    for name in names:
        try:
            importlib.import_module(name)
            found[name] = ""
        except Exception as failure:
            found[name] = _in_short(failure)
    return found


def mlflow(file: str = "") -> dict[str, Any]:
    """Return how a database's schema fits the installed MLflow. Reads only: opening it as usual could migrate it.

    Args:
        file: Of an SQLite database; another one is named by the variable `STORE_VARIABLE`.
    """
    import sqlalchemy
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _get_alembic_config, _verify_schema

    if file:
        address = f"{Path(file).resolve().as_uri()}?mode=ro"
        engine = sqlalchemy.create_engine("sqlite://", creator=lambda: sqlite3.connect(address, uri=True))
    else:
        engine = sqlalchemy.create_engine(os.environ[STORE_VARIABLE])
    if not sqlalchemy.inspect(engine).has_table("alembic_version"):
        return {"state": "empty", "detail": ""}
    with engine.connect() as connection:
        revision = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
    try:
        _verify_schema(engine)
    except MlflowException as failure:
        try:
            ScriptDirectory.from_config(_get_alembic_config(db_url="")).get_revision(str(revision))
        except CommandError:
            return {"state": "newer", "detail": str(revision)}
        return {"state": "older", "detail": str(failure)}
    return {"state": "ok", "detail": str(revision)}


def _in_short(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {' '.join(str(failure).split())}"[:300]


_PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "gpus": gpus,
    "torch": torch,
    "prefect": prefect,
    "vllm": vllm,
    "imports": imports,
    "mlflow": mlflow,
}


def main() -> None:
    """Run the probe named first on the command line."""
    name, *arguments = sys.argv[1:]
    answer: dict[str, Any]
    try:
        answer = {"data": _PROBES[name](*arguments)}
    except Exception as failure:
        answer = {"error": _in_short(failure)}
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
