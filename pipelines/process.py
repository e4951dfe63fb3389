"""Settings of the process that must be in place before heavy libraries load: memory allocator, threads, quiet logs."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

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
    kernel at every tensor, which made small training loops several times faster.

    Args:
        work_dir: Where Prefect keeps its database and results; None leaves Prefect's own default.
    """
    for name, value in {**_QUIET, **_PREFECT}.items():
        os.environ.setdefault(name, value)
    if work_dir is not None:
        home = work_dir.resolve() / "prefect"
        home.mkdir(parents=True, exist_ok=True)  # Prefect's server does not start without it
        os.environ.setdefault("PREFECT_HOME", str(home))
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
