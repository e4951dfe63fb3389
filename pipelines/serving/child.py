"""A child process under the guard, and the command line of vLLM's OpenAI server."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from evaluation.checkpoints import resolve_model
from evaluation.engines.vllm_options import VllmOptions, allowed_rank
from evaluation.errors import ServeError
from pipelines.serving.config import ServeConfig

LOOPBACK = "127.0.0.1"
BASE = "preceptor-base"
"""vLLM's name for the student without an adapter; no client is let through to it."""
_GUARD = Path(__file__).with_name("guard.py")
_PATIENCE_SECONDS = 10.0
_CPU_KV_CACHE_GB = 1.0
_TAIL_BYTES = 20_000

_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the probes' reference uses the cores as well
    "OMP_WAIT_POLICY": "PASSIVE",
}
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # two processes instead of three; starts in 27 s, not 38


class Child:
    """A running command that ends when this process does."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        """Use `start`."""
        self._process = process

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """Start a command with its output appended to a file."""
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(_GUARD), str(_PATIENCE_SECONDS), *command),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=file,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which ends the child in its own order
            )
        return cls(process)

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Return the exit code once the command has ended."""
        return await self._process.wait()

    async def stop(self) -> None:
        """End the command and all that it started; return when they are gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), 2 * _PATIENCE_SECONDS)
            return
        with suppress(ProcessLookupError):
            self._process.kill()  # a guard that hangs; the kernel then kills the command
        await self._process.wait()


def vllm_command(config: ServeConfig, model: str, rank: int, modules: Sequence[str], port: int) -> list[str]:
    """Return the command line of vLLM's server.

    Args:
        config: What is served.
        model: Of the student, as `load_checkpoint` takes it.
        rank: Largest rank of the adapters, in [1, 512].
        modules: Ends of names of the layers that adapters may have. Without them vLLM wraps the output head as well,
            and a request for the prompt's log-probabilities kills it on a CPU (seen with 0.32).
        port: On loopback.
    """
    options = config.options.engine
    command = [
        # The module: `vllm serve` looks for a distribution called vllm, and the CPU build has another name.
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model(model)),
        *("--served-model-name", BASE, "--host", LOOPBACK, "--port", str(port), "--dtype", config.dtype),
        *("--generation-config", "vllm", "--seed", "0", "--disable-uvicorn-access-log", "--disable-log-stats"),
        *("--enable-lora", "--max-lora-rank", str(allowed_rank(rank)), "--lora-target-modules", *modules),
        *("--max-loras", str(options.max_adapters), "--max-cpu-loras", str(2 * options.max_adapters)),
        *("--max-num-seqs", str(options.max_sequences)),
    ]
    return [*command, *_machine_options(options, on_cpu=config.device == "cpu")]


def _machine_options(options: VllmOptions, *, on_cpu: bool) -> list[str]:
    """Return what follows from the machine."""
    told: list[str] = []
    cache = _CPU_KV_CACHE_GB if options.kv_cache_gb is None and on_cpu else options.kv_cache_gb
    if cache is not None:
        told += ["--kv-cache-memory-bytes", str(int(cache * 1e9))]
    if not on_cpu:
        told += ["--gpu-memory-utilization", str(options.gpu_memory_share)]
    if options.max_model_tokens is not None:
        told += ["--max-model-len", str(options.max_model_tokens)]
    if not (not on_cpu if options.compiled is None else options.compiled):
        told.append("--enforce-eager")
    if not options.prefix_caching:
        told.append("--no-enable-prefix-caching")
    return told


def vllm_environment(key: str, *, device: str, hidden: str | None) -> dict[str, str]:
    """Return the environment of vLLM's server; its key is there, because everybody sees a command line.

    Args:
        key: That the server asks for.
        device: `cpu` or `cuda`.
        hidden: Variable with the clients' key, which is none of vLLM's business.
    """
    kept = {name: value for name, value in os.environ.items() if name != hidden}
    ours = _ENVIRONMENT | (_CPU_ENVIRONMENT if device == "cpu" else {})
    return {**ours, **kept, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_API_KEY": key}


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def last_words(log: Path) -> str:
    """Return the last line of a log that names an error, or its last line at all."""
    try:
        text = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return "nothing"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["nothing"])[-1][-300:]


def check_vllm() -> None:
    """Refuse to start without vLLM.

    Raises:
        ServeError: It is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        from evaluation.engines.vllm_guards import INSTALL_HINT

        raise ServeError(f"serve: vLLM is not installed. {INSTALL_HINT}.")
