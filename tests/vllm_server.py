"""vLLM's own OpenAI server on loopback, for tests that need a real endpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.process import end_with_parent, free_port

READY_SECONDS = 400.0
"""A start takes 30 s on two idle cores and more than a minute on busy ones."""
MICRO_TEACHER = "micro-teacher"
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="session")
def vllm_micro_teacher() -> Iterator[str]:
    """Base URL of a server that holds the shipped micro teacher under the name `MICRO_TEACHER`.

    It is gone afterwards, even when the tests are killed.
    """
    from evaluation.common.checkpoints import resolve_model

    port = free_port()
    # The module, since `vllm serve` looks for a distribution called vllm, and the CPU build has another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model(MICRO_TEACHER)]
    command += ["--served-model-name", MICRO_TEACHER, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--max-num-seqs", "16", "--generation-config", "vllm"]
    # Without this a weak model fills its completion with blanks. (The `guidance` backend of vLLM 0.32 rejected this
    # model's own tokens, and the server answered 500.)
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    with tempfile.TemporaryDirectory(prefix="vllm-") as directory:
        log_path = Path(directory) / "log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,
                preexec_fn=end_with_parent,  # so that a kill of the tests ends the server as well
            )
        try:
            _await_health(process, f"http://127.0.0.1:{port}/health", log_path)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


def _await_health(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=2)
            return
        time.sleep(0.5)
    state = "is still starting" if process.poll() is None else f"ended with {process.returncode}"
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-40:])
    raise AssertionError(f"vLLM {state}; the end of its log:\n{tail}")
