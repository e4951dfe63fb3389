"""The engine of `preceptor serve`: a child server on loopback that takes adapters in and out while it runs.

It is vLLM's OpenAI server, or where vLLM is not installed `pipelines.serve.embedded`, which has the same few paths.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import httpx
from anyio import BrokenWorkerProcess, to_process

from evaluation.common.checkpoints import ready_model
from evaluation.common.errors import ConfigError, ServeError
from evaluation.engines.vllm import INSTALL_HINT, allowed_rank
from pipelines.process import HUB_TOKENS, child, free_port, inherited
from pipelines.serve.proof import PROBE_TOKENS, Proof, compare, reference, written_to_probes

if TYPE_CHECKING:
    from student.adapters import Adapter

Engine = Literal["vllm", "embedded"]
LOOPBACK = "127.0.0.1"
_START_SECONDS, _REFERENCE_SECONDS, _CALL_SECONDS = 1800.0, 900.0, 300.0
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the reference answers use the cores as well
    "OMP_WAIT_POLICY": "PASSIVE",
}
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # one process fewer; starts in 27 s instead of 38


def chosen_engine(asked: Literal["auto", "vllm", "embedded"], arguments: tuple[str, ...] = ()) -> Engine:
    """Return the engine that is meant: `auto` is vLLM where it is installed.

    Raises:
        ServeError: vLLM is asked for and not installed.
        ConfigError: There are arguments for vLLM, and the engine is another.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if asked == "vllm" and not installed:
        raise ServeError(f"serve: vLLM is not installed. {INSTALL_HINT}, or take --engine embedded.")
    if asked == "vllm" or (asked == "auto" and installed):
        return "vllm"
    if arguments:
        raise ConfigError(
            f"serve: got {' '.join(arguments)!r} after `--`, which is for vLLM, and the engine is the embedded one. "
            "Leave it out, or install vLLM and take --engine vllm."
        )
    return "embedded"


class Launch(NamedTuple):
    """What an engine is started for."""

    base: str
    """As `load_checkpoint` takes it."""
    rank: int
    """Largest rank of an adapter, in [1, 512], unless `arguments` have another; for vLLM, as what follows it. On a CPU
    every request costs it."""
    modules: tuple[str, ...]
    """Ends of the names of the layers that adapters may have, such as `q_proj`. Without them vLLM wraps the output head
    as well, and a request for a prompt's log-probabilities kills it on a CPU (seen with 0.32)."""
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    arguments: tuple[str, ...] = ()
    """Appended to vLLM's command line."""
    engine: Engine = "vllm"

    @property
    def tolerance(self) -> float:
        """Largest difference of a token's log-probability between engine and PEFT, in nats."""
        # Measured on a CPU with vLLM: 1.5e-5 in float32, 0.19 in bfloat16.
        return 1e-3 if (self.device, self.dtype) == ("cpu", "float32") else 0.25


def vllm_command(launch: Launch, port: int) -> list[str]:
    """Return the command line of vLLM's server."""
    on_cpu = ("--enforce-eager", "--kv-cache-memory-bytes", "1000000000") if launch.device == "cpu" else ()
    return [
        # The module: `vllm serve` looks for a distribution called vllm, and the CPU build has another name.
        *(sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", ready_model(launch.base)),
        *("--served-model-name", "base", "--host", LOOPBACK, "--port", str(port), "--dtype", launch.dtype),
        *("--generation-config", "vllm", "--seed", "0", "--disable-uvicorn-access-log", "--disable-log-stats"),
        *("--enable-lora", "--max-lora-rank", str(allowed_rank(launch.rank))),
        *("--lora-target-modules", *launch.modules),
        # A switch holds four adapters: old, new, one that is leaving, and the base.
        *("--max-loras", "4", "--max-cpu-loras", "8", *on_cpu, *launch.arguments),
    ]


def embedded_command(launch: Launch, port: int) -> list[str]:
    """Return the command line of the embedded engine."""
    place = ("--device", launch.device, "--dtype", launch.dtype)
    return [sys.executable, "-P", "-m", "pipelines.serve.embedded", launch.base, str(port), *place]


def _environment(launch: Launch, hidden: str | None, key: str) -> dict[str, str]:
    """Return the environment of an engine, without the variable `hidden`; vLLM's name of the key is that of both."""
    environment = {**_ENVIRONMENT, **(_CPU_ENVIRONMENT if launch.device == "cpu" else {})}
    gated = () if Path(ready_model(launch.base)).is_dir() else HUB_TOKENS
    environment |= {name: value for name, value in inherited(os.environ, gated).items() if name != hidden}
    if launch.engine == "embedded":  # our own module is found wherever this process finds it
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    return environment | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_API_KEY": key}


class EngineServer:
    """A running child and a client of it."""

    def __init__(self, launch: Launch, process: Any, client: httpx.AsyncClient, log: Path) -> None:
        self._launch, self._log = launch, log
        self.label = "vLLM" if launch.engine == "vllm" else "the embedded engine"
        """For messages."""
        self.process: asyncio.subprocess.Process = process
        self.client = client

    @classmethod
    @asynccontextmanager
    async def start(cls, launch: Launch, log: Path, hidden: str | None = None) -> AsyncIterator[EngineServer]:
        """Start a server that is gone afterwards, its output in `log`; it does not get the variable `hidden`."""
        port, key = free_port(), secrets.token_hex(32)
        command = vllm_command if launch.engine == "vllm" else embedded_command
        client = httpx.AsyncClient(
            base_url=f"http://{LOOPBACK}:{port}",
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(None, connect=5.0),  # a server that died closes its connections
            # Shorter than the engine keeps an idle connection, so that none is used that it is just closing.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=2.0),
            trust_env=False,
        )
        async with client, child(command(launch, port), _environment(launch, hidden, key), log) as process:
            yield cls(launch, process, client, log)

    async def until_ready(self) -> None:
        """Return when the server answers.

        Raises:
            ServeError: It does not in time.
        """
        for _ in range(int(4 * _START_SECONDS)):
            with suppress(httpx.TransportError):
                if (await self.client.get("/health", timeout=5.0)).status_code == 200:
                    return
            await asyncio.sleep(0.25)
        raise ServeError(
            f"serve: {self.label} did not start within {_START_SECONDS:g} s; its last words: {self.last_words()}"
        )

    def last_words(self) -> str:
        """Return the last line of the log that names an error, or its last line."""
        lines = [line.strip() for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()]
        return ([line for line in lines if "Error" in line] or lines or ["nothing"])[-1][-300:]

    async def load(self, name: str, files: Path) -> None:
        """Load an adapter under a name that was never used in this server; ServeError when it is refused."""
        await self._call("/v1/load_lora_adapter", lora_name=name, lora_path=str(files.resolve()))

    async def unload(self, name: str) -> None:
        """Forget a name, loaded or not; requests that use it finish."""
        with suppress(ServeError, RuntimeError):  # the latter when this server is closed
            await self._call("/v1/unload_lora_adapter", lora_name=name)

    async def prove(self, name: str, files: Path, adapter: Adapter) -> Proof:
        """Return how a loaded adapter's answers compare with the reference's, computed in a process of its own.

        Raises:
            ServeError: There are no answers to compare, or the adapter was trained on another base.
            ModelError: The base cannot be opened.
        """
        launch = self._launch
        try:
            async with asyncio.timeout(_REFERENCE_SECONDS):
                probes = await to_process.run_sync(reference, launch.base, files, launch.dtype, cancellable=True)
        except (TimeoutError, BrokenWorkerProcess) as error:
            raise ServeError(f"serve: no reference answers for {name!r}: {error!r}") from error
        body = {"model": name, "prompt": [probe.prompt for probe in probes], "max_tokens": PROBE_TOKENS}
        body |= {"temperature": 0.0, "ignore_eos": True, "logprobs": 5}
        reply = await self._call("/v1/completions", **body, return_token_ids=True, return_tokens_as_token_ids=True)
        zero = not any(a.any() and b.any() for a, b in adapter.factors.values())
        return compare(probes, written_to_probes(reply.json()), launch.tolerance, zero=zero)

    async def _call(self, path: str, **body: Any) -> httpx.Response:
        try:
            reply = await self.client.post(path, json=body, timeout=_CALL_SECONDS)
        except httpx.HTTPError as error:
            raise ServeError(f"serve: {self.label} did not answer {path}: {error!r}") from error
        if reply.status_code != 200:
            raise ServeError(f"serve: {self.label} refused {path} with status {reply.status_code}: {reply.text[:500]}")
        return reply
